"""Fused likelihood of counts on the CPU: value and gradient of a minibatch in one pass over its rows.

An entry costs one exp and one log (zero inflation: two more exp and one log); gamma functions are evaluated at
non-zero counts only. The gradient is computed together with the value, for the mean over cells that a training step
takes; another upstream gradient costs a multiplication, or, where cells weigh differently, a second pass.
Rows are dealt to threads in blocks whose limits and order of summation do not depend on the number of threads: results
are the same to the last bit for any number.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tenfold.kernels.count_rows import (
    EXP,
    SOFTMAX,
    SOFTPLUS,
    add_large,
    add_rising,
    bernoulli_observed,
    inflate_large,
    link_row,
    multinomial_row,
    nb_row,
    poisson_dense,
    poisson_observed,
    row_sum,
    spread,
    theta_row,
    unlink_row,
    write_row,
    zinb_row,
)
from tenfold.kernels.rising import N_SMALL, fill_tables
from tenfold.kernels.rows import SparseRows
from tenfold.kernels.threads import in_threads

_POISSON, _NB, _ZINB, _MULTINOMIAL, _BERNOULLI = 0, 1, 2, 3, 4
_CODES = {"poisson": _POISSON, "nb": _NB, "zinb": _ZINB, "multinomial": _MULTINOMIAL, "bernoulli": _BERNOULLI}
_LINKS = {"softmax": SOFTMAX, "exp": EXP, "softplus": SOFTPLUS}

_BLOCK_ROWS = 16  # a block is what a thread takes at a time; each has its own sum of theta's gradient
_MAX_BLOCKS = 16


class Inputs(NamedTuple):
    """What a likelihood is computed from; tensors of shape (0, 0) stand for what it does not take."""

    counts: SparseRows
    logits: Tensor
    log_size: Tensor
    log_theta: Tensor
    level: Tensor
    dropout_logits: Tensor


class Gradients(NamedTuple):
    """Gradients in the order of the tensors that may need one; that of a bias added to all rows of logits is last."""

    logits: Tensor
    log_size: Tensor
    log_theta: Tensor
    dropout_logits: Tensor
    bias: Tensor


def fused_nll(
    likelihood: str,
    counts: SparseRows,
    logits: Tensor,
    log_size: Tensor,
    link: str,
    log_theta: Tensor | None,
    level: Tensor | None,
    dropout_logits: Tensor | None,
) -> Tensor:
    """Negative log-likelihood of each cell; arguments as in `tenfold.nn.likelihoods.count_nll`, float32 on a CPU."""
    return _CountNLL.apply(_CODES[likelihood], _LINKS[link], counts, level, logits, log_size, log_theta, dropout_logits)


def value_and_gradients(
    likelihood: str,
    counts: SparseRows,
    logits: Tensor,
    log_size: Tensor,
    link: str,
    log_theta: Tensor | None,
    level: Tensor | None,
    dropout_logits: Tensor | None,
    bias: Tensor,
) -> tuple[Tensor, Gradients]:
    """Return the value of each cell and the gradients of their mean, for networks whose gradient is written out.

    `bias`, of shape (G,), is added to every row of the logits. Logits may be bfloat16; theirs and the dropout logits'
    gradients take their place in memory.
    """
    per_cell = level is None and log_theta is not None and log_theta.ndim == 2
    inputs = _inputs(counts, logits, log_size, log_theta, level, dropout_logits)
    return _run(_CODES[likelihood], _LINKS[link], per_cell, inputs, _equal_weights(len(counts)), True, bias)


@lru_cache(maxsize=8)
def _equal_weights(n: int) -> Tensor:
    """What each of n cells counts in their mean."""
    return torch.full((n,), 1.0 / max(n, 1))


@lru_cache(maxsize=8)
def _one_level(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64)


def _inputs(
    counts: SparseRows,
    logits: Tensor,
    log_size: Tensor,
    log_theta: Tensor | None,
    level: Tensor | None,
    dropout_logits: Tensor | None,
) -> Inputs:
    none = logits.new_empty(0, 0)
    return Inputs(
        counts,
        logits.contiguous(),
        log_size.contiguous(),
        none if log_theta is None else torch.atleast_2d(log_theta).contiguous(),
        _one_level(len(counts)) if level is None else level.to(torch.int64).contiguous(),
        none if dropout_logits is None else dropout_logits.contiguous(),
    )


class _CountNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, code, link, counts, level, logits, log_size, log_theta, dropout_logits):
        per_cell = level is None and log_theta is not None and log_theta.ndim == 2
        inputs = _inputs(counts, logits, log_size, log_theta, level, dropout_logits)
        nll, gradients = _run(code, link, per_cell, inputs, _equal_weights(len(counts)), any(ctx.needs_input_grad))
        ctx.how = code, link, per_cell, counts
        ctx.theta_shape = None if log_theta is None else log_theta.shape
        ctx.save_for_backward(*inputs[1:], *gradients[:-1])
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        code, link, per_cell, counts = ctx.how
        inputs = Inputs(counts, *ctx.saved_tensors[:5])
        gradients = Gradients._make([*ctx.saved_tensors[5:], inputs.logits.new_empty(0)])
        # a mean or a sum over cells hands back one number expanded, with stride 0
        if len(counts) and upstream.stride(0) != 0 and not bool((upstream == upstream[0]).all()):
            _, gradients = _run(code, link, per_cell, inputs, upstream.contiguous(), True)
        elif len(counts):
            factor = float(upstream[0]) / float(np.float32(1.0 / len(counts)))
            if factor != 1.0:
                gradients = Gradients(*(gradient * factor for gradient in gradients))
        if ctx.theta_shape is not None:
            gradients = gradients._replace(log_theta=gradients.log_theta.view(ctx.theta_shape))
        wanted = ctx.needs_input_grad[4:]
        return (None,) * 4 + tuple(part if want else None for part, want in zip(gradients[:-1], wanted, strict=True))


def _run(
    code: int, link: int, per_cell: bool, inputs: Inputs, weight: Tensor, keep: bool, bias: Tensor | None = None
) -> tuple[Tensor, Gradients]:
    """Compute the value of each cell, and the gradients of their sum weighted by `weight` if `keep`.

    With a `bias`, gradients overwrite the logits that they are of.
    """
    counts, (logits, log_size, log_theta, level, dropout_logits) = inputs.counts, (p.detach() for p in inputs[1:])
    n, n_genes = counts.shape
    rows = max(_BLOCK_ROWS, -(-n // _MAX_BLOCKS))
    blocks = -(-n // rows)
    theta, inverse, tables, slopes = _theta_tables(log_theta, per_cell, n_genes, counts.values.shape[0])
    kept, in_place = n if keep else blocks, bias is not None
    nll, grad_size = torch.empty(n), torch.empty(n)
    grad_logits = logits if in_place else torch.empty(kept, n_genes)
    grad_dropout = dropout_logits if in_place else torch.empty(kept if code == _ZINB else 0, n_genes)
    grad_bias = torch.zeros(blocks, n_genes if in_place else 0)
    grad_theta = torch.zeros(*((1, kept, n_genes) if per_cell else (blocks, *log_theta.shape)))
    arguments = (
        *(_array(part) for part in (counts.indptr, counts.indices, counts.values.detach(), logits)),
        _array(logits.new_empty(0) if bias is None else bias.detach()),
        *(_array(part) for part in (log_size, log_theta, level, dropout_logits)),
        theta,
        inverse,
        tables,
        slopes,
        *(_array(part) for part in (weight.detach(), nll, grad_logits, grad_size, grad_theta, grad_dropout, grad_bias)),
    )
    in_threads(lambda first, last: _rows(code, link, per_cell, keep, rows, first, last, *arguments), blocks)
    total_theta = grad_theta[0] if per_cell else grad_theta.sum(0)
    return nll, Gradients(grad_logits, grad_size, total_theta, grad_dropout, grad_bias.sum(0))


def _array(part: Tensor) -> np.ndarray:
    """Return the memory of a tensor as NumPy sees it; NumPy has no bfloat16, only its bits."""
    return (part.view(torch.uint16) if part.dtype == torch.bfloat16 else part).numpy()


def _theta_tables(log_theta: Tensor, per_cell: bool, n_genes: int, n_stored: int):
    """Theta, its inverse and the tables of the gamma terms, where a table is cheaper than a sum at each count."""
    levels = 0 if per_cell else log_theta.shape[0]
    width = N_SMALL if levels and levels * n_genes * 4 <= n_stored else 0
    theta = np.empty((levels, n_genes), np.float32)
    inverse = np.empty_like(theta)
    tables = np.empty((width, levels * n_genes), np.float32)
    slopes = np.empty_like(tables)
    if levels:
        _fill(log_theta.numpy().reshape(-1), theta.reshape(-1), inverse.reshape(-1), tables, slopes)
    return theta, inverse, tables, slopes


@njit(nogil=True, cache=True)
def _fill(log_theta, theta, inverse, tables, slopes):
    theta_row(log_theta, theta, inverse)
    fill_tables(theta, inverse, tables, slopes)


@njit(error_model="numpy", nogil=True, cache=True)
def _rows(
    code, link, per_cell, keep, block_rows, first, last, indptr, indices, values, logits, bias, log_size, log_theta,
    level, dropout, theta, inverse, tables, slopes, weight, nll, grad_logits, grad_size, grad_theta, grad_dropout,
    grad_bias,
):  # fmt: skip
    """Fill `nll` and the gradients for the rows of the blocks from `first` to `last`."""
    n_genes = logits.shape[1]
    buffers = np.zeros((10, n_genes), np.float32)
    unit, log_unit, slope, g, val, dense = buffers[0], buffers[1], buffers[2], buffers[3], buffers[4], buffers[5]
    pi, own = buffers[6], buffers[9]
    for block in range(first, last):
        for i in range(block * block_rows, min((block + 1) * block_rows, logits.shape[0])):
            target = i if keep else block
            x, columns = values[indptr[i] : indptr[i + 1]], indices[indptr[i] : indptr[i + 1]]
            scale, shift, total = link_row(link, logits[i], bias, log_size[i], unit, log_unit, slope)
            out, w = grad_logits[target], weight[i]
            if code == _MULTINOMIAL:
                nll[i] = multinomial_row(x, columns, unit, total, log_unit, g)
                grad_size[i] = 0.0
                unlink_row(link, g, np.float32(0.0), unit, total, slope, w, out, grad_bias[block])
                continue
            if code in (_NB, _ZINB):
                if per_cell:
                    t, t_inverse, offset = buffers[7], buffers[8], 0
                    theta_row(log_theta[i], t, t_inverse)
                    th = grad_theta[0, target]
                else:
                    t, t_inverse, offset = theta[level[i]], inverse[level[i]], level[i] * n_genes
                    th = grad_theta[block, level[i]]
                n_large = spread(x, columns, dense)
                if code == _NB:
                    value, total_g = nb_row(dense, unit, scale, log_unit, shift, t, t_inverse, w, g, th)
                else:
                    value, total_g = zinb_row(
                        dense, unit, scale, log_unit, shift, t, t_inverse, dropout[i], w, g, th, pi, val, own
                    )
                value -= add_rising(x, columns, t, tables, slopes, offset, w, th)
                if n_large:
                    if code == _ZINB:
                        value += inflate_large(x, columns, dropout[i], w, pi)
                    more, more_g = add_large(x, columns, log_unit, shift, t, w, g, th)
                    value += more
                    total_g += more_g
                if code == _ZINB:
                    write_row(pi, grad_dropout[target])
                nll[i] = value
            else:
                poisson_dense(unit, scale, val, g)
                if code == _POISSON:
                    poisson_observed(x, columns, log_unit, shift, val, g)
                else:
                    bernoulli_observed(x, columns, log_unit, shift, val, g)
                nll[i], total_g = row_sum(val), row_sum(g)
            grad_size[i] = total_g * w
            unlink_row(link, g, total_g, unit, total, slope, w, out, grad_bias[block])
