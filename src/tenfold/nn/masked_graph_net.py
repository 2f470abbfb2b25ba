"""The network of SEDR: a masked autoencoder of features, a variational one of the graph, and clusters of both codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.graph_layers import Fixed
from tenfold.nn.soft_clusters import sharpened, student_membership

#: Times that pairs which turn out to be joined are drawn again.
_DRAWS = 4
#: Power of the cosine error on masked cells.
_POWER = 3


class Widths(NamedTuple):
    """Widths of the hidden layers, of each of the two codes, and the number of cluster centres."""

    hidden: int
    code: int
    centres: int


class Weights(NamedTuple):
    """Weights of the terms of the loss."""

    reconstruction: float
    edges: float
    masked: float
    clusters: float


def elu_block(n_in: int, n_out: int, dropout: float) -> nn.Sequential:
    """Return a linear map, batch norm that moves slowly, ELU and dropout."""
    norm = nn.BatchNorm1d(n_out, momentum=0.01, eps=0.001)
    return nn.Sequential(nn.Linear(n_in, n_out), norm, nn.ELU(), nn.Dropout(dropout))


class MaskedGraphAutoencoder(nn.Module):
    """Code c of features by a perceptron, code g of c by graph convolutions, features back from Â [c, g] W.

    Parameters
    ----------
    features
        Shape (n_cells, n_features).
    graph
        Â, normalised with the cells themselves, shape (n_cells, n_cells).
    widths, weights
        Of layers and of the loss.
    mask_rate
        Share of the cells to whose features a learnt vector is added in each round.
    dropout
        Share of units that are silenced.

    References
    ----------
    Xu et al. (2024), doi 10.1186/s13073-024-01283-x.
    """

    def __init__(
        self, features: np.ndarray, graph: sparse.csr_matrix, widths: Widths, weights: Weights, mask_rate: float = 0.8,
        dropout: float = 0.2,
    ):  # fmt: skip
        super().__init__()
        n_cells, n_features = features.shape
        self.graph, self.weights, self.mask_rate, self.dropout = Fixed(graph), weights, mask_rate, dropout
        self.register_buffer("features", torch.from_numpy(np.ascontiguousarray(features, np.float32)), persistent=False)
        edges = sparse.coo_matrix(graph)
        keys = np.sort(edges.row.astype(np.int64) * n_cells + edges.col)
        self.register_buffer("joined", torch.from_numpy(keys), persistent=False)
        self.norm = n_cells**2 / (2 * max(n_cells**2 - len(keys), 1))
        self.encoder = nn.Sequential(elu_block(n_features, widths.hidden, dropout),
                                     elu_block(widths.hidden, widths.code, dropout))  # fmt: skip
        shapes = {"around": (widths.code, widths.hidden), "mean": (widths.hidden, widths.code),
                  "log_sd": (widths.hidden, widths.code), "decoder": (2 * widths.code, n_features)}  # fmt: skip
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape))))
        self.centres = nn.Parameter(nn.init.xavier_normal_(torch.empty(widths.centres, 2 * widths.code)))
        self.token = nn.Parameter(torch.zeros(1, n_features))
        self.register_buffer("target", torch.zeros(n_cells, widths.centres))

    def _silenced(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _convolved(self, x: Tensor, name: str) -> Tensor:
        return self.graph(self._silenced(x) @ self.get_parameter(name))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the code of the features, and mean and logarithm of the deviation of that of the graph."""
        code = self.encoder(x)
        hidden = self._convolved(code, "around").relu()
        return code, self._convolved(hidden, "mean"), self._convolved(hidden, "log_sd")

    def strangers(self) -> Tensor:
        """Return a cell for each edge that is not joined with the edge's first, shape (n_edges,)."""
        joined = self.get_buffer("joined")
        n_cells = self.graph.shape[0]
        first, other = joined // n_cells, torch.randint(n_cells, (len(joined),), device=joined.device)
        for _ in range(_DRAWS):
            keys = first * n_cells + other
            place = torch.searchsorted(joined, keys).clamp_max(len(joined) - 1)
            again = (joined[place] == keys).nonzero()[:, 0]
            if not len(again):
                break
            other[again] = torch.randint(n_cells, (len(again),), device=joined.device)
        return other

    def terms(self, clustering: bool = False, strangers: Tensor | None = None) -> dict[str, Tensor]:
        """Return the loss and its parts; with `clustering`, membership in clusters takes the place of masked cells."""
        features = self.get_buffer("features")
        masked = torch.randperm(len(features), device=features.device)[: int(self.mask_rate * len(features))]
        x = features.index_add(0, masked, self.token.expand(len(masked), -1))
        code, mean, log_sd = self.encode(x)
        latent = torch.cat([code, mean + torch.randn_like(mean) * log_sd.exp()], dim=1)
        # The graph is multiplied with the codes, which are narrower than the features.
        back = self.graph(self._silenced(latent)) @ self.get_parameter("decoder")
        reconstruction = F.mse_loss(back, features)
        edges = self.norm * self._edge_error(latent, self.strangers() if strangers is None else strangers)
        edges = edges - (1 + 2 * log_sd - mean**2 - (2 * log_sd).exp()).sum(dim=1).mean() / (2 * len(features))
        found = {"reconstruction": reconstruction, "edges": edges}
        if clustering:
            membership, target = student_membership(latent, self.centres), self.get_buffer("target")
            found["clusters"] = (target * (target.clamp_min(1e-30) / membership).log()).mean()
        elif self.mask_rate > 0:
            found["masked"] = (1 - F.cosine_similarity(back[masked], x[masked], dim=1)).pow(_POWER).mean()
        loss = sum((getattr(self.weights, name) * value for name, value in found.items()), torch.zeros(()))
        return {"loss": loss, **found}

    def _edge_error(self, latent: Tensor, strangers: Tensor) -> Tensor:
        """Return the cross-entropy of inner products: 1 for pairs of cells that are joined, 0 for strangers."""
        joined = self.get_buffer("joined")
        first, second = joined // len(latent), joined % len(latent)
        own = latent[first]
        right, wrong = ((own * latent[other]).sum(dim=1) for other in (second, strangers))
        return (F.softplus(-right).mean() + F.softplus(wrong).mean()) / 2

    @torch.no_grad()
    def latent(self) -> Tensor:
        """Return both codes of every cell, without noise, the mask at its expectation, (n_cells, 2 × code)."""
        was = self.training
        self.eval()
        code, mean, _ = self.encode(self.get_buffer("features") + self.mask_rate * self.token)
        self.train(was)
        return torch.cat([code, mean], dim=1)

    @torch.no_grad()
    def place_centres(self, find: Callable[[np.ndarray], np.ndarray]) -> None:
        """Put the centres of clusters where `find` puts them in the codes."""
        latent = self.latent()
        self.centres.copy_(torch.from_numpy(find(latent.cpu().numpy()).astype(np.float32)).to(latent.device))

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the sharpened membership in clusters as target."""
        self.get_buffer("target").copy_(sharpened(student_membership(self.latent(), self.centres)))
