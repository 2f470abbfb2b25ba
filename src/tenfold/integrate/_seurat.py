"""Integration by Seurat's anchors; its two methods say only in which space they look for neighbours."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tenfold.data import anchors as shared
from tenfold.data import preprocess, seurat
from tenfold.kernels.anchors import Pairs, mutual
from tenfold.method import Corrector, FixedEmbedder, Method

if TYPE_CHECKING:
    from scipy import sparse

    from tenfold.data.inputs import Inputs


class Anchors(NamedTuple):
    """Pairs of rows of the data, and their scores."""

    left: np.ndarray
    right: np.ndarray
    score: np.ndarray


class SeuratAnchors(Method, FixedEmbedder, Corrector):
    """Base: anchors of all pairs of batches, merges along a tree, shifts of joint components and of expression."""

    n_neighbors: int
    k_score: int
    k_weight: int
    sd_weight: float
    n_components: int
    n_top_genes: int

    @abstractmethod
    def _prepare(self, parts: list[sparse.csr_matrix]) -> None:
        """Compute what depends on one batch; `parts` holds the log-expression of each, cells × selected genes."""

    @abstractmethod
    def _search(self, a: int, b: int, k: int) -> seurat.Lists:
        """Return `k` neighbours of all cells of two batches, within and across (fewer in a smaller batch)."""

    @abstractmethod
    def _release(self) -> None:
        """Drop what `_prepare` made."""

    def _kept(self, pairs: Pairs, a: int, b: int) -> np.ndarray:
        """Tell which pairs stay, (n_pairs,)."""
        return np.ones(len(pairs.left), dtype=bool)

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        title, names = self.info.title, data.batch.names
        members = shared.cells_of_batches(data.batch, self.n_neighbors, title, "n_neighbors")
        genes = data.variable_genes(self.n_top_genes)
        chosen = data.lognorm[:, genes]
        shared.check_genes_vary(chosen, title)
        self.expression_, self.genes_ = data.lognorm, data.gene_names
        self.start_ = preprocess.pca(chosen, self.n_components).embedding
        found = self._all_anchors([chosen[cells] for cells in members], members)
        self.anchor_counts_ = np.zeros((len(names), len(names)), dtype=np.int64)
        for (a, b), anchors in found.items():
            self.anchor_counts_[a, b] = self.anchor_counts_[b, a] = len(anchors.left)
        self._integrate(found, members, names)
        shared.warn_of_poor_pairs(title, self.merges_)

    def _all_anchors(self, parts: list[sparse.csr_matrix], members: list[np.ndarray]) -> dict[tuple[int, int], Anchors]:
        self._prepare(parts)
        found = {}
        for a, b in combinations(range(len(parts)), 2):
            lists = self._search(a, b, max(self.n_neighbors, self.k_score))
            pairs = mutual(lists.ab[:, : self.n_neighbors], lists.ba[:, : self.n_neighbors])
            kept = self._kept(pairs, a, b)
            pairs = Pairs(pairs.left[kept], pairs.right[kept])
            scored = seurat.Lists(*(named[:, : self.k_score] for named in lists))
            score = seurat.scores(pairs, scored) if len(pairs.left) else np.zeros(0)
            found[a, b] = Anchors(members[a][pairs.left], members[b][pairs.right], score)
        self._release()
        return found

    def _integrate(self, found: dict[tuple[int, int], Anchors], members: list[np.ndarray], names: list[str]) -> None:
        """Merge the batches along the tree, shifting the joint components; keeps the weights for `correct`."""
        points, self.merges_ = self.start_.copy(), []
        sizes = np.array([len(cells) for cells in members])
        place = np.empty(len(points), dtype=np.int64)
        for reference, query in seurat.merge_tree(self.anchor_counts_, sizes):
            anchors = _between(found, reference, query)
            cells = np.concatenate([members[b] for b in query])
            place[cells] = np.arange(len(cells))
            merge: dict[str, Any] = {
                "left": [names[b] for b in reference], "right": [names[b] for b in query],
                "pairs": len(anchors.left), "paired_left": len(np.unique(anchors.left)) / sizes[reference].sum(),
                "paired_right": len(np.unique(anchors.right)) / sizes[query].sum(),
                "left_rows": anchors.left, "right_rows": anchors.right, "score": anchors.score, "cells": cells,
            }  # fmt: skip
            self.merges_.append(merge)
            if len(anchors.left):
                rows = place[anchors.right]
                k = self._enough(len(np.unique(rows)), merge)
                merge["weights"] = seurat.anchor_weights(points[cells], rows, anchors.score, k, self.sd_weight)
                _shift(points, merge)
        self.embedding_ = points

    def _enough(self, n_anchor_cells: int, merge: dict[str, Any]) -> int:
        if n_anchor_cells < self.k_weight:
            warnings.warn(
                f"{self.info.title}: {' + '.join(merge['right'])} has anchors in {n_anchor_cells} cells only, fewer "
                f"than k_weight={self.k_weight}, so {n_anchor_cells} are averaged. With so few the shift is nearly the "
                "same for all cells; the batch may be too small, or share no type with the others.",
                stacklevel=2,
            )
        return min(n_anchor_cells, self.k_weight)

    def _corrected(self, columns: np.ndarray) -> np.ndarray:
        values = self.expression_[:, columns].toarray()
        for merge in self.merges_:
            if merge["pairs"]:
                _shift(values, merge)
        return values


def _between(found: dict[tuple[int, int], Anchors], reference: list[int], query: list[int]) -> Anchors:
    """Collect the anchors between two sets of batches, left in the reference."""
    parts = []
    for r in reference:
        for q in query:
            anchors = found[min(r, q), max(r, q)]
            parts.append(anchors if r < q else Anchors(anchors.right, anchors.left, anchors.score))
    return Anchors(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _shift(values: np.ndarray, merge: dict[str, Any]) -> None:
    """Move the query cells of a merge in `values`, (n_cells, v), in place."""
    values[merge["cells"]] += merge["weights"] @ (values[merge["left_rows"]] - values[merge["right_rows"]])
