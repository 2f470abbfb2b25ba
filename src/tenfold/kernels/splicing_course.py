"""Likelihood of spliced and unspliced RNA on courses that all genes of a cell share the time of: value and gradient.

One pass over cells and genes on the CPU, genes `TILE` at a time as in `splicing_mixture`. The equations are linear, so
that a course is the sum of two: that of RNA transcribed since it began, and that of RNA that was there and is left. In
the first of two models a gene takes one of the two; in the second its course is their sum.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tenfold.kernels.splicing_mixture import lags
from tenfold.kernels.threads import in_threads
from tenfold.kernels.vectormath import SUMS, exp

#: Numbers of a gene, in this order: logs of the rates, of the RNA that is left, and of the time at which courses begin;
#: half the log odds of being transcribed.
ALPHA, BETA, GAMMA, U0, S0, BEGIN, MODE, N_NUMBERS = range(8)
TILE = 64

# Rows of a tile: what goes in (numbers of genes come last), and after OUT the gradients.
_SHARE, _U, _S, _SD_U, _SD_S, _GENE = 0, 1, 2, 3, 4, 5
_OUT = _GENE + N_NUMBERS
_OUT_GENE = _OUT + 1
_N_ROWS = _OUT_GENE + N_NUMBERS
_BLOCK_ROWS, _MAX_BLOCKS = 16, 16
_ZERO, _HALF, _ONE, _TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
_LOG_2PI = np.float32(np.log(2 * np.pi))
_NONE = np.zeros((0, 0), np.float32)
_FAST: dict[str, Any] = {"fastmath": SUMS, "error_model": "numpy", "nogil": True, "cache": True}


def either_nll(share: Tensor, t: Tensor, x: Tensor, numbers: Tensor, log_sd: Tensor) -> Tensor:
    """Return the negative log-likelihood, expected over the modes of genes; sum over genes, mean over cells.

    Differentiable in the first two and in `numbers`.

    Parameters
    ----------
    share
        Of its highest rate, at which each gene is transcribed, shape (n, g), float32, on the CPU as all others.
    t
        Times of cells, (n, 1).
    x
        Unspliced, then spliced RNA, (n, 2 g).
    numbers
        Of each gene, (7, g); see `ALPHA` and the following.
    log_sd
        Logs of the standard deviations of unspliced and spliced RNA, (2, g).
    """
    return _CourseNLL.apply(share, t, x, None, numbers, log_sd)


def sum_nll(share: Tensor, since: Tensor, x: Tensor, left: Tensor, numbers: Tensor, log_sd: Tensor) -> Tensor:
    """Return the same where all genes are transcribed and `left` is the RNA that was there, (n, 2 g), `since` ago.

    Differentiable in `share` and in the rates.
    """
    return _CourseNLL.apply(share, since, x, left, numbers, log_sd)


class _CourseNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, share, t, x, left, numbers, log_sd):
        n, g = share.shape
        given = [part.detach().contiguous().numpy() for part in (share, t, x, numbers, log_sd)]
        grad_share, grad_t = np.empty((n, g), np.float32), np.empty((n, 1), np.float32)
        rows = max(_BLOCK_ROWS, -(-n // _MAX_BLOCKS))
        blocks = -(-n // rows)
        totals, of_gene = np.zeros(blocks), np.zeros((blocks, N_NUMBERS, g), np.float32)
        there = _NONE if left is None else left.contiguous().numpy()
        in_threads(
            lambda first, last: _rows(first, last, rows, *given, there, grad_share, grad_t, of_gene, totals), blocks
        )
        for grad in (grad_share, grad_t):
            grad *= np.float32(1 / n)
        ctx.grads = [*map(torch.from_numpy, (grad_share, grad_t, of_gene.sum(axis=0) / np.float32(n)))]
        return torch.tensor(totals.sum() / n, dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        factor = float(upstream)
        share, t, numbers = ctx.grads if factor == 1 else [grad * factor for grad in ctx.grads]
        return share, t, None, None, numbers, None


@njit(**_FAST)
def _rows(
    first, last, block_rows, share, t, x, numbers, log_sd, left, grad_share, grad_t, grad_genes, totals
):  # fmt: skip
    """Fill the gradients of the sum over cells for the rows of blocks from `first` to `last`."""
    n, g = share.shape
    whole = _ONE if left.shape[0] == n else _ZERO
    w = np.zeros((_N_ROWS, TILE), np.float32)
    for block in range(first, last):
        rows = range(block * block_rows, min((block + 1) * block_rows, n))
        for i in rows:
            grad_t[i, 0] = _ZERO
        for start in range(0, g, TILE):
            size = min(TILE, g - start)
            for k in range(N_NUMBERS):
                for j in range(TILE):
                    w[_OUT_GENE + k, j] = _ZERO
                for j in range(size):
                    w[_GENE + k, j] = exp(numbers[k, start + j])
            for j in range(size):
                w[_GENE + MODE, j] = _ONE / (_ONE + exp(-_TWO * numbers[MODE, start + j]))
                w[_SD_U, j], w[_SD_S, j] = log_sd[0, start + j], log_sd[1, start + j]
            if whole > _ZERO:
                for j in range(size):
                    w[_GENE + MODE, j], w[_GENE + BEGIN, j] = _ONE, _ZERO
            for i in rows:
                for j in range(size):
                    w[_SHARE, j], w[_U, j], w[_S, j] = share[i, start + j], x[i, start + j], x[i, g + start + j]
                if whole > _ZERO:
                    for j in range(size):
                        w[_GENE + U0, j], w[_GENE + S0, j] = left[i, start + j], left[i, g + start + j]
                _tile(w, t[i, 0], whole)
                total, by_time = _ZERO, _ZERO
                for j in range(size):
                    total += w[_U, j]
                    by_time += w[_S, j]
                totals[block] += total
                grad_t[i, 0] += by_time
                for j in range(size):
                    grad_share[i, start + j] = w[_OUT, j]
            for k in range(N_NUMBERS):
                if whole == _ZERO or k < U0:
                    for j in range(size):
                        grad_genes[block, k, start + j] = w[_OUT_GENE + k, j]


@njit(**{**_FAST, "forceinline": True})
def _tile(w, t, whole):
    """Fill the gradients of a cell's genes; the value and the gradient by time take the place of u and s."""
    for j in range(TILE):
        beta, gamma, u0, s0 = w[_GENE + BETA, j], w[_GENE + GAMMA, j], w[_GENE + U0, j], w[_GENE + S0, j]
        begin, mode, rate = w[_GENE + BEGIN, j], w[_GENE + MODE, j], w[_GENE + ALPHA, j] * w[_SHARE, j]
        moving = _ONE if t > begin else _ZERO
        tau = moving * (t - begin)
        e, f, lag, lag_beta, lag_gamma = lags(tau, beta, gamma)
        ib, ig = _ONE / beta, _ONE / gamma

        # RNA made since the course began, for a rate of 1, and RNA that is left.
        made_u, made = (_ONE - e) * ib, (_ONE - f) * ig
        made_s = made - lag
        u2, s2 = u0 * e, s0 * f + beta * u0 * lag
        u1, s1 = rate * made_u, rate * made_s
        iu, is_ = exp(-w[_SD_U, j]), exp(-w[_SD_S, j])
        zu1, zs1 = (w[_U, j] - u1 - whole * u2) * iu, (w[_S, j] - s1 - whole * s2) * is_
        zu2, zs2 = (w[_U, j] - u2) * iu, (w[_S, j] - s2) * is_
        first, second = _HALF * (zu1 * zu1 + zs1 * zs1), _HALF * (zu2 * zu2 + zs2 * zs2)
        nll = mode * first + (_ONE - mode) * second + w[_SD_U, j] + w[_SD_S, j] + _LOG_2PI

        # By RNA made, then by RNA left.
        gu, gs = -mode * zu1 * iu, -mode * zs1 * is_
        hu, hs = whole * gu - (_ONE - mode) * zu2 * iu, whole * gs - (_ONE - mode) * zs2 * is_
        by_rate = gu * made_u + gs * made_s
        # By time: the equations themselves.
        by_time = (
            gu * (rate - beta * u1) + gs * (beta * u1 - gamma * s1) - hu * beta * u2 + hs * (beta * u2 - gamma * s2)
        )
        by_time *= moving
        by_beta = gu * rate * (tau * e - made_u) * ib - gs * rate * lag_beta - hu * tau * u2
        by_beta += hs * u0 * (lag + beta * lag_beta)
        by_gamma = gs * rate * ((tau * f - made) * ig - lag_gamma) + hs * (beta * u0 * lag_gamma - tau * s0 * f)
        w[_OUT, j] = by_rate * w[_GENE + ALPHA, j]
        w[_OUT_GENE + ALPHA, j] += by_rate * rate
        w[_OUT_GENE + BETA, j] += by_beta * beta
        w[_OUT_GENE + GAMMA, j] += by_gamma * gamma
        w[_OUT_GENE + U0, j] += (hu * e + hs * beta * lag) * u0
        w[_OUT_GENE + S0, j] += hs * f * s0
        w[_OUT_GENE + BEGIN, j] -= by_time * begin
        w[_OUT_GENE + MODE, j] += _TWO * mode * (_ONE - mode) * (first - second)
        w[_U, j] = nll
        w[_S, j] = by_time
