"""The bases of methods that find spatial domains: refinement and results, alike for all."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.data.heads import Head, clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.refinement import majority, outvoted
from tenfold.data.spatial import Positions, positions_of
from tenfold.method import Clusterer, FixedEmbedder, Method, param

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

Refinement = Literal["none", "majority", "outvoted"]


class DomainFinder(Method, Clusterer):
    """A method that implements ``_domains``; refinement is a step of its own.

    The fitted state is ``domains_`` (before refinement), ``refined_`` (after), ``spacing_`` and ``unit_`` of the
    positions, and what ``_domains`` keeps.
    """

    n_clusters: int | None = param(None, low=2)
    refinement: Refinement = "none"
    n_refining: int = param(50, low=2)
    seed: int = param(0, low=0)

    @abstractmethod
    def _domains(self, data: Inputs, positions: Positions) -> np.ndarray:
        """Return the domain of each cell, integers from 0 (largest), shape (n_cells,)."""

    def _fit(self, data: Inputs) -> None:
        positions = positions_of(data)
        self.spacing_, self.unit_ = positions.spacing, positions.unit
        self.domains_ = self._domains(data, positions)
        self.refined_ = self._refine(self.domains_, positions)

    def _refine(self, labels: np.ndarray, positions: Positions) -> np.ndarray:
        if self.refinement == "none":
            return labels
        return (majority if self.refinement == "majority" else outvoted)(labels, positions, self.n_refining)

    def cluster(self, refined: bool = True) -> np.ndarray:
        """Return the domain of each cell, integers from 0 (largest before refinement), shape (n_cells,).

        Parameters
        ----------
        refined
            After the refinement that was asked for; False: as clustered.
        """
        self._check_fitted()
        return self.refined_ if refined else self.domains_


class DomainMethod(DomainFinder, FixedEmbedder):
    """A method that implements ``_embed``; clustering of the embedding ``embedding_`` is a step of its own."""

    head: Head = "kmeans"

    @abstractmethod
    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        """Return the embedding that is clustered, shape (n_cells, n_dimensions), float32."""

    def _domains(self, data: Inputs, positions: Positions) -> np.ndarray:
        self.embedding_ = np.ascontiguousarray(self._embed(data, positions), dtype=np.float32)
        return clusters_of(self.embedding_, self.n_clusters, self.head, self.seed)


class SoftDomains:
    """Mixed into a `DomainFinder` that knows how probable each domain is: ``obsm["<m>_probabilities"]``.

    The fitted state is ``probabilities_``, shape (n_cells, n_domains), float32, columns in the order of ``domains_``.
    """

    probabilities_: np.ndarray

    def probabilities(self) -> pd.DataFrame:
        """Return the probability of each domain for each cell, before refinement.

        Returns
        -------
        Shape (n_cells, n_domains), float32; columns ``"0"``, ``"1"``, ... as in ``cluster(refined=False)``. Domains
        that no cell is in come last.
        """
        import pandas as pd

        self._check_fitted()  # type: ignore[attr-defined]  # of Method
        return pd.DataFrame(self.probabilities_, columns=[str(level) for level in range(self.probabilities_.shape[1])])

    def write(self, adata: AnnData, task: str | None = None) -> None:
        """Write domains and their probabilities; see `Method.write`."""
        super().write(adata, task)  # type: ignore[misc]
        key = self.roles_.get("key_added", self.name())  # type: ignore[attr-defined]
        adata.obsm[f"{key}_probabilities"] = self.probabilities().set_axis(adata.obs_names, axis=0)


def largest_first(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number domains by falling size, labels and columns of probabilities alike; domains without cells come last."""
    order = np.argsort(-np.bincount(labels, minlength=probabilities.shape[1]), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[labels], np.ascontiguousarray(probabilities[:, order], dtype=np.float32)
