"""A graph convolution from genes to cells, with a weight for each gene's edges: sparse products, and no graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.rows import SparseRows
from tenfold.kernels.sparse_linear import sparse_linear


class GeneCellNet(nn.Module):
    """Labels of cells from a graph in which each cell is linked with the genes that it expresses, and with itself.

    An edge from gene g to cell c weighs α_g n_c x_cg / Σ_g x_cg, where n_c is the number of genes that the cell
    expresses; the cell's loop weighs α₀. The mean over its n_c + 1 edges of weight × features is a product of the
    expression with α_g f_g, so that all neighbours are in every step. A linear map, ReLU and a linear map follow. A
    cell's own features are the mean of the genes' by expression.

    Parameters
    ----------
    features
        Of the genes, shape (n_genes, n_features), float32; they stay as they are.
    n_hidden, n_labels
        Widths.
    dropout
        Share of features that are silenced in training: of each gene, the same for all cells of a minibatch.
    """

    def __init__(self, features: Tensor, n_hidden: int, n_labels: int, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("features", features)
        self.confidence = nn.Parameter(torch.ones(len(features)))
        self.loop = nn.Parameter(torch.ones(()))
        self.hidden, self.head = nn.Linear(features.shape[1], n_hidden), nn.Linear(n_hidden, n_labels)
        for layer in (self.hidden, self.head):
            nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("relu"))
        self.dropout = dropout

    def forward(self, shares: SparseRows, n_expressed: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        shares
            Expression of each cell over its sum, (n_cells, n_genes).
        n_expressed
            Genes that each cell expresses, (n_cells,).

        Returns
        -------
        Shape (n_cells, n_labels).
        """
        genes = self.get_buffer("features")
        silenced = F.dropout(genes, self.dropout, self.training)
        edges = (self.confidence[:, None] * silenced) @ self.hidden.weight.T
        own = F.dropout(sparse_linear(shares, genes), self.dropout, self.training) @ self.hidden.weight.T
        n = n_expressed.to(edges.dtype)[:, None]
        gathered = (n * sparse_linear(shares, edges) + self.loop * own) / (n + 1)
        return self.head(torch.relu(gathered + self.hidden.bias))

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return what expression adds to hidden units through edges and through the loop, each (n_genes, n_hidden)."""
        plain = self.get_buffer("features") @ self.hidden.weight.T
        return self.confidence[:, None] * plain, self.loop * plain
