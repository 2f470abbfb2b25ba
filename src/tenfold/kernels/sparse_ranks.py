"""Ranks within sparse rows: zeros share one rank, so that only stored entries need sorting."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numba
import numpy as np
from scipy import sparse


def shifted_ranks(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return ranks of the entries within each row, less the rank that the row's zeros share; ties get the mean rank.

    A correlation of these with anything is Spearman's: it does not see what is subtracted from a whole row.

    Parameters
    ----------
    x
        Nothing negative, CSR, shape (n_rows, n_columns).

    Returns
    -------
    CSR of the same pattern, float32.
    """
    values = np.empty(x.nnz, dtype=np.float32)
    _rank_rows(x.indptr, x.data, x.shape[1], values)
    return sparse.csr_matrix((values, x.indices, x.indptr), x.shape)


@numba.njit(cache=True, nogil=True)
def _rank_rows(indptr, data, n_columns, out):  # pragma: no cover  (compiled)
    for i in range(indptr.shape[0] - 1):
        start, stop = indptr[i], indptr[i + 1]
        row = data[start:stop]
        order = np.argsort(row)
        zeros = n_columns - (stop - start)
        for k in range(stop - start):
            if row[k] == 0:
                zeros += 1
        shared = (zeros + 1) / 2 if zeros else 0.0
        first = 0
        while first < stop - start and row[order[first]] == 0:
            out[start + order[first]] = 0
            first += 1
        rank = zeros
        while first < stop - start:
            last = first
            while last + 1 < stop - start and row[order[last + 1]] == row[order[first]]:
                last += 1
            mean = rank + (last - first) / 2 + 1
            for k in range(first, last + 1):
                out[start + order[k]] = mean - shared
            rank += last - first + 1
            first = last + 1


def correlations(x: sparse.csr_matrix, profiles: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of sparse rows with dense ones; NaN where either does not vary.

    Parameters
    ----------
    x
        CSR, shape (n_rows, n_columns).
    profiles
        Shape (n_profiles, n_columns).

    Returns
    -------
    Shape (n_rows, n_profiles), float64.
    """
    from tenfold.kernels.sparse_linear import csr_product

    n = x.shape[1]
    profiles = profiles - profiles.mean(axis=1, keepdims=True)
    spread = np.sqrt((profiles**2).sum(axis=1))
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    square = np.asarray(x.multiply(x).sum(axis=1, dtype=np.float64)).ravel() - total**2 / n
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(square > 1e-9 * np.maximum(total, 1), 1 / np.sqrt(np.maximum(square, 0)), np.nan)
        unit = profiles / np.where(spread > 0, spread, np.nan)[:, None]
    known: np.ndarray = spread > 0
    found = csr_product(x, np.where(known[:, None], unit, 0).T.astype(np.float32)).astype(np.float64)
    found *= scale[:, None]
    found[:, ~known] = np.nan
    return found
