"""A classifier of cells whose tokens are sets of genes."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.kernels.rows import SparseRows
from tenfold.kernels.set_rows import rows_of_sets, set_product
from tenfold.kernels.sparse_linear import sparse_linear
from tenfold.nn.attention import TransformerBlock, rollout


class SetTokens(nn.Module):
    """A linear map from the genes of each set to the token of the set, at a cost of pairs of gene and set.

    Parameters
    ----------
    starts, sets
        Sets of each gene, as in `rows_of_sets`.
    n_sets
        Number of sets, P.
    width
        Of a token, E.
    """

    def __init__(self, starts: np.ndarray, sets: np.ndarray, n_sets: int, width: int):
        super().__init__()
        self.starts, self.sets, self.n_sets = starts, sets, n_sets
        bound = 1 / sqrt(len(starts) - 1)  # of all genes, not of those of a set: as published
        self.weight = nn.Parameter(torch.empty(len(sets), width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_sets, width).uniform_(-bound, bound))

    def forward(self, x: SparseRows) -> Tensor:
        """Map expression (n_cells, n_genes) to (n_cells, P, E)."""
        rows = rows_of_sets(x, self.starts, self.sets, self.n_sets)
        found = sparse_linear(rows, self.weight) if x.device.type == "cpu" else set_product(rows, self.weight)
        return found.view(len(x), self.n_sets, -1) + self.bias

    @torch.no_grad()
    def centre(self, mean: SparseRows) -> None:
        """Start from biases that make the tokens of mean expression (one row) zero.

        Blocks normalise each token to one length, so that of a token far from zero they see next to no change where
        all genes of its set rise or fall together.
        """
        self.bias.sub_(self(mean)[0])


class SetTransformer(nn.Module):
    """Tokens of gene sets and a token of the cell, through transformer blocks, to labels.

    Parameters
    ----------
    tokens
        Makes the tokens.
    n_labels, n_heads, n_blocks
        Sizes.
    dropout
        Of attention and networks.
    stochastic_depth
        Of the last block; from 0 in the first it rises linearly.
    mixed
        Read the tokens' values in the published order, in which each token holds values of many sets.
    start
        Standard deviation of the initial weights of blocks and head; ``None`` for PyTorch's, one over the root of the
        width. Published: 0.01, from which training takes thousands of steps to depart.
    """

    def __init__(
        self, tokens: SetTokens, n_labels: int, *, n_heads: int = 4, n_blocks: int = 2, dropout: float = 0.5,
        stochastic_depth: float = 0.5, mixed: bool = False, start: float | None = None,
    ):  # fmt: skip
        super().__init__()
        width = tokens.weight.shape[1]
        self.tokens, self.mixed = tokens, mixed
        self.cell = nn.Parameter(torch.empty(1, 1, width))
        depths = np.linspace(0, stochastic_depth, n_blocks).tolist()
        self.blocks = nn.ModuleList([
            TransformerBlock(width, n_heads, 4 * width, attention_dropout=dropout, dropout=dropout,
                             stochastic_depth=depth) for depth in depths
        ])  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, n_labels)
        nn.init.trunc_normal_(self.cell, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear) and start is not None:
                nn.init.trunc_normal_(module.weight, std=start)
                nn.init.zeros_(module.bias)

    def sequence(self, of_sets: Tensor) -> Tensor:
        """Return what enters the blocks, the token of the cell first, (n_cells, 1 + P, E)."""
        n_cells, n_sets, width = of_sets.shape
        if self.mixed:
            of_sets = of_sets.reshape(n_cells, width, n_sets).transpose(1, 2)
        return torch.cat([self.cell.expand(n_cells, -1, -1), of_sets], dim=1)

    def latent(self, of_sets: Tensor) -> Tensor:
        """Return the token of the cell after all blocks, (n_cells, E)."""
        x = self.sequence(of_sets)
        for block in self.blocks[:-1]:  # type: ignore[index]
            x = block(x)
        last: Any = self.blocks[-1]
        return self.norm(last(x, 1)[:, 0])

    def forward(self, x: SparseRows) -> Tensor:
        """Return the logits of the labels, (n_cells, n_labels)."""
        return self.head(self.latent(self.tokens(x)))

    def attention(self, x: SparseRows) -> Tensor:
        """Return how much the token of the cell draws on that of each set, (n_cells, P)."""
        return rollout(self.blocks, self.sequence(self.tokens(x)))[:, 1:]

    def attribution(self, x: SparseRows, baseline: SparseRows, n_steps: int) -> Tensor:
        """Return each set's share in how far the most probable label's logit is above the mean logit, (n_cells, P).

        Integrated gradients: the mean gradient on the way from a baseline (one row of expression) to the cell, times
        that way, summed over the values of a set's token. A single step is gradient × input at the cell itself.

        References
        ----------
        Sundararajan et al. (2017), doi 10.48550/arXiv.1703.01365.
        """
        start, end = self.tokens(baseline).detach(), self.tokens(x).detach()
        label = self.head(self.latent(end)).argmax(dim=1, keepdim=True)
        total = torch.zeros_like(end)
        for step in range(n_steps):
            part = 1.0 if n_steps == 1 else (step + 0.5) / n_steps
            with torch.enable_grad():
                here = (start + part * (end - start)).requires_grad_()
                logits = self.head(self.latent(here))
                above = logits.gather(1, label)[:, 0] - logits.mean(dim=1)
                total += torch.autograd.grad(above.sum(), here)[0] / n_steps
        return (total * (end - start)).sum(dim=2)
