"""The network of DeepVelo: rates of every gene in every cell by graph convolutions, and what they are held against."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.edges import edge_products
from tenfold.nn.graph_layers import Fixed, Neighborhoods

#: Range of 1 less the loss of direction, by which its weight is divided: a third of it at most, once it is fitted.
_LEAST, _MOST = 0.01, 0.5
#: Keeps a gene without variation from being divided by.
_TINY = 1e-9


class DirectionWeights(NamedTuple):
    """Weights of the correlation with unspliced and spliced counts, and of both together."""

    unspliced: float
    spliced: float
    overall: float


class DeepVeloNet(nn.Module):
    """Graph convolutions Â X W that give each cell rates β and γ (and α) of each gene.

    Parameters
    ----------
    spliced, unspliced
        s and u, shape (n_cells, n_genes), float32.
    graph
        Â, normalised with the cells themselves, shape (n_cells, n_cells).
    near
        Non-zero where the column's cell may be where the row's came from or goes to; as many in every row.
    n_hidden, n_layers, dropout
        Of the hidden convolutions. Dropout also silences rates.
    with_unspliced
        Rates γ and α, so that ds/dt = β u - γ s and du/dt = α - β u; otherwise ds/dt = β u + γ s, of any sign.
    weights
        Of the correlations with counts.

    References
    ----------
    Cui et al. (2024), doi 10.1186/s13059-023-03148-9.
    """

    def __init__(
        self, spliced: np.ndarray, unspliced: np.ndarray, graph: sparse.csr_matrix, near: sparse.csr_matrix,
        n_hidden: int, n_layers: int, dropout: float, with_unspliced: bool, weights: DirectionWeights,
    ):  # fmt: skip
        super().__init__()
        self.graph, self.near, self.dropout = Fixed(graph), Neighborhoods(near), dropout
        self.with_unspliced, self.weights = with_unspliced, weights
        self.n_genes = spliced.shape[1]
        states = np.concatenate([spliced, unspliced], axis=1) if with_unspliced else spliced
        kept = {
            "spliced": spliced, "unspliced": unspliced, "states": states - states.mean(axis=0),
            **{f"{name}_{of}": part for name, counts in (("unspliced", unspliced), ("spliced", spliced))
               for of, part in zip(("seen", "share", "standard"), _standardised(counts), strict=True)},
        }  # fmt: skip
        for name, values in kept.items():
            tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
            self.register_buffer(name, tensor, persistent=False)
        widths = [2 * self.n_genes, *[n_hidden] * n_layers, (3 if with_unspliced else 2) * self.n_genes]
        for at, shape in enumerate(pairwise(widths)):
            self.register_parameter(f"weight_{at}", nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape))))
            self.register_parameter(f"bias_{at}", nn.Parameter(torch.zeros(shape[1])))
        self.n_convolutions = len(widths) - 1

    def rates(self) -> tuple[Tensor, ...]:
        """Return β, γ and, with unspliced velocities, α, each of shape (n_cells, n_genes)."""
        x = torch.cat([self.get_buffer("unspliced"), self.get_buffer("spliced")], dim=1)
        for at in range(self.n_convolutions):
            weight, bias = self.get_parameter(f"weight_{at}"), self.get_parameter(f"bias_{at}")
            # The graph is multiplied with the narrower side.
            x = self.graph(x @ weight) if weight.shape[0] > weight.shape[1] else self.graph(x) @ weight
            x = x + bias
            x = F.dropout(x.relu() if at < self.n_convolutions - 1 else x, self.dropout, self.training)
        return x.split(self.n_genes, dim=1)

    def velocities(self) -> Tensor:
        """Return ds/dt, and du/dt beside it if asked for, shape (n_cells, n_genes or twice that)."""
        u, s = self.get_buffer("unspliced"), self.get_buffer("spliced")
        beta, gamma, *alpha = self.rates()
        if not alpha:
            return beta * u + gamma * s
        return torch.cat([beta * u - gamma * s, alpha[0] - beta * u], dim=1)

    @torch.no_grad()
    def displacements(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean way to the cells near by that lie ahead in the direction of ds/dt, and to those behind."""
        states, g = self.get_buffer("states"), self.n_genes
        spliced, indptr = states[:, :g].contiguous(), self.near.get_buffer("indptr")
        own = velocity[:, :g].contiguous()
        ahead = edge_products(own, spliced, indptr, self.near.get_buffer("neighbor")).view(len(states), -1)
        ahead = ahead - (own * spliced).sum(dim=1, keepdim=True)
        found = []
        for side in (ahead > 0, ahead < 0):
            count = side.sum(dim=1, keepdim=True)
            mean = self.near.spread((side / count.clamp_min(1)).ravel(), states)
            found.append(mean.sub_(states * (count > 0)))
        return found[0], found[1]

    def correlations(self, velocity: Tensor) -> Tensor:
        """Return how ds/dt goes with u and against s, over cells that have them, from -1 to 1, shape (n_genes,)."""
        own = velocity[:, : self.n_genes]
        sides = zip(("unspliced", "spliced"), (self.weights.unspliced, -self.weights.spliced), strict=True)
        both = [weight * self._correlation(own, name) for name, weight in sides]
        return (both[0] + both[1]) / (self.weights.unspliced + self.weights.spliced)

    def _correlation(self, velocity: Tensor, name: str) -> Tensor:
        seen, share, standard = (self.get_buffer(f"{name}_{of}") for of in ("seen", "share", "standard"))
        centred = (velocity - (velocity * share).sum(dim=0)) * seen
        return (centred * standard).sum(dim=0) / (centred.square().sum(dim=0) + _TINY).sqrt()

    def terms(self) -> dict[str, Tensor]:
        """Return the loss and its two parts."""
        velocity = self.velocities()
        ahead, behind = self.displacements(velocity.detach())
        off = F.mse_loss(velocity, ahead) + F.mse_loss(velocity, -behind)
        continuity = off / 2 * self.n_genes**0.5
        direction = 1 - self.correlations(velocity).mean()
        weight = self.weights.overall * velocity.shape[1] ** 0.5
        weight = weight / (1 - direction.detach()).clamp(_LEAST, _MOST)
        return {"loss": continuity + weight * direction, "continuity": continuity, "direction": direction}

    @torch.no_grad()
    def summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ds/dt, its distance from the ways ahead and behind, both (n_cells, n_genes), and `correlations`."""
        velocity = self.velocities()
        ahead, behind = self.displacements(velocity)
        apart = (velocity - ahead).square() + (velocity + behind).square()
        g = self.n_genes
        return velocity[:, :g], apart[:, :g].sqrt(), self.correlations(velocity)


def _standardised(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where counts are seen, each such cell's share of their number, and counts centred there, of length 1."""
    seen = (counts > 0).astype(np.float32)
    share = seen / np.maximum(seen.sum(axis=0), 1)
    centred = (counts - (counts * share).sum(axis=0)) * seen
    return seen, share, centred / np.sqrt((centred**2).sum(axis=0) + _TINY)
