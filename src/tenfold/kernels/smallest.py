"""The smallest entries of long rows that are seen piece by piece, as a nearest-neighbour search produces them."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from numba import njit

_ROOM = 4  # times k entries are gathered before the row is cut back to k
_STRIDE = 8  # entries whose minimum is looked at first: nearly all strides hold nothing that is wanted
_FEWEST_ROWS = 64  # a thread is not worth starting for fewer
#: Below every distance, for an entry that must be kept. Finite, since the compiled loop assumes finite numbers.
LOWEST = float(np.finfo(np.float32).min)


class Smallest:
    """Keeps the `k` smallest entries of each row while blocks of columns pass by.

    Parameters
    ----------
    rows
        Number of rows.
    k
        Entries to keep.
    """

    def __init__(self, rows: int, k: int) -> None:
        self.k = k
        self._values = np.empty((rows, _ROOM * k + _STRIDE), dtype=np.float32)
        self._columns = np.empty((rows, _ROOM * k + _STRIDE), dtype=np.int32)
        self._count = np.zeros(rows, dtype=np.int64)
        self._limit = np.full(rows, np.finfo(np.float32).max, dtype=np.float32)

    def add(self, block: np.ndarray, first: int) -> None:
        """Look through a block of columns.

        Parameters
        ----------
        block
            Finite entries of every row, shape (rows, n), float32.
        first
            Column of the whole row at which the block starts.
        """
        threads = min(torch.get_num_threads(), max(1, len(block) // _FEWEST_ROWS))
        if threads == 1:
            self._add(block, first, 0, len(block))
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda ends: self._add(block, first, *ends), _ranges(len(block), threads)))

    def _add(self, block: np.ndarray, first: int, low: int, high: int) -> None:
        rows = slice(low, high)
        _gather(
            block[rows], first, self._values[rows], self._columns[rows], self._count[rows], self._limit[rows], self.k
        )

    def columns(self) -> np.ndarray:
        """Return the columns of the `k` smallest entries in no order, shape (rows, k); all rows must have seen `k`."""
        _cut_all(self._values, self._columns, self._count, self.k)
        return self._columns[:, : self.k]


def _ranges(n: int, parts: int) -> list[tuple[int, int]]:
    ends = np.linspace(0, n, parts + 1).astype(int).tolist()
    return list(pairwise(ends))


@njit(cache=True, nogil=True, fastmath=True)
def _gather(block, first, values, columns, count, limit, k):  # pragma: no cover  (compiled)
    width, room = block.shape[1], values.shape[1]
    whole = width // _STRIDE * _STRIDE
    for r in range(block.shape[0]):
        row, own_values, own_columns = block[r], values[r], columns[r]
        most, n = limit[r], count[r]
        for start in range(0, whole + 1, _STRIDE):
            stop = start + _STRIDE
            if start < whole:
                least = row[start]
                for j in range(1, _STRIDE):
                    least = min(least, row[start + j])
                if least >= most:
                    continue
            else:
                stop = width
            if n + _STRIDE > room:
                most, n = _cut(own_values, own_columns, n, k), k
            for j in range(start, stop):  # without a branch, which would be guessed wrong
                own_values[n], own_columns[n] = row[j], first + j
                n += np.int64(row[j] < most)
        limit[r], count[r] = most, n


@njit(cache=True, nogil=True)
def _cut_all(values, columns, count, k):  # pragma: no cover  (compiled)
    for r in range(values.shape[0]):
        _cut(values[r], columns[r], count[r], k)


@njit(cache=True, nogil=True)
def _cut(values, columns, n, k):  # pragma: no cover  (compiled)
    """Bring the k smallest of n entries to the front by Hoare's selection; return the largest of them."""
    low, high = 0, n - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                columns[i], columns[j] = columns[j], columns[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    largest = values[0]
    for i in range(1, k):
        largest = max(largest, values[i])
    return largest
