"""A flow among codes of spliced and unspliced counts that is solved from time 0 to each cell's own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Spread of the initial weights.
_SPREAD = 0.01


class Widths(NamedTuple):
    """Width of the codes (each of spliced and of unspliced), of hidden layers, of regulation and of the context."""

    code: int
    hidden: int
    regulation: int
    context: int


def perceptron(*widths: int) -> nn.Sequential:
    """Return linear maps with ELU between them."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.ELU(), nn.Linear(widths[i], widths[i + 1])]
    return nn.Sequential(*layers[1:])


class Flow(nn.Module):
    """ds/dt = A [s, u] + a; du/dt = f(u, r); dr/dt = g(s, r, context): in codes, with a regulation r that starts at 0.

    Parameters
    ----------
    widths
        Of codes, regulation and context.
    n_steps
        Steps of the fourth-order Runge-Kutta rule from time 0 to a cell's own.
    """

    def __init__(self, widths: Widths, n_steps: int):
        super().__init__()
        code, _, regulation, context = widths
        self.widths, self.n_steps = widths, n_steps
        self.splicing = nn.Linear(2 * code, code)
        self.transcription: Any = perceptron(code + regulation, code + 5, code)
        self.regulation: Any = perceptron(code + regulation + context, code + 5, regulation)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=_SPREAD)
                nn.init.zeros_(layer.bias)
        self.start = nn.Parameter(torch.empty(2 * code).uniform_(-1, 1))

    def of_spliced(self, spliced: Tensor, unspliced: Tensor) -> Tensor:
        """Return ds/dt in codes, shape (n_cells, code)."""
        return self.splicing(torch.cat([spliced, unspliced], dim=1))

    def _joined(self, context: Tensor) -> tuple[Tensor, ...]:
        """Return the three networks as one of one hidden layer, for a state [s, u, r]; each cell has its own bias."""
        code, _, regulation, _ = self.widths
        first_u, last_u, first_r, last_r = (net[i] for net in (self.transcription, self.regulation) for i in (0, 2))
        from_s, from_r, from_context = first_r.weight.split([code, regulation, context.shape[1]], dim=1)
        none = context.new_zeros
        width = code + 5
        into = torch.cat([
            torch.cat([none(width, code), first_u.weight], dim=1),
            torch.cat([from_s, none(width, code), from_r], dim=1),
        ]).T  # fmt: skip
        bias = torch.cat([first_u.bias.expand(len(context), -1), torch.addmm(first_r.bias, context, from_context.T)], 1)
        out = torch.cat([none(2 * width, code), torch.block_diag(last_u.weight, last_r.weight).T], dim=1)
        direct = F.pad(self.splicing.weight.T, (0, code + regulation, 0, regulation))
        return into, bias, out, direct, torch.cat([self.splicing.bias, last_u.bias, last_r.bias])

    def forward(self, time: Tensor, context: Tensor) -> Tensor:
        """Return the state [s, u, r] at each cell's time, shape (n_cells, 2 × code + regulation).

        Time is stretched for each cell, dx/dτ = t f(x) for τ from 0 to 1, so that a step is a step for all cells.
        """
        into, bias, out, direct, last = self._joined(context)
        origin = F.pad(self.start, (0, self.widths.regulation))
        x = origin.expand(len(time), -1)
        step = time / self.n_steps
        half = step / 2

        def slope(x: Tensor) -> Tensor:
            return torch.addmm(torch.addmm(last, x, direct), F.elu(torch.addmm(bias, x, into)), out)

        for _ in range(self.n_steps):
            a = slope(x)
            b = slope(torch.addcmul(x, half, a))
            c = slope(torch.addcmul(x, half, b))
            d = slope(torch.addcmul(x, step, c))
            x = torch.addcmul(x, step, (a + d).add(b + c, alpha=2), value=1 / 6)
        return x
