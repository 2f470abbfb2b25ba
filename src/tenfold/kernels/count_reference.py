"""Negative log-likelihood of counts in plain PyTorch.

The yardstick of the fused kernels, and the path for float64 tensors and for tensors on a GPU. Gamma-function terms are
evaluated at the non-zero counts only; every one of them vanishes at a count of zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.kernels.rows import SparseRows

#: Largest log mean, and the range of log theta: beyond them float32 overflows and no count carries information.
MAX_LOG_MEAN = 50.0
MIN_LOG_THETA, MAX_LOG_THETA = -14.0, 18.4


def held(values: Tensor, low: float, high: float) -> Tensor:
    """Hold `values` in a range and pass gradients as if they lay there, so that no parameter gets stuck outside."""
    inside = (values >= low) & (values <= high) | values.isnan()
    return torch.where(inside, values, values.detach().clamp(low, high) + (values - values.detach()))


def log_link(logits: Tensor, link: str) -> Tensor:
    """Logarithm of the link of `logits`, shape (B, G): what the mean is per unit of size."""
    if link == "softmax":
        return F.log_softmax(logits, dim=-1)
    if link == "exp":
        return logits
    # log(softplus(h)) tends to h far below zero, where softplus underflows
    low = logits < -15
    inner = torch.where(low, -15.0, logits)
    return torch.where(low, logits - torch.exp(logits.clamp(max=-15.0)) / 2, _softplus(inner).log())


def reference_nll(
    likelihood: str,
    counts: SparseRows,
    logits: Tensor,
    log_size: Tensor,
    link: str,
    log_theta: Tensor | None,
    level: Tensor | None,
    dropout_logits: Tensor | None,
) -> Tensor:
    """Negative log-likelihood of each cell; arguments as in `tenfold.nn.likelihoods.count_nll`."""
    observed = counts.values > 0
    row, column, x = counts.row_index()[observed], counts.indices[observed], counts.values[observed].to(logits.dtype)
    log_unit = log_link(logits, link)
    if likelihood == "multinomial":
        return _multinomial(len(counts), row, x, log_unit[row, column] - log_unit.logsumexp(1)[row])
    log_mean = held(log_unit + log_size[:, None], -torch.inf, MAX_LOG_MEAN)
    at_log_mean = log_mean[row, column]
    if likelihood == "poisson":
        dense, extra = log_mean.exp(), torch.lgamma(x + 1) - x * at_log_mean
    elif likelihood == "bernoulli":
        dense = log_mean.exp()
        extra = -dense[row, column] - _log_detected(at_log_mean)
    else:
        assert log_theta is not None
        log_theta = held(log_theta, MIN_LOG_THETA, MAX_LOG_THETA)
        log_theta = log_theta if level is None else log_theta[level]
        log_theta = log_theta.expand_as(log_mean)
        q = _softplus(log_mean - log_theta)  # log(1 + mean / theta)
        dense = log_theta.exp() * q
        extra = x * (q[row, column] - at_log_mean) - _rising(x, log_theta[row, column])
        if likelihood == "zinb":
            assert dropout_logits is not None
            excess = -dense - dropout_logits
            extra = extra + _softplus(-excess[row, column])
            dense = _softplus(-dropout_logits) - _softplus(excess)
    return dense.sum(1).index_add(0, row, extra)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


def _rising(x: Tensor, log_theta: Tensor) -> Tensor:
    """log(Gamma(x + theta) / Gamma(theta) / theta^x / x!), in float64: the terms cancel for large theta."""
    x64, log_theta = x.double(), log_theta.double()
    theta = log_theta.exp()
    rising = torch.lgamma(x64 + theta) - torch.lgamma(theta) - x64 * log_theta
    return (rising - torch.lgamma(x64 + 1)).to(x.dtype)


def _multinomial(n_rows: int, row: Tensor, x: Tensor, log_share: Tensor) -> Tensor:
    zero = torch.zeros(n_rows, dtype=x.dtype, device=x.device)
    return zero.index_add(0, row, torch.lgamma(x + 1) - x * log_share) - torch.lgamma(zero.index_add(0, row, x) + 1)


def _log_detected(log_mean: Tensor) -> Tensor:
    """log(1 - exp(-mean)); close to log(mean) for a small mean, where the difference would cancel."""
    small = log_mean < -8
    mean = log_mean.clamp(min=-8.0).exp()
    return torch.where(small, log_mean - log_mean.clamp(max=-8.0).exp() / 2, torch.log(-torch.expm1(-mean)))
