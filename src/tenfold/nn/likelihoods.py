"""Likelihoods of counts: negative log-likelihood of a minibatch, mean, and sampling.

Counts stay sparse. In float32 a fused kernel computes value and gradient in one pass over the logits: compiled by Numba
on a CPU, by Triton on a GPU. Elsewhere plain PyTorch does. The choice is automatic.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tenfold.errors import ParameterError
from tenfold.kernels.count_losses import fused_nll
from tenfold.kernels.count_reference import MAX_LOG_MEAN, log_link, reference_nll
from tenfold.kernels.rows import SparseRows

Likelihood = Literal["poisson", "nb", "zinb", "multinomial", "bernoulli"]
Link = Literal["softmax", "exp", "softplus"]

_MAX_RATE = 1e8  # a Poisson draw above it has no exact float32


def count_nll(
    likelihood: Likelihood,
    counts: SparseRows,
    logits: Tensor,
    log_size: Tensor,
    *,
    link: Link = "softmax",
    log_theta: Tensor | None = None,
    level: Tensor | None = None,
    dropout_logits: Tensor | None = None,
) -> Tensor:
    r"""Negative log-likelihood of every cell, in nats, constants such as ``log x!`` included.

    The mean of gene g in cell n is ``m = exp(log_size) * link(logits)``. Per entry, with
    ``NB(0) = (theta / (theta + m))^theta`` and ``p = sigmoid(dropout_logits)``:

    - ``"poisson"``: ``m - x log m + log x!``
    - ``"nb"``: ``(theta + x) log(1 + m / theta) - x log m - sum_{j<x} log(1 + j / theta) + log x!``; variance
      ``m + m^2 / theta``
    - ``"zinb"``: ``-log(p + (1 - p) NB(0))`` at zero, ``-log(1 - p) - log NB(x)`` at x > 0
    - ``"multinomial"``: counts of the cell given its total; the share of a gene is ``m / sum(m)``, so that `log_size`
      has no effect
    - ``"bernoulli"``: detected (x > 0) or not; the probability of detection is ``1 - exp(-m)``, that of a Poisson
      count above zero. With ``link="softplus"`` and a `log_size` of 0 it is ``sigmoid(logits)``: logistic regression.

    Parameters
    ----------
    likelihood
        Name of the distribution.
    counts
        Whole numbers, B cells by G genes.
    logits
        Output of the decoder, shape (B, G).
    log_size
        Logarithm of the size of each cell (library size in counts, or size factor), shape (B,).
    link
        ``"softmax"`` (over genes), ``"exp"`` or ``"softplus"``.
    log_theta
        Logarithm of the inverse dispersion, for ``"nb"`` and ``"zinb"``: shape (G,), one a gene; (n_levels, G)
        together with `level`, one a gene and level (batch, label); (B, G), one an entry.
    level
        Row of `log_theta` for each cell, integers, shape (B,).
    dropout_logits
        Logit of the probability of an extra zero, for ``"zinb"``, shape (B, G).

    Returns
    -------
    Shape (B,). Differentiable once in `logits`, `log_size`, `log_theta` and `dropout_logits`. Log means above 50 and
    log theta outside [-14, 18.4] are held at these bounds; gradients are those at the bound. NaN in gives NaN out. Half
    precision is computed in float32.

    Raises
    ------
    ParameterError
        An unknown likelihood or link, a missing or superfluous argument, shapes that do not fit together.

    References
    ----------
    NB and ZINB of counts with a decoder: Lopez et al., Nature Methods 2018, doi:10.1038/s41592-018-0229-2.
    """
    _check(likelihood, counts, logits, log_size, link, log_theta, level, dropout_logits)
    logits, log_size = _wide(logits), _wide(log_size)
    log_theta = None if log_theta is None else _wide(log_theta)
    dropout_logits = None if dropout_logits is None else _wide(dropout_logits)
    given = [part for part in (counts.values, logits, log_size, log_theta, dropout_logits) if part is not None]
    devices = {part.device.type if part.dtype == torch.float32 else "" for part in given}
    compute = fused_nll if devices == {"cpu"} else reference_nll
    if devices == {"cuda"} and (on_gpu := _gpu_kernel()) and likelihood in on_gpu.CODES:
        compute = on_gpu.triton_nll
    return compute(likelihood, counts, logits, log_size, link, log_theta, level, dropout_logits)


@cache
def _gpu_kernel() -> Any:
    """Return the module of the GPU kernel; None where Triton, which comes with PyTorch for GPUs, is missing."""
    return import_module("tenfold.kernels.count_triton") if find_spec("triton") else None


def _wide(part: Tensor) -> Tensor:
    """Half precision, as autocast hands it on, is too narrow for a sum over thousands of genes."""
    return part.float() if part.dtype in (torch.bfloat16, torch.float16) else part


def count_mean(logits: Tensor, log_size: Tensor | None = None, *, link: Link = "softmax") -> Tensor:
    """Mean count ``exp(log_size) * link(logits)`` before any zero inflation.

    Parameters
    ----------
    logits
        Output of the decoder, shape (..., G).
    log_size
        Logarithm of the size of each cell, shape (...,). ``None``: size 1, which with the softmax link gives the
        share of each gene, summing to 1 in a cell.
    link
        As in `count_nll`.

    Returns
    -------
    Shape (..., G). The expected count of a ZINB is this times ``sigmoid(-dropout_logits)``.
    """
    if link not in get_args(Link):
        raise ParameterError(f"Unknown link '{link}'. Choose one of {', '.join(get_args(Link))}.")
    log_mean = log_link(logits, link)
    if log_size is not None:
        log_mean = log_mean + log_size[..., None]
    return log_mean.clamp(max=MAX_LOG_MEAN).exp()


def sample_counts(
    likelihood: Likelihood,
    mean: Tensor,
    theta: Tensor | None = None,
    dropout_logits: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw counts with the given means.

    Parameters
    ----------
    likelihood
        As in `count_nll`. ``"multinomial"`` draws as many counts a cell as its means add up to, rounded;
        ``"bernoulli"`` gives 0 or 1.
    mean
        Mean counts before zero inflation (see `count_mean`), shape (B, G).
    theta
        Inverse dispersion for ``"nb"`` and ``"zinb"``, any shape that broadcasts to that of `mean`.
    dropout_logits
        Logit of the probability of an extra zero for ``"zinb"``, shape (B, G).
    generator
        Source of randomness, on the device of `mean`.

    Returns
    -------
    Whole numbers, shape (B, G), in the float type of `mean`. Rates above 1e8 are held at 1e8.

    Raises
    ------
    ParameterError
        An unknown likelihood, or `theta` or `dropout_logits` missing.
    """
    if likelihood == "multinomial":
        return _draw_multinomial(mean, generator)
    if likelihood == "bernoulli":
        return torch.bernoulli(-torch.expm1(-mean), generator=generator)
    rate = mean
    if likelihood in ("nb", "zinb"):
        if theta is None:
            raise ParameterError(f"Sampling from '{likelihood}' needs `theta`, the inverse dispersion.")
        theta = theta.expand_as(mean)
        # a Poisson whose rate is gamma distributed with mean 1 times the mean is negative binomial
        rate = mean * torch._standard_gamma(theta, generator=generator) / theta
    elif likelihood != "poisson":
        raise ParameterError(f"Unknown likelihood '{likelihood}'. Choose one of {', '.join(get_args(Likelihood))}.")
    drawn = torch.poisson(rate.clamp(max=_MAX_RATE), generator=generator)
    if likelihood == "zinb":
        if dropout_logits is None:
            raise ParameterError("Sampling from 'zinb' needs `dropout_logits`.")
        drawn = drawn * torch.bernoulli(torch.sigmoid(-dropout_logits), generator=generator)
    return drawn


def _draw_multinomial(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    drawn = torch.zeros_like(mean)
    for cell, total in enumerate(mean.sum(1).round().long().tolist()):
        if total:
            genes = torch.multinomial(mean[cell], total, replacement=True, generator=generator)
            drawn[cell] = torch.bincount(genes, minlength=mean.shape[1]).to(mean.dtype)
    return drawn


def _check(
    likelihood: str,
    counts: SparseRows,
    logits: Tensor,
    log_size: Tensor,
    link: str,
    log_theta: Tensor | None,
    level: Tensor | None,
    dropout_logits: Tensor | None,
) -> None:
    if likelihood not in get_args(Likelihood):
        raise ParameterError(f"Unknown likelihood '{likelihood}'. Choose one of {', '.join(get_args(Likelihood))}.")
    if link not in get_args(Link):
        raise ParameterError(f"Unknown link '{link}'. Choose one of {', '.join(get_args(Link))}.")
    if tuple(logits.shape) != counts.shape:
        raise ParameterError(f"`logits` has the shape {tuple(logits.shape)}, the counts {counts.shape}.")
    n_cells, n_genes = counts.shape
    if tuple(log_size.shape) != (n_cells,):
        raise ParameterError(f"`log_size` must have the shape ({n_cells},), not {tuple(log_size.shape)}.")
    overdispersed = likelihood in ("nb", "zinb")
    if overdispersed != (log_theta is not None):
        raise ParameterError(f"'{likelihood}' {'needs' if overdispersed else 'takes no'} `log_theta`.")
    if (likelihood == "zinb") != (dropout_logits is not None):
        raise ParameterError(f"'{likelihood}' {'needs' if likelihood == 'zinb' else 'takes no'} `dropout_logits`.")
    if dropout_logits is not None and dropout_logits.shape != logits.shape:
        raise ParameterError(f"`dropout_logits` must have the shape of `logits`, not {tuple(dropout_logits.shape)}.")
    if log_theta is None:
        return
    shape = tuple(log_theta.shape)
    if level is None and shape not in ((n_genes,), counts.shape):
        raise ParameterError(f"`log_theta` must have the shape ({n_genes},) or {counts.shape}, not {shape}.")
    if level is not None and (len(shape) != 2 or shape[1] != n_genes or tuple(level.shape) != (n_cells,)):
        raise ParameterError(
            f"With `level` of shape ({n_cells},), `log_theta` must have the shape (n_levels, {n_genes}); they have the "
            f"shapes {tuple(level.shape)} and {shape}."
        )
    if level is not None and level.device.type == "cpu" and level.numel():  # on a GPU the look would halt it
        low, high = int(level.min()), int(level.max())
        if low < 0 or high >= shape[0]:
            raise ParameterError(f"`level` must lie in range({shape[0]}); it runs from {low} to {high}.")
