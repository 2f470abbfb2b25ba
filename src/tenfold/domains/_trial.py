"""What judging spatial domains takes: positions, annotated layers, and labels for a number of domains and a head."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from anndata import AnnData
from scipy import sparse

from tenfold.data import check
from tenfold.data.heads import Head, clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.refinement import majority
from tenfold.data.spatial import Positions, positions_of, spatial_graph, symmetrised
from tenfold.errors import TenfoldError
from tenfold.method import Clusterer, Method
from tenfold.spatial_models.base import DomainFinder, DomainMethod

HEADS: tuple[Head, ...] = ("kmeans", "mclust", "leiden")
#: Neighbours of the majority vote that stands beside every label.
REFINING = 50
#: Cells that a control refits a method on; of more, those around the middle of the largest slice.
CONTROL_CELLS = 2000
#: How annotators call a cell without a layer.
UNANNOTATED = {"unlabelled", "unlabeled", "unannotated", "unassigned", "unknown", "nan", "na", "none", ""}
#: Labels that were found for a method, which is fitted once: scores, controls and maps ask for the same, at a fit each.
_KNOWN: WeakKeyDictionary[Method, dict[tuple, np.ndarray | None]] = WeakKeyDictionary()


class Layers(NamedTuple):
    """Annotated layers. Cells without one are in the fit, and left out of the score.

    Attributes
    ----------
    names
        Layer of every cell, shape (n_cells,).
    told
        Cells that have one, shape (n_cells,), bool.
    """

    names: np.ndarray
    told: np.ndarray

    @property
    def number(self) -> int:
        """How many layers there are."""
        return len(np.unique(self.names[self.told]))


class Found(NamedTuple):
    """Domains as clustered, and after the majority vote, each of shape (n_cells,)."""

    plain: np.ndarray
    refined: np.ndarray


@dataclass(frozen=True)
class Tissue:
    """Cells in their places, as every judgement looks at them."""

    adata: AnnData
    roles: dict[str, str]

    @cached_property
    def inputs(self) -> Inputs:
        """What a method would be given."""
        return Inputs(self.adata, {role: self.roles[role] for role in ("spatial", "sample") if role in self.roles})

    @cached_property
    def positions(self) -> Positions:
        """Where cells lie; what is odd about it was said when the comparison began."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return positions_of(self.inputs)

    @cached_property
    def graph(self) -> sparse.csr_matrix:
        """The six nearest cells of each, in both directions."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return symmetrised(spatial_graph(self.positions, "knn", 6))

    @property
    def sections(self) -> np.ndarray:
        """Slice of every cell."""
        return self.positions.sections.values

    @cached_property
    def layers(self) -> Layers | None:
        """Annotated layers, where they are given and there are two or more."""
        if "labels" not in self.roles:
            return None
        codes = check.categories(self.adata, self.roles["labels"], "labels")
        names = np.asarray(codes.names, dtype=object)[codes.values].astype(str)
        found = Layers(names, ~np.isin(np.char.lower(names), list(UNANNOTATED)))
        return found if found.number > 1 else None

    def refined(self, labels: np.ndarray) -> Found:
        """Return labels with those after the majority vote beside them."""
        return Found(labels, majority(labels, self.positions, REFINING))

    def part(self, cells: np.ndarray) -> Tissue:
        """Return some of the cells, as a tissue."""
        return replace(self, adata=self.adata[cells].copy())

    def window(self) -> Tissue:
        """Return at most `CONTROL_CELLS` cells, those around the middle of the largest slice, a whole piece."""
        if self.adata.n_obs <= CONTROL_CELLS:
            return self
        rows = max(self.positions.each(), key=len)
        points = self.positions.points[rows]
        away = np.linalg.norm(points - np.median(points, axis=0), axis=1)
        return self.part(np.sort(rows[np.argsort(away, kind="stable")[:CONTROL_CELLS]]))

    def shuffled(self, seed: int) -> Tissue:
        """Return the cells with their positions dealt out anew within each slice."""
        key, rng = self.roles.get("spatial", "spatial"), np.random.default_rng(seed)
        adata = self.adata.copy()
        points = np.array(adata.obsm[key])
        for rows in self.positions.each():
            points[rows] = points[rng.permutation(rows)]
        adata.obsm[key] = points
        return replace(self, adata=adata)


@dataclass(frozen=True)
class Trial:
    """How to make a method, and what it costs."""

    make: Callable[[int], Method]
    thorough: bool = False

    @property
    def sparing(self) -> bool:
        """Whether to refit less often: what is trained or sampled in epochs, unless all controls were asked for."""
        return "epochs" in self.make(0).parameters and not self.thorough

    def fit(self, tissue: Tissue, seed: int, n_domains: int | None) -> Method:
        """Fit on a tissue, told the number of domains where the method takes one."""
        method = self.make(seed)
        if "n_clusters" in method.parameters:
            method = type(method)(**{**method.parameters, "n_clusters": n_domains})
        taken = (*method.info.needs, *method.info.accepts)
        roles: dict[str, Any] = {r: tissue.roles[r] for r in ("spatial", "sample", "batch") if r in tissue.roles}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return method.fit(tissue.adata, progress=False, **{r: key for r, key in roles.items() if r in taken})


def own_labels(method: Method) -> np.ndarray:
    """Return the domains of a fitted method before any refinement."""
    assert isinstance(method, Clusterer)
    return method.cluster(refined=False) if isinstance(method, DomainFinder) else method.cluster()


def clustered_embedding(method: Method) -> np.ndarray | None:
    """Return the embedding whose clusters are the domains; None where the method finds domains by other means."""
    if isinstance(method, DomainMethod) and type(method)._domains is DomainMethod._domains:
        return method.embed()
    return None


def labels_for(method: Method, tissue: Tissue, number: int | None, head: Head | None, seed: int) -> np.ndarray | None:
    """Return a method's domains for a number of them, or a number that is chosen from the data.

    A method that clusters an embedding is not fitted again; one that does not is, unless it was fitted with this
    number. None where it cannot do without a number.
    """
    known = _KNOWN.setdefault(method, {})
    asked = (number, head, seed, tissue.adata.n_obs)
    if asked not in known:
        known[asked] = _labels_for(method, tissue, number, head, seed)
    return known[asked]


def _labels_for(method: Method, tissue: Tissue, number: int | None, head: Head | None, seed: int) -> np.ndarray | None:
    embedding, given = clustered_embedding(method), method.parameters.get("n_clusters")
    if head is None and given == number:
        return own_labels(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if embedding is not None:
            return clusters_of(embedding, number, head or method.parameters["head"], seed)
        if "n_clusters" not in method.parameters:
            return own_labels(method)
        again = type(method)(**{**method.parameters, "n_clusters": number})
        try:
            return own_labels(Trial(lambda _: again).fit(tissue, seed, number))
        except TenfoldError:
            return None


def judged(method: Method, tissue: Tissue, seed: int) -> Found:
    """Return the domains that a method is judged by: for the annotated number of layers, or as it found them."""
    labels = labels_for(method, tissue, tissue.layers.number, None, seed) if tissue.layers else None
    return tissue.refined(own_labels(method) if labels is None else labels)
