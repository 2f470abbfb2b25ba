"""The network of GraphST: a linear autoencoder on a graph, and a contrast with shuffled cells."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.graph_layers import Fixed, product_error


class GraphContrast(nn.Module):
    """Reconstruction Â(Â X W₁)W₂ of expression, and neighbourhoods told from those of shuffled cells.

    The graph is never multiplied with a matrix as wide as expression, and the reconstruction Y W₂, with Y = Â² X W₁, is
    never made (`product_error`). Shuffling cells commutes with the weights, so that the
    shuffled input costs one more product of the graph with the latent space only.

    Parameters
    ----------
    expression
        X, shape (n_cells, n_genes).
    graph
        Â, normalised, shape (n_cells, n_cells).
    around
        Rows sum to 1: a cell and its neighbours, over which the readout is the mean.
    n_latent
        Width of the latent space.
    weights
        Of the reconstruction and of the contrast in the loss.

    References
    ----------
    Long et al. (2023), doi 10.1038/s41467-023-36796-3.
    """

    def __init__(
        self, expression: sparse.csr_matrix, graph: sparse.csr_matrix, around: sparse.csr_matrix, n_latent: int,
        weights: tuple[float, float] = (10.0, 1.0),
    ):  # fmt: skip
        super().__init__()
        self.expression, self.graph, self.around = Fixed(expression), Fixed(graph), Fixed(around)
        self.square = float(np.square(expression.data, dtype=np.float64).sum())
        self.weights, self.n_latent = weights, n_latent
        n_genes = expression.shape[1]
        self.encoder = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_genes, n_latent)))
        self.decoder = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_latent, n_genes)))
        self.form = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, n_latent, n_latent))[0])
        self.bias = nn.Parameter(torch.zeros(1))

    def terms(self, order: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss and its two parts; `order` is that of the shuffled cells, by default drawn anew."""
        n_cells, n_genes = self.expression.shape
        if order is None:
            order = torch.randperm(n_cells).to(self.encoder.device)
        mapped, back = self.expression(torch.cat([self.encoder, self.decoder.T], dim=1)).split(self.n_latent, dim=1)
        latent = self.graph(mapped)
        smooth = self.graph(latent)
        error = product_error(self.square, smooth, back, self.decoder.T)
        reconstruction = error / (n_cells * n_genes)
        contrast = self._contrast(latent.relu(), self.graph(mapped[order]).relu())
        loss = self.weights[0] * reconstruction + self.weights[1] * contrast
        return {"loss": loss, "reconstruction": reconstruction, "contrast": contrast}

    def _contrast(self, own: Tensor, shuffled: Tensor) -> Tensor:
        """Return the cross-entropy of telling which cell a neighbourhood belongs to, both ways."""
        places = [F.normalize(self.around(e), dim=1).sigmoid() for e in (own, shuffled)]
        asked = [e @ self.form for e in (own, shuffled)]
        total = own.new_zeros(())
        for which, place in enumerate(places):
            right = (asked[which] * place).sum(dim=1) + self.bias
            wrong = (asked[1 - which] * place).sum(dim=1) + self.bias
            total = total + (F.softplus(-right).mean() + F.softplus(wrong).mean()) / 2
        return total

    @torch.no_grad()
    def reconstruction_pcs(self, n_components: int, unit: bool = False) -> np.ndarray:
        """Return principal components of the reconstruction, shape (n_cells, n_components), float32.

        Its rows are Y W₂, so those of Y Rᵀ, with W₂ᵀ = QR, have the same components; with `unit`, rows of the
        reconstruction are scaled to length 1 before.
        """
        smooth = self.graph(self.graph(self.expression(self.encoder))).double()
        rotated = smooth @ torch.linalg.qr(self.decoder.double().T).R.T
        if unit:
            rotated = F.normalize(rotated, dim=1)
        rotated = rotated - rotated.mean(dim=0)
        axes = torch.linalg.eigh(rotated.T @ rotated).eigenvectors.flip(1)[:, :n_components]
        axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
        return (rotated @ axes).float().numpy()
