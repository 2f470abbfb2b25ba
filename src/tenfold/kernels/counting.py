"""One-pass kernels over stored entries of sparse rows: cutting out rows and columns, moments of genes in groups."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numba


@numba.njit(cache=True, nogil=True)
def cut(starts, stops, indices, values, place, out_indptr, out_indices, out_values):  # pragma: no cover  (compiled)
    """Copy rows, renumbering columns by `place` and leaving out those placed below 0.

    Row *i* is ``indices[starts[i]:stops[i]]`` and the values there. `out_indptr` holds where the first row is to go,
    and takes where each ends.

    Returns
    -------
    False at a column that `place` does not have: the matrix is damaged.
    """
    target = out_indptr[0]
    for i in range(starts.shape[0]):
        for k in range(starts[i], stops[i]):
            column = indices[k]
            if column < 0 or column >= place.shape[0]:
                return False
            new = place[column]
            if new >= 0:
                out_indices[target] = new
                out_values[target] = values[k]
                target += 1
        out_indptr[i + 1] = target
    return True


@numba.njit(cache=True, nogil=True)
def add_moments(indptr, indices, values, groups, highest, total, squares):  # pragma: no cover  (compiled)
    """Add each gene's counts, and their squares, to the sums of its cell's group.

    Parameters
    ----------
    indptr, indices, values
        Rows, as in a CSR matrix.
    groups
        Group of each row; rows of a negative one are left out.
    highest
        Counts above this count as this, shape (n_groups, n_genes).
    total, squares
        The sums that are added to, shape (n_groups, n_genes), float64.
    """
    for i in range(indptr.shape[0] - 1):
        group = groups[i]
        if group < 0:
            continue
        for k in range(indptr[i], indptr[i + 1]):
            gene = indices[k]
            value = min(float(values[k]), highest[group, gene])
            total[group, gene] += value
            squares[group, gene] += value * value
