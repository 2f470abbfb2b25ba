"""Encoders: from expression to the distribution of a latent variable."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.rows import SparseRows
from tenfold.nn.mlp import MLP, NOTHING, Covariates, Widths
from tenfold.nn.priors import Gaussian

#: Smallest variance of a latent variable.
LEAST_VARIANCE = 1e-4


class GaussianEncoder(nn.Module):
    """q(z | x, s): hidden layers, then a mean and a variance for every latent dimension.

    Parameters
    ----------
    n_in
        Width of the input.
    n_latent
        Number of latent dimensions.
    n_hidden, n_layers
        Width and number of hidden layers, as in `MLP`.
    link, least_variance
        The variance is this function of the network's output, plus this.
    **options
        Covariates, norms, activation and dropout of `MLP`.
    """

    def __init__(
        self, n_in: int, n_latent: int, n_hidden: Widths = 128, n_layers: int = 1, *,
        link: Literal["exp", "softplus"] = "exp", least_variance: float = LEAST_VARIANCE, **options: Any,
    ):  # fmt: skip
        super().__init__()
        self.n_latent, self.link, self.least_variance = n_latent, link, least_variance
        self.hidden = MLP(n_in, n_hidden, n_layers, **options)
        # Means and log variances come from one product.
        self.heads = nn.Linear(self.hidden.n_out, 2 * n_latent)

    def forward(self, x: Tensor | SparseRows, covariates: Covariates = NOTHING) -> Gaussian:
        """Return the distribution of z for each cell, shape (n_cells, n_latent)."""
        return self.of_hidden(self.hidden(x, covariates))

    def of_hidden(self, h: Tensor) -> Gaussian:
        """Return the distribution of z given the last hidden layer, (n_cells, n_hidden)."""
        mean, raw = self.heads(h).split(self.n_latent, dim=1)
        return Gaussian(mean, (torch.exp(raw) if self.link == "exp" else F.softplus(raw)) + self.least_variance)
