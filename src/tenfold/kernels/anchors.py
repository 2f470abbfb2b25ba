"""Anchors: mutual nearest pairs of cells, and the shift that they give every cell by smoothing.

MNN, fastMNN, Scanorama and Seurat's integration are this routine with another search space, filter and kernel: pairs
(cell of the left set, cell of the right set) → a shift at each paired right cell → a weighted average of these shifts
at every right cell. Weights of few neighbours are a sparse matrix; Gaussian weights of all paired cells are made and
used in blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from tenfold.kernels.knn import knn

_EXACT_PAIRS = 10_000_000_000
_BLOCK_ENTRIES = 1 << 22  # weights or distances at a time: 16 MB


class Pairs(NamedTuple):
    """Mutual nearest pairs, sorted by left, then right row; both (n_pairs,), int64."""

    left: np.ndarray
    right: np.ndarray


def mutual_pairs(left: np.ndarray, right: np.ndarray, k_left: int, k_right: int, exact: bool | None = None) -> Pairs:
    """Find the pairs in which each cell is among the nearest of the other, by Euclidean distance.

    Parameters
    ----------
    left, right
        Coordinates, (n_left, d) and (n_right, d).
    k_left, k_right
        Number of neighbours sought among the left, and among the right cells.
    exact
        As in `tenfold.kernels.knn.knn`, but by default the true neighbours up to 10^10 pairs of cells: one side is
        searched once only, so that building an index for an approximate search does not pay earlier.

    Raises
    ------
    DataError
        A side has fewer cells than neighbours.
    """
    exact = len(left) * len(right) <= _EXACT_PAIRS if exact is None else exact
    to_right, _ = knn(left, right, k_right, exact=exact)
    to_left, _ = knn(right, left, k_left, exact=exact)
    return mutual(to_right, to_left)


def mutual(to_right: np.ndarray, to_left: np.ndarray) -> Pairs:
    """Intersect two directed neighbour lists.

    Parameters
    ----------
    to_right
        Right rows that each left cell names, (n_left, k).
    to_left
        Left rows that each right cell names, (n_right, k).
    """
    n_left, n_right = len(to_right), len(to_left)
    rows = np.repeat(np.arange(n_left, dtype=np.int64), to_right.shape[1])
    forward = rows * n_right + to_right.ravel()
    columns = np.repeat(np.arange(n_right, dtype=np.int64), to_left.shape[1])
    backward = to_left.ravel().astype(np.int64) * n_right + columns
    both = np.intersect1d(forward, backward, assume_unique=True)
    return Pairs(both // n_right, both % n_right)


def nearest_manhattan(query: np.ndarray, ref: np.ndarray, k: int) -> np.ndarray:
    """Return the `k` nearest rows of `ref` by city-block distance, exactly; (n, k), int32, nearest first."""
    x, y = (torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32)) for points in (query, ref))
    indices = np.empty((len(x), k), dtype=np.int32)
    step = max(1, _BLOCK_ENTRIES // len(y))
    for start in range(0, len(x), step):
        found = torch.cdist(x[start : start + step], y, p=1.0).topk(k, dim=1, largest=False).indices
        indices[start : start + step] = found.numpy()
    return indices


def shifts_at_pairs(left: np.ndarray, right: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Average (left - right) over the pairs of each paired right cell.

    Returns
    -------
    rows
        Right rows that have a pair, sorted, (m,).
    shifts
        (m, d).
    """
    rows, group, counts = np.unique(pairs.right, return_inverse=True, return_counts=True)
    shares = (1 / counts[group]).astype(left.dtype)
    average = sparse.csr_matrix((shares, (group, pairs.left)), shape=(len(rows), len(left)))
    return rows, average @ left - right[rows]


def tricube_weights(points: np.ndarray, at: np.ndarray, k: int, width: float) -> sparse.csr_matrix:
    """Weights of the `k` nearest rows of `at` for every point; rows sum to 1.

    The bandwidth is `width` × the distance to the middle neighbour; weight (1 - (d / bandwidth)³)³.

    Returns
    -------
    (n_points, n_at), float32.
    """
    k = min(k, len(at))
    indices, distances = knn(points, at, k)
    bandwidth = np.maximum(width * distances[:, (k + 1) // 2 - 1 : (k + 1) // 2], 1e-8)
    weights = (1 - np.minimum(distances / bandwidth, 1) ** 3) ** 3
    return weight_rows(indices, weights, len(at))


def weight_rows(indices: np.ndarray, weights: np.ndarray, n_columns: int) -> sparse.csr_matrix:
    """Return weights as CSR whose rows sum to 1; a row of zeros stays so: such a cell does not move."""
    total = weights.sum(axis=1, keepdims=True)
    shares = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0).astype(np.float32)
    pointers = np.arange(0, indices.size + 1, indices.shape[1])
    return sparse.csr_matrix((shares.ravel(), indices.ravel(), pointers), shape=(len(indices), n_columns))


def gaussian_smooth(
    points: np.ndarray,
    at: np.ndarray,
    values: np.ndarray,
    rate: float,
    log_weight: np.ndarray | None = None,
    smallest: float = -np.inf,
) -> np.ndarray:
    """Average `values` at every point with weights exp(-rate × |point - at|² + log_weight), normalised.

    Parameters
    ----------
    points, at
        (n, d) and (m, d).
    values
        At the rows of `at`, (m, v).
    rate
        Inverse of the squared width.
    log_weight
        Of each row of `at`, (m,).
    smallest
        A point whose largest weight has a logarithm below this gets 0.

    Returns
    -------
    (n, v), float32.
    """
    out = np.empty((len(points), values.shape[1]), dtype=np.float32)
    values_t = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    for rows, exponent in _exponents(points, at, rate):
        if log_weight is not None:
            exponent += torch.from_numpy(log_weight.astype(np.float32))
        far = exponent.amax(dim=1) < smallest
        block = torch.softmax(exponent, dim=1) @ values_t
        block[far] = 0
        out[rows] = block.numpy()
    return out


def gaussian_log_density(at: np.ndarray, rate: float) -> np.ndarray:
    """Return log sum_j exp(-rate × |x_i - x_j|²) of every row of `at`, itself included, (m,)."""
    density = np.empty(len(at), dtype=np.float32)
    for rows, exponent in _exponents(at, at, rate):
        density[rows] = torch.logsumexp(exponent, dim=1).numpy()
    return density


def _exponents(points: np.ndarray, at: np.ndarray, rate: float):
    """Yield blocks of rows and of -rate × squared distance."""
    centre = at.mean(axis=0)  # differences of large numbers lose digits in float32
    x, y = (torch.from_numpy(np.ascontiguousarray(values - centre, dtype=np.float32)) for values in (points, at))
    squares = (y * y).sum(dim=1)
    step = max(1, _BLOCK_ENTRIES // len(y))
    for start in range(0, len(x), step):
        block = x[start : start + step]
        distance = torch.addmm(squares, block, y.T, alpha=-2).add_((block * block).sum(dim=1, keepdim=True))
        yield slice(start, start + step), distance.clamp_(min=0).mul_(-rate)
