"""A small network for every gene, all at once: rates from a place in the plane of u and s, and their training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.phase_plane import most_ahead

#: Epochs between two looks at whether a gene still improves, looks in vain after which it is done, and the weight of
#: the last epoch in the loss that is looked at.
LOOK, PATIENCE, NEWEST = 10, 3, 0.9
#: A loss that none can have: it is at most 2.
_UNKNOWN = 9.0
#: Genes that are computed at once: what layers give is then reused from the cache and not asked of the system anew.
BLOCK = 32


class Plane(NamedTuple):
    """Where cells lie in the plane of u and s, gene by gene, each axis divided by its maximum.

    Attributes
    ----------
    points
        Distinct (u, s), rounded to hundredths, shape (n_genes, most, 2), float32, zeros at the end.
    counts
        Number of points of each gene, shape (n_genes,), int64.
    highest
        Maxima of u and of s, shape (n_genes, 2), float32.
    """

    points: np.ndarray
    counts: np.ndarray
    highest: np.ndarray


class GeneNetworks(nn.Module):
    """Two hidden layers for each gene that turn (u, s) into three numbers between 0 and 1.

    Parameters
    ----------
    n_genes, n_hidden
        Number of networks, and width of their layers.
    """

    def __init__(self, n_genes: int, n_hidden: int):
        super().__init__()
        for at, (n_in, n_out) in enumerate(((2, n_hidden), (n_hidden, n_hidden), (n_hidden, 3))):
            for name, shape in (("weight", (n_genes, n_in, n_out)), ("bias", (n_genes, 1, n_out))):
                values = torch.empty(shape).uniform_(-(n_in**-0.5), n_in**-0.5)
                self.register_parameter(f"{name}_{at}", nn.Parameter(values))

    def weights(self, genes: Tensor | slice) -> list[Tensor]:
        """Return the weights and biases of some genes, layer by layer."""
        return [self.get_parameter(f"{name}_{at}")[genes] for at in range(3) for name in ("weight", "bias")]

    def forward(self, points: Tensor, genes: Tensor | slice = slice(None)) -> Tensor:
        """Return β, γ and α as shares of their bounds: (n_genes, n_points, 2) → (n_genes, n_points, 3)."""
        return shares(points, self.weights(genes))

    @torch.no_grad()
    def take(self, other: GeneNetworks, genes: Tensor, of: Tensor | None = None) -> None:
        """Take the weights of `genes` from another's, from its genes `of` if these are others."""
        for own, given in zip(self.parameters(), other.parameters(), strict=True):
            own[genes] = given[genes if of is None else of]

    @torch.no_grad()
    def everywhere(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Return β, γ and α of every cell, u and s divided by their maxima: (n_cells, n_genes) → (3, ...), float32."""
        out = np.empty((3, *u.shape), np.float32)
        for start in range(0, u.shape[1], BLOCK):
            genes = slice(start, start + BLOCK)
            points = torch.from_numpy(np.stack([u[:, genes].T, s[:, genes].T], axis=2).astype(np.float32))
            out[:, :, genes] = self(points, genes).permute(2, 1, 0).numpy()
        return out


def shares(points: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return what networks with these weights make of points; see `GeneNetworks`."""
    x = points
    for at in range(3):
        x = torch.baddbmm(weights[2 * at + 1], x, weights[2 * at])
        x = F.leaky_relu(x, inplace=True) if at < 2 else x.sigmoid()
    return x


class CosineTraining(nn.Module):
    """What trains `GeneNetworks`: velocities are to point to a neighbour in the plane of u and s.

    Parameters
    ----------
    start
        Networks to start from.
    plane
        Points of each gene.
    factors
        Of α in du/dt, of β u and of γ s in ds/dt, both axes divided by their maxima, shape (n_genes, 3).
    sampled
        Share of the points of a gene that an epoch takes.
    n_neighbors
        Neighbours of a point, itself counted.
    """

    def __init__(
        self, start: GeneNetworks, plane: Plane, factors: np.ndarray, sampled: float, n_neighbors: int
    ):  # fmt: skip
        super().__init__()
        n_genes = len(plane.counts)
        n_hidden = start.get_parameter("bias_0").shape[2]
        self.rates, self.settled, self.n_neighbors = start, GeneNetworks(n_genes, n_hidden), n_neighbors
        self.settled.requires_grad_(False)
        size = np.minimum(plane.counts, np.maximum(np.rint(sampled * plane.counts).astype(np.int64), n_neighbors))
        for name, values in (("points", plane.points), ("counts", plane.counts), ("scale", plane.highest),
                             ("factors", np.asarray(factors, np.float32)), ("size", size)):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(values), persistent=False)
        for name in ("smoothed", "lowest"):
            self.register_buffer(name, torch.full((n_genes,), _UNKNOWN))
        self.register_buffer("waited", torch.zeros(n_genes, dtype=torch.int64))
        self.register_buffer("done", torch.zeros(n_genes, dtype=torch.bool))

    def losses(self, points: Tensor, size: Tensor, genes: Tensor) -> Tensor:
        """Return 1 less the cosine to the neighbour that a velocity comes closest to, mean over points, (n_genes,)."""
        # Weights are taken once, since each taking has a gradient of the size of all.
        parts = (part.split(BLOCK) for part in (points, size, genes, *self.rates.weights(genes)))
        return torch.cat([self._losses(own, n, at, weights) for own, n, at, *weights in zip(*parts, strict=True)])

    def _losses(self, points: Tensor, size: Tensor, genes: Tensor, weights: list[Tensor]) -> Tensor:
        velocity = self._velocities(points, genes, weights)
        scale = self.get_buffer("scale")[genes]
        best = most_ahead(points, scale, size, velocity.detach(), self.n_neighbors - 1)
        step = points.gather(1, best[..., None].expand(-1, -1, 2)) - points
        lengths = (velocity.square().sum(dim=2) * step.square().sum(dim=2)).clamp_min(1e-24).sqrt()
        cosine = (velocity * step).sum(dim=2) / lengths
        inside = torch.arange(points.shape[1], device=points.device) < size[:, None]
        return ((1 - cosine) * inside).sum(dim=1) / size

    def _velocities(self, points: Tensor, genes: Tensor, weights: list[Tensor]) -> Tensor:
        """Return (du/dt, ds/dt), each divided by the gene's maximum, at points, (n_genes, n_points, 2)."""
        beta, gamma, alpha = shares(points, weights).unbind(dim=2)
        of_alpha, of_beta, of_gamma = self.get_buffer("factors")[genes, None].unbind(dim=2)
        spliced = beta * points[..., 0]
        return torch.stack([of_alpha * alpha - spliced, of_beta * spliced - of_gamma * gamma * points[..., 1]], dim=2)

    def terms(self, epoch: int) -> dict[str, Tensor]:
        """Return the sum of the losses of the genes that still train, on points drawn anew."""
        points, counts, done = (self.get_buffer(name) for name in ("points", "counts", "done"))
        genes = (~done).nonzero()[:, 0]
        size = self.get_buffer("size")[genes]
        order = torch.rand(len(genes), points.shape[1], device=points.device)
        order = order + (torch.arange(points.shape[1], device=points.device) >= counts[genes, None])
        chosen = order.topk(int(size.max()), largest=False).indices
        losses = self.losses(points[genes[:, None], chosen], size, genes)
        self._look(losses.detach(), genes, epoch)
        return {"loss": losses.sum(), "mean": losses.detach().mean()}

    @torch.no_grad()
    def _look(self, losses: Tensor, genes: Tensor, epoch: int) -> None:
        """Let genes be done whose smoothed loss has not fallen for some looks."""
        smoothed, lowest, waited, done = (self.get_buffer(name) for name in ("smoothed", "lowest", "waited", "done"))
        before = torch.where(smoothed[genes] == _UNKNOWN, losses, smoothed[genes])
        smoothed[genes] = NEWEST * losses + (1 - NEWEST) * before
        if (epoch + 1) % LOOK:
            return
        waited[genes] = torch.where(smoothed[genes] < lowest[genes], 0, waited[genes] + 1)
        lowest[genes] = torch.minimum(lowest[genes], smoothed[genes])
        ended = genes[waited[genes] >= PATIENCE]
        self.settled.take(self.rates, ended)
        done[ended] = True

    def finished(self) -> GeneNetworks:
        """Return the networks as they were when their genes were done, or are now."""
        self.settled.take(self.rates, (~self.get_buffer("done")).nonzero()[:, 0])
        return self.settled


def plane_of(u: np.ndarray, s: np.ndarray) -> Plane:
    """Return the distinct places of cells in the plane of each gene; u and s are (n_cells, n_genes), float32."""
    highest = np.maximum(np.stack([u.max(axis=0), s.max(axis=0)], axis=1), 1e-12).astype(np.float32)
    keys = [np.rint(100 * x.T / top[:, None]).astype(np.int64) for x, top in zip((u, s), highest.T, strict=True)]
    distinct = [np.unique(own) for own in 101 * keys[0] + keys[1]]
    counts = np.array([len(own) for own in distinct], dtype=np.int64)
    points = np.zeros((len(distinct), counts.max(), 2), np.float32)
    for gene, own in enumerate(distinct):
        points[gene, : len(own)] = np.stack(divmod(own, 101), axis=1) / 100
    return Plane(points, counts, highest)
