"""Likelihood of spliced and unspliced RNA as a mixture of four states of the two-phase model: value and gradient.

One pass over cells and genes on the CPU. States are induction, its steady state, repression, and no RNA; a network says
for each cell and gene how far it is in either phase, and the shapes of a Dirichlet distribution of the states' shares,
of which one draw is taken. Genes are taken `TILE` at a time into memory whose layout the compiler knows, so that it
sees that nothing overlaps and computes many at once.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from math import lgamma
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tenfold.kernels.gamma_draws import gamma_functions, log_variate
from tenfold.kernels.hidden_layers import random_words
from tenfold.kernels.threads import in_threads
from tenfold.kernels.vectormath import ELEMENT, SUMS, exp, log, log1p

#: Numbers of a gene, in this order, as `of_genes` is given them: rates, time of the switch, RNA then, log of standard
#: deviations.
ALPHA, BETA, GAMMA, SWITCH, U0, S0, LOG_SD_U, LOG_SD_S, N_OF_GENE = range(9)
#: Standard deviation of the state without RNA, as a share of that of the others.
SHARE_AT_ZERO = 0.1
#: Least shape of the Dirichlet distribution, far below where training leads.
LEAST_SHAPE = 1e-6
TILE = 64

# Rows of a tile: what goes in, and after OUT what comes out (logits of phases, logits of shares, numbers of genes).
_PHASE, _SHARES, _NORMAL, _UNIFORM, _U, _S, _GENE = 0, 2, 6, 10, 14, 15, 16
_OUT = _GENE + N_OF_GENE
_OUT_GENE = _OUT + 6
_INVERSE_SD = _OUT_GENE + N_OF_GENE
_N_ROWS = _INVERSE_SD + 2
_BLOCK_ROWS, _MAX_BLOCKS = 16, 16
_ZERO, _HALF, _ONE, _TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)
_LOG_2PI = np.float32(np.log(2 * np.pi))
_PRECISION, _LOG_PRECISION = np.float32(1 / SHARE_AT_ZERO), np.float32(-np.log(SHARE_AT_ZERO))
_LEAST = np.float32(LEAST_SHAPE)
_WORD, _HALF_WORD = np.float32(2.0**-16), np.float32(2.0**-17)
_FAST: dict[str, Any] = {"fastmath": SUMS, "error_model": "numpy", "nogil": True, "cache": True}


class Draws:
    """Random numbers behind the shares of the states: normal, (n, 4, g) float32, and uniform, (n, 4, g) uint16."""

    def __init__(self, n_cells: int, n_genes: int):
        self.normal = torch.randn(n_cells, 4, n_genes)
        self.words = random_words(n_cells, 4 * n_genes).reshape(n_cells, 4, n_genes)

    @property
    def exponential(self) -> Tensor:
        """The negative logarithms of the uniform numbers."""
        return -torch.log((torch.from_numpy(self.words.astype(np.float32)) + 0.5) / 65536)


def mixture_nll(
    phase: Tensor, shares: Tensor, of_genes: Tensor, u: Tensor, s: Tensor, draws: Draws, *, t_max: float,
    concentration: float, tied: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return negative log-likelihood and KL(shares ‖ prior), each the mean over cells of sums over genes.

    Differentiable in the first three; the gradients of the two cannot be told apart, only their sum is differentiable.

    Parameters
    ----------
    phase
        Logits of how far induction and repression have gone, shape (n, 2, g), float32, on the CPU as all others.
    shares
        Of the softplus of these are the shapes of the Dirichlet distribution, (n, 4, g).
    of_genes
        Numbers of each gene, (8, g); see `ALPHA` and the following.
    u, s
        Unspliced and spliced RNA, (n, g).
    draws
        Random numbers.
    t_max
        Time at which repression ends.
    concentration
        Shapes of the Dirichlet prior.
    tied
        One state for u and s, instead of one for each.
    """
    return _MixtureNLL.apply(phase, shares, of_genes, u, s, draws, t_max, concentration, tied)


class _MixtureNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, phase, shares, of_genes, u, s, draws, t_max, concentration, tied):
        n = len(u)
        given = [part.detach().contiguous().numpy() for part in (phase, shares, of_genes, u, s)]
        grads = np.empty(given[0].shape, np.float32), np.empty(given[1].shape, np.float32)
        rows = max(_BLOCK_ROWS, -(-n // _MAX_BLOCKS))
        blocks = -(-n // rows)
        totals, of_gene = np.zeros((blocks, 2)), np.zeros((blocks, *given[2].shape), np.float32)
        settings = tuple(map(np.float32, (t_max, concentration, tied)))
        in_threads(
            lambda first, last: _rows(
                first, last, rows, *given, draws.normal.numpy(), draws.words, settings, *grads, of_gene, totals
            ),
            blocks,
        )
        for grad in grads:
            grad *= np.float32(1 / n)
        ctx.grads = [*map(torch.from_numpy, grads), torch.from_numpy(of_gene.sum(axis=0) / np.float32(n))]
        nll, kl = totals.sum(axis=0) / n
        # The prior's own constant, which the loop leaves out.
        kl += u.shape[1] * (4 * lgamma(concentration) - lgamma(4 * concentration))
        return torch.tensor(nll, dtype=torch.float32), torch.tensor(kl, dtype=torch.float32)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, upstream_kl):
        factor = float(upstream)
        grads = ctx.grads if factor == 1 else [grad * factor for grad in ctx.grads]
        return (*grads, *(None,) * 6)


@njit(**_FAST)
def _rows(
    first, last, block_rows, phase, shares, of_genes, u, s, normal, words, settings, grad_phase, grad_shares,
    grad_genes, totals,
):  # fmt: skip
    """Fill the gradients of the sum over cells for the rows of blocks from `first` to `last`."""
    n, g = u.shape
    t_max, concentration, tied = settings
    w = np.zeros((_N_ROWS, TILE), np.float32)
    for block in range(first, last):
        for start in range(0, g, TILE):
            size = min(TILE, g - start)
            for k in range(N_OF_GENE):
                w[_OUT_GENE + k, :] = _ZERO
                for j in range(size):
                    w[_GENE + k, j] = of_genes[k, start + j]
            for j in range(TILE):
                w[_INVERSE_SD, j] = exp(-w[_GENE + LOG_SD_U, j])
                w[_INVERSE_SD + 1, j] = exp(-w[_GENE + LOG_SD_S, j])
            for i in range(block * block_rows, min((block + 1) * block_rows, n)):
                for j in range(size):
                    w[_U, j] = u[i, start + j]
                    w[_S, j] = s[i, start + j]
                for k in range(2):
                    for j in range(size):
                        w[_PHASE + k, j] = phase[i, k, start + j]
                for k in range(4):
                    for j in range(size):
                        w[_SHARES + k, j] = shares[i, k, start + j]
                        w[_NORMAL + k, j] = normal[i, k, start + j]
                        w[_UNIFORM + k, j] = np.float32(words[i, k, start + j])
                _tile(w, t_max, concentration, tied)
                for j in range(size):
                    totals[block, 0] += w[_U, j]
                    totals[block, 1] += w[_S, j]
                for k in range(2):
                    for j in range(size):
                        grad_phase[i, k, start + j] = w[_OUT + k, j]
                for k in range(4):
                    for j in range(size):
                        grad_shares[i, k, start + j] = w[_OUT + 2 + k, j]
            for k in range(N_OF_GENE):
                for j in range(size):
                    grad_genes[block, k, start + j] = w[_OUT_GENE + k, j]


@njit(**{**_FAST, "forceinline": True})
def _tile(w, t_max, concentration, tied):
    """Fill the gradients of a cell's genes; the two values take the place of u and s."""
    for j in range(TILE):
        beta, gamma, switch = w[_GENE + BETA, j], w[_GENE + GAMMA, j], w[_GENE + SWITCH, j]
        alpha, u0, s0 = w[_GENE + ALPHA, j], w[_GENE + U0, j], w[_GENE + S0, j]
        ib, ig = _ONE / beta, _ONE / gamma
        rho, tau = _ONE / (_ONE + exp(-w[_PHASE, j])), _ONE / (_ONE + exp(-w[_PHASE + 1, j]))

        # Means of the states: u, then s. States are 1 induction, 2 its steady state, 3 repression, 4 no RNA.
        t1, t3 = switch * rho, (t_max - switch) * tau
        e1, f1, j1, jb1, jg1 = lags(t1, beta, gamma)
        e3, f3, j3, jb3, jg3 = lags(t3, beta, gamma)
        u2, s2 = alpha * ib, alpha * ig
        u1, s1 = u2 * (_ONE - e1), s2 * (_ONE - f1) - alpha * j1
        u3, s3 = u0 * e3, s0 * f3 + beta * u0 * j3

        # Shares of the states, as logs that do not sum up to anything: l.
        a1, da1, l1, dl1, g1, p1, q1 = _share(w[_SHARES, j], w[_NORMAL, j], w[_UNIFORM, j])
        a2, da2, l2, dl2, g2, p2, q2 = _share(w[_SHARES + 1, j], w[_NORMAL + 1, j], w[_UNIFORM + 1, j])
        a3, da3, l3, dl3, g3, p3, q3 = _share(w[_SHARES + 2, j], w[_NORMAL + 2, j], w[_UNIFORM + 2, j])
        a4, da4, l4, dl4, g4, p4, q4 = _share(w[_SHARES + 3, j], w[_NORMAL + 3, j], w[_UNIFORM + 3, j])

        iu, is_ = w[_INVERSE_SD, j], w[_INVERSE_SD + 1, j]
        u, s = w[_U, j], w[_S, j]
        zu1, zu2, zu3, zu4 = (u - u1) * iu, (u - u2) * iu, (u - u3) * iu, u * iu * _PRECISION
        zs1, zs2, zs3, zs4 = (s - s1) * is_, (s - s2) * is_, (s - s3) * is_, s * is_ * _PRECISION
        du1, du2, du3, du4 = -_HALF * zu1 * zu1, -_HALF * zu2 * zu2, -_HALF * zu3 * zu3, -_HALF * zu4 * zu4
        ds1, ds2, ds3, ds4 = -_HALF * zs1 * zs1, -_HALF * zs2 * zs2, -_HALF * zs3 * zs3, -_HALF * zs4 * zs4
        du4 += _LOG_PRECISION
        ds4 += _LOG_PRECISION
        # Tied, both sums over states hold u and s, and count half.
        weight = _ONE - _HALF * tied
        au, x1, x2, x3, x4 = _softmax(
            l1 + du1 + tied * ds1, l2 + du2 + tied * ds2, l3 + du3 + tied * ds3, l4 + du4 + tied * ds4
        )
        as_, y1, y2, y3, y4 = _softmax(
            l1 + ds1 + tied * du1, l2 + ds2 + tied * du2, l3 + ds3 + tied * du3, l4 + ds4 + tied * du4
        )
        al, z1, z2, z3, z4 = _softmax(l1, l2, l3, l4)
        nll = -weight * (au + as_ - _TWO * al)
        nll += w[_GENE + LOG_SD_U, j] + w[_GENE + LOG_SD_S, j] + _LOG_2PI

        # KL of the Dirichlet distribution from its prior, without what does not depend on the network.
        total = a1 + a2 + a3 + a4
        g0, p0, q0 = gamma_functions(total)
        b = concentration
        kl = g0 - g1 - g2 - g3 - g4 - (total - np.float32(4.0) * b) * p0
        kl += (a1 - b) * p1 + (a2 - b) * p2 + (a3 - b) * p3 + (a4 - b) * p4
        rest = (total - np.float32(4.0) * b) * q0
        w[_OUT + 2, j] = da1 * (weight * (_TWO * z1 - x1 - y1) * dl1 + (a1 - b) * q1 - rest)
        w[_OUT + 3, j] = da2 * (weight * (_TWO * z2 - x2 - y2) * dl2 + (a2 - b) * q2 - rest)
        w[_OUT + 4, j] = da3 * (weight * (_TWO * z3 - x3 - y3) * dl3 + (a3 - b) * q3 - rest)
        w[_OUT + 5, j] = da4 * (weight * (_TWO * z4 - x4 - y4) * dl4 + (a4 - b) * q4 - rest)

        # By the means: responsibilities times how far the cell is from them.
        r1, r2 = weight * (x1 + tied * y1), weight * (x2 + tied * y2)
        r3, r4 = weight * (x3 + tied * y3), weight * (x4 + tied * y4)
        k1, k2 = weight * (y1 + tied * x1), weight * (y2 + tied * x2)
        k3, k4 = weight * (y3 + tied * x3), weight * (y4 + tied * x4)
        gu1, gu2, gu3 = -r1 * zu1 * iu, -r2 * zu2 * iu, -r3 * zu3 * iu
        gs1, gs2, gs3 = -k1 * zs1 * is_, -k2 * zs2 * is_, -k3 * zs3 * is_
        w[_OUT_GENE + LOG_SD_U, j] += _ONE - (r1 * zu1 * zu1 + r2 * zu2 * zu2 + r3 * zu3 * zu3 + r4 * zu4 * zu4)
        w[_OUT_GENE + LOG_SD_S, j] += _ONE - (k1 * zs1 * zs1 + k2 * zs2 * zs2 + k3 * zs3 * zs3 + k4 * zs4 * zs4)

        # By time: the equations themselves.
        by_t1 = gu1 * (alpha - beta * u1) + gs1 * (beta * u1 - gamma * s1)
        by_t3 = -gu3 * beta * u3 + gs3 * (beta * u3 - gamma * s3)
        w[_OUT, j] = by_t1 * t1 * (_ONE - rho)
        w[_OUT + 1, j] = by_t3 * t3 * (_ONE - tau)
        w[_OUT_GENE + SWITCH, j] += by_t1 * rho - by_t3 * tau

        # By rates, and by what is there at the switch.
        w[_OUT_GENE + ALPHA, j] += (gu1 * (_ONE - e1) + gu2) * ib + gs1 * ((_ONE - f1) * ig - j1) + gs2 * ig
        w[_OUT_GENE + BETA, j] += (
            gu1 * (u2 * t1 * e1 - u1 * ib)
            - gu2 * u2 * ib
            - gu3 * t3 * u3
            - gs1 * alpha * jb1
            + gs3 * u0 * (j3 + beta * jb3)
        )
        w[_OUT_GENE + GAMMA, j] += (
            gs1 * (s2 * t1 * f1 - s2 * (_ONE - f1) * ig - alpha * jg1)
            - gs2 * s2 * ig
            + gs3 * (beta * u0 * jg3 - t3 * s0 * f3)
        )
        w[_OUT_GENE + U0, j] += gu3 * e3 + gs3 * beta * j3
        w[_OUT_GENE + S0, j] += gs3 * f3
        w[_U, j] = nll
        w[_S, j] = kl


@njit(**ELEMENT)
def lags(t, beta, gamma):
    """Return e = exp(-beta t), f = exp(-gamma t), j = (e - f) / (gamma - beta), and j's derivatives by beta and gamma.

    By series where the rates are close.
    """
    e, f, apart = exp(-beta * t), exp(-gamma * t), gamma - beta
    x = apart * t
    near = abs(x) < np.float32(0.2)
    inverse = _ONE / (_ONE if near else apart)
    phi = _ONE - x * _HALF * (
        _ONE - x * np.float32(1 / 3) * (_ONE - x * np.float32(1 / 4) * (_ONE - x * np.float32(0.2)))
    )
    chi = _HALF - x * np.float32(1 / 6) * (
        _ONE - x * np.float32(1 / 4) * (_ONE - x * np.float32(0.2) * (_ONE - x * np.float32(1 / 6)))
    )
    omega = phi - chi  # (phi - exp(-x)) / x, as exp(-x) = 1 - x phi and chi = (1 - phi) / x
    j = t * e * phi if near else (e - f) * inverse
    by_beta = -t * t * e * chi if near else (j - t * e) * inverse
    by_gamma = -t * t * e * omega if near else (t * f - j) * inverse
    return e, f, j, by_beta, by_gamma


@njit(**ELEMENT)
def _share(logit, normal, word):
    """Return shape and its derivative, log of the gamma variate and its derivative by the shape, gamma functions."""
    e = exp(-abs(logit))
    a = (logit if logit > _ZERO else _ZERO) + log1p(e) + _LEAST
    slope = (_ONE if logit > _ZERO else e) / (_ONE + e)
    log_gamma, digamma, trigamma = gamma_functions(a)
    drawn, by_shape = log_variate(a, normal)
    inverse = _ONE / a
    log_uniform = log(word * _WORD + _HALF_WORD) * inverse
    return a, slope, drawn + log_uniform, by_shape - log_uniform * inverse, log_gamma, digamma, trigamma


@njit(**ELEMENT)
def _softmax(a, b, c, d):
    """Return log of the sum of exponentials, and the share of each in the sum."""
    x, y = (a if a > b else b), (c if c > d else d)
    top = x if x > y else y
    a, b, c, d = exp(a - top), exp(b - top), exp(c - top), exp(d - top)
    total = a + b + c + d
    inverse = _ONE / total
    return top + log(total), a * inverse, b * inverse, c * inverse, d * inverse
