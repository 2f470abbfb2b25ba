"""The members of a consensus: made by name, fitted together, asked for other cells, saved and restored."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold import catalog
from tenfold.annotators.neighbor_votes import graph_shares, neighbor_shares
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, ParameterError
from tenfold.types import RunOptions

#: Members that vote by neighbours in an embedding, and the method that makes it.
BY_NEIGHBORS = {"knn_harmony": ("integrate", "harmony"), "knn_bbknn": ("integrate", "bbknn"),
                "knn_scvi": ("embed", "scvi")}  # fmt: skip
#: Members that place the cells of the fit only.
FITTED_CELLS_ONLY = ("knn_harmony", "knn_bbknn")
#: Trained on all cells at once rather than on a sample of the labelled ones.
JOINT = (*BY_NEIGHBORS, "scanvi")
N_COMPONENTS = 50
#: Boosted trees cost most of all classifiers, in proportion to genes.
TREE_GENES = 1000


def check_members(members: tuple[str, ...], itself: str) -> list[str]:
    """Return the names of members, each once; ParameterError if there is no such annotator, or a single one."""
    names = list(dict.fromkeys(members))
    for name in names:
        if name == itself:
            raise ParameterError(f"{itself} cannot be a member of itself.")
        if name not in BY_NEIGHBORS:
            catalog.find("annotate", name)
    if len(names) < 2:
        raise ParameterError(f"A consensus needs at least 2 members; members= names {len(names)}.")
    return names


def with_counts(cells: AnnData) -> np.ndarray:
    """Return which cells have counts in the genes that members read, shape (n_cells,), bool; warn of the others."""
    seen = np.asarray(cells.X.sum(axis=1)).ravel() > 0
    if not seen.any():
        raise DataError("No cell has counts in the variable genes of the reference. Raise n_top_genes.")
    if not seen.all():
        warnings.warn(
            f"{(~seen).sum():,} cells have no counts in the genes that the members read; their label is 'Unknown'. "
            "Filter cells of few counts, or raise n_top_genes.",
            stacklevel=2,
        )
    return seen


def over_all(shares: dict[str, np.ndarray], seen: np.ndarray) -> dict[str, np.ndarray]:
    """Return what members say of the cells that they have seen over all cells, 0 for the others."""
    found = {name: np.zeros((len(seen), share.shape[1]), dtype=np.float32) for name, share in shares.items()}
    for name, share in shares.items():
        found[name][seen] = share
    return found


@dataclass(frozen=True)
class Panel:
    """What members have in common.

    Attributes
    ----------
    labels
        Names of the labels, sorted, shape (n_labels,).
    not_labelled
        What a cell without a label is called.
    n_neighbors, n_per_label, seed
        As in `PopV`.
    options
        Hyper-parameters of members that are trained on all cells.
    """

    labels: np.ndarray
    not_labelled: str
    n_neighbors: int
    n_per_label: int
    seed: int
    options: dict[str, Any]

    def fit(
        self, names: list[str], cells: AnnData, shown: np.ndarray, run: RunOptions
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Fit all members.

        Parameters
        ----------
        names
            Of the members; those that need batches are left out where there is one.
        cells
            All cells, with ``obs["batch"]`` and ``obs["labels"]``.
        shown
            Label of each cell, -1 where it has none to learn from, shape (n_cells,).
        run
            Progress.

        Returns
        -------
        What each member says of each cell, shape (n_cells, n_labels), rows sum to 1 or are 0; and the fitted members
        that can label other cells.
        """
        if cells.obs["batch"].nunique() == 1 and set(names) & set(FITTED_CELLS_ONLY):
            names = [name for name in names if name not in FITTED_CELLS_ONLY]
            warnings.warn("All cells are of one batch: Harmony and BBKNN are left out of the consensus.", stacklevel=2)
        if set(names) & set(FITTED_CELLS_ONLY):
            inputs = Inputs(cells, {"batch": "batch"}, run)
            n_components = min(N_COMPONENTS, min(cells.shape) - 1)
            cells.obsm["X_pca"] = inputs.pca(n_components, None, self.seed).embedding
        sample = self._sample(shown)
        shares, members = {}, {}
        for name in names:
            method = self._made(name, cells)
            if name in BY_NEIGHBORS:
                start = {} if name == "knn_scvi" else {"use_rep": "X_pca"}
                method.fit(cells, batch="batch", progress=run.progress, **start)
                shares[name] = self._by_neighbors(method, shown)
            elif name in JOINT:
                method.fit(cells, batch="batch", labels="labels", progress=run.progress)
                shares[name] = self._table(method.probabilities())
            else:
                method.fit(cells[sample].copy(), labels="labels", progress=run.progress)
                shares[name] = self._table(method.probabilities(cells))
            if name not in FITTED_CELLS_ONLY:
                members[name] = method
        return shares, members

    def ask(self, members: dict[str, Any], cells: AnnData, shown: np.ndarray) -> dict[str, np.ndarray]:
        """Return what fitted members say of other cells; `shown` are the labels of the fitted ones."""
        return {
            name: self._by_neighbors(method, shown, method.embed(cells)) if name in BY_NEIGHBORS
            else self._table(method.probabilities(cells))
            for name, method in members.items()
        }  # fmt: skip

    def _made(self, name: str, cells: AnnData) -> Any:
        given: dict[str, Any] = {"calibration": 0.0, "n_top_genes": None, "seed": self.seed}
        if name == "boosted_trees":
            given["n_top_genes"] = TREE_GENES
        if name in JOINT:
            given |= self.options
        if name == "knn_bbknn":
            sizes = cells.obs["batch"].value_counts()
            given["neighbors_within_batch"] = max(2, min(-(-self.n_neighbors // len(sizes)), int(sizes.min())))
        task, kind = BY_NEIGHBORS.get(name, ("annotate", name))
        known = catalog.find(task, kind).parameter_names()
        return catalog.method(task, kind, **{key: value for key, value in given.items() if key in known})

    def _sample(self, shown: np.ndarray) -> np.ndarray:
        """Return rows of labelled cells for classifiers, at most `n_per_label` of each label."""
        rng, rows = np.random.default_rng(self.seed), []
        for code in np.unique(shown[shown >= 0]):
            cells = np.flatnonzero(shown == code)
            rows.append(cells if len(cells) <= self.n_per_label else rng.choice(cells, self.n_per_label, replace=False))
        return np.sort(np.concatenate(rows))

    def _by_neighbors(self, method: Any, shown: np.ndarray, embedded: np.ndarray | None = None) -> np.ndarray:
        n_labels = len(self.labels)
        if hasattr(method, "graph"):
            return graph_shares(method.graph()[0], shown, n_labels, self.n_neighbors)
        return neighbor_shares(method.embed(), shown, n_labels, self.n_neighbors, embedded)

    def _table(self, found: pd.DataFrame) -> np.ndarray:
        return found.reindex(columns=self.labels, fill_value=0.0).to_numpy(dtype=np.float32)


def packed(members: dict[str, Any]) -> dict[str, Any]:
    """Return fitted members as state that can be saved."""
    return {name: {"parameters": method.parameters, "state": method._state()} for name, method in members.items()}


def unpacked(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the members that `packed` was given."""
    members = {}
    for name, kept in stored.items():
        task, kind = BY_NEIGHBORS.get(name, ("annotate", name))
        members[name] = catalog.method(task, kind, **kept["parameters"])
        members[name]._restore(kept["state"])
    return members
