"""Losses over all pairs of cells, or all values of all genes, that are never held at once.

Each finds its gradient along with its value, some rows at a time, so that memory is linear in cells.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

#: Rows that are looked at at once.
_ROWS = 256


def told_apart(z: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of telling the own row of `bank` from all others, by cosines.

    Parameters
    ----------
    z, bank
        Shape (n, d); no gradient goes to `bank`.
    temperature
        That cosines are divided by.
    """
    return _OverBank.apply(F.normalize(z, dim=1), F.normalize(bank, dim=1), temperature, True)


def undecided(z: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Return the mean entropy of the softmax over rows of `bank` of cosines by `temperature`.

    Parameters
    ----------
    z, bank
        Shapes (n, d) and (m, d); no gradient goes to `bank`.
    temperature
        That cosines are divided by.
    """
    return _OverBank.apply(F.normalize(z, dim=1), F.normalize(bank, dim=1), temperature, False)


class _OverBank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, bank, temperature, own):
        value, gradient, columns = z.new_zeros(()), torch.empty_like(z), bank.T / temperature
        for start in range(0, len(z), _ROWS):
            part = slice(start, start + _ROWS)
            # Cosines are at most 1, so that nothing overflows.
            logits = (z[part] @ columns).sub_(1 / temperature)
            weights = logits.exp()
            total = weights.sum(dim=1, keepdim=True)
            if own:
                value += (total[:, 0].log() - logits.diagonal(start)).sum()
                gradient[part] = (weights @ bank) / total - bank[part]
                continue
            mean = (weights * logits).sum(dim=1, keepdim=True) / total
            value += (total.log() - mean).sum()
            gradient[part] = (weights.mul_(logits.neg_().add_(mean)) @ bank) / total
        ctx.save_for_backward(gradient / (len(z) * temperature))
        return value / len(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0], None, None, None


def elu_error(z: Tensor, weight: Tensor, shift: Tensor, rows: Callable[[slice], Tensor], dropout: float) -> Tensor:
    """Return the mean squared error of ELU(z W + b), a share of it set to zero, to rows of expression.

    Parameters
    ----------
    z
        Shape (n, d).
    weight, shift
        W, shape (d, n_genes), and b, shape (n_genes,).
    rows
        Gives some rows of expression.
    dropout
        Share of the output that is set to zero, the rest being scaled up.
    """
    return _EluError.apply(z, weight, shift, rows, dropout)


class _EluError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, weight, shift, rows, dropout):
        value, to_z = z.new_zeros(()), torch.empty_like(z)
        to_weight, to_shift = torch.zeros_like(weight), torch.zeros_like(shift)
        for start in range(0, len(z), _ROWS):
            part = slice(start, min(start + _ROWS, len(z)))
            output = F.elu(torch.addmm(shift, z[part], weight))
            slope = output.clamp(max=0).add_(1)  # of ELU, known from its output
            if dropout:
                kept = torch.empty_like(output).bernoulli_(1 - dropout).div_(1 - dropout)
                output, slope = output.mul_(kept), slope.mul_(kept)
            apart = output.sub_(rows(part))
            value += apart.square().sum()
            upstream = slope.mul_(apart)
            to_z[part] = upstream @ weight.T
            to_weight.addmm_(z[part].T, upstream)
            to_shift += upstream.sum(dim=0)
        scale = 2 / (len(z) * weight.shape[1])
        ctx.save_for_backward(to_z * scale, to_weight * scale, to_shift * scale)
        return value * (scale / 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return *(upstream * gradient for gradient in ctx.saved_tensors), None, None
