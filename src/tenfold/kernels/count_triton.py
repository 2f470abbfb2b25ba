"""Fused likelihood of counts on a GPU, in Triton: value and gradients of a cell in one program.

A program owns one cell. It marks the cell's non-zero counts in the row of the gradient, goes over all genes as if their
counts were zero, passing over the marked ones, then over the non-zero counts in float64, where large terms cancel. No
atomic operation: results do not depend on the order in which programs run. Beside the gradients of the logits, and of
the dropout logits under zero inflation, that of theta is kept by cell until the backward pass sums it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tenfold.kernels.count_reference import MAX_LOG_MEAN, MAX_LOG_THETA, MIN_LOG_THETA
from tenfold.kernels.rows import SparseRows

#: Likelihoods that the kernel knows; the others take the plain path.
CODES = {"poisson": 0, "nb": 1, "zinb": 2}
_LINKS = {"softmax": 0, "exp": 1, "softplus": 2}
_POISSON, _ZINB = tl.constexpr(0), tl.constexpr(2)
_SOFTMAX, _EXP, _SOFTPLUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_TOP = tl.constexpr(MAX_LOG_MEAN)
_LOW_THETA, _HIGH_THETA = tl.constexpr(MIN_LOG_THETA), tl.constexpr(MAX_LOG_THETA)
_STIRLING = tl.constexpr(16)  # Stirling's series is taken at theta + 16


def triton_nll(
    likelihood: str,
    counts: SparseRows,
    logits: Tensor,
    log_size: Tensor,
    link: str,
    log_theta: Tensor | None,
    level: Tensor | None,
    dropout_logits: Tensor | None,
) -> Tensor:
    """Negative log-likelihood of each cell; arguments as in `tenfold.nn.likelihoods.count_nll`, float32 on one GPU."""
    return _CountNLL.apply(likelihood, link, counts, level, logits, log_size, log_theta, dropout_logits)


class _CountNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, likelihood, link, counts, level, logits, log_size, log_theta, dropout_logits):
        n_cells, n_genes = counts.shape
        per_cell = level is None and log_theta is not None and log_theta.ndim == 2
        none = logits.new_empty(0)
        nll, of_size = torch.empty_like(log_size), torch.empty_like(log_size)
        of_logits = torch.zeros_like(logits)  # zeros: the program marks non-zero counts here first
        of_theta = none if log_theta is None else torch.empty_like(logits)
        of_dropout = none if dropout_logits is None else torch.empty_like(logits)
        if n_cells:
            _cell[(n_cells,)](
                counts.indptr, counts.indices, counts.values.detach(), logits.contiguous(), log_size.contiguous(),
                none if log_theta is None else log_theta.contiguous(),
                _theta_rows(n_cells, per_cell, level, logits.device),
                none if dropout_logits is None else dropout_logits.contiguous(),
                nll, of_logits, of_size, of_theta, of_dropout, n_genes,
                CODE=CODES[likelihood], LINK=_LINKS[link], BLOCK=512, CHUNK=128,
            )  # fmt: skip
        ctx.per_cell, ctx.theta_shape = per_cell, None if log_theta is None else log_theta.shape
        ctx.save_for_backward(of_logits, of_size, of_theta, of_dropout, none if level is None else level)
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        of_logits, of_size, of_theta, of_dropout, level = ctx.saved_tensors
        by_cell = upstream[:, None]
        theta = None
        if ctx.theta_shape is not None:
            if ctx.per_cell:
                theta = of_theta * by_cell
            elif level.numel():
                told = torch.nn.functional.one_hot(level, ctx.theta_shape[0]).to(upstream.dtype)
                theta = (told * by_cell).T @ of_theta
            else:
                theta = upstream @ of_theta
        dropout = of_dropout * by_cell if of_dropout.numel() else None
        return None, None, None, None, of_logits * by_cell, of_size * upstream, theta, dropout


def _theta_rows(n_cells: int, per_cell: bool, level: Tensor | None, device: torch.device) -> Tensor:
    """Return the row of log theta that each cell reads, shape (n_cells,), int64."""
    if level is not None:
        return level.to(torch.int64)
    return torch.arange(n_cells, device=device) if per_cell else torch.zeros(n_cells, dtype=torch.int64, device=device)


@triton.jit
def _log1p(u):
    w = 1.0 + u
    return tl.log(w) + (u - (w - 1.0)) / w


@triton.jit
def _linked(h, shift, LINK: tl.constexpr):
    """Log mean of logits, and its derivative."""
    slope = h * 0.0 + 1.0
    if LINK == _SOFTPLUS:
        a = tl.exp(-tl.abs(h))
        unit = tl.maximum(h, 0.0) + _log1p(a)
        at = tl.where(h < -15.0, h - 0.5 * a, tl.log(unit)) + shift
        slope = tl.where(h > 0.0, 1.0, a) / ((1.0 + a) * unit)
    else:
        at = h + shift
    return tl.minimum(at, _TOP), slope


@triton.jit
def _theta(log_theta):
    return tl.exp(tl.minimum(tl.maximum(log_theta, _LOW_THETA), _HIGH_THETA))


@triton.jit
def _curvature(u, q, r):
    """log(1 + u) - u / (1 + u); for small u by its series, since the difference cancels."""
    small = u * u * (0.5 - u * (2.0 / 3.0 - u * (0.75 - u * 0.8)))
    return tl.where(u < 0.02, small, q - u * r)


@triton.jit
def _stirling(z):
    s = 1.0 / (z * z)
    return (1.0 / 12.0 - s * (1.0 / 360.0 - s * (1.0 / 1260.0 - s / 1680.0))) / z


@triton.jit
def _digamma_tail(z):
    s = 1.0 / (z * z)
    return -0.5 / z - s * (1.0 / 12.0 - s * (1.0 / 120.0 - s * (1.0 / 252.0 - s / 240.0)))


@triton.jit
def _rising(x, theta):
    """log(Gamma(x + theta) / Gamma(theta) / theta^x) and minus its derivative in log theta, float64."""
    a = theta + _STIRLING
    product = x * 0.0 + 1.0
    slope = x * 0.0
    for j in tl.static_range(_STIRLING):
        product *= 1.0 + x / (theta + j)
        slope += x / ((theta + j) * (x + theta + j))
    growth = _log1p(x / a)
    value = x * _log1p(_STIRLING / theta) + (x + a - 0.5) * growth - x + _stirling(x + a) - _stirling(a)
    slope += growth + _digamma_tail(x + a) - _digamma_tail(a)
    return value - tl.log(product), x - theta * slope


@triton.jit
def _cell(
    indptr, indices, values, logits, log_size, log_theta, theta_row, dropout, nll, of_logits, of_size, of_theta,
    of_dropout, n_genes, CODE: tl.constexpr, LINK: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Value and gradients of one cell, with respect to its own value."""
    cell = tl.program_id(0).to(tl.int64)
    first, last = tl.load(indptr + cell), tl.load(indptr + cell + 1)
    row = cell * n_genes
    thetas = log_theta + tl.load(theta_row + cell) * n_genes
    size = tl.minimum(tl.load(log_size + cell), _TOP)

    # ---- mark the non-zero counts; the constant of the softmax
    for start in range(first, last, CHUNK):
        k = start + tl.arange(0, CHUNK)
        x = tl.load(values + k, mask=k < last, other=0.0)
        j = tl.load(indices + k, mask=k < last, other=0)
        tl.store(of_logits + row + j, x * 0.0 + 1.0, mask=x > 0.0)
    shift = size
    if LINK == _SOFTMAX:
        top = -float("inf")
        total = 0.0
        for start in range(0, n_genes, BLOCK):
            j = start + tl.arange(0, BLOCK)
            h = tl.load(logits + row + j, mask=j < n_genes, other=-float("inf"))
            higher = tl.maximum(top, tl.max(h, axis=0))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(h - higher), axis=0)
            top = higher
        shift = size - top - tl.log(total)
    tl.debug_barrier()

    # ---- all genes, as if their counts were zero; the marked ones count nothing
    value = tl.zeros((1,), tl.float64)
    slope_of_size = tl.zeros((1,), tl.float64)
    for start in range(0, n_genes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < n_genes
        h = tl.load(logits + row + j, mask=inside, other=-float("inf"))
        zero = inside & (tl.load(of_logits + row + j, mask=inside, other=1.0) == 0.0)
        at, _ = _linked(h, shift, LINK)
        mean = tl.exp(at)
        val, g = mean, mean
        if CODE != _POISSON:
            theta = _theta(tl.load(thetas + j, mask=inside, other=0.0))
            u = mean / theta
            r = 1.0 / (1.0 + u)
            q = _log1p(u)
            val, g = theta * q, mean * r
            th = theta * _curvature(u, q, r)
            if CODE == _ZINB:
                t = tl.exp(-tl.load(dropout + row + j, mask=inside, other=0.0))
                extra = 1.0 / (1.0 + t)
                kept = t * extra
                none = tl.exp(-val)
                z = extra + kept * none
                share = kept * none / z
                tl.store(of_dropout + row + j, -extra * kept * (1.0 - none) / z, mask=zero)
                val, g, th = -tl.log(z), g * share, th * share
            tl.store(of_theta + row + j, th, mask=zero)
        tl.store(of_logits + row + j, g, mask=zero)
        value += tl.sum(tl.where(zero, val, 0.0).to(tl.float64), axis=0)
        slope_of_size += tl.sum(tl.where(zero, g, 0.0).to(tl.float64), axis=0)
    tl.debug_barrier()

    # ---- non-zero counts, in float64
    for start in range(first, last, CHUNK):
        k = start + tl.arange(0, CHUNK)
        x32 = tl.load(values + k, mask=k < last, other=0.0)
        seen = x32 > 0.0
        j = tl.load(indices + k, mask=k < last, other=0)
        x = tl.where(seen, x32, 1.0).to(tl.float64)
        at32, _ = _linked(tl.load(logits + row + j, mask=seen, other=0.0), shift, LINK)
        at = at32.to(tl.float64)
        mean = tl.exp(at)
        log_factorial, _ = _rising(x, x * 0.0 + 1.0)
        val, g = mean - x * at + log_factorial, mean - x
        if CODE != _POISSON:
            theta = _theta(tl.load(thetas + j, mask=seen, other=0.0)).to(tl.float64)
            rising, slope = _rising(x, theta)
            u = mean / theta
            r = 1.0 / (1.0 + u)
            q = _log1p(u)
            val = theta * q + x * (q - at) - rising + log_factorial
            g = r * (mean - x)
            th = theta * _curvature(u, q, r) + slope - x * u * r
            tl.store(of_theta + row + j, th.to(tl.float32), mask=seen)
            if CODE == _ZINB:
                logit = tl.load(dropout + row + j, mask=seen, other=0.0)
                a = tl.exp(-tl.abs(logit))
                val += (tl.maximum(logit, 0.0) + _log1p(a)).to(tl.float64)
                tl.store(of_dropout + row + j, tl.where(logit > 0.0, 1.0, a) / (1.0 + a), mask=seen)
        tl.store(of_logits + row + j, g.to(tl.float32), mask=seen)
        value += tl.sum(tl.where(seen, val, 0.0), axis=0)
        slope_of_size += tl.sum(tl.where(seen, g, 0.0), axis=0)
    tl.debug_barrier()

    # ---- from the gradient of log means to that of logits
    for start in range(0, n_genes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < n_genes
        g = tl.load(of_logits + row + j, mask=inside, other=0.0)
        h = tl.load(logits + row + j, mask=inside, other=0.0)
        if LINK == _SOFTMAX:
            g -= tl.exp(h + (shift - size)) * tl.sum(slope_of_size, axis=0).to(tl.float32)
        elif LINK == _SOFTPLUS:
            _, slope = _linked(h, shift, LINK)
            g *= slope
        tl.store(of_logits + row + j, g, mask=inside)
    tl.store(nll + cell, tl.sum(value, axis=0).to(tl.float32))
    tl.store(of_size + cell, tl.sum(slope_of_size, axis=0).to(tl.float32))
