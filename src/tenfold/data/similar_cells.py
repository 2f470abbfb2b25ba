"""Cells around each cell that are most like it, by picture and expression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse


def similar_cells(
    near: sparse.csr_matrix, points: np.ndarray, factors: Sequence[tuple[np.ndarray | None, bool]], n_similar: int
) -> sparse.csr_matrix:
    """Weigh the cells around each cell by how like it they are, and keep those of the largest weights.

    Parameters
    ----------
    near
        Cells within reach, without the cells themselves.
    points
        Positions, which decide between equal weights: the nearer is kept.
    factors
        Components of cells, whose cosine, where positive, is a factor of the weight, and whether they are centred
        first, so that it is a correlation; None leaves a factor out.
    n_similar
        Cells that are kept for each; those of weight 0 never are.

    Returns
    -------
    Weights, shape (n_cells, n_cells), float64.
    """
    n, edges = near.shape[0], near.tocoo()
    row, column, weight = edges.row, edges.col, np.ones(edges.nnz)
    for part, centred in factors:
        if part is not None:
            unit = part - part.mean(axis=1, keepdims=True) if centred else part
            unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
            weight *= np.maximum(np.einsum("ij,ij->i", unit[row], unit[column]), 0)
    distance = np.linalg.norm(points[row] - points[column], axis=1)
    order = np.lexsort((distance, -weight, row))
    row, column, weight = row[order], column[order], weight[order]
    starts = np.searchsorted(row, np.arange(n))
    kept = (np.arange(len(row)) - starts[row] < n_similar) & (weight > 0)
    return sparse.csr_matrix((weight[kept], (row[kept], column[kept])), shape=(n, n))
