"""Decoders: from a latent variable to the distribution of counts."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tenfold.kernels.rows import SparseRows
from tenfold.nn.likelihoods import Likelihood, Link, count_mean, count_nll, sample_counts
from tenfold.nn.mlp import MLP, NOTHING, Covariates, Widths
from tenfold.nn.normed import hidden_units

Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]


class CountModel(NamedTuple):
    """The distribution of the counts of some cells, given their latent variables.

    Attributes
    ----------
    likelihood
        Name of the distribution.
    rate
        Mean count before zero inflation, shape (n_cells, n_genes).
    theta
        Inverse dispersion, broadcasts to (n_cells, n_genes); None for Poisson.
    dropout_logits
        Logit of the probability of an extra zero, shape (n_cells, n_genes); None without zero inflation.
    """

    likelihood: Likelihood
    rate: Tensor
    theta: Tensor | None
    dropout_logits: Tensor | None

    def sample(self) -> Tensor:
        """Draw counts, shape (n_cells, n_genes), whole numbers as float32."""
        return sample_counts(self.likelihood, self.rate, self.theta, self.dropout_logits)


class CountDecoder(nn.Module):
    """p(x | z, l, s): hidden layers, then the mean, dispersion and zero inflation of each gene.

    The mean of gene g is l·ρ_g; ρ is the link (softmax) of a linear head.

    Parameters
    ----------
    n_latent, n_genes
        Width of input and output.
    n_hidden, n_layers
        Width and number of hidden layers, as in `MLP`.
    likelihood
        Name of the distribution, see `count_nll`.
    dispersion
        Inverse dispersion per gene, per gene and level of a group (batch or label), or per gene and cell.
    n_levels
        Levels of that group.
    link
        ``"softmax"``; ``"softplus"`` or ``"exp"`` where l is a size factor.
    **options
        Covariates, norms and dropout of `MLP`.
    """

    def __init__(
        self, n_latent: int, n_genes: int, n_hidden: Widths = 128, n_layers: int = 1, *, likelihood: Likelihood = "nb",
        dispersion: Dispersion = "gene", n_levels: int = 1, link: Link = "softmax",
        **options: Any,
    ):  # fmt: skip
        super().__init__()
        self.likelihood, self.dispersion, self.link = likelihood, dispersion, link
        self.hidden = MLP(n_latent, n_hidden, n_layers, **options)
        n_out = self.hidden.n_out
        self.mean_head = nn.Linear(n_out, n_genes)
        self.dropout_head = nn.Linear(n_out, n_genes) if likelihood == "zinb" else None
        counted = likelihood in ("nb", "zinb")
        self.by_level = counted and dispersion in ("gene-batch", "gene-label") and n_levels > 1
        self.theta_head = nn.Linear(n_out, n_genes) if counted and dispersion == "gene-cell" else None
        shape = (n_levels, n_genes) if self.by_level else (n_genes,)
        self.log_theta = nn.Parameter(torch.randn(shape)) if counted and self.theta_head is None else None

    def nll(
        self, counts: SparseRows, z: Tensor, log_size: Tensor, covariates: Covariates = NOTHING,
        level: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the negative log-likelihood of each cell's counts, in nats, shape (n_cells,).

        Parameters
        ----------
        counts
            Observed counts, shape (n_cells, n_genes).
        z
            Latent variables, shape (n_cells, n_latent).
        log_size
            log l, shape (n_cells,).
        covariates
            As the decoder was built for.
        level
            Level of the dispersion's group, shape (n_cells,), int64.
        """
        return self.nll_of_hidden(counts, hidden_units(self.hidden, z, covariates), log_size, level)[0]

    def nll_of_hidden(
        self, counts: SparseRows, h: Tensor, log_size: Tensor, level: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `nll` does given the last hidden layer, (n_cells, n_hidden), and the logits of extra zeros."""
        dropout_logits = None if self.dropout_head is None else self._head(self.dropout_head, h, log_size)
        nll = count_nll(
            self.likelihood, counts, self._head(self.mean_head, h, log_size), log_size, link=self.link,
            log_theta=self.log_theta if self.theta_head is None else self._head(self.theta_head, h, log_size),
            level=level if self.by_level else None, dropout_logits=dropout_logits,
        )  # fmt: skip
        return nll, dropout_logits

    def scale(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return ρ, the expected expression of a cell of unit size, shape (n_cells, n_genes)."""
        return count_mean(self.mean_head(self.hidden(z, covariates)), link=self.link)

    def model(
        self, z: Tensor, log_size: Tensor, covariates: Covariates = NOTHING, level: Tensor | None = None
    ) -> CountModel:
        """Return the distribution of the counts; arguments as in `nll`."""
        h = self.hidden(z, covariates)
        log_theta = self.log_theta if self.theta_head is None else self.theta_head(h)
        if self.by_level and log_theta is not None:
            log_theta = log_theta[level]
        dropout_logits = None if self.dropout_head is None else self.dropout_head(h)
        rate = count_mean(self.mean_head(h), log_size, link=self.link)
        return CountModel(self.likelihood, rate, None if log_theta is None else log_theta.exp(), dropout_logits)

    @staticmethod
    def _head(head: nn.Linear, h: Tensor, like: Tensor) -> Tensor:
        """Apply a head; whatever precision the products have, the likelihood has that of the data."""
        return head(h).to(like.dtype)
