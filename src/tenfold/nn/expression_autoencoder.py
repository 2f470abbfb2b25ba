"""The plain autoencoder of expression: no noise, no prior, and nothing told of batch or covariates."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.rows import SparseRows
from tenfold.nn.mlp import MLP


class ExpressionAutoencoder(nn.Module):
    """x̂ = decoder(code(x)): hidden layers, a linear code, and the hidden layers in reverse.

    Parameters
    ----------
    n_genes, n_latent
        Width of input and code.
    widths
        Of the encoder's hidden layers; the decoder has them in reverse.
    positive
        The output passes through a ReLU.
    **options
        ``activation`` and ``slope`` of `Layer`.
    """

    def __init__(self, n_genes: int, n_latent: int, widths: tuple[int, ...], *, positive: bool = False, **options: Any):
        super().__init__()
        self.encoder = MLP(n_genes, widths, batch_norm=False, **options)
        self.code = nn.Linear(widths[-1], n_latent)
        self.decoder = MLP(n_latent, widths[::-1], batch_norm=False, **options)
        self.head = nn.Linear(widths[0], n_genes)
        self.positive = positive

    def encode(self, x: SparseRows | Tensor) -> Tensor:
        """Return the code of cells, shape (n_cells, n_latent)."""
        return self.code(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Return the expression at a code, shape (n_cells, n_genes)."""
        x = self.head(self.decoder(z))
        return F.relu(x) if self.positive else x
