"""Nearest neighbours: exact by blocked matrix products, approximate for very many cells.

A block of query rows times all reference rows gives squared distances in float32 at the speed of a matrix product;
the smallest are kept while the blocks pass by, and their distances are then computed anew from differences, because
``|x|^2 + |y|^2 - 2 x.y`` loses every digit for close points. The neighbours are the true ones, and up to 100,000 cells
in 50 dimensions this is also cheaper than an approximate search.
"""

from __future__ import annotations

from math import ceil, sqrt
from typing import Literal

import numpy as np
import torch

from tenfold.errors import DataError, ParameterError
from tenfold.kernels.descent import improve
from tenfold.kernels.partition import Partition, nearest_centre
from tenfold.kernels.smallest import LOWEST, Smallest

Metric = Literal["euclidean", "cosine"]

EXACT_UP_TO = 100_000  # reference cells; the cost of the exact search grows with the square
_TREE_DIMENSIONS = 3  # coordinates in space: a k-d tree is exact and far cheaper than a matrix product
_ROWS, _COLUMNS = 512, 2048  # 4 MB of float32 distances at a time, which stay in the cache until they are looked at
_LISTS = 16  # are searched around a point, of the square root of all points
_MOST_ROUNDS, _FEW_NEW = 5, 0.01  # of improvement, and the share of new entries at which it ends


def knn(
    query: np.ndarray,
    ref: np.ndarray | None = None,
    k: int = 15,
    metric: Metric = "euclidean",
    exact: bool | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` nearest rows of `ref` for every row of `query`.

    Parameters
    ----------
    query
        Points, shape (n, d).
    ref
        Points among which the neighbours are sought, shape (m, d). ``None``: within `query`; every row's first
        neighbour is then the cell itself at distance 0, also where other cells lie on the same spot.
    k
        Number of neighbours, the cell itself included when `ref` is ``None``.
    metric
        ``"euclidean"``, or ``"cosine"`` for ``1 - cos(x, y)``.
    exact
        ``True``: the true neighbours. ``False``: approximate ones, 98 to 99 % of them true: the best in the lists of
        a k-means partition around each point, improved by nearest-neighbour descent. ``None``: exact up to 100,000
        reference points.
    seed
        Seed of the approximate search; the exact one has no randomness.

    Returns
    -------
    indices
        Rows of `ref`, nearest first, shape (n, k), int32.
    distances
        Their distances, shape (n, k), float32.

    Raises
    ------
    DataError
        NaN or infinite coordinates, fewer points than neighbours, unequal dimensions, or a row of zeros with the
        cosine metric.
    ParameterError
        An unknown metric, or `k` below 1.

    References
    ----------
    Descent: Dong, Moses, Li, WWW 2011, doi:10.1145/1963405.1963487. Lists: Jégou, Douze, Schmid, IEEE TPAMI 2011,
    doi:10.1109/TPAMI.2010.57.
    """
    if metric not in ("euclidean", "cosine"):
        raise ParameterError(f"Unknown metric '{metric}'. Choose 'euclidean' or 'cosine'.")
    points = _points(query, "query")
    targets = points if ref is None else _points(ref, "ref")
    _check(points, targets, k, within=ref is None)
    if metric == "cosine":
        points = _unit(points)
        targets = points if ref is None else _unit(targets)
    else:
        centre = targets.mean(axis=0)
        points = points - centre
        targets = points if ref is None else targets - centre
    points = np.ascontiguousarray(points, dtype=np.float32)
    targets = points if ref is None else np.ascontiguousarray(targets, dtype=np.float32)

    if exact is False or (exact is None and len(targets) > EXACT_UP_TO and targets.shape[1] > _TREE_DIMENSIONS):
        indices, distances = _approximate(points, targets, k, seed, within=ref is None)
    elif targets.shape[1] <= _TREE_DIMENSIONS:
        indices, distances = _tree(points, targets, k, within=ref is None)
    else:
        indices, distances = _blocked(points, targets, k, within=ref is None)
    if metric == "cosine":
        distances = distances * distances / 2  # |u - v|^2 = 2 (1 - cos) for unit vectors
    return indices, distances


def drop_self(indices: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove the cell itself from a neighbour list in which it comes first.

    Parameters
    ----------
    indices, distances
        Neighbours of every cell with the cell itself first, as `knn` returns them without `ref`, shape (n, k).

    Returns
    -------
    indices, distances
        The other neighbours, shape (n, k - 1).

    Raises
    ------
    DataError
        The first neighbour of some row is not the row itself.
    """
    if not np.array_equal(indices[:, 0], np.arange(len(indices))):
        raise DataError("The first neighbour of every cell must be the cell itself: compute the list with knn(points).")
    return indices[:, 1:], distances[:, 1:]


def _points(array: np.ndarray, name: str) -> np.ndarray:
    points = np.asarray(array)
    if points.ndim != 2 or points.shape[1] == 0:
        raise DataError(f"`{name}` must have the shape (cells, dimensions); it has the shape {points.shape}.")
    if not np.issubdtype(points.dtype, np.floating):
        points = points.astype(np.float64)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(points)} points in `{name}` hold NaN or infinite coordinates (first: row "
            f"{int(bad.argmax())}). Neighbours need finite coordinates: remove these cells or repair the embedding."
        )
    return points


def _check(points: np.ndarray, targets: np.ndarray, k: int, within: bool) -> None:
    if k < 1:
        raise ParameterError(f"The number of neighbours must be at least 1, not {k}.")
    if points.shape[1] != targets.shape[1]:
        raise DataError(f"`query` has {points.shape[1]} dimensions and `ref` has {targets.shape[1]}; they must agree.")
    if k > len(targets):
        itself = " (each cell counts as its own first neighbour)" if within else ""
        raise DataError(
            f"{k} neighbours were asked for, but there are only {len(targets)} cells to choose from{itself}. "
            "Ask for fewer neighbours or use more cells."
        )


def _unit(points: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(points.astype(np.float64, copy=False), axis=1, keepdims=True)
    if (norm == 0).any():
        raise DataError(
            f"Row {int((norm[:, 0] == 0).argmax())} holds zeros only, and the cosine distance to it is undefined. "
            "Use the Euclidean metric or remove such cells."
        )
    return points / norm


def _blocked(points: np.ndarray, targets: np.ndarray, k: int, within: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = torch.from_numpy(points), torch.from_numpy(targets)
    # One product of augmented vectors, [x, 1] . [-2 y, |y|^2], saves a pass over the block that adds the norms.
    left = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    right = torch.cat([-2 * y, (y * y).sum(1, keepdim=True)], dim=1).T
    tiles = [right[:, first : first + _COLUMNS].contiguous() for first in range(0, len(y), _COLUMNS)]
    buffer = torch.empty(_ROWS * _COLUMNS)
    indices = np.empty((len(x), k), dtype=np.int32)
    distances = np.empty((len(x), k), dtype=np.float32)
    # Rounding of the product can swap near ties at the edge of the list: take a few more, then sort the true distances.
    wider = min(len(y), k + 8)
    for start in range(0, len(x), _ROWS):
        stop = min(start + _ROWS, len(x))
        nearest = Smallest(stop - start, wider)
        for first, tile in zip(range(0, len(y), _COLUMNS), tiles, strict=True):
            block = buffer[: (stop - start) * tile.shape[1]].view(stop - start, -1)
            torch.mm(left[start:stop], tile, out=block)
            here = range(max(start, first), min(stop, first + tile.shape[1]))
            if within and len(here):
                itself = torch.tensor(here)
                block[itself - start, itself - first] = LOWEST
            nearest.add(block.numpy(), first)
        own = torch.arange(start, stop) if within else None
        found, true = _sorted(x[start:stop], y, torch.from_numpy(nearest.columns()).long(), own)
        indices[start:stop] = found[:, :k].numpy()
        distances[start:stop] = true[:, :k].numpy()
    return indices, distances


def _sorted(
    x: torch.Tensor, y: torch.Tensor, found: torch.Tensor, own: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort the columns of `found` by true distance, equal distances by index, the cell itself first."""
    found = found.sort(dim=1).values
    true = torch.cdist(x[:, None], y[found], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
    if own is not None:
        true = torch.where(found == own[:, None], -1.0, true)
    true, order = true.sort(dim=1, stable=True)
    return found.gather(1, order), true.clamp_(min=0.0)


def _tree(points: np.ndarray, targets: np.ndarray, k: int, within: bool) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import cKDTree

    distances, indices = cKDTree(targets).query(points, k=np.arange(1, k + 1), workers=torch.get_num_threads())
    return _self_first(indices.astype(np.int32), distances.astype(np.float32), within)


def _approximate(
    points: np.ndarray, targets: np.ndarray, k: int, seed: int, within: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Search the lists around each point, then again and again among the neighbours of neighbours."""
    lists = Partition.of(targets, ceil(sqrt(len(targets))), seed)
    graph, squares = _in_lists(targets, targets, lists, k)
    for _ in range(_MOST_ROUNDS):
        if improve(targets, targets, graph.copy(), graph, squares) < _FEW_NEW * graph.size:
            break
    if not within:
        found, squares = _in_lists(points, targets, lists, k)
        for _ in range(_MOST_ROUNDS):
            if improve(points, targets, graph, found, squares) < _FEW_NEW * found.size:
                break
        graph = found
    return _self_first(graph, np.sqrt(squares), within)


def _in_lists(points: np.ndarray, targets: np.ndarray, lists: Partition, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest among the targets around each point, and their squared distances."""
    own = nearest_centre(points, lists.centres)
    order = np.argsort(own, kind="stable")
    found = np.empty((len(points), k), dtype=np.int32)
    distances = np.empty((len(points), k), dtype=np.float32)
    for group in np.split(order, np.flatnonzero(np.diff(own[order])) + 1):
        around = lists.around(int(own[group[0]]), _LISTS, k)
        places, distances[group] = _blocked(points[group], targets[around], k, within=False)
        found[group] = around[places]
    return found, np.square(distances)


def _self_first(indices: np.ndarray, distances: np.ndarray, within: bool) -> tuple[np.ndarray, np.ndarray]:
    """Put every cell first in its own list; where the search left it out, it takes the place of the last neighbour."""
    if not within:
        return indices, distances
    own = np.arange(len(indices), dtype=np.int32)
    is_own = indices == own[:, None]
    at = np.where(is_own.any(axis=1), is_own.argmax(axis=1), indices.shape[1] - 1)
    for row in np.flatnonzero(at > 0):
        indices[row, 1 : at[row] + 1] = indices[row, : at[row]]
        distances[row, 1 : at[row] + 1] = distances[row, : at[row]]
    indices[:, 0], distances[:, 0] = own, 0.0
    return indices, distances
