"""Sparse minibatches: CSR rows as tensors, gathered without SciPy's fancy indexing and never densified unasked."""

# mypy: disable-error-code="call-arg"
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

if TYPE_CHECKING:
    from scipy import sparse


#: Rows from one that is copied to the one that is fetched meanwhile.
_AHEAD = 2


@dataclass(frozen=True)
class SparseRows:
    """Rows of a CSR matrix as tensors.

    Attributes
    ----------
    indptr
        Where each row starts in `indices` and `values`, shape (n_rows + 1,), int64.
    indices
        Column of each stored entry, shape (n_stored,), int32 where gathered from a matrix.
    values
        Stored entries, shape (n_stored,), float32 (float64 in tests).
    n_columns
        Width of the matrix.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    n_columns: int

    def __len__(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self), self.n_columns

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.values.device

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`indptr`, `indices` and `values` as compiled code takes them; on the CPU."""
        return self.indptr.numpy(), self.indices.numpy(), self.values.detach().numpy()

    def row_index(self) -> Tensor:
        """Return the row of each stored entry, shape (n_stored,), int64."""
        rows = torch.arange(len(self), device=self.device)
        return torch.repeat_interleave(rows, self.indptr.diff(), output_size=self.values.shape[0])

    def with_values(self, values: Tensor) -> SparseRows:
        """Return the same pattern with other `values`, shape (n_stored,)."""
        return SparseRows(self.indptr, self.indices, values, self.n_columns)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseRows:
        """Return a copy on `device`."""
        parts = (self.indptr, self.indices, self.values)
        indptr, indices, values = (part.to(device, non_blocking=non_blocking) for part in parts)
        return SparseRows(indptr, indices, values, self.n_columns)

    def dense(self) -> Tensor:
        """Return the rows as a dense tensor, shape (n_rows, n_columns)."""
        out = torch.zeros(self.shape, dtype=self.values.dtype, device=self.device)
        if self.device.type == "cpu":
            _scatter(*self.arrays, out.numpy())
        else:
            out[self.row_index(), self.indices] = self.values
        return out

    def sum(self, dim: int = 1) -> Tensor:
        """Return row sums (``dim=1``, shape (n_rows,)) or column sums (``dim=0``, shape (n_columns,))."""
        target = self.row_index() if dim == 1 else self.indices
        out = torch.zeros(self.shape[1 - dim], dtype=self.values.dtype, device=self.device)
        return out.index_add_(0, target, self.values)


def take_rows(matrix: sparse.csr_matrix, index: np.ndarray) -> SparseRows:
    """Gather rows of a CSR matrix into a minibatch.

    Parameters
    ----------
    matrix
        CSR matrix, shape (n, n_columns).
    index
        Rows wanted, in this order and possibly repeated, integers in ``range(n)``, shape (b,).

    Returns
    -------
    `SparseRows` of `b` rows; values are float64 for a float64 matrix, float32 for any other.

    Raises
    ------
    IndexError
        If an index is outside ``range(n)``.
    """
    index = np.ascontiguousarray(index, dtype=np.int64)
    values = matrix.data if matrix.data.dtype in (np.float32, np.float64) else matrix.data.astype(np.float32)
    gathered = _gather(matrix.indptr, matrix.indices, values, index)
    if len(gathered[0]) <= len(index):
        raise IndexError(f"Row {index.max()} (or a negative one) asked of a matrix of {matrix.shape[0]} rows.")
    indptr, indices, stored = (torch.from_numpy(part) for part in gathered)
    return SparseRows(indptr, indices, stored, matrix.shape[1])


def all_rows(matrix: sparse.csr_matrix) -> SparseRows:
    """Return every row of `matrix`, in order; see `take_rows`."""
    return take_rows(matrix, np.arange(matrix.shape[0]))


def joined(parts: list[SparseRows]) -> SparseRows:
    """Return all rows of several pieces of the same width, one piece after another."""
    if len(parts) == 1:
        return parts[0]
    lengths = torch.cat([part.indptr.diff() for part in parts])
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    indices, values = (torch.cat([getattr(part, name) for part in parts]) for name in ("indices", "values"))
    return SparseRows(indptr, indices, values, parts[0].n_columns)


@intrinsic
def _expect(typing_context, array, position):  # type: ignore[no-untyped-def]
    """Have the processor fetch this entry of a vector, and its neighbours, into the cache."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        start = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(start, [args[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, *[ir.IntType(32)] * 3])
        reading, lasting, data = (ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))
        builder.call(
            builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind), [place, reading, lasting, data]
        )
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@numba.njit(cache=True, nogil=True)
def _gather(indptr, indices, values, index):  # pragma: no cover  (compiled)
    b = index.shape[0]
    out_indptr = np.empty(b + 1, np.int64)
    out_indptr[0] = 0
    for i in range(b):
        row = index[i]
        if row < 0 or row >= indptr.shape[0] - 1:  # told by a result that is too short
            return out_indptr[:i], np.empty(0, np.int32), np.empty(0, values.dtype)
        out_indptr[i + 1] = out_indptr[i] + (indptr[row + 1] - indptr[row])
    out_indices = np.empty(out_indptr[b], np.int32)  # half of the memory to pass through at every use
    out_values = np.empty(out_indptr[b], values.dtype)
    for i in range(b):
        if i + _AHEAD < b:  # rows of a minibatch lie far apart in memory
            ahead = index[i + _AHEAD]
            for k in range(indptr[ahead], indptr[ahead + 1], 16):
                _expect(indices, np.int64(k))
                _expect(values, np.int64(k))
        start, end = indptr[index[i]], indptr[index[i] + 1]
        target = slice(out_indptr[i], out_indptr[i + 1])
        out_indices[target] = indices[start:end]  # whole slices, which vectorise
        out_values[target] = values[start:end]
    return out_indptr, out_indices, out_values


@numba.njit(cache=True, nogil=True)
def _scatter(indptr, indices, values, out):  # pragma: no cover  (compiled)
    for i in range(indptr.shape[0] - 1):
        for k in range(indptr[i], indptr[i + 1]):
            out[i, indices[k]] = values[k]
