"""Layers whose batch norm is that of the section a cell is of."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.elu_units import elu_units_backward, elu_units_forward, kept, random_bytes
from tenfold.kernels.threads import in_threads

#: Added to variances by batch norm.
EPS = 1e-5


class NormedLayer(nn.Module):
    """A linear map, batch norm by section, ELU and dropout. A bias would cancel in the norm.

    Statistics, slopes and offsets of the norm are of each section its own, sections lying one after another.

    Parameters
    ----------
    n_in, n_out
        Widths.
    parts
        Rows of each section, two at least.
    dropout
        Share of units that are silenced.
    momentum
        Share of the present statistics in those that are used after training.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, n_in: int, n_out: int, parts: list[slice], dropout: float = 0.0, momentum: float = 0.1):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out).uniform_(-(n_in**-0.5), n_in**-0.5))
        self.parts, self.dropout, self.momentum, shape = parts, dropout, momentum, (len(parts), n_out)
        self.slope, self.offset = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return new features, shape (n_cells, n_out)."""
        return self.finished(x @ self.weight)

    def finished(self, mapped: Tensor) -> Tensor:
        """Return what follows the linear map."""
        if self.training and mapped.is_cpu and mapped.dtype == torch.float32:
            return _Units.apply(mapped, self.slope, self.offset, self)
        found = []
        for i, part in enumerate(self.parts):
            running, own = (self.mean[i], self.variance[i]), (self.slope[i], self.offset[i])
            found.append(F.batch_norm(mapped[part], *running, *own, self.training, self.momentum, EPS))
        return F.dropout(F.elu(torch.cat(found)), self.dropout, self.training)


class _Units(torch.autograd.Function):
    """What follows the linear map, in training on a CPU."""

    @staticmethod
    def forward(ctx, mapped, slope, offset, layer):
        h = torch.empty_like(mapped, memory_format=torch.contiguous_format)
        ctx.noise, ctx.layer = random_bytes(len(mapped), mapped.shape[1], layer.dropout), layer
        ctx.standard, ctx.inverse = np.empty(mapped.shape, np.float32), np.empty(slope.shape, np.float32)
        a, units = mapped.detach().contiguous().numpy(), h.numpy()
        by_section = [array.detach().numpy() for array in (slope, offset, layer.mean, layer.variance)]

        def work(first, last):
            for i, part in enumerate(layer.parts[first:last], first):
                gamma, beta, mean, variance = (array[i] for array in by_section)
                elu_units_forward(
                    a[part], gamma, beta, ctx.noise[part], *kept(layer.dropout), np.float32(EPS),
                    np.float32(layer.momentum), mean, variance, ctx.standard[part], ctx.inverse[i], units[part],
                )  # fmt: skip

        in_threads(work, len(layer.parts))
        ctx.save_for_backward(h, slope)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        h, slope = ctx.saved_tensors
        to_mapped, to_slope, to_offset = torch.empty_like(h), torch.empty_like(slope), torch.empty_like(slope)
        given = upstream.contiguous().numpy(), h.numpy(), ctx.standard
        grads = to_slope.numpy(), to_offset.numpy(), to_mapped.numpy()

        def work(first, last):
            for i, part in enumerate(ctx.layer.parts[first:last], first):
                elu_units_backward(
                    *(array[part] for array in given), ctx.inverse[i], slope[i].detach().numpy(), ctx.noise[part],
                    *kept(ctx.layer.dropout), grads[0][i], grads[1][i], grads[2][part],
                )  # fmt: skip

        in_threads(work, len(ctx.layer.parts))
        return to_mapped, to_slope, to_offset, None
