"""Averages of sparse rows over neighbours, summed where they are wanted: dense, without a sparse product between."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit
from scipy import sparse

from tenfold.kernels.threads import in_threads


def neighbor_means(mean: sparse.csr_matrix, matrix: sparse.csr_matrix) -> np.ndarray:
    """Multiply a graph's matrix by a sparse one into a dense result, ``(mean @ matrix).toarray()``.

    Parameters
    ----------
    mean
        Weights of the neighbours of each cell, shape (n, m), CSR.
    matrix
        Values of cells, shape (m, n_columns), CSR.

    Returns
    -------
    Shape (n, n_columns), float32.
    """
    out = np.empty((mean.shape[0], matrix.shape[1]), np.float32)
    weights, values = mean.data.astype(np.float32, copy=False), matrix.data.astype(np.float32, copy=False)
    graph, rows = (mean.indptr, mean.indices, weights), (matrix.indptr, matrix.indices, values)
    in_threads(lambda first, last: _gather(graph, rows, out, first, last), len(out))
    return out


@njit(cache=True, nogil=True)
def _gather(graph, rows, out, first, last):  # pragma: no cover  (compiled)
    pointers, near, weights = graph
    starts, columns, values = rows
    for i in range(first, last):
        own = out[i]
        own[:] = 0
        for p in range(pointers[i], pointers[i + 1]):
            weight, j = weights[p], near[p]
            for q in range(starts[j], starts[j + 1]):
                own[np.uint32(columns[q])] += weight * values[q]
