"""What Seurat's two ways of integration share: scaled genes, filtered and scored anchors, weights, order of merges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.cluster.hierarchy import linkage
from scipy.sparse.linalg import svds

from tenfold.kernels.anchors import Pairs, weight_rows
from tenfold.kernels.knn import knn

_CLIP = 10.0  # standard deviations, upwards only
_BLOCK = 2048
_DENSE = 300  # matrices up to this size are decomposed as a whole


class Lists(NamedTuple):
    """Neighbours of the cells of two batches, each (n_cells, k); a cell comes first in its own batch's list."""

    aa: np.ndarray
    ab: np.ndarray
    bb: np.ndarray
    ba: np.ndarray


class Scaled:
    """Genes of one batch at mean 0 and variance 1, clipped at 10, made dense in blocks of cells.

    Parameters
    ----------
    matrix
        Log-expression, cells × genes, CSR.
    by_cell
        Also bring every cell to mean 0 and variance 1 over the genes.
    """

    def __init__(self, matrix: sparse.csr_matrix, by_cell: bool) -> None:
        n_cells = matrix.shape[0]
        self.matrix, self.by_cell = matrix, by_cell
        mean = np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel() / n_cells
        squares = np.asarray(matrix.power(2).sum(axis=0, dtype=np.float64)).ravel()
        deviation = np.sqrt(np.maximum(squares - n_cells * mean**2, 0) / max(n_cells - 1, 1))
        varies = deviation > 1e-6 * np.maximum(mean, 1e-6)
        self.mean = mean.astype(np.float32)
        self.factor = np.divide(1, deviation, out=np.zeros_like(deviation), where=varies).astype(np.float32)

    def blocks(self):
        """Yield slices of cells and their dense values, float32."""
        for start in range(0, self.matrix.shape[0], _BLOCK):
            rows = slice(start, start + _BLOCK)
            block = self.matrix[rows].toarray()
            block -= self.mean
            block *= self.factor
            np.minimum(block, _CLIP, out=block)
            if self.by_cell:
                block -= block.mean(axis=1, keepdims=True)
                deviation = block.std(axis=1, ddof=1, keepdims=True)
                np.divide(block, deviation, out=block, where=deviation > 0)
            yield rows, block

    def gram(self) -> np.ndarray:
        """Return genes × genes sums of products, float64."""
        total = np.zeros((self.matrix.shape[1],) * 2)
        for _, block in self.blocks():
            total += block.T @ block
        return total

    def times(self, loadings: np.ndarray) -> np.ndarray:
        """Return cells × loadings, float32."""
        loadings = loadings.astype(np.float32)
        return np.concatenate([block @ loadings for _, block in self.blocks()])

    def products_with(self, points: np.ndarray) -> np.ndarray:
        """Return sums of products of each gene with coordinates of the cells, (p, d), float64."""
        return sum((block.T @ points[rows] for rows, block in self.blocks()), start=np.zeros(()))


def root(gram: np.ndarray) -> np.ndarray:
    """Return L with L L' = `gram`, (p, rank)."""
    values, vectors = linalg.eigh(gram)
    kept = values > 1e-9 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def canonical_loadings(root_a: np.ndarray, root_b: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return gene loadings A, B of the leading singular vectors of X'Y, without forming that cells × cells matrix.

    With XX' = L L' and YY' = K K' the singular values of X'Y are those of L'K = P S Q', which is genes × genes, and
    its vectors are U = X' K Q / S and V = Y' L P / S.

    Parameters
    ----------
    root_a, root_b
        L and K, (p, rank).
    n_components
        Lowered to the smaller rank.

    Returns
    -------
    A, B
        (p, d): U = X'A and V = Y'B.
    """
    core = root_a.T @ root_b
    d = min(n_components, *core.shape)
    if min(core.shape) <= _DENSE or d >= min(core.shape) - 1:
        p, s, qt = np.linalg.svd(core, full_matrices=False)
    else:
        p, s, qt = svds(core, k=d, v0=np.ones(min(core.shape)))
    order = np.argsort(s)[::-1][:d]
    order = order[s[order] > 1e-9 * s.max()]
    return root_b @ qt[order].T / s[order], root_a @ p[:, order] / s[order]


def unit_rows(points: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; rows of zeros stay."""
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return np.divide(points, length, out=np.zeros_like(points), where=length > 0)


def leading_genes(loadings: np.ndarray, most: int) -> np.ndarray:
    """Return the genes with the largest loadings: equally many from both ends of each component, under `most`."""
    order = np.argsort(loadings, axis=0)
    chosen = np.unique(np.concatenate([order[:1], order[-1:]]))
    for each in range(2, len(loadings) // 2 + 1):
        wider = np.unique(np.concatenate([order[:each], order[-each:]]))
        if len(wider) >= most:
            break
        chosen = wider
    return chosen


def near_in_expression(
    a: sparse.csr_matrix, b: sparse.csr_matrix, pairs: Pairs, genes: np.ndarray, k: int
) -> np.ndarray:
    """Tell which pairs have cell b among the `k` nearest of cell a, by length-1 expression of `genes`; (n_pairs,).

    Where a batch has fewer cells than `k`, all pairs do.
    """
    if k > min(a.shape[0], b.shape[0]):
        return np.ones(len(pairs.left), dtype=bool)
    rows, group = np.unique(pairs.left, return_inverse=True)
    found, _ = knn(unit_rows(a[rows][:, genes].toarray()), unit_rows(b[:, genes].toarray()), k)
    return (found[group] == pairs.right[:, None]).any(axis=1)


def scores(pairs: Pairs, lists: Lists) -> np.ndarray:
    """Return how much the neighbours of both cells of a pair overlap, between the 1 % and 90 % quantiles; 0 to 1."""

    def shared(ours: np.ndarray, theirs: np.ndarray, width: int) -> np.ndarray:
        one, two = (
            sparse.csr_matrix((np.ones(named.size), named.ravel(), np.arange(0, named.size + 1, named.shape[1])),
                              shape=(len(named), width))
            for named in (ours[pairs.left], theirs[pairs.right])
        )  # fmt: skip
        return np.asarray(one.multiply(two).sum(axis=1)).ravel()

    overlap = shared(lists.aa, lists.ba, len(lists.aa)) + shared(lists.ab, lists.bb, len(lists.bb))
    low, high = np.quantile(overlap, [0.01, 0.9])
    return np.clip((overlap - low) / (high - low), 0, 1) if high > low else np.ones(len(overlap))


def anchor_weights(
    points: np.ndarray, anchor_rows: np.ndarray, score: np.ndarray, k: int, sd: float
) -> sparse.csr_matrix:
    """Weights of the anchors for every query cell, from its `k` nearest anchor cells.

    An anchor's weight is 1 - exp(-(1 - d / d_k) × score / (2 / sd)²); at most `k` anchors count, those of nearer cells
    first; rows sum to 1.

    Parameters
    ----------
    points
        Coordinates of the query cells, (n, d).
    anchor_rows
        Row of `points` in each anchor, (n_anchors,).
    score
        Of each anchor.
    k, sd
        Numbers as above; there must be `k` different anchor cells.

    Returns
    -------
    (n, n_anchors), float32.
    """
    order = np.argsort(anchor_rows, kind="stable")
    cells, first, counts = np.unique(anchor_rows[order], return_index=True, return_counts=True)
    near, distance = knn(points, points[cells], k)
    closeness = 1 - distance / np.maximum(distance[:, -1:], 1e-30)
    parts = []
    for start in range(0, len(points), _BLOCK):
        found, close = near[start : start + _BLOCK], closeness[start : start + _BLOCK]
        places, values = np.zeros((len(found), k), dtype=np.int64), np.zeros((len(found), k))
        taken = np.zeros(len(found), dtype=np.int64)
        for step in range(k):
            for extra in range(int(counts[found[:, step]].max())):
                rows = np.flatnonzero((counts[found[:, step]] > extra) & (taken < k))
                anchor = order[first[found[rows, step]] + extra]
                places[rows, taken[rows]] = anchor
                values[rows, taken[rows]] = 1 - np.exp(-close[rows, step] * score[anchor] * sd**2 / 4)
                taken[rows] += 1
        parts.append(weight_rows(places, values, len(anchor_rows)))
    return sparse.vstack(parts, format="csr")


def merge_tree(counts: np.ndarray, sizes: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Return the merges (reference, query): complete linkage of smaller size / anchors; the larger is the reference.

    Parameters
    ----------
    counts
        Anchors between two batches, (n_batches, n_batches).
    sizes
        Cells of each batch.
    """
    n = len(sizes)
    upper = np.triu_indices(n, 1)
    apart = np.minimum(sizes[upper[0]], sizes[upper[1]]) / np.maximum(counts[upper], 1e-9)
    sets = [[b] for b in range(n)]
    merges = []
    for a, b in linkage(apart, method="complete")[:, :2].astype(int):
        one, two = sets[min(a, b)], sets[max(a, b)]
        if sizes[one].sum() < sizes[two].sum():
            one, two = two, one
        merges.append((one, two))
        sets.append([*one, *two])
    return merges
