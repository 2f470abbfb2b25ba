"""Losses over all pairs of cells, or all values of all genes, that are never held at once.

Each finds its gradient along with its value, some rows at a time, so that memory is linear in cells.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.kernels.contrast_rows import told_apart_rows, undecided_rows
from tenfold.kernels.elu_units import elu_apart, kept, random_bytes
from tenfold.kernels.rows import SparseRows
from tenfold.kernels.threads import in_threads

#: Rows that are looked at at once.
_ROWS = 256
#: Stand for the form, rows or non-zeros, in which expression is not.
_NO_ROWS = np.empty((0, 0), np.float32)
_NO_ENTRIES = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


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
        values, gradient, columns = z.new_empty(len(z)), torch.empty_like(z), bank.T / temperature
        rows, highest = _apart if own else _entropy, np.float32(1 / temperature)  # cosines are at most 1
        for start in range(0, len(z), _ROWS):
            part = slice(start, min(start + _ROWS, len(z)))
            values[part], by_logits = rows(z[part] @ columns, start, highest)
            gradient[part] = by_logits @ bank
        ctx.save_for_backward(gradient / (len(z) * temperature))
        return values.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0], None, None, None


def _apart(logits: Tensor, start: int, highest: np.float32) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each row, whose own column is `start` and on, and its gradient by the logits."""
    if logits.is_cpu and logits.dtype == torch.float32:
        return _in_place(lambda part, value, first: told_apart_rows(part, start + first, highest, value), logits)
    log_share = logits.log_softmax(dim=1)
    share = log_share.exp()
    share.diagonal(start).sub_(1)
    return -log_share.diagonal(start), share


def _entropy(logits: Tensor, start: int, highest: np.float32) -> tuple[Tensor, Tensor]:
    """Return the entropy of the softmax of each row, and its gradient by the logits."""
    if logits.is_cpu and logits.dtype == torch.float32:
        return _in_place(lambda part, value, first: undecided_rows(part, highest, value), logits)
    log_share = logits.log_softmax(dim=1)
    share = log_share.exp()
    entropy = -(share * log_share).sum(dim=1)
    return entropy, -share * (entropy[:, None] + log_share)


def _in_place(kernel: Callable[[np.ndarray, np.ndarray, int], None], logits: Tensor) -> tuple[Tensor, Tensor]:
    rows, values = logits.numpy(), np.empty(len(logits), np.float32)
    in_threads(lambda first, last: kernel(rows[first:last], values[first:last], first), len(rows))
    return torch.from_numpy(values), logits


def elu_error(z: Tensor, weight: Tensor, shift: Tensor, x: SparseRows | Tensor, dropout: float) -> Tensor:
    """Return the mean squared error of ELU(z W + b), a share of it set to zero, to expression.

    Parameters
    ----------
    z
        Shape (n, d).
    weight, shift
        W, shape (d, n_genes), and b, shape (n_genes,).
    x
        Expression, shape (n, n_genes).
    dropout
        Share of the output that is set to zero, the rest being scaled up.
    """
    return _EluError.apply(z, weight, shift, x, dropout)


class _EluError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, weight, shift, x, dropout):
        value, to_z = z.new_zeros(()), torch.empty_like(z)
        to_weight, to_shift = torch.zeros_like(weight), torch.zeros_like(shift)
        fused = z.is_cpu and z.dtype == torch.float32
        for start in range(0, len(z), _ROWS):
            part = slice(start, min(start + _ROWS, len(z)))
            error, upstream = (_elu_part if fused else _elu_slowly)(
                torch.addmm(shift, z[part], weight), _piece(x, part), dropout
            )
            value += error
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


def _piece(x: SparseRows | Tensor, part: slice) -> SparseRows | Tensor:
    if isinstance(x, Tensor):
        return x[part]
    ends = x.indptr[part.start : part.stop + 1]
    inside = slice(int(ends[0]), int(ends[-1]))
    return SparseRows(ends - ends[0], x.indices[inside], x.values[inside], x.n_columns)


def _elu_part(output: Tensor, x: SparseRows | Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Return the squared error of ELU(output), summed, and half of its gradient, which takes the output's place."""
    rows, errors = output.numpy(), np.empty(len(output))
    noise, (values, scale) = random_bytes(len(output), output.shape[1], dropout), kept(dropout)
    dense, (indptr, *stored) = (x.numpy(), _NO_ENTRIES) if isinstance(x, Tensor) else (_NO_ROWS, x.arrays)

    def work(first, last):
        own = slice(first, last)
        elu_apart(rows[own], noise[own], values, scale, dense[own], indptr[first : last + 1], *stored, errors[own])

    in_threads(work, len(rows))
    return torch.as_tensor(errors.sum(), dtype=output.dtype), output


def _elu_slowly(output: Tensor, x: SparseRows | Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """As `_elu_part`, on any device."""
    made = F.elu(output)
    slope, keep = made.clamp(max=0) + 1, F.dropout(torch.ones_like(made), dropout)  # ELU's slope, from what it gives
    apart = made * keep - (x if isinstance(x, Tensor) else x.dense())
    return apart.square().sum(), slope * keep * apart
