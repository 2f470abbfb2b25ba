"""Agreement of velocities with displacements to neighbours of neighbours: the sums behind a velocity graph."""

# mypy: disable-error-code="call-arg"
from __future__ import annotations

import numba
import numpy as np
from scipy import sparse

from tenfold.kernels.threads import in_threads


def neighbor_cosines(
    positions: np.ndarray,
    velocities: np.ndarray,
    neighbors: np.ndarray,
    root: bool = False,
    genes: np.ndarray | None = None,
) -> sparse.csr_matrix:
    """Correlate the velocity of each cell with the displacement to every cell within two steps of the graph.

    The value is the cosine of the two vectors after their means over genes were taken off (Pearson's correlation).

    Parameters
    ----------
    positions
        Expression, shape (n_cells, n_genes), float32.
    velocities
        Change of expression, same shape, float32, finite where genes count.
    neighbors
        Nearest cells of each cell, itself left out, shape (n_cells, k), integers.
    root
        Take the signed square root of velocities and displacements first, which tames genes of high variance.
    genes
        Which count, shape (n_genes,), bool; default all. They are read where they lie, since copies of most genes of
        many cells would be the largest arrays of all.

    Returns
    -------
    CSR, float32, shape (n_cells, n_cells), values in [-1, 1], sorted, without stored zeros. A cell without velocity,
    or whose velocity is the same for all genes, has an empty row.
    """
    x, v, counted = _counted(genes, positions, velocities)
    near = np.ascontiguousarray(neighbors, dtype=np.int32)
    n = len(x)
    counts = np.zeros(n + 1, np.int64)
    in_threads(lambda first, last: _count(v, counted, near, root, counts, first, last), n)
    pointers = np.cumsum(counts)
    columns, values = np.empty(pointers[-1], np.int32), np.empty(pointers[-1], np.float32)
    in_threads(lambda first, last: _correlate(x, v, counted, near, root, pointers, columns, values, first, last), n)
    graph = sparse.csr_matrix((values, columns, pointers), shape=(n, n))
    if not values.all():
        graph.eliminate_zeros()
    return graph


def coherence(velocities: np.ndarray, neighbors: np.ndarray, genes: np.ndarray | None = None) -> np.ndarray:
    """Return the mean correlation over genes of each cell's velocity with those of its neighbours, (n_cells,), float32.

    Parameters are as for `neighbor_cosines`. 0 for a cell without velocity.
    """
    v, counted = _counted(genes, velocities)
    near, out = np.ascontiguousarray(neighbors, dtype=np.int32), np.zeros(len(v), np.float32)
    lengths = np.empty(len(v))
    in_threads(lambda first, last: _lengths(v, counted, lengths, first, last), len(v))
    in_threads(lambda first, last: _cohere(v, counted, near, lengths, out, first, last), len(v))
    return out


def _counted(genes: np.ndarray | None, *matrices: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return matrices as compiled code takes them, and 1 for columns that count, 0 for others; few are copied."""
    if genes is not None and 2 * genes.sum() < len(genes):
        matrices, genes = tuple(matrix[:, genes] for matrix in matrices), None
    found = tuple(np.ascontiguousarray(matrix, dtype=np.float32) for matrix in matrices)
    return *found, np.ones(found[0].shape[1], np.float32) if genes is None else genes.astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _direct(row, counted, root, out):
    """Fill `out` with a velocity less its mean over genes that count, of length 1; return what it was."""
    total, squares, n = 0.0, 0.0, 0.0
    for g in range(len(row)):
        value = row[g] if counted[g] > 0 else np.float32(0)  # genes that do not count may be NaN
        if root:
            value = np.sqrt(abs(value)) * np.sign(value)
        out[g] = value
        total += float(value)
        n += counted[g]
    mean = np.float32(total / n)
    for g in range(len(row)):
        out[g] = (out[g] - mean) * counted[g]
        squares += np.float64(out[g]) * out[g]
    length = np.sqrt(squares)
    for g in range(len(row)):
        out[g] /= np.float32(max(length, 1e-30))
    return length


@numba.njit(nogil=True, cache=True)
def _lengths(v, counted, lengths, first, last):
    own = np.empty(len(counted), np.float32)
    for i in range(first, last):
        lengths[i] = _direct(v[i], counted, False, own)


@numba.njit(nogil=True, cache=True)
def _cohere(v, counted, near, lengths, out, first, last):
    own = np.empty(len(counted), np.float32)
    for i in range(first, last):
        if _direct(v[i], counted, False, own) == 0:
            continue
        total = 0.0
        for j in near[i]:
            if lengths[j] > 0:  # `own` sums to 0, so that the mean of the other need not be taken off
                total += _along(own, v[j], counted) / lengths[j]
        out[i] = total / near.shape[1]


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _along(own, other, counted):
    total = np.float32(0)
    for g in range(len(own)):
        total += own[g] * (other[g] if counted[g] > 0 else np.float32(0))
    return total


@numba.njit(nogil=True, cache=True)
def _count(v, counted, near, root, counts, first, last):
    """Count the cells within two steps of cells `first` to `last` that move."""
    seen, own = np.full(len(near), -1, np.int64), np.empty(len(counted), np.float32)
    for i in range(first, last):
        if _direct(v[i], counted, root, own) == 0:
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
def _correlate(x, v, counted, near, root, pointers, columns, values, first, last):
    seen, own, n = np.full(len(near), -1, np.int64), np.empty(len(counted), np.float32), counted.sum()
    for i in range(first, last):
        start, stop = pointers[i], pointers[i + 1]
        if stop == start:
            continue
        _direct(v[i], counted, root, own)
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
            if root:
                values[place] = _rooted(x[i], x[j], own, counted, n)
            else:
                values[place] = _plain(x[i], x[j], own, counted, n)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _plain(a, b, v, counted, n):
    """Correlation of ``b - a`` with `v`, whose mean is 0 and whose length is 1."""
    along, total, squares = np.float32(0), np.float32(0), np.float32(0)
    for g in range(len(v)):
        d = (b[g] - a[g]) * counted[g]
        along += d * v[g]
        total += d
        squares += d * d
    return _ratio(along, total, squares, n)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _rooted(a, b, v, counted, n):
    """As `_plain`, of the signed square root of ``b - a``."""
    along, total, squares = np.float32(0), np.float32(0), np.float32(0)
    for g in range(len(v)):
        d = (b[g] - a[g]) * counted[g]
        size = abs(d)
        r = np.sqrt(size)
        r = r if d > 0 else -r
        along += r * v[g]
        total += r
        squares += size
    return _ratio(along, total, squares, n)


@numba.njit(nogil=True, cache=True, inline="always")
def _ratio(along, total, squares, n):
    spread = squares - total * total / np.float32(n)
    if spread <= np.float32(1e-12) * squares:
        return np.float32(0)
    return np.float32(min(max(along / np.sqrt(spread), np.float32(-1)), np.float32(1)))
