"""Labels of cells smoothed by those around them: a step of its own, reported apart from the method."""

from __future__ import annotations

import numpy as np

from tenfold.data.spatial import Positions, nearest_cells

#: Neighbours of a spot in a hexagonal and of a cell in a square lattice.
LATTICE = 6


def majority(labels: np.ndarray, positions: Positions, n_neighbors: int = 50) -> np.ndarray:
    """Give every cell the most frequent label among its nearest cells, itself left out.

    It removes specks, and with them domains that are thinner than some eight cells.

    Parameters
    ----------
    labels
        Integers from 0, shape (n_cells,).
    positions
        Of the cells.
    n_neighbors
        Nearest cells that vote; ties go to the label of the nearest of all.

    Returns
    -------
    Shape (n_cells,), int64.

    References
    ----------
    As in GraphST: Long et al. (2023), doi 10.1038/s41467-023-36796-3.
    """
    refined = labels.astype(np.int64).copy()
    for rows, votes, nearest in _votes(labels, positions, n_neighbors):
        top = votes.max(axis=1)
        by_nearest = votes[np.arange(len(rows)), nearest] == top
        refined[rows] = np.where(by_nearest, nearest, votes.argmax(axis=1))
    return refined


def outvoted(labels: np.ndarray, positions: Positions, n_neighbors: int = LATTICE) -> np.ndarray:
    """Change a label only where fewer than half of the nearest cells share it and more than half share another.

    Parameters and result as in `majority`.

    References
    ----------
    As in SpaGCN: Hu et al. (2021), doi 10.1038/s41592-021-01255-8.
    """
    refined = labels.astype(np.int64).copy()
    for rows, votes, _ in _votes(labels, positions, n_neighbors):
        half = votes.sum(axis=1) / 2
        lost = (votes[np.arange(len(rows)), labels[rows]] < half) & (votes.max(axis=1) > half)
        refined[rows[lost]] = votes.argmax(axis=1)[lost]
    return refined


def _votes(labels: np.ndarray, positions: Positions, k: int):
    """Yield, by section: its cells, votes of the nearest of each (n_cells, n_labels), and the label of the nearest."""
    n_labels = int(labels.max()) + 1
    for rows in positions.each():
        n_near = min(k, len(rows) - 1)
        if n_near < 1:
            continue
        near = labels[rows][nearest_cells(positions.points[rows], n_near)[0]]
        at = np.arange(len(rows))[:, None] * n_labels + near
        votes = np.bincount(at.ravel(), minlength=len(rows) * n_labels).reshape(len(rows), n_labels)
        yield rows, votes, near[:, 0]
