"""Lists of near points made better by looking at the neighbours of neighbours, which are likely to be near, too."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from scipy import sparse

_MOST = 60  # neighbours of a point that are looked at: a hub is the neighbour of thousands


def improve(points: np.ndarray, targets: np.ndarray, graph: np.ndarray, found: np.ndarray, squares: np.ndarray) -> int:
    """Replace entries of lists, in place, by nearer ones among the neighbours of the entries.

    Parameters
    ----------
    points
        Shape (n, d), float32.
    targets
        Points that the lists name, shape (m, d), float32.
    graph
        Lists of the targets themselves, shape (m, k), int32; taken in both directions.
    found, squares
        Lists of the points, nearest first, and the squared distances; shape (n, k), int32 and float32.

    Returns
    -------
    How many entries are new.
    """
    m, k = graph.shape
    ends = np.arange(0, m * k + 1, k)
    one_way = sparse.csr_matrix((np.ones(m * k, dtype=np.bool_), graph.ravel(), ends), shape=(m, m))
    both = (one_way + one_way.T).tocsr()
    starts, near = both.indptr.astype(np.int64), both.indices.astype(np.int32)
    parts = np.array_split(np.arange(len(points)), torch.get_num_threads())
    with ThreadPoolExecutor(len(parts)) as pool:
        return sum(pool.map(
            lambda rows: _improve(points[rows[0] : rows[-1] + 1], targets, starts, near, found[rows[0] : rows[-1] + 1],
                                  squares[rows[0] : rows[-1] + 1]),
            [rows for rows in parts if len(rows)],
        ))  # fmt: skip


@njit(cache=True, nogil=True, fastmath=True)
def _improve(points, targets, starts, near, found, squares):  # pragma: no cover  (compiled)
    n, k = found.shape
    seen = np.full(targets.shape[0], -1, dtype=np.int32)  # the last point that looked at a target
    before = np.empty(k, dtype=np.int32)
    new = 0
    for i in range(n):
        point, own, own_squares = points[i], found[i], squares[i]
        for a in range(k):
            before[a] = own[a]
            seen[own[a]] = i
        for a in range(k):
            first = starts[before[a]]
            for b in range(first, min(starts[before[a] + 1], first + _MOST)):
                other = near[b]
                if seen[other] == i:
                    continue
                seen[other] = i
                target = targets[other]
                square = np.float32(0.0)
                for t in range(point.shape[0]):
                    square += (point[t] - target[t]) ** 2
                if square >= own_squares[k - 1]:
                    continue
                place = k - 1
                while place > 0 and own_squares[place - 1] > square:
                    own[place], own_squares[place] = own[place - 1], own_squares[place - 1]
                    place -= 1
                own[place], own_squares[place] = other, square
                new += 1
    return new
