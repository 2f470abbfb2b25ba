"""The network of VeloVAE: a time and a state of each cell, and transcription rates of genes that follow the state."""

from __future__ import annotations

from math import log, pi
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.dropout import dropout
from tenfold.kernels.splicing_course import MODE, either_nll, sum_nll
from tenfold.nn.mlp import MLP, NOTHING
from tenfold.nn.priors import Gaussian
from tenfold.nn.splicing_vae import spliced_meanwhile

#: Standard deviation of the prior of times, as a share of the longest time, and least one of a posterior.
TIME_SPREAD, LEAST_SD = 0.05, 1e-6
#: Shape of the prior of the share of genes that are induced (mean 0.5, sd 0.05), and its weight in the loss.
MODE_SHAPE, MODE_WEIGHT = 49.5, 0.01


class Numbers(NamedTuple):
    """Numbers of each gene, each of shape (g,).

    Attributes
    ----------
    alpha, beta, gamma
        Rates; transcription at its highest.
    u0, s0
        RNA when repression begins.
    begin
        Time from which on the gene moves.
    induced
        Probability that it is induced rather than repressed.
    """

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    u0: Tensor
    s0: Tensor
    begin: Tensor
    induced: Tensor


def after(t: Tensor, u0: Tensor, s0: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Return unspliced and spliced RNA a time `t` after (u0, s0), also where splicing is as fast as degradation."""
    left_u, left_s, meanwhile = (-beta * t).exp(), (-gamma * t).exp(), spliced_meanwhile(t, beta, gamma)
    u = u0 * left_u + alpha / beta * (1 - left_u)
    return u, s0 * left_s + alpha / gamma * (1 - left_s) + (beta * u0 - alpha) * meanwhile


class Hidden(nn.Module):
    """Two layers as in the original, with a dropout that does not take longer than the layers."""

    def __init__(self, n_in: int, widths: tuple[int, int], dropout: float):
        super().__init__()
        self.dropout = dropout
        self.layers = MLP(n_in, widths, activation="leaky_relu", norm={"momentum": 0.1, "eps": 1e-5}).layers
        layer: Any
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_cells, n_in) to (n_cells, widths[1])."""
        for layer in self.layers:
            x = dropout(layer(x, NOTHING), self.dropout, self.training)
        return x


class Transcription(nn.Module):
    """From the state of a cell to the share of its highest transcription rate that each gene has."""

    def __init__(self, n_latent: int, widths: tuple[int, int], n_genes: int, dropout: float):
        super().__init__()
        self.hidden, self.out = Hidden(n_latent, widths, dropout), nn.Linear(widths[1], n_genes)
        nn.init.xavier_normal_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Map states, (n_cells, n_latent), to shares, (n_cells, g)."""
        return self.out(self.hidden(z)).sigmoid()


class VeloVAENet(nn.Module):
    """Encoder of unspliced, then spliced RNA to time and state; two decoders, of which the second replaces the first.

    Parameters
    ----------
    numbers
        Logs of the first six of `Numbers`, then half the log odds of induction, shape (7, g).
    sd
        Standard deviations of unspliced and of spliced RNA around the courses, shape (2, g).
    n_cells, n_origins
        Cells, and number of those that come earlier, of which the beginning of a cell's course is the mean.
    n_latent, n_hidden, dropout
        Width of the state; width of the hidden layer beside it, the other being twice as wide; dropout of both.
    t_max, state_sd
        The prior of times is normal around half of `t_max`; that of states has this standard deviation.

    References
    ----------
    Gu, Blaauw and Welch (2022), arXiv 2207.03540.
    """

    log_sd: Tensor
    time: Tensor
    time_variance: Tensor
    state: Tensor
    state_variance: Tensor
    origin: Tensor
    left: Tensor
    earlier: Tensor

    def __init__(
        self, numbers: np.ndarray, sd: np.ndarray, n_cells: int, *, n_latent: int, n_origins: int, n_hidden: int,
        dropout: float, t_max: float, state_sd: float,
    ):  # fmt: skip
        super().__init__()
        g, widths = numbers.shape[1], (n_hidden, 2 * n_hidden)
        self.t_max, self.state_sd = t_max, state_sd
        self.encoder = Hidden(2 * g, widths[::-1], dropout)
        self.heads = nn.Linear(n_hidden, 2 + 2 * n_latent)
        for rows in self.heads.weight.detach().split([1, 1, n_latent, n_latent]):
            nn.init.xavier_uniform_(rows)
        nn.init.zeros_(self.heads.bias)
        self.first, self.second = (Transcription(n_latent, widths, g, dropout) for _ in range(2))
        self.numbers = nn.Parameter(torch.tensor(numbers, dtype=torch.float32))  # a copy: the start stays
        self.register_buffer("log_sd", torch.as_tensor(sd, dtype=torch.float32).log())
        # Of all cells, for the second stage: posteriors, time and RNA where their courses begin, and cells there.
        for name, width in {"time": 1, "time_variance": 1, "state": n_latent, "state_variance": n_latent, "origin": 1,
                            "left": 2 * g}.items():  # fmt: skip
            self.register_buffer(name, torch.zeros(n_cells, width))
        self.register_buffer("earlier", torch.full((n_cells, n_origins), -1))

    def of_genes(self) -> Numbers:
        """Return the numbers of each gene."""
        alpha, beta, gamma, u0, s0, begin = self.numbers[:MODE].exp()
        return Numbers(alpha, beta, gamma, u0, s0, begin, (2 * self.numbers[MODE]).sigmoid())

    def encode(self, x: Tensor) -> tuple[Gaussian, Gaussian]:
        """Return the posteriors of time, (n_cells, 1), and state of cells, (n_cells, n_latent), from their RNA."""
        n_latent = (self.heads.out_features - 2) // 2
        time, time_sd, state, state_sd = self.heads(self.encoder(x)).split([1, 1, n_latent, n_latent], dim=1)
        times = Gaussian(F.softplus(time), (F.softplus(time_sd) + LEAST_SD).square())
        return times, Gaussian(state, (F.softplus(state_sd) + LEAST_SD).square())

    # ---- stage one: every gene is switched on, or off, in all cells alike --------------------------------------------

    def two_courses(self, t: Tensor, share: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return unspliced and spliced RNA of genes that are induced, and of genes that are repressed."""
        of = self.of_genes()
        since, none = (t - of.begin).relu(), torch.zeros((), dtype=t.dtype)
        rates = of.beta, of.gamma
        return after(since, none, none, of.alpha * share, *rates), after(since, of.u0, of.s0, none, *rates)

    def likelier_course(self, index: Tensor) -> Tensor:
        """Return RNA, (n_cells, 2 g), at the means of posteriors, each gene on the likelier of its courses."""
        up, down = self.two_courses(self.time[index], self.first(self.state[index]))
        return torch.cat([torch.where(self.numbers[MODE] > 0, a, b) for a, b in zip(up, down, strict=True)], dim=1)

    def either_nll(self, x: Tensor, t: Tensor, share: Tensor) -> Tensor:
        """Return the negative log-likelihood, expected over modes, of the cells: sum over genes, mean over cells."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return either_nll(share, t, x, self.numbers, self.log_sd)
        w = self.of_genes().induced
        up, down = (self.error(x, *course) for course in self.two_courses(t, share))
        return (w * up + (1 - w) * down).sum(dim=1).mean()

    def error(self, x: Tensor, u: Tensor, s: Tensor) -> Tensor:
        """Return the negative log-likelihood of each gene in each cell around (u, s), shape (n_cells, g)."""
        apart = (x - torch.cat([u, s], dim=1)) * (-self.log_sd.flatten()).exp()
        unspliced, spliced = (0.5 * apart.square()).chunk(2, dim=1)
        return unspliced + spliced + self.log_sd.sum(dim=0) + log(2 * pi)

    def mode_divergence(self) -> Tensor:
        """Return how far the modes of genes are from their prior, whose share of induced genes is integrated out."""
        w, lgamma = self.of_genes().induced, torch.lgamma
        held = lgamma(MODE_SHAPE + torch.stack([w.sum(), (1 - w).sum()])).sum()
        a = torch.tensor(MODE_SHAPE)
        constant = lgamma(2 * a) - lgamma(2 * a + len(w)) - 2 * lgamma(a)
        logs = w * F.logsigmoid(2 * self.numbers[MODE]) + (1 - w) * F.logsigmoid(-2 * self.numbers[MODE])
        return logs.sum() - held - constant

    def first_terms(self, x: Tensor, drawn: bool) -> dict[str, Tensor]:
        """Return the negative evidence lower bound and its parts, at one draw from the posteriors or at their means."""
        times, states = self.encode(x)
        t, z = (one.sample() if drawn else one.mean for one in (times, states))
        middle, sd = torch.tensor(self.t_max / 2), torch.tensor(TIME_SPREAD * self.t_max)
        kl_time = times.kl_from(Gaussian(middle, sd.square())).mean()
        kl_state = states.kl_from(Gaussian(torch.zeros(()), torch.tensor(self.state_sd**2))).mean()
        parts = {
            "nll": self.either_nll(x, t, self.first(z)), "kl_time": kl_time, "kl_state": kl_state,
            "kl_mode": MODE_WEIGHT * self.mode_divergence(),
        }  # fmt: skip
        return {"loss": sum(parts.values(), torch.zeros(())), **{name: part.detach() for name, part in parts.items()}}

    # ---- stage two: the course of a cell begins with earlier cells like it -------------------------------------------

    def whole_course(self, since: Tensor, left: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return unspliced and spliced RNA a time, (n_cells, 1), after there was `left`, (n_cells, 2 g)."""
        of = self.of_genes()
        u0, s0 = left.chunk(2, dim=1)
        return after(since, u0, s0, of.alpha * share, of.beta, of.gamma)

    def sum_nll(self, x: Tensor, since: Tensor, left: Tensor, share: Tensor) -> Tensor:
        """Return the negative log-likelihood of the cells: sum over genes, mean over cells."""
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return sum_nll(share, since, x, left, self.numbers, self.log_sd)
        return self.error(x, *self.whole_course(since, left, share)).sum(dim=1).mean()

    def second_loss(self, x: Tensor, index: Tensor, drawn: bool) -> Tensor:
        """Return the negative log-likelihood at one draw from the posteriors, which no longer change, or at means."""
        t, z = self.time[index], self.state[index]
        if drawn:
            t = Gaussian(t, self.time_variance[index]).sample()
            z = Gaussian(z, self.state_variance[index]).sample()
        return self.sum_nll(x, (t - self.origin[index]).relu(), self.left[index], self.second(z))

    def outputs(self, index: Tensor) -> dict[str, Tensor]:
        """Return RNA, (n_cells, 2 g), and ds/dt, (n_cells, g), at the means of posteriors."""
        of, share = self.of_genes(), self.second(self.state[index])
        u, s = self.whole_course((self.time[index] - self.origin[index]).relu(), self.left[index], share)
        return {"x": torch.cat([u, s], dim=1), "velocity": of.beta * u - of.gamma * s}
