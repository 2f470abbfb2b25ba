"""Cells of two batches that correspond, grown from mutual nearest neighbours along the graph within each batch."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.kernels.anchors import mutual_pairs


def grown_weights(
    anchor: np.ndarray, query: np.ndarray, k_across: int, k_within: int, n_steps: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often random walks from mutual nearest pairs pass each cell of two batches.

    From every pair across the batches a walk goes `n_steps` steps in each of them, to a random mutual neighbour at
    every step, itself included. Nothing is drawn: numbers of visits are expected ones, from powers of sparse matrices.

    Parameters
    ----------
    anchor, query
        Coordinates, shapes (n_anchor, d) and (n_query, d); compared by their angle.
    k_across, k_within
        Neighbours sought across and within batches.
    n_steps
        Cells that a walk visits, its start included.

    Returns
    -------
    Shapes (n_anchor,) and (n_query,), each with sum 1. (The nearest two cells of all are always a pair.)

    References
    ----------
    Wang et al. (2021), doi 10.1186/s13059-021-02280-8.
    """
    first, second = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (anchor, query))
    pairs = mutual_pairs(first, second, k_across, k_across)
    return _visits(first, pairs.left, k_within, n_steps), _visits(second, pairs.right, k_within, n_steps)


def _visits(points: np.ndarray, starts: np.ndarray, k: int, n_steps: int) -> np.ndarray:
    """Return the share of each point in the visits of walks that begin at `starts`."""
    n = len(points)
    near = mutual_pairs(points, points, k, k)
    graph = sparse.csr_matrix((np.ones(len(near.left)), (near.left, near.right)), shape=(n, n))
    graph = ((graph + sparse.identity(n, format="csr")) > 0).astype(np.float64)
    step = sparse.diags(1 / np.asarray(graph.sum(axis=1)).ravel()) @ graph
    here = np.bincount(starts, minlength=n).astype(np.float64)
    total = here.copy()
    for _ in range(n_steps - 1):
        here = step.T @ here
        total += here
    return total / total.sum()
