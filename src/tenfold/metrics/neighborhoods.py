"""Neighbour lists that metrics share, from an embedding or from a graph, and how far two of them agree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from tenfold.errors import DataError, ParameterError
from tenfold.metrics._checks import groups, points

_BLOCK = 4096  # cells whose paths through a graph are followed at a time
_STEPS = 6


class Neighbors(NamedTuple):
    """Neighbour lists, nearest first.

    Attributes
    ----------
    indices
        Shape (n, k), int32; below 0 where a cell has no further neighbour.
    distances
        Shape (n, k), float32; infinite where there is no neighbour.
    """

    indices: np.ndarray
    distances: np.ndarray

    def first(self, k: int) -> Neighbors:
        """Return the `k` nearest only."""
        return Neighbors(self.indices[:, :k], self.distances[:, :k])


def neighbors(cells: np.ndarray, k: int = 90, seed: int = 0) -> Neighbors:
    """Find the nearest cells of every cell, itself first and counted: exact up to 100,000 cells.

    Parameters
    ----------
    cells
        Embedding, shape (n, d).
    k
        Neighbours of a cell, itself included; at most n.
    seed
        Of the approximate search above 100,000 cells.
    """
    from tenfold.kernels.knn import knn

    found = points(cells, "cells")
    return Neighbors(*knn(found, k=min(k, len(found)), seed=seed))


def graph_neighbors(connectivities: sparse.spmatrix, k: int) -> Neighbors:
    """Return the `k` strongest neighbours of every cell of a graph, the cell itself left out.

    Direct neighbours come first, by falling weight. A cell with fewer than `k` is given neighbours of its neighbours,
    by the summed weight of the paths that lead there, then those one step further, up to six steps: graphs with few
    edges a cell can so be compared with embeddings.

    Parameters
    ----------
    connectivities
        Weights of a graph, sparse, shape (n, n), not negative; a larger weight is a closer neighbour. The diagonal is
        ignored.
    k
        Neighbours wanted.

    Returns
    -------
    indices
        Shape (n, k), int32. Where a cell has no more neighbours within six steps, -1: no cell, never to be counted.
    distances
        Shape (n, k), float32: ``-log(strength)``, with a strength of 1 for the largest weight of the graph, and
        neighbours of a further step never stronger than those of the step before. Infinite where the index is -1.

    Raises
    ------
    DataError
        Not a square sparse matrix, or negative or non-finite weights.
    ParameterError
        `k` below 1.

    References
    ----------
    Neighbours along paths, so that sparse graphs can be scored: Luecken et al., Nature Methods 2022,
    doi:10.1038/s41592-021-01336-8.
    """
    if k < 1:
        raise ParameterError(f"The number of neighbours must be at least 1, not {k}.")
    graph = _checked(connectivities)
    n = graph.shape[0]
    indices, distances = np.full((n, k), -1, dtype=np.int32), np.full((n, k), np.inf, dtype=np.float32)
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        _fill(graph, rows, indices, distances)
    return Neighbors(indices, distances)


def _checked(connectivities: sparse.spmatrix) -> sparse.csr_matrix:
    if not sparse.issparse(connectivities) or connectivities.shape[0] != connectivities.shape[1]:
        raise DataError("The graph must be a sparse matrix with as many rows as columns: one of each per cell.")
    graph = sparse.csr_matrix(connectivities, dtype=np.float64, copy=True)
    graph.sum_duplicates()
    if not np.isfinite(graph.data).all() or (graph.data < 0).any():
        raise DataError("The graph holds negative, NaN or infinite weights. Give connectivities, not distances.")
    graph.data[np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr)) == graph.indices] = 0
    graph.eliminate_zeros()
    if graph.nnz:
        graph.data /= graph.data.max()
    return graph


def _fill(graph: sparse.csr_matrix, rows: np.ndarray, indices: np.ndarray, distances: np.ndarray) -> None:
    """Write the neighbours of the cells `rows` into their lists, one step along the graph after the other."""
    k = indices.shape[1]
    weight = np.asarray(graph.sum(axis=1)).ravel()
    step = sparse.diags_array(1 / np.maximum(weight, 1e-300)) @ graph
    paths = sparse.csr_matrix(graph[rows])
    reached = sparse.csr_matrix((np.ones(len(rows)), (np.arange(len(rows)), rows)), shape=paths.shape)
    filled, weakest = np.zeros(len(rows), dtype=np.int64), np.ones(len(rows))
    for _ in range(_STEPS):
        fresh = (paths - paths.multiply(reached)).tocsr()
        fresh.eliminate_zeros()
        lengths = np.diff(fresh.indptr)
        if fresh.nnz == 0:
            return
        owner = np.repeat(np.arange(len(rows)), lengths)
        strongest = np.zeros(len(rows))
        np.maximum.at(strongest, owner, fresh.data)
        strength = fresh.data if not filled.any() else weakest[owner] * fresh.data / strongest[owner]
        order = np.lexsort((fresh.indices, -strength, owner))
        column = filled[owner] + np.arange(fresh.nnz) - np.repeat(fresh.indptr[:-1], lengths)
        kept = column < k
        row, place = rows[owner[kept]], column[kept]
        indices[row, place] = fresh.indices[order][kept]
        distances[row, place] = -np.log(np.maximum(strength[order][kept], 1e-300))
        np.minimum.at(weakest, owner, np.maximum(strength, 1e-300))
        filled += lengths
        if (filled >= k).all():
            return
        reached = (reached + (fresh > 0).astype(np.float64)).tocsr()
        following = sparse.diags_array((filled < k).astype(np.float64)) @ paths
        paths = sparse.csr_matrix(following @ step)


def neighbor_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Mean share of neighbours that two lists have in common.

    ``|A and B| / max(|A|, |B|)`` for the neighbours A and B of a cell, averaged over cells. From 0 to 1; high is good
    where the second list should preserve the first. Chance is about k / n. It is as strict as neighbourhoods are
    fragile: compare it with what a little noise, or another seed, does to the same data.

    Parameters
    ----------
    first, second
        Neighbours of every cell, the cell itself left out, shapes (n, k) and (n, k2), int. Entries below 0 are no
        neighbours.

    Raises
    ------
    DataError
        The lists are not of the same cells, or hold no neighbours at all.
    """
    return float(np.nanmean(shared_neighbors(first, second)))


def shared_neighbors(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the share of neighbours in common of every cell, shape (n,); parameters as in `neighbor_overlap`.

    NaN for a cell without neighbours in both lists.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) == 0:
        raise DataError(
            f"Two neighbour lists of the same cells are needed, shape (n, k); these are {a.shape}, {b.shape}."
        )
    count = np.maximum((a >= 0).sum(axis=1), (b >= 0).sum(axis=1))
    if not count.any():
        raise DataError("Neither list holds any neighbour.")
    shared = np.zeros(len(a), dtype=np.int64)
    for column in a.T:
        shared += ((b == column[:, None]) & (column >= 0)[:, None]).any(axis=1)
    return np.where(count > 0, shared / np.maximum(count, 1), np.nan)


def neighbor_purity(indices: np.ndarray, labels: np.ndarray) -> float:
    """Local purity: mean share of a cell's neighbours that carry its label.

    From 0 to 1; high is good. Large labels dominate the mean, and smoothing an embedding along its own clusters raises
    it.

    Parameters
    ----------
    indices
        Neighbours of every cell, the cell itself left out, shape (n, k), int. Entries below 0 are no neighbours.
    labels
        Label of every cell, shape (n,).
    """
    near = np.asarray(indices)
    codes = groups(labels, "labels", len(near)).codes
    same = (codes[near] == codes[:, None]) & (near >= 0)
    count = (near >= 0).sum(axis=1)
    if not count.any():
        raise DataError("The list holds no neighbours.")
    return float((same.sum(axis=1)[count > 0] / count[count > 0]).mean())
