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
_NONE, _NO_BIAS = np.empty((0, 0), np.float32), np.empty(0, np.float32)


class Inputs(NamedTuple):
    """What a likelihood is computed from, as compiled code takes it; empty arrays stand for what it does not take."""

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    logits: np.ndarray
    bias: np.ndarray
    log_size: np.ndarray
    log_theta: np.ndarray
    level: np.ndarray
    dropout_logits: np.ndarray


class Gradients(NamedTuple):
    """Gradients in the order of the tensors that may need one; that of a bias added to all rows of logits is last."""

    logits: np.ndarray
    log_size: np.ndarray
    log_theta: np.ndarray
    dropout_logits: np.ndarray
    bias: np.ndarray


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
) -> tuple[np.ndarray, Gradients]:
    """Return the value of each cell and the gradients of their mean, for networks whose gradient is written out.

    `bias`, of shape (G,), is added to every row of the logits. Logits may be bfloat16; theirs and the dropout logits'
    gradients take their place in memory.
    """
    per_cell = level is None and log_theta is not None and log_theta.ndim == 2
    inputs = _inputs(counts, logits, log_size, log_theta, level, dropout_logits, bias)
    return _run(_CODES[likelihood], _LINKS[link], per_cell, inputs, _equal_weights(len(counts)), True, True)


@lru_cache(maxsize=8)
def _equal_weights(n: int) -> np.ndarray:
    """What each of n cells counts in their mean."""
    return np.full(n, 1.0 / max(n, 1), np.float32)


@lru_cache(maxsize=8)
def _one_level(n: int) -> np.ndarray:
    return np.zeros(n, np.int64)


def _inputs(
    counts: SparseRows,
    logits: Tensor,
    log_size: Tensor,
    log_theta: Tensor | None,
    level: Tensor | None,
    dropout_logits: Tensor | None,
    bias: Tensor | None = None,
) -> Inputs:
    return Inputs(
        *counts.arrays,
        _array(logits),
        _NO_BIAS if bias is None else _array(bias),
        _array(log_size),
        _NONE if log_theta is None else _array(torch.atleast_2d(log_theta)),
        _one_level(len(counts)) if level is None else _array(level),
        (_NONE.view(np.uint16) if logits.dtype == torch.bfloat16 else _NONE)
        if dropout_logits is None else _array(dropout_logits),
    )  # fmt: skip


def _array(part: Tensor) -> np.ndarray:
    """Return a tensor as NumPy sees it; NumPy has no bfloat16, only its bits."""
    part = part.detach().contiguous()
    return (part.view(torch.uint16) if part.dtype == torch.bfloat16 else part).numpy()


class _CountNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, code, link, counts, level, logits, log_size, log_theta, dropout_logits):
        per_cell = level is None and log_theta is not None and log_theta.ndim == 2
        inputs = _inputs(counts, logits, log_size, log_theta, level, dropout_logits)
        nll, gradients = _run(code, link, per_cell, inputs, _equal_weights(len(counts)), any(ctx.needs_input_grad))
        ctx.how, ctx.inputs, ctx.gradients = (code, link, per_cell), inputs, gradients
        ctx.theta_shape = None if log_theta is None else log_theta.shape
        return torch.from_numpy(nll)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        gradients, n = ctx.gradients, len(upstream)
        # a mean or a sum over cells hands back one number expanded, with stride 0
        if n and upstream.stride(0) != 0 and not bool((upstream == upstream[0]).all()):
            code, link, per_cell = ctx.how
            _, gradients = _run(code, link, per_cell, ctx.inputs, upstream.contiguous().numpy(), True)
        elif n:
            factor = np.float32(float(upstream[0]) / float(np.float32(1.0 / n)))
            if factor != 1.0:
                gradients = Gradients(*(gradient * factor for gradient in gradients))
        if ctx.theta_shape is not None:
            gradients = gradients._replace(log_theta=gradients.log_theta.reshape(ctx.theta_shape))
        wanted = zip(gradients[:-1], ctx.needs_input_grad[4:], strict=True)
        return (None,) * 4 + tuple(torch.from_numpy(part) if want else None for part, want in wanted)


def _run(
    code: int, link: int, per_cell: bool, inputs: Inputs, weight: np.ndarray, keep: bool, in_place: bool = False
) -> tuple[np.ndarray, Gradients]:
    """Compute the value of each cell, and the gradients of their sum weighted by `weight` if `keep`.

    If `in_place`, gradients overwrite the logits that they are of.
    """
    logits, log_theta = inputs.logits, inputs.log_theta
    n, n_genes = logits.shape
    rows = max(_BLOCK_ROWS, -(-n // _MAX_BLOCKS))
    blocks = -(-n // rows)
    tables = _theta_tables(log_theta, per_cell, n_genes, inputs.values.shape[0])
    kept = n if keep else blocks
    nll, grad_size = np.empty(n, np.float32), np.empty(n, np.float32)
    grad_logits = logits if in_place else np.empty((kept, n_genes), np.float32)
    grad_dropout = inputs.dropout_logits
    if not in_place:
        grad_dropout = np.empty((kept if code == _ZINB else 0, n_genes), np.float32)
    grad_bias = np.zeros((blocks, len(inputs.bias)), np.float32)
    grad_theta = np.zeros((1, kept, n_genes) if per_cell else (blocks, *log_theta.shape), np.float32)
    outputs = (weight, nll, grad_logits, grad_size, grad_theta, grad_dropout, grad_bias)
    in_threads(
        lambda first, last: _rows(code, link, per_cell, keep, rows, first, last, inputs, tables, *outputs), blocks
    )
    total_theta = grad_theta[0] if per_cell else grad_theta.sum(axis=0)
    return nll, Gradients(grad_logits, grad_size, total_theta, grad_dropout, grad_bias.sum(axis=0))


def _theta_tables(log_theta: np.ndarray, per_cell: bool, n_genes: int, n_stored: int):
    """Theta, its inverse and the tables of the gamma terms, where a table is cheaper than a sum at each count."""
    levels = 0 if per_cell else len(log_theta)
    width = N_SMALL if levels and levels * n_genes * 4 <= n_stored else 0
    theta = np.empty((levels, n_genes), np.float32)
    inverse = np.empty_like(theta)
    tables = np.empty((width, levels * n_genes), np.float32)
    slopes = np.empty_like(tables)
    if levels:
        _fill(log_theta.reshape(-1), theta.reshape(-1), inverse.reshape(-1), tables, slopes)
    return theta, inverse, tables, slopes


@njit(nogil=True, cache=True)
def _fill(log_theta, theta, inverse, tables, slopes):
    theta_row(log_theta, theta, inverse)
    fill_tables(theta, inverse, tables, slopes)


@njit(error_model="numpy", nogil=True, cache=True)
def _rows(
    code, link, per_cell, keep, block_rows, first, last, inputs, of_theta, weight, nll, grad_logits, grad_size,
    grad_theta, grad_dropout, grad_bias,
):  # fmt: skip
    """Fill `nll` and the gradients for the rows of the blocks from `first` to `last`."""
    indptr, indices, values, logits, bias, log_size, log_theta, level, dropout = inputs
    theta, inverse, tables, slopes = of_theta
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
