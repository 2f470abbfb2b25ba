"""An index of labelled cells: the most similar of them for any cell, and what their labels say."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tenfold.annotators.novelty import one_class_pvalues
from tenfold.annotators.product_quantisation import Quantised
from tenfold.kernels.knn import knn

#: Distances below this count as this where votes are weighted.
NEAREST = 1e-6


class CellIndex(NamedTuple):
    """Labelled cells on the unit sphere, as plain arrays.

    Attributes
    ----------
    points
        Of length 1, shape (n_cells, n_latent), float32; no rows where the index is quantised.
    quantised
        A `Quantised` as a dict, or None.
    codes
        Label of each cell, shape (n_cells,), int64.
    """

    points: np.ndarray
    quantised: dict[str, np.ndarray] | None
    codes: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, codes: np.ndarray, quantised: bool, seed: int) -> CellIndex:
        """Index cells, of length 1; all parts of the points are replaced by the nearest centre if `quantised`."""
        if not quantised:
            return cls(points, None, codes)
        found = Quantised.of(points, seed)
        return cls(points[:0], found._replace(numbers=found.numbers.astype(np.int32))._asdict(), codes)

    def search(self, queries: np.ndarray, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the most similar indexed cells, best first, and their distances, 1 - cosine; each (n_queries, k).

        All indexed cells are looked at where there are 100,000 at most, else most of the nearest are found.
        """
        k = min(k, len(self.codes))
        if self.quantised is not None:
            everything = np.zeros(queries.shape[1], dtype=bool)
            near, similarity = Quantised(**self.quantised).search(queries, everything, k)
            return near, np.maximum(1 - similarity, 0)
        near, distance = knn(queries, self.points, k, seed=seed)
        return near, distance.astype(np.float64) ** 2 / 2

    def shares(self, near: np.ndarray, distance: np.ndarray, n_labels: int, weighted: bool) -> np.ndarray:
        """Return the share of votes of each label, (n_queries, n_labels); the nearer weigh more if `weighted`."""
        votes = 1 / np.maximum(distance, NEAREST) if weighted else np.ones(near.shape)
        found = np.zeros((len(near), n_labels))
        np.add.at(found, (np.arange(len(near))[:, None], self.codes[near]), votes)
        return found / found.sum(axis=1, keepdims=True)

    def described(self, near: np.ndarray, distance: np.ndarray, labels: np.ndarray, known: np.ndarray) -> pd.DataFrame:
        """Return what the votes of each cell look like; see `CellSearch.neighbors` for the columns."""
        columns: dict[str, Any] = {
            "nearest": distance[:, 0], "farthest": distance[:, -1], "pvalue": pvalues(distance, known),
        }  # fmt: skip
        for weighted, suffix in ((False, ""), (True, "_weighted")):
            share = self.shares(near, distance, len(labels), weighted)
            second, first = np.partition(share, -2, axis=1)[:, -2:].T
            columns[f"label{suffix}"] = labels[share.argmax(axis=1)]
            columns[f"share{suffix}"], columns[f"against_second{suffix}"] = first, first / (first + second)
        return pd.DataFrame(columns)

    def kept(self, mask: np.ndarray) -> CellIndex:
        """Return the index of some of the cells, a mask of shape (n_cells,)."""
        if self.quantised is None:
            return self._replace(points=self.points[mask], codes=self.codes[mask])
        fewer = {**self.quantised, "numbers": self.quantised["numbers"][mask]}
        return self._replace(quantised=fewer, codes=self.codes[mask])


def pvalues(distance: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the share of known cells that are as far from the nearest indexed cell; 1 where there are none.

    Parameters
    ----------
    distance
        To the nearest indexed cells, nearest first, shape (n_queries, k).
    known
        Distance to the nearest of cells that are known not to be new, shape (n_known,).
    """
    nearest = distance[:, 0]
    return one_class_pvalues(nearest, known) if len(known) else np.ones(len(nearest))
