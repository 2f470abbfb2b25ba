"""The network of LatentVelo: a variational autoencoder of spliced and unspliced counts, and a flow among its codes."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.graph_layers import Fixed
from tenfold.nn.latent_flow import Flow, Widths, perceptron
from tenfold.nn.priors import Gaussian

#: Weight of the edges of the graph beside that of the cell itself, before rows are made to sum to 1.
_EDGES = 0.9
#: Floor of standard deviations, and weight of the divergence of times.
_LEAST_SD, _OF_TIMES = 1e-4, 0.1

#: Averages the features of cells over their neighbours among these cells.
Averager = Callable[[Tensor], Tensor]


class Weights(NamedTuple):
    """Weights in the loss of the correlation of velocity with unspliced, and with falling spliced, counts."""

    with_unspliced: float
    with_spliced: float


class Codes(NamedTuple):
    """What the encoders say of cells.

    Attributes
    ----------
    spliced, unspliced
        Codes, each shape (n_cells, code).
    time
        From 0 to 1, shape (n_cells, 1).
    context
        What the flow of a cell is told, shape (n_cells, context).
    divergence
        Of codes and times from their priors, in nats, shape (n_cells,).
    """

    spliced: Tensor
    unspliced: Tensor
    time: Tensor
    context: Tensor
    divergence: Tensor


class Convolutions(nn.Module):
    """ELU, then averages over neighbours of a linear map with ELU, `depth` times, then a linear map of all parts.

    Parameters
    ----------
    width
        Of every part of the input and of the layers.
    depth
        Number of convolutions.
    parts, n_out
        Number of parts, which pass the same layers, and width of the output.
    """

    def __init__(self, width: int, depth: int, parts: int, n_out: int):
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.out = nn.Linear(parts * width, n_out)

    def forward(self, parts: list[Tensor], around: Averager) -> Tensor:
        """Map parts, each (n_cells, width), to (n_cells, n_out)."""
        n_cells, x = len(parts[0]), F.elu(torch.cat(parts))
        one: Any
        for one in self.maps:
            mapped = (x @ one.weight.T).split(n_cells)
            x = F.elu(torch.cat([around(part) for part in mapped]) + one.bias)
        return self.out(torch.cat(x.split(n_cells), dim=1))


class LatentODE(nn.Module):
    """Codes of spliced and unspliced averages, a time and a context of each cell, and a flow that reaches the codes.

    Parameters
    ----------
    graph
        Weights of neighbours, symmetric, shape (n_cells, n_cells).
    dynamic
        Genes whose velocity is to correlate with their counts, shape (n_genes,), bool.
    n_batches
        Above 1: encoders see the batch instead of neighbours, and each batch has decoders of its own.
    widths, weights
        Of layers and of the loss.
    n_steps
        As in `Flow`.

    References
    ----------
    Farrell et al. (2023), doi 10.1093/bioinformatics/btad389.
    """

    def __init__(
        self, graph: sparse.csr_matrix, dynamic: np.ndarray, n_batches: int, widths: Widths, weights: Weights,
        n_steps: int,
    ):  # fmt: skip
        super().__init__()
        n_genes, code, hidden = len(dynamic), widths.code, widths.hidden
        self.graph, self.weights, self.n_batches = sparse.csr_matrix(graph), weights, n_batches
        self.register_buffer("dynamic", torch.from_numpy(np.flatnonzero(dynamic)), persistent=False)
        depth = 1 if n_batches == 1 else 2
        told = n_batches if n_batches > 1 else 0
        self.encoders = nn.ModuleList(
            [perceptron(n_genes + told, *[hidden] * depth, 2 * code) for _ in ("spliced", "unspliced")]
        )
        smooth = n_batches == 1
        self.smoothers = nn.ModuleList([Convolutions(2 * code, 2, 1, 2 * code) for _ in range(2 * smooth)])
        self.timer = Convolutions(code, 1, 2, 2)
        self.informer = Convolutions(code, 1, 2, widths.context)
        self.decoders: Any = nn.ModuleList(
            [nn.ModuleList([nn.Linear(code, n_genes) for _ in range(n_batches)]) for _ in ("spliced", "unspliced")]
        )
        self.flow = Flow(widths, n_steps)
        self.spread, self.code_spread = (
            nn.Parameter(torch.empty(width).uniform_(-(width**-0.5), width**-0.5)) for width in (n_genes, code)
        )

    def around(self, index: Tensor) -> Averager:
        """Return the averages over each cell and its neighbours among the cells of a minibatch."""
        rows = index.cpu().numpy()
        some = _EDGES * self.graph[rows][:, rows] + sparse.identity(len(rows), format="csr")
        some = sparse.diags_array(1 / np.asarray(some.sum(axis=1)).ravel()) @ some
        return Fixed(some).to(index.device)

    def encode(self, batch: dict[str, Any], sample: bool) -> Codes:
        """Return codes, times and context; means of them where they are not to be sampled."""
        around, parts, divergence = self.around(batch["index"]), [], batch["spliced"].new_zeros(())
        for i, name in enumerate(("spliced", "unspliced")):
            x = batch[name]
            if self.n_batches > 1:
                x = torch.cat([x, F.one_hot(batch["batch"], self.n_batches).to(x.dtype)], dim=1)
            h = self.encoders[i](x)
            found = self._normal(self.smoothers[i]([h], around) if len(self.smoothers) else h)
            divergence = divergence + found.kl_from_standard()
            parts.append(found.sample() if sample else found.mean)
        time = self._normal(self.timer(parts, around))
        divergence = divergence + _OF_TIMES * time.kl_from_standard()
        own = torch.sigmoid(time.sample() if sample else time.mean)
        return Codes(parts[0], parts[1], own, self.informer(parts, around), divergence)

    @staticmethod
    def _normal(h: Tensor) -> Gaussian:
        mean, log_variance = h.chunk(2, dim=1)
        return Gaussian(mean, log_variance.exp())

    def decode(self, which: int, codes: Tensor, batch: dict[str, Any], genes: Tensor | None = None, bias: bool = True):
        """Return spliced (0) or unspliced (1) averages of codes, or their slopes (without `bias`), of some genes.

        Parameters
        ----------
        which
            Of the two decoders.
        codes
            Shape (k, n_cells, code).
        batch
            Minibatch, for the batch of each cell.
        genes
            Columns; default all.
        bias
            Whether the decoders' offsets are added.
        """
        out: Any = 0.0
        for level, decoder in enumerate(self.decoders[which]):
            weight, offset = decoder.weight, decoder.bias
            if genes is not None:
                weight, offset = weight[genes], offset[genes]
            one = F.linear(codes, weight, offset if bias else None)
            out = out + (one if self.n_batches == 1 else one * (batch["batch"] == level)[:, None])
        return out

    def terms(self, batch: dict[str, Any], kl_weight: float = 1.0, root_weight: float = 0.0) -> dict[str, Tensor]:
        """Return the loss of a minibatch and its parts, means over cells.

        Parameters
        ----------
        batch
            ``"spliced"`` and ``"unspliced"`` (scaled), ``"seen"`` (counts in either), ``"batch"``, ``"index"``.
        kl_weight
            Of the divergence from the priors.
        root_weight
            Of the squared time of cells that are beginnings, as far as they are (``"root"``).
        """
        codes = self.encode(batch, sample=True)
        n_cells, code = codes.spliced.shape
        reached = self.flow(codes.time, codes.context)
        at_s, at_u = reached[:, :code], reached[:, code : 2 * code]
        both = [torch.stack([codes.spliced, at_s]), torch.stack([codes.unspliced, at_u])]
        decoded = [self.decode(which, both[which], batch) for which in (0, 1)]
        seen = batch["seen"].to(at_s.dtype)
        times_seen, sd = seen.sum(dim=0), _LEAST_SD + F.softplus(self.spread)
        likelihood = error = seen.new_zeros(())
        for name, back in zip(("spliced", "unspliced"), decoded, strict=True):
            x = batch[name]
            mean = (x * seen).sum() / times_seen.sum().clamp_min(1)
            apart = back - x
            squares = mean * (apart * apart * seen).sum(dim=(0, 1))
            error = error + squares.sum()
            likelihood = likelihood - (0.5 * squares / sd**2).sum()
            likelihood = likelihood - 2 * mean * (times_seen * (sd.log() + 0.5 * log(2 * pi))).sum()
        variance = (_LEAST_SD + F.softplus(self.code_spread)) ** 2
        towards = Gaussian(reached[:, : 2 * code], torch.cat([variance, variance]))
        likelihood = likelihood + towards.log_density(torch.cat([codes.spliced, codes.unspliced], dim=1)).sum()
        divergence = codes.divergence.mean()
        correlation = self._correlation(batch, both, decoded)
        loss = kl_weight * divergence - likelihood / n_cells - correlation
        loss = loss + root_weight * (batch["root"] * codes.time[:, 0] ** 2).mean()
        return {"loss": loss, "error": error / n_cells, "divergence": divergence, "correlation": correlation}

    def _correlation(self, batch: dict[str, Any], both: list[Tensor], decoded: list[Tensor]) -> Tensor:
        """Return the weighted mean correlation over cells of ds/dt of genes with u and with -s."""
        genes = self.get_buffer("dynamic")
        total = both[0].new_zeros(())
        if not len(genes):
            return total
        slopes = torch.stack([self.flow.of_spliced(s, u) for s, u in zip(*both, strict=True)])
        velocity = self.decode(0, slopes, batch, genes, bias=False)
        signs = (-self.weights.with_spliced, self.weights.with_unspliced)
        for name, back, weight in zip(("spliced", "unspliced"), decoded, signs, strict=True):
            x = batch[name][:, genes]
            mask = (x > 0).to(x.dtype)
            count = mask.sum(dim=0) + 1e-8
            targets = _unit(x, mask, count) + _unit(back[..., genes], mask, count)
            total = total + weight * (_unit(velocity, mask, count) * targets).sum() / len(genes)
        return total

    def outputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return time, codes, their slopes, and ds/dt of genes (scaled) of cells, all by the means of their codes."""
        codes = self.encode(batch, sample=False)
        slope = self.flow.of_spliced(codes.spliced, codes.unspliced)
        velocity = self.decode(0, slope[None], batch, bias=False)[0]
        return {"time": codes.time[:, 0], "code": codes.spliced, "slope": slope, "velocity": velocity}


def _unit(x: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Return columns of the cells under a mask, centred and of length 1; the other cells are 0."""
    masked = x * mask
    centred = mask * (masked - masked.sum(dim=-2, keepdim=True) / count)
    return centred / (((centred * centred).sum(dim=-2, keepdim=True) + 1e-8).sqrt() + 1e-8)
