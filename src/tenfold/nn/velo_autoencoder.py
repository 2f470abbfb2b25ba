"""The network of VeloAE: spliced and unspliced averages in one latent space, where unspliced go with spliced."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.graph_layers import Neighborhoods, product_error

#: Slope of the attention's logits below 0, and least range by which codes are divided.
_SLOPE, _LEAST_RANGE = 0.2, 1e-3


class Widths(NamedTuple):
    """Widths of the hidden layers, of the latent space, and of the keys by which genes choose latent dimensions."""

    hidden: int
    latent: int
    keys: int


class Attention(nn.Module):
    """Means over the cells around each cell of a linear map, with one head of learnt weights, and an offset.

    Parameters
    ----------
    n_in, n_out
        Widths.

    References
    ----------
    Veličković et al. (2018), arXiv 1710.10903.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)
        self.source, self.target = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, n_out))[0]) for _ in ("neighbour", "cell")
        )
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor, around: Neighborhoods) -> Tensor:
        """Map (n_cells, n_in) to (n_cells, n_out)."""
        mapped = self.linear(x)
        logits = (mapped @ self.source)[around.get_buffer("neighbor")]
        logits = F.leaky_relu(logits + (mapped @ self.target)[around.get_buffer("cell")], _SLOPE)
        return around.mean(around.softmax(logits, bounded=False), mapped) + self.bias


class VeloAutoencoder(nn.Module):
    """One encoder with attention over neighbours for both layers; genes are mixtures of latent dimensions.

    A gene's weights of the latent dimensions are an attention too: queries are made of the gene's components, keys of
    the codes of all cells, and noise (Gumbel's) is added to logits in training.

    Parameters
    ----------
    spliced, unspliced
        Averages, shape (n_cells, n_genes).
    graph
        Non-zero where the column's cell is around the row's, itself counted, shape (n_cells, n_cells).
    genes
        Components of genes, shape (n_genes, n_components).
    widths
        Of layers.
    percentile, regression_weight
        From where on cells take part in the regression of unspliced on spliced codes, and the weight of its error.

    References
    ----------
    Qiao and Huang (2021), doi 10.1073/pnas.2105859118.
    """

    def __init__(
        self, spliced: np.ndarray, unspliced: np.ndarray, graph: sparse.csr_matrix, genes: np.ndarray, widths: Widths,
        percentile: float = 95.0, regression_weight: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        n_cells, n_genes = spliced.shape
        hidden, latent, keys = widths
        self.percentile, self.regression_weight = percentile, regression_weight
        # Both layers pass the encoder at once, as two parts of a graph without edges between them.
        self.around = Neighborhoods(sparse.block_diag([graph, graph], format="csr"))
        self.register_buffer("x", torch.from_numpy(np.concatenate([spliced, unspliced])).float(), persistent=False)
        self.register_buffer("genes", torch.from_numpy(genes).float(), persistent=False)
        self.squares = [float(np.square(part, dtype=np.float64).sum()) for part in (spliced, unspliced)]
        self.hidden = nn.Sequential(nn.Linear(n_genes, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.attentions = nn.ModuleList([Attention(hidden, latent), Attention(latent, latent)])
        self.plain = nn.Linear(latent, latent)
        self.generating = nn.Linear(latent, latent)
        self.key = nn.Sequential(nn.Linear(n_cells, hidden), nn.GELU(), nn.Linear(hidden, keys))
        self.query = nn.Sequential(nn.Linear(genes.shape[1], keys), nn.GELU(), nn.Linear(keys, keys))

    def encode(self) -> tuple[Tensor, Tensor]:
        """Return what keys are made of, and the codes: spliced above unspliced, each (2 × n_cells, latent)."""
        h = self.hidden(self.get_buffer("x"))
        for attention in self.attentions:
            h = F.gelu(attention(h, self.around))
        plain = self.plain(h)
        return plain, self.generating(plain)

    def mixtures(self, plain: Tensor, sample: bool) -> Tensor:
        """Return the weight of each latent dimension in each gene, shape (n_genes, latent); rows sum to 1."""
        query, key = self.query(self.get_buffer("genes")), self.key(plain.T)
        logits = query @ key.T / key.shape[1] ** 0.5
        return F.gumbel_softmax(logits, dim=1) if sample else logits.softmax(dim=1)

    def regression(self, spliced: Tensor, unspliced: Tensor) -> tuple[Tensor, Tensor]:
        """Return γ of every latent dimension and the mean squared error of u = γ s, over the highest cells.

        Parameters
        ----------
        spliced, unspliced
            Codes, shape (n_cells, latent).
        """
        with torch.no_grad():
            s, u = (z / (z.amax(dim=0) - z.amin(dim=0)).clamp_min(_LEAST_RANGE) for z in (spliced, unspliced))
            both = s + u
            top = (both >= torch.quantile(both, self.percentile / 100, dim=0)).to(spliced.dtype)
            # No gradient is lost: at the least error, it does not depend on γ.
            square = (top * spliced * spliced).sum(dim=0)
            gamma = (top * spliced * unspliced).sum(dim=0) / torch.where(square > 0, square, 1.0)
        apart = unspliced - gamma * spliced
        return gamma, (top * apart * apart).sum(dim=0) / top.sum(dim=0)

    def terms(self) -> dict[str, Tensor]:
        """Return the loss and its parts: mean squared errors of both reconstructions, and that of the regression."""
        plain, codes = self.encode()
        x = self.get_buffer("x")
        n_cells = len(x) // 2
        error = x.new_zeros(())
        for i, part in enumerate((slice(None, n_cells), slice(n_cells, None))):
            weights = self.mixtures(plain[part], sample=True)
            error = error + product_error(self.squares[i], codes[part], x[part] @ weights, weights)
        error = error / (n_cells * x.shape[1])
        regression = self.regression(codes[:n_cells], codes[n_cells:])[1].sum()
        return {"loss": error + self.regression_weight * regression, "error": error, "regression": regression}

    @torch.no_grad()
    def outputs(self) -> dict[str, np.ndarray]:
        """Return spliced codes and their velocities, γ, genes' weights, and both decoded: averages and velocities."""
        plain, codes = self.encode()
        spliced, unspliced = codes.chunk(2)
        gamma = self.regression(spliced, unspliced)[0]
        velocity, weights = unspliced - gamma * spliced, self.mixtures(plain[: len(spliced)], sample=False)
        found = {"codes": spliced, "slopes": velocity, "gamma": gamma, "weights": weights}
        found |= {"decoded": spliced @ weights.T, "velocity": velocity @ weights.T}
        return {name: value.cpu().numpy() for name, value in found.items()}
