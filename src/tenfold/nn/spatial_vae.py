"""A variational autoencoder of counts, some of whose latent variables vary smoothly over the tissue."""

from __future__ import annotations

from math import exp, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tenfold.kernels.rows import SparseRows
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.likelihoods import count_nll
from tenfold.nn.mlp import NOTHING, Covariates, Layer
from tenfold.nn.priors import Gaussian
from tenfold.nn.sparse_gp import SparseGP

#: A minibatch: ``counts`` and ``expression`` (SparseRows), ``log_size``, ``position`` (n_cells, n_dimensions); and
#: ``levels`` (n_cells, 1), the section of each cell, where there are several.
Batch = dict[str, Any]
#: Batch norm as the original has it.
_NORM = {"momentum": 0.1, "eps": 1e-5}
#: Variance of a latent variable that the original does not fall below.
_LEAST_VARIANCE = exp(-15)


class Control(NamedTuple):
    """How the weight of the KL term is controlled: its first value and bounds, and the KL to be reached, in nats."""

    start: float
    low: float
    high: float
    target: float


class KLWeight(nn.Module):
    """Weight of the KL term, raised while the KL is above its target and lowered while it is below.

    A proportional-integral controller of the mean KL over the last ten minibatches. What it remembers is in buffers, so
    that a resumed training goes on with it.

    References
    ----------
    Shao et al. (2020), arXiv 2004.05988.
    """

    GAIN, PROPORTIONAL, INTEGRAL, REMEMBERED = 5.0, 0.01, -0.005, 10

    def __init__(self, control: Control):
        super().__init__()
        self.control = control
        self.value: Tensor
        self.register_buffer("value", torch.tensor(float(control.start)))
        self.error: Tensor
        self.register_buffer("error", torch.zeros(()))
        self.recent: Tensor
        self.register_buffer("recent", torch.zeros(self.REMEMBERED))
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def update(self, kl: Tensor) -> None:
        """Take in the KL of a minibatch, in nats per cell."""
        self.recent.copy_(torch.cat([self.recent[1:], kl.reshape(1).float()]))
        self.seen.add_(1).clamp_(max=self.REMEMBERED)
        error = self.GAIN * (self.control.target - self.recent.sum() / self.seen)
        change = self.PROPORTIONAL * (torch.sigmoid(-error) - torch.sigmoid(-self.error)) + self.INTEGRAL * error
        self.value.add_(change).clamp_(self.control.low, self.control.high)
        self.error.copy_(error)


class CentredLayer(Layer):
    """A `Layer` on sparse input from which the mean of each column is taken away, without making it dense.

    In training batch norm takes away any constant, so no gradient goes through it.
    """

    def __init__(self, centre: Tensor, n_out: int, **options: Any):
        super().__init__(len(centre), n_out, **options)
        self.centre: Tensor
        self.register_buffer("centre", centre)

    def linear(self, x: Tensor | SparseRows, covariates: Covariates) -> Tensor:
        """Return the linear map of the centred input, shape (n_cells, n_out)."""
        return super().linear(x, covariates) - self.centre @ self.weight.detach()


class LoadingsDecoder(nn.Module):
    """p(x | z, l) with the mean l · Σ_k exp(z_k) exp(w_kg): each latent variable adds to the expression of each gene.

    Parameters
    ----------
    n_latent, n_genes
        Width of input and output.
    """

    def __init__(self, n_latent: int, n_genes: int):
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty(n_latent, n_genes), a=sqrt(5)))
        self.log_theta = nn.Parameter(torch.randn(n_genes))

    def nll(self, counts: SparseRows, z: Tensor, log_size: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the negative log-likelihood of each cell's counts, as `CountDecoder.nll` does; covariates are none."""
        return count_nll("nb", counts, self.scale(z).log(), log_size, link="exp", log_theta=self.log_theta)

    def scale(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the expected expression of a cell of unit size, shape (n_cells, n_genes)."""
        return z.exp() @ self.weight.exp()


class SpatialVAE(nn.Module):
    """Encoder q(z | x), Gaussian-process prior of the first latent variables, N(0, 1) of the others, NB decoder.

    The encoder's means and variances of the first latent variables are taken as observations of the processes, and the
    decoder reads the processes' posterior given them. The divergence from the prior is then that of the values at the
    inducing points alone: the expected log-likelihood of the observations under the posterior, which the original
    computes twice, as cross entropy and inside the evidence lower bound of the processes, cancels.

    Parameters
    ----------
    centre
        Mean of each gene in the expression that the encoder reads, shape (n_genes,).
    n_hidden
        Width of the encoder's first and the decoder's only hidden layer; the encoder's second has half of it.
    n_latent
        Latent variables, the first of which are the processes.
    field
        The processes.
    n_cells
        Number of cells in all: a minibatch stands for so many.
    control
        Of the weight of the KL terms.
    linear
        Decode by `LoadingsDecoder`; mean and variance of the prior of the other latent variables are then learnt.

    References
    ----------
    Tian et al. (2024), doi 10.1038/s41592-024-02257-y.
    """

    def __init__(
        self, centre: Tensor, n_hidden: int, n_latent: int, field: SparseGP, n_cells: int, control: Control,
        linear: bool = False,
    ):  # fmt: skip
        super().__init__()
        told: dict[str, Any] = {"categories": (field.n_sections,), "activation": "elu", "norm": _NORM}
        inside: dict[str, Any] = {"least_variance": _LEAST_VARIANCE, "deep_covariates": False, **told}
        self.encoder = GaussianEncoder(1, n_latent, [n_hidden, n_hidden // 2], **inside)
        self.encoder.hidden.layers[0] = CentredLayer(centre, n_hidden, **told)
        self.decoder: LoadingsDecoder | CountDecoder
        if linear:
            self.decoder = LoadingsDecoder(n_latent, len(centre))
        else:
            self.decoder = CountDecoder(n_latent, len(centre), n_hidden, link="exp", **told)
        n_own = n_latent - field.n_processes
        self.own_prior = nn.Parameter(torch.zeros(2, n_own), requires_grad=linear)  # mean and log variance
        self.field, self.n_cells, self.kl_weight = field, n_cells, KLWeight(control)

    def encode(self, batch: Batch) -> Gaussian:
        """Return what the encoder says of each cell, (n_cells, n_latent)."""
        return self.encoder(batch["expression"], _told(batch))

    def halves(self, q: Gaussian) -> tuple[Gaussian, Gaussian]:
        """Return what the encoder says of the processes, and of the other latent variables."""
        n = self.field.n_processes
        return Gaussian(q.mean[:, :n], q.variance[:, :n]), Gaussian(q.mean[:, n:], q.variance[:, n:])

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a minibatch and its parts, means over its cells, in nats.

        Returns
        -------
        ``loss`` = ``nll`` + ``kl_weight`` · (``kl_space`` + ``kl_own``).
        """
        observed, own = self.halves(self.encode(batch))
        section = _section(batch)
        a = self.field.features(batch["position"])
        known = self.field.posterior(*self.field.seen(a, section, observed), times=self.n_cells / len(a))
        smooth = self.field.at(known, a, section)
        z = torch.cat([smooth.sample().float(), own.sample()], dim=1)
        nll = self.decoder.nll(batch["counts"], z, batch["log_size"], _told(batch)).mean()
        kl_space = known.kl_from_prior().float() / self.n_cells
        kl_own = own.kl_from(Gaussian(self.own_prior[0], self.own_prior[1].exp())).mean()
        weight = self.kl_weight.value.clone()
        if self.training:
            self.kl_weight.update(kl_space + kl_own)
        loss = nll + weight * (kl_space + kl_own)
        return {"loss": loss, "nll": nll, "kl_space": kl_space, "kl_own": kl_own, "kl_weight": weight}

    def expected(self, batch: Batch) -> Tensor:
        """Return the expected counts of cells of size 1 with latent variables ``z``, shape (n_cells, n_genes)."""
        return self.decoder.scale(batch["z"], _told(batch))


def _section(batch: Batch) -> Tensor | None:
    levels = batch.get("levels")
    return None if levels is None else levels[:, 0]


def _told(batch: Batch) -> Covariates:
    return Covariates(batch["levels"]) if "levels" in batch else NOTHING
