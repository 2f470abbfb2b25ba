"""Graphs whose weights fall with distance like a Gaussian, cut off where nothing is lost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import brentq
from scipy.spatial import cKDTree

from tenfold.errors import ParameterError

#: Largest share of the sum of a row that the cut-off may take away.
CUT = 1e-4


class GaussianGraph(NamedTuple):
    """Weights exp(-d² / 2l²) of pairs of cells.

    Attributes
    ----------
    weights
        Symmetric, ones on the diagonal, shape (n_cells, n_cells), CSR, float32; blocks by section.
    lengths
        l of every section, in the unit of the points.
    """

    weights: sparse.csr_matrix
    lengths: list[float]


def gaussian_graph(points: np.ndarray, sections: list[np.ndarray], share: float, cut: float = CUT) -> GaussianGraph:
    """Join cells by Gaussian weights whose length is such that neighbours count `share` as much as the cell itself.

    Weights are left out beyond ``l √(2 ln(n / cut))``, n the cells of the section. Each is below cut / n, fewer than n
    are missing in a row, and the row's sum is at least 1, so that no sum, nor any mean of features between -1 and 1,
    is off by more than `cut`: a bound for all data. About 30 edges a cell remain in 100,000 cells at ``share=0.5``,
    where the full matrix has 100,000.

    Parameters
    ----------
    points
        Shape (n_cells, n_dimensions).
    sections
        Rows of every section; the length is sought for each.
    share
        Mean over cells of the sum of the weights of all others (SpaGCN's p).
    cut
        Largest relative error of the sum of a row.

    Raises
    ------
    ParameterError
        `share` is more than a section's cells can give.
    """
    n = len(points)
    rows, columns, values, lengths = [np.arange(n)], [np.arange(n)], [np.ones(n)], []
    for cells in sections:
        length, pairs, squares = _length(points[cells], share, np.sqrt(2 * np.log(max(len(cells), 2) / cut)))
        weights = np.exp(-squares / (2 * length**2))
        rows += [cells[pairs[:, 0]], cells[pairs[:, 1]]]
        columns += [cells[pairs[:, 1]], cells[pairs[:, 0]]]
        values += [weights, weights]
        lengths.append(length)
    at = (np.concatenate(rows), np.concatenate(columns))
    weights = sparse.csr_matrix((np.concatenate(values).astype(np.float32), at), shape=(n, n))
    return GaussianGraph(weights, lengths)


def _length(points: np.ndarray, share: float, reach: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the length at which neighbours weigh `share`, and pairs within `reach` lengths with their squares."""
    n = len(points)
    if share >= n - 1:
        raise ParameterError(f"The neighbours of a cell cannot weigh {share}: the section has {n} cells only.")
    tree = cKDTree(points)
    nearest = tree.query(points, k=2)[0][:, 1]
    high = float(np.median(nearest)) or float(nearest.max())
    while True:  # until the solution is enclosed: weights grow with the length
        pairs, squares = _pairs(tree, points, reach * high)
        if 2 * np.exp(-squares / (2 * high**2)).sum() / n > share:
            break
        high *= 1.5

    def excess(log_length: float) -> float:
        near = squares <= (reach * np.exp(log_length)) ** 2
        return 2 * np.exp(-squares[near] / (2 * np.exp(2 * log_length))).sum() / n - share

    low = np.log(high * 1e-3)
    # Cells that share a position weigh 1 each at any length; more of them than wanted leave the shortest length.
    length = float(np.exp(low if excess(low) >= 0 else brentq(excess, low, np.log(high), xtol=1e-9)))
    near = squares <= (reach * length) ** 2
    return length, pairs[near], squares[near]


def _pairs(tree: cKDTree, points: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    pairs = tree.query_pairs(radius, output_type="ndarray")
    return pairs, np.square(points[pairs[:, 0]] - points[pairs[:, 1]]).sum(axis=1)
