"""Agreement of velocities with displacements to neighbours of neighbours: the sums behind a velocity graph."""

# mypy: disable-error-code="call-arg"
from __future__ import annotations

import numba
import numpy as np
from scipy import sparse

from tenfold.kernels.threads import in_threads


def neighbor_cosines(
    positions: np.ndarray, velocities: np.ndarray, neighbors: np.ndarray, root: bool = False
) -> sparse.csr_matrix:
    """Correlate the velocity of each cell with the displacement to every cell within two steps of the graph.

    The value is the cosine of the two vectors after their means over genes were taken off (Pearson's correlation).

    Parameters
    ----------
    positions
        Expression, shape (n_cells, n_genes), float32.
    velocities
        Change of expression, same shape, float32, finite.
    neighbors
        Nearest cells of each cell, itself left out, shape (n_cells, k), integers.
    root
        Take the signed square root of velocities and displacements first, which tames genes of high variance.

    Returns
    -------
    CSR, float32, shape (n_cells, n_cells), values in [-1, 1], sorted, without stored zeros. A cell without velocity,
    or whose velocity is the same for all genes, has an empty row.
    """
    x = np.ascontiguousarray(positions, dtype=np.float32)
    v = np.array(velocities, dtype=np.float32, order="C")
    if root:
        v = np.sqrt(np.abs(v)) * np.sign(v)
    v -= v.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("ij,ij->i", v, v, dtype=np.float64))
    v /= np.maximum(length, 1e-30)[:, None].astype(np.float32)
    near = np.ascontiguousarray(neighbors, dtype=np.int32)
    n = len(x)
    counts = np.zeros(n + 1, np.int64)
    in_threads(lambda first, last: _count(near, length > 0, counts, first, last), n)
    pointers = np.cumsum(counts)
    columns, values = np.empty(pointers[-1], np.int32), np.empty(pointers[-1], np.float32)
    in_threads(lambda first, last: _correlate(x, v, near, root, pointers, columns, values, first, last), n)
    graph = sparse.csr_matrix((values, columns, pointers), shape=(n, n))
    graph.eliminate_zeros()
    return graph


@numba.njit(nogil=True, cache=True)
def _count(near, moving, counts, first, last):
    """Count the cells within two steps of cells `first` to `last` that move."""
    seen = np.full(len(near), -1, np.int64)
    for i in range(first, last):
        if not moving[i]:
            continue
        seen[i] = i
        for j in near[i]:
            if seen[j] != i:
                seen[j] = i
                counts[i + 1] += 1
            for k in near[j]:
                if seen[k] != i:
                    seen[k] = i
                    counts[i + 1] += 1


@numba.njit(nogil=True, cache=True)
def _correlate(x, v, near, root, pointers, columns, values, first, last):
    seen = np.full(len(near), -1, np.int64)
    for i in range(first, last):
        start, stop = pointers[i], pointers[i + 1]
        if stop == start:
            continue
        place = start
        seen[i] = i
        for j in near[i]:
            if seen[j] != i:
                seen[j] = i
                columns[place] = j
                place += 1
            for k in near[j]:
                if seen[k] != i:
                    seen[k] = i
                    columns[place] = k
                    place += 1
        columns[start:stop].sort()
        for place in range(start, stop):
            j = columns[place]
            values[place] = _rooted(x[i], x[j], v[i]) if root else _plain(x[i], x[j], v[i])


@numba.njit(nogil=True, cache=True, fastmath=True)
def _plain(a, b, v):
    """Correlation of ``b - a`` with `v`, whose mean is 0 and whose length is 1."""
    along, total, squares = np.float32(0), np.float32(0), np.float32(0)
    for g in range(len(v)):
        d = b[g] - a[g]
        along += d * v[g]
        total += d
        squares += d * d
    return _ratio(along, total, squares, len(v))


@numba.njit(nogil=True, cache=True, fastmath=True)
def _rooted(a, b, v):
    """As `_plain`, of the signed square root of ``b - a``."""
    along, total, squares = np.float32(0), np.float32(0), np.float32(0)
    for g in range(len(v)):
        d = b[g] - a[g]
        size = abs(d)
        r = np.sqrt(size)
        r = r if d > 0 else -r
        along += r * v[g]
        total += r
        squares += size
    return _ratio(along, total, squares, len(v))


@numba.njit(nogil=True, cache=True, inline="always")
def _ratio(along, total, squares, n):
    spread = squares - total * total / np.float32(n)
    if spread <= np.float32(1e-12) * squares:
        return np.float32(0)
    return np.float32(min(max(along / np.sqrt(spread), np.float32(-1)), np.float32(1)))
