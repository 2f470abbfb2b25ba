"""UMAP connectivities of a neighbour graph, as Scanpy uses them, without importing UMAP (seconds of compilation)."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.kernels.bisection import solve_rows

_SMALLEST_SCALE = 1e-3  # of the mean distance; keeps duplicated cells from a bandwidth of zero


def fuzzy_graph(
    indices: np.ndarray, distances: np.ndarray, local_connectivity: float = 1.0, mix_ratio: float = 1.0
) -> sparse.csr_matrix:
    """Turn neighbour lists into a symmetric weighted graph.

    The weight of a neighbour at distance d is ``exp(-(d - rho) / sigma)``: rho is the distance of the nearest other
    cell, and sigma is chosen so that the weights of a cell's neighbours sum to log2(k). The two directions of an edge
    are joined by ``a + b - a b`` (union).

    Parameters
    ----------
    indices
        Neighbours of every cell, the cell itself first, shape (n, k), int. Entries below 0 are no neighbours.
    distances
        Their distances, shape (n, k).
    local_connectivity
        Take rho from this nearest other cell instead of the first, between 1 and k - 1; fractions interpolate.
    mix_ratio
        Share of the union of the two directions; the rest is their intersection ``a b``.

    Returns
    -------
    Connectivities in [0, 1], shape (n, n), float32, diagonal empty.

    References
    ----------
    McInnes, Healy, Melville, arXiv 2018, doi:10.48550/arXiv.1802.03426.
    """
    n, k = indices.shape
    distances = np.asarray(distances, dtype=np.float32)
    rho = _nearest(distances, local_connectivity)
    beyond = np.maximum(distances - rho[:, None], np.float32(0))
    sigma = _bandwidths(beyond[:, 1:], np.log2(k))
    floor = np.where(rho > 0, distances.mean(axis=1), distances.mean()) * np.float32(_SMALLEST_SCALE)
    sigma = np.maximum(sigma, floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(beyond > 0, np.exp(-beyond / sigma[:, None]), np.float32(1))
    weights[(indices == np.arange(n)[:, None]) | (indices < 0)] = 0
    pointers = np.arange(0, n * k + 1, k)
    directed = sparse.csr_matrix((weights.ravel(), np.maximum(indices, 0).ravel(), pointers), shape=(n, n))
    directed.sum_duplicates()
    directed.eliminate_zeros()
    opposite = directed.T.tocsr()
    both = directed.multiply(opposite)
    graph = mix_ratio * (directed + opposite - both) + (1 - mix_ratio) * both
    return sparse.csr_matrix(graph, dtype=np.float32)


def _nearest(distances: np.ndarray, rank: float) -> np.ndarray:
    """Return the `rank`-th smallest positive distance of every row; the largest where there are fewer, else 0."""
    positive = np.where(distances > 0, distances, np.inf)
    whole, part = int(rank), np.float32(rank - int(rank))
    if rank == 1:
        nearest = positive.min(axis=1)
    else:
        positive = np.sort(positive, axis=1)
        nearest = positive[:, whole - 1]
        if part:
            nearest = nearest + part * (positive[:, whole] - nearest)
    return np.where(np.isfinite(nearest), nearest, distances.max(axis=1))


def _bandwidths(beyond: np.ndarray, target: float) -> np.ndarray:
    scale = np.maximum(beyond.mean(axis=1), np.float32(1e-30))

    def total(inverse: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.exp(beyond[rows] * -inverse[:, None]).sum(axis=1)

    return 1 / solve_rows(total, 1 / scale, target)
