"""Numbers on the edges of a graph: inner products of the rows that an edge joins."""

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
