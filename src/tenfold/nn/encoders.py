"""Encoders: from expression to the distribution of a latent variable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tenfold.kernels.rows import SparseRows
from tenfold.nn.mlp import MLP, NOTHING, Covariates
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
        Width and number of hidden layers.
    **options
        Covariates, norms and dropout of `MLP`.
    """

    def __init__(self, n_in: int, n_latent: int, n_hidden: int = 128, n_layers: int = 1, **options: Any):
        super().__init__()
        self.n_latent = n_latent
        self.hidden = MLP(n_in, n_hidden, n_layers, **options)
        # Means and log variances come from one product.
        self.heads = nn.Linear(n_hidden, 2 * n_latent)

    def forward(self, x: Tensor | SparseRows, covariates: Covariates = NOTHING) -> Gaussian:
        """Return the distribution of z for each cell, shape (n_cells, n_latent)."""
        mean, log_variance = self.heads(self.hidden(x, covariates)).split(self.n_latent, dim=1)
        return Gaussian(mean, torch.exp(log_variance) + LEAST_VARIANCE)
