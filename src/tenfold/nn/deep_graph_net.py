"""The network of DeepST: codes of features and of the graph with attention, clusters, and a classifier to confuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.graph_layers import Neighborhoods
from tenfold.nn.masked_graph_net import elu_block
from tenfold.nn.reversal import reversed_gradient
from tenfold.nn.soft_clusters import divergence, sharpened, student_membership

#: Clusters that there is room for; how many are used is told when they are placed.
MOST_CLUSTERS = 50
#: Share of the features that are set to zero in training.
_CORRUPTED = 0.001
#: Slope of attention logits below zero.
_SLOPE = 0.2


class Widths(NamedTuple):
    """Widths of the layers: perceptron, code of the features, hidden layer of the graph, code of the graph."""

    hidden: int
    code: int
    graph_hidden: int
    graph_code: int


class Weights(NamedTuple):
    """Weights of the terms of the loss."""

    reconstruction: float
    edges: float
    clusters: float
    sections: float


class AttentionLayer(nn.Module):
    """A linear map, averaged over the cells around each cell with weights that depend on both ends.

    Parameters
    ----------
    n_in, n_out
        Widths.
    around
        The cells around each cell, itself among them.

    References
    ----------
    Velickovic et al. (2018), arXiv 1710.10903.
    """

    def __init__(self, n_in: int, n_out: int, around: Neighborhoods):
        super().__init__()
        self.around = around
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_in, n_out)))
        for name in ("source", "target"):
            self.register_parameter(name, nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, n_out))[0]))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return new features, shape (n_cells, n_out)."""
        mapped = x @ self.weight
        cell, neighbor = (self.around.get_buffer(name) for name in ("cell", "neighbor"))
        ends = (mapped @ self.get_parameter("source"))[neighbor] + (mapped @ self.get_parameter("target"))[cell]
        logits = F.leaky_relu(ends, _SLOPE)
        highest = logits.detach().new_full((len(x),), -torch.inf).scatter_reduce(0, cell, logits.detach(), "amax")
        return self.around.mean(self.around.softmax(logits - highest[cell]), mapped) + self.bias


class DeepGraphNet(nn.Module):
    """Code c of features by a perceptron, variational code g of c by attention over neighbours, features from [c, g].

    Parameters
    ----------
    features
        Shape (n_cells, n_features).
    graph
        Non-zero for a cell's neighbours and the cell itself, symmetric.
    sections
        Section of each cell, shape (n_cells,).
    widths, weights
        Of layers and of the loss.
    dropout
        Share of units that are silenced.

    References
    ----------
    Xu et al. (2022), doi 10.1093/nar/gkac901.
    """

    def __init__(
        self, features: np.ndarray, graph: sparse.csr_matrix, sections: np.ndarray, widths: Widths, weights: Weights,
        dropout: float = 0.01,
    ):  # fmt: skip
        super().__init__()
        n_cells, n_features = features.shape
        self.weights, self.around = weights, Neighborhoods(graph)
        self.register_buffer("features", torch.from_numpy(np.ascontiguousarray(features, np.float32)), persistent=False)
        self.register_buffer("sections", torch.from_numpy(sections.astype(np.int64)), persistent=False)
        self.norm = n_cells**2 / (2 * max(n_cells**2 - graph.nnz, 1))
        width = widths.code + widths.graph_code
        self.encoder = nn.Sequential(elu_block(n_features, widths.hidden, dropout),
                                     elu_block(widths.hidden, widths.code, dropout))  # fmt: skip
        self.first = AttentionLayer(widths.code, widths.graph_hidden, self.around)
        self.scale = nn.BatchNorm1d(widths.graph_hidden)
        self.mean = AttentionLayer(widths.graph_hidden, widths.graph_code, self.around)
        self.log_sd = AttentionLayer(widths.graph_hidden, widths.graph_code, self.around)
        self.decoder = nn.Sequential(elu_block(width, widths.hidden, dropout), nn.Linear(widths.hidden, n_features))
        self.centres = nn.Parameter(torch.zeros(MOST_CLUSTERS, width))
        self.register_buffer("n_centres", torch.zeros((), dtype=torch.int64))
        self.register_buffer("target", torch.zeros(n_cells, MOST_CLUSTERS))
        self.classifier: nn.Module | None = None
        if sections.max() > 0:
            layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
            self.classifier = nn.Sequential(*layers, nn.Linear(width, int(sections.max()) + 1))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the code of the features, and mean and logarithm of the deviation of that of the graph."""
        code = self.encoder(x)
        hidden = self.scale(self.first(code)).relu()
        return code, self.mean(hidden), self.log_sd(hidden)

    def terms(self, clustering: bool = False) -> dict[str, Tensor]:
        """Return the loss and its parts."""
        features = self.get_buffer("features")
        code, mean, log_sd = self.encode(features * (torch.rand_like(features) >= _CORRUPTED))
        latent = torch.cat([code, mean + torch.randn_like(mean) * log_sd.exp()], dim=1)
        n_cells = len(latent)
        # Of all pairs of cells only neighbours count: other pairs add the same to the loss whatever their codes are.
        cell, neighbor = (self.around.get_buffer(name) for name in ("cell", "neighbor"))
        edges = self.norm * F.softplus(-(latent[cell] * latent[neighbor]).sum(dim=1)).sum() / n_cells**2
        edges = edges - (1 + 2 * log_sd - mean**2 - (2 * log_sd).exp()).sum(dim=1).mean() / (2 * n_cells)
        found = {"reconstruction": F.mse_loss(self.decoder(latent), features), "edges": edges}
        if clustering:
            found["clusters"] = divergence(self.get_buffer("target")[:, : self.used], self.membership(latent))
        if self.classifier is not None:
            told = self.classifier(reversed_gradient(latent))
            found["sections"] = F.cross_entropy(told, self.get_buffer("sections"))
        loss = sum((getattr(self.weights, name) * value for name, value in found.items()), torch.zeros(()))
        return {"loss": loss, **found}

    @property
    def used(self) -> int:
        """Clusters that were placed."""
        return int(self.get_buffer("n_centres"))

    def membership(self, latent: Tensor) -> Tensor:
        """Return the membership of cells in the clusters that were placed."""
        return student_membership(latent, self.centres[: self.used])

    @torch.no_grad()
    def latent(self) -> Tensor:
        """Return both codes of every cell without noise, shape (n_cells, width)."""
        was = self.training
        self.eval()
        code, mean, _ = self.encode(self.get_buffer("features"))
        self.train(was)
        return torch.cat([code, mean], dim=1)

    @torch.no_grad()
    def place_centres(self, find: Callable[[np.ndarray], np.ndarray]) -> None:
        """Put centres at the means of the clusters that `find` makes of the codes, the largest 50 of them."""
        latent = self.latent()
        labels = torch.from_numpy(find(latent.cpu().numpy()).astype(np.int64)).to(latent.device)
        kept = torch.bincount(labels).argsort(descending=True)[:MOST_CLUSTERS]
        self.get_buffer("n_centres").fill_(len(kept))
        for place, label in enumerate(kept):
            self.centres[place] = latent[labels == label].mean(dim=0)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the sharpened membership in clusters as target."""
        self.get_buffer("target")[:, : self.used] = sharpened(self.membership(self.latent()))
