"""Sparse rows times a dense matrix: the first layer of a network on counts."""

# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"
from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit
from scipy import sparse
from torch import Tensor

from tenfold.kernels.lanes import WIDTH, add, store, zeros
from tenfold.kernels.rows import SparseRows
from tenfold.kernels.threads import in_threads
from tenfold.kernels.vectormath import LOOP

# Largest shares of non-zeros at which the sparse product is taken rather than a dense one. Break-even in float32, at
# 128 and 512 rows, 2,000 columns and 128 outputs: 0.50 and 0.40 on an AMD EPYC without AMX; on an Intel processor with
# AMX, 0.20 and 0.15 before sums were held in registers. There, oneDNN's bf16 products are two to three times as fast.
_SPARSE_FORWARD = {"float32": 0.35, "bf16": 0.10}
_SPARSE_GRADIENT = {"float32": 0.28, "bf16": 0.04}

#: PyTorch's settings for products, looked up once.
_PRODUCTS = getattr(torch.backends.mkldnn, "matmul", None)


def sparse_linear(rows: SparseRows, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply sparse rows by a dense matrix, ``rows @ weight + bias``.

    Takes a sparse product where the share of non-zeros makes it faster than a dense one, each way by itself.

    Parameters
    ----------
    rows
        B rows of G columns. Transform the values first (``rows.with_values(rows.values.log1p())``); a scaling per
        gene belongs into `weight`.
    weight
        Shape (G, H): one row of outputs a gene, the transpose of what `torch.nn.Linear` stores.
    bias
        Shape (H,).

    Returns
    -------
    Shape (B, H). Differentiable once in `weight` and `bias`; the values of `rows` are data.
    """
    fused = weight.device.type == "cpu" and weight.dtype == rows.values.dtype == torch.float32
    product = _SparseProduct.apply(rows, weight) if fused else rows.dense() @ weight
    return product if bias is None else product + bias


def csr_product(x: sparse.csr_matrix, matrix: np.ndarray) -> np.ndarray:
    """Multiply a CSR matrix by a dense one, ``x @ matrix``, by the threads that are allowed; without gradients.

    Parameters
    ----------
    x
        Shape (B, G), float32 or float64.
    matrix
        Shape (G, H), float32 or float64.

    Returns
    -------
    Shape (B, H), of the type of `matrix`.
    """
    matrix = np.ascontiguousarray(matrix)
    out = np.empty((x.shape[0], matrix.shape[1]), dtype=matrix.dtype)
    arrays = (x.indptr, x.indices, x.data.astype(matrix.dtype, copy=False), matrix, out)
    add_rows = _add_rows if matrix.dtype == np.float32 else _add_rows_of_any_type
    in_threads(lambda first, last: add_rows(first, last, *arrays), x.shape[0])
    return out


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight):
        ctx.rows = rows
        return rows_times(rows, weight.detach())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return None, transposed_times(ctx.rows, upstream.to(ctx.rows.values.dtype))  # bfloat16 under autocast


def rows_times(rows: SparseRows, matrix: Tensor, out: np.ndarray | None = None) -> Tensor:
    """``rows @ matrix`` in float32, without a gradient: (B, G) by (G, H). `out` is filled if given."""
    product = torch.empty(len(rows), matrix.shape[1]) if out is None else torch.from_numpy(out)
    if _density(rows) > _SPARSE_FORWARD[_products()]:
        return torch.mm(rows.dense(), matrix, out=product)
    arrays = (*rows.arrays, matrix.contiguous().numpy(), product.numpy())
    in_threads(lambda first, last: _add_rows(first, last, *arrays), len(rows))
    return product


def transposed_times(rows: SparseRows, matrix: Tensor) -> Tensor:
    """``rows.T @ matrix`` in float32, without a gradient: (G, B) by (B, H)."""
    if _density(rows) > _SPARSE_GRADIENT[_products()]:
        return rows.dense().T @ matrix
    starts, entries = _by_column(*rows.arrays, rows.n_columns)
    out = torch.empty(rows.n_columns, matrix.shape[1])
    arrays = (starts, entries[:, 0], entries[:, 1].view(np.float32), matrix.contiguous().numpy(), out.numpy())
    in_threads(lambda first, last: _add_rows(first, last, *arrays), rows.n_columns)
    return out


def _density(rows: SparseRows) -> float:
    return rows.values.shape[0] / max(len(rows) * rows.n_columns, 1)


def _products() -> str:
    """Whether PyTorch rounds the operands of float32 products to bf16 at present."""
    return "bf16" if getattr(_PRODUCTS, "fp32_precision", "") == "bf16" else "float32"


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; without, they take several times longer."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


@njit(**LOOP)
def _add_rows(first, last, indptr, indices, values, matrix, out):
    """``out[i] = sum of values[k] * matrix[indices[k]]`` over the entries k of row i."""
    width = matrix.shape[1]
    for i in range(first, last):
        for c in range(0, width - WIDTH + 1, WIDTH):
            total = zeros()
            for k in range(indptr[i], indptr[i + 1]):
                total = add(total, values[k], matrix, np.int64(indices[k]), c)
            store(total, out, i, c)
        rest = width // WIDTH * WIDTH
        if rest < width:
            _add_columns(indptr[i], indptr[i + 1], indices, values, matrix[:, rest:], out[i, rest:])


@njit(**LOOP)
def _add_rows_of_any_type(first, last, indptr, indices, values, matrix, out):
    """As `_add_rows`, which takes float32 only."""
    for i in range(first, last):
        _add_columns(indptr[i], indptr[i + 1], indices, values, matrix, out[i])


@njit(**LOOP)
def _add_columns(k, stop, indices, values, matrix, row):
    """Fill `row` with the sum of ``values[k] * matrix[indices[k]]``, eight entries in a pass."""
    width = row.shape[0]
    for c in range(width):
        row[c] = np.float32(0.0)
    while k + 8 <= stop:
        x0, x1, x2, x3 = values[k], values[k + 1], values[k + 2], values[k + 3]
        x4, x5, x6, x7 = values[k + 4], values[k + 5], values[k + 6], values[k + 7]
        j0, j1, j2, j3 = indices[k], indices[k + 1], indices[k + 2], indices[k + 3]
        j4, j5, j6, j7 = indices[k + 4], indices[k + 5], indices[k + 6], indices[k + 7]
        for c in range(width):
            row[c] += (
                x0 * matrix[j0, c] + x1 * matrix[j1, c] + x2 * matrix[j2, c] + x3 * matrix[j3, c]
                + x4 * matrix[j4, c] + x5 * matrix[j5, c] + x6 * matrix[j6, c] + x7 * matrix[j7, c]
            )  # fmt: skip
        k += 8
    while k < stop:
        x, j = values[k], indices[k]
        for c in range(width):
            row[c] += x * matrix[j, c]
        k += 1


@njit(nogil=True, cache=True)
def _by_column(indptr, indices, values, n_columns):
    """Turn rows into columns: start of each column; row, and the bits of the value, of each entry.

    Row and value lie side by side, since writing them in the order of columns is what takes the time.
    """
    free = np.zeros(n_columns + 1, np.int64)
    for k in range(indices.shape[0]):
        free[np.uint64(indices[k]) + np.uint64(1)] += 1
    for j in range(n_columns):
        free[j + 1] += free[j]
    starts = free.copy()
    entries = np.empty((indices.shape[0], 2), np.int32)
    bits = values.view(np.int32)
    for i in range(indptr.shape[0] - 1):
        for k in range(indptr[i], indptr[i + 1]):
            column = np.uint64(indices[k])  # unsigned, so that no index is looked at for being negative
            at = np.uint64(free[column])
            free[column] += 1
            entries[at, 0] = i
            entries[at, 1] = bits[k]
    return starts, entries
