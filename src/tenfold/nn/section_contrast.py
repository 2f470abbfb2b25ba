"""The network of spatiAlign: a code of expression and graph, held against a memory of its own and other sections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.edges import pair_products
from tenfold.kernels.rows import SparseRows
from tenfold.nn.graph_layers import Fixed, Neighborhoods
from tenfold.nn.memory_contrast import elu_error, told_apart, undecided
from tenfold.nn.section_norm import EPS, NormedLayer

#: Largest logarithm of a deviation.
_MOST = 10.0
#: Share of the present statistics in those of the perceptron, which the original renews twice in an epoch: by cells and
#: by shuffled cells.
_TWICE = 1 - (1 - 0.1) ** 2
#: How often pairs that turn out to be neighbours are drawn again.
_DRAWS = 10


class Temperatures(NamedTuple):
    """What cosines are divided by: within a section, before the spread of units, and to other sections."""

    own: float
    spread: float
    others: float


class GraphLayer(nn.Module):
    """A linear map of the average over neighbours."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width)))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, averaged: Tensor) -> Tensor:
        """Return new features, shape (n_cells, width)."""
        return averaged @ self.weight + self.bias


class SectionContrast(nn.Module):
    """Code of expression by a residual perceptron and of its neighbours by a variational graph encoder, joined.

    Parameters
    ----------
    expression
        X, shape (n_cells, n_genes), one section after another.
    graph
        Â, normalised, the cells themselves among their neighbours.
    readout
        Non-zero where the column's cell counts for the neighbourhood of the row's; every row needs one.
    sizes
        Cells of each section, two at least.
    n_hidden, n_latent
        Widths.
    dropout
        Share of units, and of reconstructed values, that are silenced.
    temperatures
        Of the contrasts.
    momentum
        Share of the new code in the memory.

    References
    ----------
    Zhang et al. (2024), doi 10.1093/gigascience/giae042.
    """

    def __init__(
        self, expression: sparse.csr_matrix, graph: sparse.csr_matrix, readout: sparse.csr_matrix, sizes: list[int],
        n_hidden: int, n_latent: int, dropout: float, temperatures: Temperatures, momentum: float,
    ):  # fmt: skip
        super().__init__()
        (n_cells, n_genes), n = expression.shape, len(sizes)
        self.expression, self.graph, self.around = Fixed(expression), Fixed(graph), Neighborhoods(graph)
        count = np.asarray(readout.sum(axis=1)).ravel()
        self.readout = Fixed(sparse.csr_matrix(sparse.diags_array(1 / count) @ readout, dtype=np.float32))
        self.dropout, self.temperatures, self.momentum = dropout, temperatures, momentum
        ends = np.cumsum(sizes)
        self.parts = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
        section = np.repeat(np.arange(n), sizes)
        cell, neighbor = graph.nonzero()
        per_edge = 1.0 / np.bincount(section[cell], minlength=n)[section[cell]]
        for name, value in (
            ("joined", cell.astype(np.int64) * n_cells + neighbor),
            ("start", (ends - sizes)[section[cell]]), ("size", np.asarray(sizes)[section[cell]]),
            ("per_cell", (1.0 / np.asarray(sizes)[section]).astype(np.float32)),
            ("per_edge", per_edge.astype(np.float32)),
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(value), persistent=False)
        self.register_buffer("bank", torch.zeros(n_cells, n_latent))
        parts = self.parts
        options = (parts, dropout, _TWICE)
        self.first = NormedLayer(n_genes, n_hidden, *options)
        self.skip, self.down = (NormedLayer(n_hidden, n_latent, *options) for _ in range(2))
        self.level = nn.ModuleList([NormedLayer(n_latent, n_latent, *options) for _ in range(3)])
        self.hidden, self.mean, self.log_sd = (GraphLayer(n_latent) for _ in range(3))
        self.after = nn.ModuleList([NormedLayer(n_latent, n_latent, parts) for _ in range(2)])
        self.join, self.last = NormedLayer(2 * n_latent, n_latent, parts), nn.Linear(n_latent, n_latent)
        self.discriminator = nn.Bilinear(n_latent, n_latent, 1)
        self.decoder = nn.Parameter(torch.empty(n_latent, n_genes).uniform_(-(n_latent**-0.5), n_latent**-0.5))
        self.slope, self.offset = nn.Parameter(torch.ones(n, n_genes)), nn.Parameter(torch.zeros(n, n_genes))

    def units(self) -> Tensor:
        """Return what the perceptron makes of expression, shape (n_cells, n_latent)."""
        h = self.first.finished(self.expression(self.first.weight))
        # One product for both, since it is narrow.
        skip, down = (h @ torch.cat([self.skip.weight, self.down.weight], dim=1)).chunk(2, dim=1)
        x = F.elu(self.skip.finished(skip) + self.level[0](self.down.finished(down)))
        return F.elu(x + self.level[2](self.level[1](x)))

    def code(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the code of cells, and mean and logarithm of the deviation of that of their neighbours.

        Parameters
        ----------
        x
            What the perceptron makes of the cells, shape (n_cells, n_latent).
        """
        g = self.graph(self.hidden(self.graph(x)).relu())
        mean, log_sd = self.mean(g), self.log_sd(g).clamp(max=_MOST)
        z = mean + torch.randn_like(mean) * log_sd.exp() if self.training else mean
        for layer in self.after:
            z = layer(z)
        return F.elu(self.last(self.join(torch.cat([x, z], dim=1)))), mean, log_sd

    def terms(self) -> dict[str, Tensor]:
        """Return the loss, a sum over sections, and its parts; the memory is renewed."""
        x = self.units()
        latent, mean, log_sd = self.code(x)
        found = {
            "graph": self._edges(latent) + self._divergence(mean, log_sd),
            "neighborhoods": self._neighborhoods(latent, self.code(x.index_select(0, self.shuffled()))[0]),
            "reconstruction": self._reconstruction(latent),
        }
        bank = self.get_buffer("bank")
        past = bank.clone()
        with torch.no_grad():
            bank.lerp_(latent, self.momentum)
        own, spread, others = (latent.new_zeros(()) for _ in range(3))
        for number, part in enumerate(self.parts):
            code, kept = latent[part], bank[part]
            own = own + told_apart(code, kept, self.temperatures.own)
            own = own + told_apart(code.T, kept.T, self.temperatures.own)
            share = (code / self.temperatures.spread).softmax(dim=1).mean(dim=0)
            spread = spread + (share * (share + 1e-8).log()).sum()
            # Sections take turns in the original: those after this one have not renewed their memory yet.
            for memory, those in ((bank, self.parts[:number]), (past, self.parts[number + 1 :])):
                for other in those:
                    others = others + undecided(code, memory[other], self.temperatures.others)
        found |= {"own": own, "spread": spread, "others": others}
        return {"loss": sum(found.values(), latent.new_zeros(())), **found}

    def shuffled(self) -> Tensor:
        """Return cells in another order within each section."""
        device = self.get_buffer("bank").device
        return torch.cat([part.start + torch.randperm(part.stop - part.start, device=device) for part in self.parts])

    def strangers(self) -> tuple[Tensor, Tensor]:
        """Return as many pairs of cells of a section as there are edges, which are not joined as far as can be."""
        joined, start, size = (self.get_buffer(name) for name in ("joined", "start", "size"))
        pairs = torch.empty(2, len(joined), dtype=torch.int64, device=joined.device)
        again = torch.arange(len(joined), device=joined.device)
        for _ in range(_DRAWS):
            pairs[:, again] = start[again] + (torch.rand(2, len(again), device=again.device) * size[again]).long()
            keys = pairs[0, again] * len(self.get_buffer("bank")) + pairs[1, again]
            place = torch.searchsorted(joined, keys).clamp_max(len(joined) - 1)
            again = again[joined[place] == keys]
            if not len(again):
                break
        return pairs[0], pairs[1]

    def _edges(self, latent: Tensor) -> Tensor:
        """Return the cross-entropy of inner products: 1 for cells that are joined, 0 for strangers."""
        first, second = self.strangers()
        right, wrong = self.around.products(latent, latent), pair_products(latent, first, second)
        return (self.get_buffer("per_edge") * (F.softplus(-right) + F.softplus(wrong))).sum()

    def _divergence(self, mean: Tensor, log_sd: Tensor) -> Tensor:
        each = (1 + 2 * log_sd - mean**2 - (2 * log_sd).exp()).sum(dim=1)
        return -0.5 * (self.get_buffer("per_cell").square() * each).sum()

    def _neighborhoods(self, latent: Tensor, shuffled: Tensor) -> Tensor:
        """Return the cross-entropy of telling cells from shuffled ones by the neighbourhood they are in."""
        place = F.normalize(self.readout(latent), dim=1)
        form, bias = self.discriminator.weight[0], self.discriminator.bias
        right, wrong = (((code @ form) * place).sum(dim=1) + bias for code in (latent, shuffled))
        return (self.get_buffer("per_cell") * (F.softplus(-right) + F.softplus(wrong))).sum()

    def _reconstruction(self, latent: Tensor) -> Tensor:
        """Return the squared error of expression after batch norm of Z W, which needs mean and covariance of Z only."""
        total = latent.new_zeros(())
        for number, part in enumerate(self.parts):
            z = latent[part]
            center = z.mean(dim=0)
            covariance = (z - center).T @ (z - center) / len(z)
            mean, variance = center @ self.decoder, ((covariance @ self.decoder) * self.decoder).sum(dim=0)
            scale = self.slope[number] * (variance + EPS).rsqrt()
            shift = self.offset[number] - mean * scale
            dropout = self.dropout if self.training else 0.0
            total = total + elu_error(z, self.decoder * scale, shift, self._rows(part), dropout)
        return total

    def _rows(self, part: slice) -> SparseRows | Tensor:
        """Return rows of expression."""
        held = self.expression
        if held.is_dense:
            return held.get_buffer("matrix")[part]
        indptr, indices, values = (held.get_buffer(f"rows_{name}") for name in ("indptr", "indices", "values"))
        return SparseRows(indptr[part.start : part.stop + 1], indices, values, held.shape[1])

    @torch.no_grad()
    def fill_bank(self) -> None:
        """Take the present codes as the memory."""
        self.get_buffer("bank").copy_(torch.from_numpy(self.embedding()))

    @torch.no_grad()
    def embedding(self) -> np.ndarray:
        """Return the code without noise, shape (n_cells, n_latent), float32."""
        was = self.training
        self.eval()
        code = self.code(self.units())[0]
        self.train(was)
        return code.cpu().numpy()
