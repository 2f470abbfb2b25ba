"""Sparsemax of rows and the entropy of what it gives: no sorting, and logarithms of entries that are not 0 only."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tenfold.kernels.threads import in_threads
from tenfold.kernels.vectormath import ROW

#: Keeps the logarithm of an entry finite.
EPSILON = 1e-15


def sparsemax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest point of the simplex to each row, and its negative entropy.

    Parameters
    ----------
    x
        Finite, shape (n_rows, n_columns).

    Returns
    -------
    p, shape (n_rows, n_columns): the p ≥ 0 with sum 1 that is nearest to the row, most of it exactly 0; and Σ p log p,
    shape (n_rows,), which counts as 0 where p is. Differentiable once.

    References
    ----------
    Martins & Astudillo (2016), arXiv 1602.02068; Michelot (1986), doi 10.1007/BF00938486.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _Sparsemax.apply(x.contiguous())
    highest = x.sort(dim=1, descending=True).values
    sums, rank = highest.cumsum(dim=1) - 1, torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
    size = (rank * highest > sums).sum(dim=1, keepdim=True)
    p = (x - sums.gather(1, size - 1) / size).clamp(min=0)
    return p, (p * (p + EPSILON).log()).sum(dim=1)


class _Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        p, entropy = torch.empty_like(x), torch.empty(len(x))
        arrays = x.detach().numpy(), p.numpy(), entropy.numpy()
        in_threads(lambda first, last: _project(first, last, *arrays), len(x))
        ctx.save_for_backward(p)
        return p, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, of_entropy):
        (p,) = ctx.saved_tensors
        grad = torch.empty_like(p)
        arrays = p.numpy(), upstream.contiguous().numpy(), of_entropy.contiguous().numpy(), grad.numpy()
        in_threads(lambda first, last: _project_back(first, last, *arrays), len(p))
        return grad


@njit(**ROW)
def _project(first, last, x, p, entropy):
    near = np.empty(x.shape[1], np.float32)
    for row in range(first, last):
        highest = x[row, 0]
        for value in x[row]:
            highest = max(highest, value)
        # The threshold is above the highest entry less 1, so that few entries are candidates.
        count, total = 0, 0.0
        for value in x[row]:
            if value > highest - np.float32(1.0):
                near[count] = value - highest
                total += value - highest
                count += 1
        threshold, before = (total - 1.0) / count, -1
        while before != count:  # entries below the threshold go, and it rises
            before, kept, total = count, 0, 0.0
            for place in range(before):
                if near[place] > threshold:
                    near[kept] = near[place]
                    total += near[place]
                    kept += 1
            count = kept
            threshold = (total - 1.0) / count
        cut, sum_of_logs = np.float32(threshold) + highest, 0.0
        for column in range(x.shape[1]):
            value = max(x[row, column] - cut, np.float32(0.0))
            p[row, column] = value
            if value > 0:
                sum_of_logs += value * np.log(value + EPSILON)
        entropy[row] = sum_of_logs


@njit(**ROW)
def _project_back(first, last, p, upstream, of_entropy, grad):
    for row in range(first, last):
        total, count = 0.0, 0
        for column in range(p.shape[1]):
            value = p[row, column]
            grad[row, column] = 0.0
            if value > 0:
                slope = np.log(value + EPSILON) + value / (value + EPSILON)
                grad[row, column] = upstream[row, column] + of_entropy[row] * slope
                total += grad[row, column]
                count += 1
        mean = np.float32(total / count)
        for column in range(p.shape[1]):
            if p[row, column] > 0:
                grad[row, column] -= mean
