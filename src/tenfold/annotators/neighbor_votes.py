"""Labels of the nearest labelled cells, as shares."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.kernels.knn import drop_self, knn


def neighbor_shares(
    points: np.ndarray, codes: np.ndarray, n_labels: int, n_neighbors: int, queries: np.ndarray | None = None
) -> np.ndarray:
    """Return the share of each label among the nearest labelled cells, each with one vote.

    Parameters
    ----------
    points
        Coordinates, shape (n_cells, n_dims).
    codes
        Label of each cell, -1 where there is none, shape (n_cells,).
    n_labels
        Number of labels.
    n_neighbors
        Neighbours that vote, all labelled cells at most.
    queries
        Coordinates of other cells; ``None`` for those of `points`, none of which is its own neighbour.

    Returns
    -------
    Shape (n_cells or n_queries, n_labels), float32; rows sum to 1.
    """
    labelled = np.flatnonzero(codes >= 0)
    targets, own = np.ascontiguousarray(points[labelled]), codes[labelled]
    k = min(n_neighbors, len(labelled))
    if queries is not None:
        return _counted(own[knn(queries, targets, k)[0]], n_labels)
    found = np.zeros((len(points), n_labels), dtype=np.float32)
    rest = np.flatnonzero(codes < 0)
    if len(rest):
        found[rest] = _counted(own[knn(np.ascontiguousarray(points[rest]), targets, k)[0]], n_labels)
    if len(labelled) > 1:
        indices = drop_self(*knn(targets, k=min(n_neighbors + 1, len(labelled))))[0]
        found[labelled] = _counted(own[indices], n_labels)
    return found


def graph_shares(distances: sparse.csr_matrix, codes: np.ndarray, n_labels: int, n_neighbors: int) -> np.ndarray:
    """Return the share of each label among the nearest labelled cells that a graph leads to; 0 where there are none.

    Parameters
    ----------
    distances
        Of neighbours, shape (n_cells, n_cells), without the cell itself.
    codes, n_labels, n_neighbors
        As in `neighbor_shares`.
    """
    found = np.zeros((distances.shape[0], n_labels), dtype=np.float32)
    graph = distances.tocoo()
    kept = codes[graph.col] >= 0
    rows, labels, far = graph.row[kept], codes[graph.col[kept]], graph.data[kept]
    order = np.lexsort((far, rows))
    rows, labels = rows[order], labels[order]
    starts = np.searchsorted(rows, rows)  # of the row of each entry
    near = np.arange(len(rows)) - starts < n_neighbors
    np.add.at(found, (rows[near], labels[near]), 1.0)
    return found / np.maximum(found.sum(axis=1, keepdims=True), 1)


def _counted(labels: np.ndarray, n_labels: int) -> np.ndarray:
    found = np.zeros((len(labels), n_labels), dtype=np.float32)
    np.add.at(found, (np.arange(len(labels))[:, None], labels), 1.0)
    return found / labels.shape[1]
