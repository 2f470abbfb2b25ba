"""A variational autoencoder whose decoder is splicing kinetics: how far each cell is in each gene's two phases."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F

from tenfold.kernels.gamma_draws import COEFFICIENTS
from tenfold.kernels.splicing_mixture import LEAST_SHAPE, SHARE_AT_ZERO, Draws, mixture_nll
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.mlp import MLP

#: Largest rate.
LARGEST_RATE = 50.0
#: States of a gene in a cell, in the order of all arrays here.
STATES = ("induction", "induction_steady", "repression", "repression_steady")


class Kinetics(NamedTuple):
    """Numbers of each gene, each of shape (g,): rates, time of the switch, RNA then, standard deviations."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    switch: Tensor
    u0: Tensor
    s0: Tensor
    sd_u: Tensor
    sd_s: Tensor


class Decoded(NamedTuple):
    """What the decoder says of n cells: logits of both phases, (n, 2, g), and of the shares of states, (n, 4, g)."""

    phase: Tensor
    shares: Tensor

    @property
    def shapes(self) -> Tensor:
        """Shapes of the Dirichlet distribution of the shares."""
        return F.softplus(self.shares) + LEAST_SHAPE

    def mean_shares(self) -> Tensor:
        """Return the expected shares of states."""
        shapes = self.shapes
        return shapes / shapes.sum(dim=1, keepdim=True)

    def drawn_shares(self, draws: Draws) -> Tensor:
        """Return one draw of the logs of the shares of states."""
        return log_draw(self.shapes, draws).log_softmax(dim=1)


def log_draw(shapes: Tensor, draws: Draws) -> Tensor:
    """Return logs of gamma variates, differentiable in their shapes; see `tenfold.kernels.gamma_draws`."""
    n, b = draws.normal.to(shapes.device), shapes + 1

    def horner(coefficients: Any, at: Tensor) -> Tensor:
        return reduce(lambda value, c: value * at + c, reversed(coefficients))

    x = b.rsqrt()
    h = horner([horner([float(c) for c in row], n) for row in COEFFICIENTS], x)
    return b.log() + x * h - draws.exponential.to(shapes.device) / shapes


def spliced_meanwhile(t: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Return (exp(-beta t) - exp(-gamma t)) / (gamma - beta), also where the rates are the same."""
    apart = gamma - beta
    near = (apart * t).abs() < 0.02
    x = torch.where(near, apart * t, 0.0)
    series = t * (-beta * t).exp() * (1 - x / 2 * (1 - x / 3 * (1 - x / 4)))
    return torch.where(near, series, ((-beta * t).exp() - (-gamma * t).exp()) / torch.where(near, 1.0, apart))


class SplicingVAE(nn.Module):
    """Encoder of (s, u), and a decoder whose outputs go through the two-phase model with rates of each gene.

    Parameters
    ----------
    top_u, top_s
        Unspliced and spliced RNA of the cells with the most unspliced RNA of each gene, shape (g,): transcription
        starts so that this is its steady state, and the switch is drawn there while training begins.
    n_hidden, n_latent, n_layers, dropout
        Of the encoder; the decoder has the same layers without dropout.
    t_max, concentration, tied
        See `tenfold.kernels.splicing_mixture.mixture_nll`.
    """

    top: Tensor

    def __init__(
        self, top_u: np.ndarray, top_s: np.ndarray, *, n_hidden: int, n_latent: int, n_layers: int, dropout: float,
        t_max: float, concentration: float, tied: bool,
    ):  # fmt: skip
        super().__init__()
        g = len(top_u)
        self.t_max, self.concentration, self.tied = t_max, concentration, tied
        norms: dict[str, Any] = {"batch_norm": True, "layer_norm": True}
        self.encoder = GaussianEncoder(2 * g, n_latent, n_hidden, n_layers, link="softplus", dropout=dropout, **norms)
        self.phase_layers, self.share_layers = (MLP(n_latent, n_hidden, n_layers, **norms) for _ in range(2))
        self.phase, self.shares = nn.Linear(n_hidden, 2 * g), nn.Linear(n_hidden, 4 * g)
        start = torch.as_tensor(top_u, dtype=torch.float32).clamp(min=1e-2)
        self.alpha = nn.Parameter(start.expm1().log())
        self.beta = nn.Parameter(torch.full((g,), 0.5))
        self.gamma = nn.Parameter(torch.full((g,), -1.0))
        self.switch = nn.Parameter(7 + 0.5 * torch.randn(g))
        self.scale = nn.Parameter(torch.full((2, g), -1.0))
        self.register_buffer("top", torch.as_tensor(np.stack([top_u, top_s]), dtype=torch.float32))

    def kinetics(self) -> Kinetics:
        """Return the numbers of each gene."""
        alpha, beta, gamma = (F.softplus(raw).clamp(max=LARGEST_RATE) for raw in (self.alpha, self.beta, self.gamma))
        switch = F.softplus(self.switch).clamp(max=self.t_max)
        u0 = alpha / beta * (1 - (-beta * switch).exp())
        s0 = alpha / gamma * (1 - (-gamma * switch).exp()) - alpha * spliced_meanwhile(switch, beta, gamma)
        return Kinetics(alpha, beta, gamma, switch, u0, s0, *F.softplus(self.scale).sqrt())

    def decode(self, z: Tensor) -> Decoded:
        """Return the logits for cells at z, shape (n, n_latent)."""
        phase, shares = self.phase(self.phase_layers(z)), self.shares(self.share_layers(z))
        return Decoded(phase.view(len(z), 2, -1), shares.view(len(z), 4, -1))

    def times(self, decoded: Decoded, of: Kinetics) -> Tensor:
        """Return the time since each phase began, shape (n, 2, g)."""
        return decoded.phase.sigmoid() * torch.stack([of.switch, self.t_max - of.switch])

    def means(self, decoded: Decoded, of: Kinetics) -> tuple[Tensor, Tensor]:
        """Return unspliced and spliced RNA in each state, each (n, 4, g)."""
        t1, t3 = self.times(decoded, of).unbind(dim=1)
        e1, f1, e3, f3 = (-of.beta * t1).exp(), (-of.gamma * t1).exp(), (-of.beta * t3).exp(), (-of.gamma * t3).exp()
        steady_u, steady_s = of.alpha / of.beta, of.alpha / of.gamma
        u1 = steady_u * (1 - e1)
        s1 = steady_s * (1 - f1) - of.alpha * spliced_meanwhile(t1, of.beta, of.gamma)
        s3 = of.s0 * f3 + of.beta * of.u0 * spliced_meanwhile(t3, of.beta, of.gamma)
        none = torch.zeros_like(u1)
        u = torch.stack([u1, steady_u.expand_as(u1), of.u0 * e3, none], dim=1)
        return u, torch.stack([s1, steady_s.expand_as(u1), s3, none], dim=1)

    def nll(self, decoded: Decoded, log_shares: Tensor, of: Kinetics, u: Tensor, s: Tensor) -> Tensor:
        """Return the negative log-likelihood of each gene in each cell, (n, g), given the logs of shares."""
        logs = []
        for x, mean, sd in zip((u, s), self.means(decoded, of), (of.sd_u, of.sd_s), strict=True):
            spread = torch.stack([sd, sd, sd, SHARE_AT_ZERO * sd])
            logs.append(-0.5 * ((x[:, None] - mean) / spread) ** 2 - spread.log() - 0.5 * float(np.log(2 * np.pi)))
        if self.tied:
            return -torch.logsumexp(log_shares + logs[0] + logs[1], dim=1)
        return -torch.stack([torch.logsumexp(log_shares + one, dim=1) for one in logs]).sum(dim=0)

    def nll_at_mean(self, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of each cell with z and the shares of states at their means, (n,)."""
        s, u = x.chunk(2, dim=1)
        decoded = self.decode(self.encoder(x).mean)
        return self.nll(decoded, decoded.mean_shares().log(), self.kinetics(), u, s).sum(dim=1)

    def course(self, z: Tensor, drawn: bool = False) -> dict[str, Tensor]:
        """Return what states say of cells at z: ds/dt, time, u and s, each (n, g), and their shares, (n, 4, g).

        Shares are at their mean, or `drawn`.
        """
        decoded, of = self.decode(z), self.kinetics()
        n, _, g = decoded.shares.shape
        shares = decoded.drawn_shares(Draws(n, g)).exp() if drawn else decoded.mean_shares()
        u, s = self.means(decoded, of)
        t1, t3 = self.times(decoded, of).unbind(dim=1)
        switch = of.switch.expand_as(t1)
        times = torch.stack([t1, switch, switch + t3, torch.zeros_like(t1)], dim=1)
        each = {"velocity": of.beta * u - of.gamma * s, "time": times, "u": u, "s": s}
        return {**{name: (shares * value).sum(dim=1) for name, value in each.items()}, "shares": shares}

    def mixture(self, decoded: Decoded, of: Kinetics, u: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean over cells of the negative log-likelihood and of the shares' KL, at one draw of shares."""
        draws = Draws(*u.shape)
        if u.device.type == "cpu" and u.dtype == decoded.shares.dtype == torch.float32:
            numbers = torch.stack([*of[:6], of.sd_u.log(), of.sd_s.log()])
            return mixture_nll(
                decoded.phase, decoded.shares, numbers, u, s, draws,
                t_max=self.t_max, concentration=self.concentration, tied=self.tied,
            )  # fmt: skip
        return self.plain_mixture(decoded, of, u, s, draws)

    def plain_mixture(
        self, decoded: Decoded, of: Kinetics, u: Tensor, s: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Return the same, step by step."""
        nll = self.nll(decoded, decoded.drawn_shares(draws), of, u, s)
        shapes = decoded.shapes.movedim(1, 2)
        kl = kl_divergence(Dirichlet(shapes), Dirichlet(torch.full_like(shapes, self.concentration)))
        return nll.sum(dim=1).mean(), kl.sum(dim=1).mean()

    def terms(self, batch: dict[str, Any], kl_weight: float, penalty: float) -> dict[str, Tensor]:
        """Return the loss and its parts; the penalty on the state at the switch fades as the weight of the KL rises."""
        s, u = batch["x"].chunk(2, dim=1)
        posterior, of = self.encoder(batch["x"]), self.kinetics()
        nll, kl_shares = self.mixture(self.decode(posterior.sample()), of, u, s)
        kl = posterior.kl_from_standard().mean()
        end = ((torch.stack([of.u0, of.s0]) - self.top) ** 2).sum()
        loss = nll + kl_weight * kl + kl_shares + penalty * (1 - kl_weight) * end
        parts = {"nll": nll, "kl": kl, "kl_shares": kl_shares, "end": end, "elbo": nll + kl + kl_shares}
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}
