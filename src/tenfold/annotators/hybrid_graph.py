"""Anchors between labelled cells and others, as edges of one graph: mutual neighbours in canonical components."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from tenfold.data import seurat
from tenfold.errors import DataError
from tenfold.kernels.anchors import Pairs, mutual
from tenfold.kernels.knn import knn
from tenfold.nn.hybrid_graph import normalised

#: Cells on each side and genes that vary on both, at least; cells among which the overlap of neighbours is scored.
FEWEST_CELLS, FEWEST_GENES, SCORED = 3, 3, 30


class HybridGraph(NamedTuple):
    """Labelled cells first, then the others.

    Attributes
    ----------
    inter
        Anchors: row of the labelled cell, row of the other.
    intra
        Pairs of other cells, each once.
    sizes
        Number of labelled and of other cells.
    """

    inter: Pairs
    intra: Pairs
    sizes: tuple[int, int]

    def propagation(self) -> sparse.csr_matrix:
        """Return the normalised adjacency of all cells; its memory is linear in edges."""
        start = self.sizes[0]
        rows = np.concatenate([self.inter.left, self.intra.left + start])
        columns = np.concatenate([self.inter.right, self.intra.right]) + start
        return normalised(rows, columns, sum(self.sizes))

    def mixing(self, codes: np.ndarray, n_labels: int, clusters: np.ndarray, n_clusters: int) -> pd.DataFrame:
        """Return how mixed the labels are that the anchors of each cluster of other cells lead to.

        Counts of labels among its anchors are divided by the labels' shares of the labelled cells and brought to sum 1.

        Returns
        -------
        One row a cluster: ``enrichment``, the largest part, and ``entropy`` of all, in nats; ``anchors``, their number.
        Without anchors enrichment is 0 and entropy the largest possible.
        """
        counts = np.zeros((n_clusters, n_labels))
        np.add.at(counts, (clusters[self.inter.right], codes[self.inter.left]), 1.0)
        parts = counts / (np.bincount(codes, minlength=n_labels) / len(codes))
        total = parts.sum(axis=1, keepdims=True)
        parts = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
        logs = np.log(parts, out=np.zeros_like(parts), where=parts > 0)
        entropy = np.where(total[:, 0] > 0, -(parts * logs).sum(axis=1), np.log(n_labels))
        return pd.DataFrame({
            "enrichment": parts.max(axis=1), "entropy": entropy, "anchors": counts.sum(axis=1).astype(int),
        })  # fmt: skip


def hybrid_graph(
    labelled: sparse.csr_matrix, others: sparse.csr_matrix, n_neighbors: int, n_components: int
) -> HybridGraph:
    """Link labelled and other cells by anchors, and other cells among themselves by mutual neighbours.

    Anchors are mutual nearest pairs in the canonical components of the two sides, without those whose neighbours
    overlap least (score 0).

    Parameters
    ----------
    labelled, others
        Log-expression of the same genes, CSR.
    n_neighbors
        Neighbours on each side; lowered to the cells of a smaller one.
    n_components
        Canonical components; fewer where there are fewer cells or genes.

    Raises
    ------
    DataError
        Hardly any cells, or hardly any gene varies on both sides.
    """
    fewest = min(labelled.shape[0], others.shape[0])
    if fewest < FEWEST_CELLS:
        raise DataError(
            f"Anchors are sought between {labelled.shape[0]:,} labelled cells and {others.shape[0]:,} to label; at "
            f"least {FEWEST_CELLS} of each are needed. Ask about more cells at a time."
        )
    varies = [seurat.Scaled(part, by_cell=False).factor > 0 for part in (labelled, others)]
    genes = np.flatnonzero(varies[0] & varies[1])
    if len(genes) < FEWEST_GENES:
        raise DataError(
            f"Only {len(genes)} of the genes vary both among labelled cells and among those to label; there is nothing "
            "to match cells by. Give more cells at a time, or raise n_top_genes."
        )
    sides = [seurat.Scaled(part[:, genes], by_cell=True) for part in (labelled, others)]
    loadings = seurat.canonical_loadings(*(seurat.root(side.gram()) for side in sides), n_components)
    a, b = (seurat.unit_rows(side.times(loading)) for side, loading in zip(sides, loadings, strict=True))
    inter = _anchors(a, b, n_neighbors)
    # Within one side the canonical components are its principal components.
    own = seurat.canonical_loadings(*[seurat.root(sides[1].gram())] * 2, n_components)[0]
    return HybridGraph(inter, _within(seurat.unit_rows(sides[1].times(own)), n_neighbors), (len(a), len(b)))


def within(cells: sparse.csr_matrix, n_neighbors: int, n_components: int) -> HybridGraph:
    """Return a graph of labelled cells alone, linked among themselves as others would be."""
    scaled = seurat.Scaled(cells, by_cell=True)
    loadings = seurat.canonical_loadings(*[seurat.root(scaled.gram())] * 2, n_components)[0]
    pairs = _within(seurat.unit_rows(scaled.times(loadings)), n_neighbors)
    nobody = np.zeros(0, dtype=np.int64)
    return HybridGraph(Pairs(nobody, nobody), pairs, (0, cells.shape[0]))


def _within(points: np.ndarray, k: int) -> Pairs:
    near = knn(points, k=min(k + 1, len(points)))[0][:, 1:]
    pairs = mutual(near, near)
    once = pairs.left < pairs.right
    return Pairs(pairs.left[once], pairs.right[once])


def _anchors(a: np.ndarray, b: np.ndarray, k: int) -> Pairs:
    most = max(k, SCORED)
    lists = seurat.Lists(
        knn(a, k=min(most, len(a)))[0], knn(a, b, min(most, len(b)))[0],
        knn(b, k=min(most, len(b)))[0], knn(b, a, min(most, len(a)))[0],
    )  # fmt: skip
    pairs = mutual(lists.ab[:, :k], lists.ba[:, :k])
    if not len(pairs.left):
        return pairs
    kept = seurat.scores(pairs, seurat.Lists(*(named[:, :SCORED] for named in lists))) > 0
    return Pairs(pairs.left[kept], pairs.right[kept])
