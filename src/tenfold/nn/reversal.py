"""Gradient reversal: what a classifier learns, the layers below it unlearn, in one step of one optimiser."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
from torch import Tensor


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, upstream):
        return -upstream


def reversed_gradient(x: Tensor) -> Tensor:
    """Return `x`, whose gradient is the negative of what it would be.

    References
    ----------
    Ganin et al. (2016), arXiv 1505.07818.
    """
    return _Reversed.apply(x)
