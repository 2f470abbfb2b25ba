"""Products of a large sparse matrix, or of its transpose, with a vector: no copy in another precision or order."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit
from scipy import sparse

from tenfold.kernels.threads import in_threads

#: Parts of the rows whose sums over columns are held apart: the same for any number of threads, as is the rounding.
_PARTS = 8


def times(matrix: sparse.csr_matrix, x: np.ndarray) -> np.ndarray:
    """Return ``matrix @ x``, summed in float64.

    Parameters
    ----------
    matrix
        CSR, any floating type, shape (n, m).
    x
        Shape (m,), float64.
    """
    out = np.empty(matrix.shape[0])
    stored = (matrix.indptr, matrix.indices, matrix.data)
    in_threads(lambda first, last: _gather(stored, x, out, first, last), len(out))
    return out


def transposed_times(matrix: sparse.csr_matrix, x: np.ndarray) -> np.ndarray:
    """Return ``matrix.T @ x``, summed in float64; as `times`, with `x` of shape (n,)."""
    parts = np.zeros((_PARTS, matrix.shape[1]))
    stored, limits = (matrix.indptr, matrix.indices, matrix.data), np.linspace(0, len(x), _PARTS + 1).astype(np.int64)

    def scatter(first: int, last: int) -> None:
        for part in range(first, last):
            _scatter(stored, x, parts[part], limits[part], limits[part + 1])

    in_threads(scatter, _PARTS)
    return parts.sum(axis=0)


@njit(cache=True, nogil=True)
def _gather(stored, x, out, first, last):  # pragma: no cover  (compiled)
    pointers, columns, values = stored
    for i in range(first, last):
        total = 0.0
        for k in range(pointers[i], pointers[i + 1]):
            total += values[k] * x[np.uint32(columns[k])]
        out[i] = total


@njit(cache=True, nogil=True)
def _scatter(stored, x, out, first, last):  # pragma: no cover  (compiled)
    pointers, columns, values = stored
    for i in range(first, last):
        for k in range(pointers[i], pointers[i + 1]):
            out[np.uint32(columns[k])] += values[k] * x[i]
