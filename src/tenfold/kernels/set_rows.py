"""Expression of cells sorted into sets of genes: one sparse row for each cell and set."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tenfold.kernels.rows import SparseRows


def rows_of_sets(rows: SparseRows, starts: np.ndarray, sets: np.ndarray, n_sets: int) -> SparseRows:
    """Repeat the values of each cell in every set that their genes belong to.

    Parameters
    ----------
    rows
        Expression, B cells × G genes.
    starts, sets
        The sets of gene g are ``sets[starts[g]:starts[g + 1]]``; int64, shapes (G + 1,) and (n_pairs,).
    n_sets
        Number of sets, P.

    Returns
    -------
    B × P rows, those of a cell side by side, over columns that stand for the pairs of gene and set in the order of
    `sets`: times a matrix with one row a pair, they are a linear map of each set's genes.
    """
    arrays = rows.indptr.cpu().numpy(), rows.indices.cpu().numpy(), rows.values.detach().cpu().numpy()
    indptr, columns, values = (torch.from_numpy(part) for part in _spread(*arrays, starts, sets, n_sets))
    return SparseRows(indptr, columns, values, len(sets)).to(rows.device)


def set_product(rows: SparseRows, weight: Tensor) -> Tensor:
    """Multiply rows on an accelerator by a dense matrix, at a cost of stored entries × width."""
    out = torch.zeros(len(rows), weight.shape[1], dtype=weight.dtype, device=weight.device)
    return out.index_add(0, rows.row_index(), rows.values[:, None].to(weight.dtype) * weight[rows.indices])


@njit(nogil=True, cache=True)
def _spread(indptr, indices, values, starts, sets, n_sets):
    n_cells = indptr.shape[0] - 1
    out = np.zeros(n_cells * n_sets + 1, np.int64)
    for i in range(n_cells):
        for k in range(indptr[i], indptr[i + 1]):
            for pair in range(starts[indices[k]], starts[indices[k] + 1]):
                out[i * n_sets + sets[pair] + 1] += 1
    for row in range(n_cells * n_sets):
        out[row + 1] += out[row]
    free = out[:-1].copy()
    columns = np.empty(out[-1], np.int64)
    spread = np.empty(out[-1], values.dtype)
    for i in range(n_cells):
        for k in range(indptr[i], indptr[i + 1]):
            for pair in range(starts[indices[k]], starts[indices[k] + 1]):
                row = i * n_sets + sets[pair]
                columns[free[row]] = pair
                spread[free[row]] = values[k]
                free[row] += 1
    return out, columns, spread
