"""Numbers on the edges of a graph, or on pairs in any order: inner products of the rows that are joined."""

# mypy: disable-error-code="no-untyped-def, call-arg"
from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tenfold.kernels.threads import in_threads
from tenfold.kernels.vectormath import LOOP


def edge_products(first: Tensor, second: Tensor, indptr: Tensor, neighbor: Tensor) -> Tensor:
    """Return ``first[i] · second[j]`` of every edge from i to j, without a copy of the rows an edge joins.

    Parameters
    ----------
    first, second
        Shape (n_cells, n), float32.
    indptr, neighbor
        Rows and columns of the graph in CSR form, shapes (n_cells + 1,) and (n_edges,), int64.

    Returns
    -------
    Shape (n_edges,).
    """
    out = torch.empty(len(neighbor), dtype=first.dtype, device=first.device)
    if first.device.type != "cpu":
        cell = torch.repeat_interleave(torch.arange(len(first), device=first.device), indptr.diff())
        for at in range(0, len(neighbor), 2**16):
            piece = slice(at, at + 2**16)
            out[piece] = torch.einsum("ij,ij->i", first[cell[piece]], second[neighbor[piece]])
        return out
    arrays = (first.contiguous().numpy(), second.contiguous().numpy(), indptr.numpy(), neighbor.numpy(), out.numpy())
    in_threads(lambda start, stop: _products(start, stop, *arrays), len(first))
    return out


@njit(**LOOP)
def _products(start, stop, first, second, indptr, neighbor, out):
    for i in range(start, stop):
        row = first[i]
        for k in range(indptr[i], indptr[i + 1]):
            other = second[neighbor[k]]
            total = np.float32(0.0)
            for c in range(row.shape[0]):
                total += row[c] * other[c]
            out[k] = total


def pair_products(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ``x[first] · x[second]`` of every pair, with gradients, without a copy of the rows of all pairs.

    Parameters
    ----------
    x
        Shape (n_cells, n), float32.
    first, second
        Rows of each pair, shape (n_pairs,), int64.

    Returns
    -------
    Shape (n_pairs,).
    """
    return _PairProducts.apply(x, first, second) if x.is_cpu else torch.einsum("ij,ij->i", x[first], x[second])


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, first, second):
        ctx.save_for_backward(x, first, second)
        out = torch.empty(len(first), dtype=x.dtype)
        arrays = (x.detach().contiguous().numpy(), first.numpy(), second.numpy(), out.numpy())
        in_threads(lambda start, stop: _pair_products(start, stop, *arrays), len(first))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        x, first, second = ctx.saved_tensors
        to_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        arrays = (x.contiguous().numpy(), first.numpy(), second.numpy(), upstream.contiguous().numpy(), to_x.numpy())
        # Threads share columns, so that none adds to what another adds to.
        in_threads(lambda start, stop: _add_pairs(start, stop, *arrays), x.shape[1])
        return to_x, None, None


@njit(**LOOP)
def _pair_products(start, stop, x, first, second, out):
    for k in range(start, stop):
        row, other = x[first[k]], x[second[k]]
        total = np.float32(0.0)
        for c in range(row.shape[0]):
            total += row[c] * other[c]
        out[k] = total


@njit(**LOOP)
def _add_pairs(start, stop, x, first, second, upstream, out):
    for k in range(first.shape[0]):
        i, j, weight = first[k], second[k], upstream[k]
        for c in range(start, stop):
            out[i, c] += weight * x[j, c]
        for c in range(start, stop):
            out[j, c] += weight * x[i, c]
