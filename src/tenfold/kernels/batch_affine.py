"""Sparse rows that are scaled and shifted by batch: their sums, the products of their columns, the rows made dense."""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit
from scipy import sparse

from tenfold.kernels.threads import in_threads

_SPARSE = 0.008  # mean square of the share of entries, below which entry by entry is faster
_BLOCK = 2048
_ROWS_AT_ONCE = 4096  # whose entries stay in a shared cache


def batch_sums(matrix: sparse.csr_matrix, batch: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum design × values, and squared values, over the rows of each batch in one pass.

    Parameters
    ----------
    matrix
        (n, p), CSR.
    batch
        Codes, (n,).
    design
        Numbers of each row, (n, w).

    Returns
    -------
    Products (n_batches, w, p) and squares (n_batches, p), float64.
    """
    n_batches, p = int(batch.max()) + 1, matrix.shape[1]
    products, squares = np.zeros((n_batches, design.shape[1], p)), np.zeros((n_batches, p))
    design = np.ascontiguousarray(design, dtype=np.float64)
    _sums(matrix.indptr, matrix.indices, matrix.data, batch, design, products, squares)
    return products, squares


def column_scatter(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the columns, (p,), and the products of all pairs of centred columns, (p, p), float64.

    Rows of few entries are multiplied entry by entry, others as dense blocks of 2,048 rows: at 20,000 × 2,000 and 5,
    14 and 30 % of entries, 0.2, 1.7 and 7.0 CPU seconds against 0.9.

    Parameters
    ----------
    matrix
        (n, p), CSR, float32.
    """
    n, p = matrix.shape
    mean = np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel() / n
    if (np.diff(matrix.indptr).astype(np.float64) ** 2).sum() < _SPARSE * n * p**2:
        return mean, column_products(matrix) - n * np.outer(mean, mean)
    scatter, centre = np.zeros((p, p)), mean.astype(np.float32)
    for start in range(0, n, _BLOCK):
        block = matrix[start : start + _BLOCK].toarray() - centre
        scatter += block.T @ block
    return mean, scatter


def column_products(matrix: sparse.csr_matrix) -> np.ndarray:
    """Return the products of all pairs of columns, (p, p), float64, entry by entry.

    Parameters
    ----------
    matrix
        (n, p), CSR.
    """
    matrix = matrix if matrix.has_sorted_indices else matrix.sorted_indices()
    n, p = matrix.shape
    upper = np.zeros((p, p))
    for start in range(0, n, _ROWS_AT_ONCE):
        indptr = matrix.indptr[start : start + _ROWS_AT_ONCE + 1]
        lists = _by_column(indptr, matrix.indices, p)
        # Threads own ranges of first columns, so that they need no copies of the result.
        in_threads(partial(_add_products, upper, matrix, lists), p)
    return np.asarray(upper + np.triu(upper, 1).T)


def _add_products(
    upper: np.ndarray, matrix: sparse.csr_matrix, lists: tuple[np.ndarray, ...], first: int, last: int
) -> None:
    starts, entries, ends = lists
    _products(starts, entries, ends, matrix.indices, matrix.data, first, last, upper)


def scaled_rows(matrix: sparse.csr_matrix, batch: np.ndarray, slope: np.ndarray) -> sparse.csr_matrix:
    """Multiply each entry by the slope of its batch and column, (n_batches, p); float32, index arrays are shared."""
    values = np.empty(len(matrix.data), dtype=np.float32)
    slope = np.ascontiguousarray(slope, dtype=np.float64)
    _scale(matrix.indptr, matrix.indices, matrix.data, batch, slope, values)
    return sparse.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def affine_rows(
    matrix: sparse.csr_matrix, batch: np.ndarray, slope: np.ndarray, design: np.ndarray, shift: np.ndarray
) -> np.ndarray:
    """Return slope × value + design × shift of every entry, dense, float32; nothing else of that size is made.

    Parameters
    ----------
    matrix
        (n, p), CSR.
    batch
        Codes, (n,).
    slope
        (n_batches, p).
    design
        Numbers of each row, the first is 1, (n, w).
    shift
        (n_batches, w, p).
    """
    out = np.empty(matrix.shape, dtype=np.float32)
    slope, design, shift = (np.ascontiguousarray(part, dtype=np.float64) for part in (slope, design, shift))
    constant, fixed = shift[:, 0].astype(np.float32), design.shape[1] == 1
    parts = (matrix.indptr, matrix.indices, matrix.data, batch, slope)
    if fixed:
        in_threads(lambda first, last: _fixed(*parts, shift[:, 0], constant, first, last, out), len(out))
    else:
        in_threads(lambda first, last: _varying(*parts, design, shift, first, last, out), len(out))
    return out


@njit(error_model="numpy", nogil=True, cache=True)
def _sums(indptr, indices, values, batch, design, products, squares):
    for i in range(batch.shape[0]):
        b = batch[i]
        for k in range(indptr[i], indptr[i + 1]):
            g, x = indices[k], np.float64(values[k])
            squares[b, g] += x * x
            for w in range(design.shape[1]):
                products[b, w, g] += design[i, w] * x


@njit(error_model="numpy", nogil=True, cache=True)
def _by_column(indptr, indices, p):
    """List the entries of each column: where it starts, the places of its entries, and where their rows end."""
    starts = np.zeros(p + 1, np.int64)
    for k in range(indptr[0], indptr[-1]):
        starts[indices[k] + 1] += 1
    for g in range(p):
        starts[g + 1] += starts[g]
    at, n_entries = starts[:-1].copy(), indptr[-1] - indptr[0]
    entries, ends = np.empty(n_entries, np.int64), np.empty(n_entries, np.int64)
    for i in range(indptr.shape[0] - 1):
        for k in range(indptr[i], indptr[i + 1]):
            place = at[indices[k]]
            entries[place], ends[place] = k, indptr[i + 1]
            at[indices[k]] = place + 1
    return starts, entries, ends


@njit(error_model="numpy", nogil=True, cache=True)
def _products(starts, entries, ends, indices, values, first, last, upper):
    """Add to one row of the result at a time: it stays in the fastest cache while sparse rows pass by."""
    for g in range(first, last):
        row = upper[g]
        for e in range(starts[g], starts[g + 1]):
            k = entries[e]
            x = np.float64(values[k])
            for m in range(k, ends[e]):
                row[indices[m]] += x * values[m]


@njit(error_model="numpy", nogil=True, cache=True)
def _scale(indptr, indices, values, batch, slope, out):
    for i in range(batch.shape[0]):
        row = slope[batch[i]]
        for k in range(indptr[i], indptr[i + 1]):
            out[k] = np.float32(row[indices[k]] * values[k])


@njit(error_model="numpy", nogil=True, cache=True)
def _fixed(indptr, indices, values, batch, slope, shift, constant, first, last, out):
    for i in range(first, last):
        b = batch[i]
        out[i] = constant[b]
        for k in range(indptr[i], indptr[i + 1]):
            g = indices[k]
            out[i, g] = np.float32(shift[b, g] + slope[b, g] * values[k])


@njit(error_model="numpy", nogil=True, cache=True)
def _varying(indptr, indices, values, batch, slope, design, shift, first, last, out):
    row = np.empty(out.shape[1])
    for i in range(first, last):
        b = batch[i]
        row[:] = 0.0
        for w in range(design.shape[1]):
            row += design[i, w] * shift[b, w]
        for k in range(indptr[i], indptr[i + 1]):
            row[indices[k]] += slope[b, indices[k]] * values[k]
        out[i] = row
