"""Decoders of log-expression: squared error, normal, Bernoulli. They take the place of `CountDecoder`."""

from __future__ import annotations

from math import log, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.rows import SparseRows
from tenfold.nn.mlp import MLP, NOTHING, Covariates, Widths

#: Keeps a variance above zero, and below what float32 holds.
_MOST_LOG = 88.0
_LEAST_VARIANCE = 1e-6


class SquaredErrorDecoder(nn.Module):
    """x̂(z, s): hidden layers and a linear head. The loss is half the squared error, a normal density of variance 1.

    Parameters
    ----------
    n_latent, n_genes
        Width of input and output.
    n_hidden, n_layers
        Width and number of hidden layers, as in `MLP`.
    **options
        Covariates, norms, activation and dropout of `MLP`.
    """

    dispersion = "gene"  # what `ConditionalVAE` asks of a decoder: no level of a group beside the covariates

    def __init__(self, n_latent: int, n_genes: int, n_hidden: Widths = 128, n_layers: int = 1, **options: Any):
        super().__init__()
        self.hidden = MLP(n_latent, n_hidden, n_layers, **options)
        self.mean_head = nn.Linear(self.hidden.n_out, n_genes)

    def scale(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the expected expression, shape (n_cells, n_genes)."""
        return self.mean_head(self.hidden(z, covariates))

    def nll(
        self, x: SparseRows | Tensor, z: Tensor, log_size: Tensor | None = None, covariates: Covariates = NOTHING,
        level: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return half the squared error of each cell, shape (n_cells,); `log_size` and `level` have no effect."""
        observed = dense(x)
        return 0.5 * (self.scale(z, covariates).to(observed.dtype) - observed).square().sum(1)


class NormalDecoder(SquaredErrorDecoder):
    """p(x | z, s): normal, with a variance for each gene that all cells share.

    Parameters
    ----------
    n_latent, n_genes, n_hidden, n_layers, **options
        As in `SquaredErrorDecoder`.
    root
        Take the square root of softplus for the variance, as scvi-tools' SysVI does.
    """

    def __init__(self, n_latent: int, n_genes: int, *args: Any, root: bool = False, **options: Any):
        super().__init__(n_latent, n_genes, *args, **options)
        self.raw_variance = nn.Parameter(torch.zeros(n_genes))
        self.root = root

    @property
    def variance(self) -> Tensor:
        """Variance of each gene, shape (n_genes,)."""
        variance = F.softplus(self.raw_variance.clamp(-_MOST_LOG, _MOST_LOG))
        return (variance.sqrt() if self.root else variance).clamp(min=_LEAST_VARIANCE)

    def nll(
        self, x: SparseRows | Tensor, z: Tensor, log_size: Tensor | None = None, covariates: Covariates = NOTHING,
        level: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the negative log density of each cell, in nats, (n_cells,); `log_size` and `level` have no effect."""
        return self.nll_of(x, self.scale(z, covariates))

    def nll_of(self, x: SparseRows | Tensor, mean: Tensor) -> Tensor:
        """Return the negative log density of each cell at a mean, shape (n_cells,)."""
        observed, variance = dense(x), self.variance
        squares = (mean.to(observed.dtype) - observed).square() @ (1 / variance)
        return 0.5 * (squares + variance.log().sum() + len(variance) * log(2 * pi))


class BernoulliDecoder(SquaredErrorDecoder):
    """x̂(z, s) in (0, 1): hidden layers, a linear head and a sigmoid. The loss is the binary cross-entropy.

    Of values between 0 and 1 it is a loss, not a likelihood. Parameters as in `SquaredErrorDecoder`.
    """

    def logits(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the logit of the expected expression, shape (n_cells, n_genes)."""
        return self.mean_head(self.hidden(z, covariates))

    def scale(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the expected expression, shape (n_cells, n_genes)."""
        return self.logits(z, covariates).sigmoid()

    def nll(
        self, x: SparseRows | Tensor, z: Tensor, log_size: Tensor | None = None, covariates: Covariates = NOTHING,
        level: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the cross-entropy of each cell, summed over genes, (n_cells,); `log_size` and `level` do nothing."""
        return cross_entropy(x, self.logits(z, covariates))


def cross_entropy(x: SparseRows | Tensor, logits: Tensor) -> Tensor:
    """Return the binary cross-entropy of values in [0, 1], summed over genes, shape (n_cells,)."""
    observed = dense(x)
    return F.binary_cross_entropy_with_logits(logits.to(observed.dtype), observed, reduction="none").sum(1)


def dense(x: SparseRows | Tensor) -> Tensor:
    """Return expression as a dense tensor."""
    return x.dense() if isinstance(x, SparseRows) else x
