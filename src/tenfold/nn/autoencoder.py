"""The conditional variational autoencoder of counts that many methods are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tenfold.kernels.rows import SparseRows
from tenfold.nn.decoders import CountDecoder, CountModel
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.mlp import NOTHING, Covariates
from tenfold.nn.plain_vae import is_plain, plain_terms
from tenfold.nn.priors import Gaussian, standard_log_density

#: A minibatch: ``counts`` (SparseRows) and ``log_size``; where the model has them, ``levels`` (n_cells, n_categorical;
#: the first column is the batch), ``continuous`` (n_cells, n_continuous) and ``label``.
Batch = dict[str, Any]


class Posterior(NamedTuple):
    """What is inferred of each cell.

    Attributes
    ----------
    z
        Latent variable before the transform, (n_cells, n_latent).
    log_size
        Log library size, (n_cells, 1); None where it is observed.
    """

    z: Gaussian
    log_size: Gaussian | None


class ConditionalVAE(nn.Module):
    """Encoder q(z | x, s), prior N(0, I), decoder p(x | z, l, s).

    Parameters
    ----------
    encoder, decoder
        The two networks.
    log_input
        The encoder sees log(1 + x) rather than x.
    latent
        ``"normal"``, or ``"ln"``: softmax of a normal variable.
    encode_covariates
        The encoder is told the covariates, too.
    batch_vectors
        Learned vector of each batch, told in place of its level.
    library
        Encoder of the log library size; None where it is observed.
    library_prior
        Mean and variance of log library sizes in each batch, shape (2, n_batches).

    References
    ----------
    Lopez et al. (2018), doi 10.1038/s41592-018-0229-2.
    """

    def __init__(
        self, encoder: GaussianEncoder, decoder: CountDecoder, *, log_input: bool = True,
        latent: Literal["normal", "ln"] = "normal", encode_covariates: bool = False,
        batch_vectors: nn.Embedding | None = None, library: GaussianEncoder | None = None,
        library_prior: Tensor | None = None,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.decoder, self.library, self.batch_vectors = encoder, decoder, library, batch_vectors
        self.log_input, self.latent, self.encode_covariates = log_input, latent, encode_covariates
        self.library_prior: Tensor
        self.register_buffer("library_prior", library_prior)

    def covariates(self, batch: Batch) -> Covariates:
        """Return what the networks are told of the cells of a minibatch."""
        levels, continuous = batch.get("levels"), batch.get("continuous")
        if self.batch_vectors is not None and levels is not None:
            vectors = self.batch_vectors(levels[:, 0])
            continuous = vectors if continuous is None else torch.cat([continuous, vectors], dim=1)
            levels = levels[:, 1:]
        return Covariates(levels, continuous)

    def encoder_input(self, batch: Batch) -> SparseRows:
        """Return the expression that the encoder sees."""
        x: SparseRows = batch["counts"]
        return x.with_values(x.values.log1p()) if self.log_input else x

    def encoder_covariates(self, batch: Batch) -> Covariates:
        """Return what the encoder is told of the cells."""
        return self.covariates(batch) if self.encode_covariates else NOTHING

    def encode(self, batch: Batch) -> Posterior:
        """Return the approximate posterior of each cell."""
        x, covariates = self.encoder_input(batch), self.encoder_covariates(batch)
        return Posterior(self.encoder(x, covariates), None if self.library is None else self.library(x, covariates))

    def level(self, batch: Batch) -> Tensor | None:
        """Return the group that each cell's dispersion belongs to, shape (n_cells,); None where it has none."""
        if self.decoder.dispersion == "gene-label":
            return batch["label"]
        return batch["levels"][:, 0] if "levels" in batch else None

    def place(self, z: Tensor) -> Tensor:
        """Return the latent variable as the decoder takes it."""
        return z.softmax(dim=-1) if self.latent == "ln" else z

    def nll(self, batch: Batch, z: Tensor, log_size: Tensor) -> Tensor:
        """Return the negative log-likelihood of each cell at a latent variable (untransformed) and log size."""
        covariates, level = self.covariates(batch), self.level(batch)
        return self.decoder.nll(batch["counts"], self.place(z), log_size, covariates, level)

    def model(self, batch: Batch, z: Tensor, log_size: Tensor) -> CountModel:
        """Return the distribution of each cell's counts at a latent variable (untransformed) and log size."""
        return self.decoder.model(self.place(z), log_size, self.covariates(batch), self.level(batch))

    def scale(self, batch: Batch, z: Tensor) -> Tensor:
        """Return the expected expression of each cell, were its size 1, at a latent variable (untransformed)."""
        return self.decoder.scale(self.place(z), self.covariates(batch))

    def prior_of_log_size(self, batch: Batch) -> Gaussian:
        """Return the prior of the log library size of each cell, that of its batch, shape (n_cells, 1)."""
        levels = batch.get("levels")
        prior = self.library_prior
        mean, variance = prior[:, :1].expand(2, len(batch["log_size"])) if levels is None else prior[:, levels[:, 0]]
        return Gaussian(mean[:, None], variance[:, None])

    def draw_prior(self, batch: Batch) -> Tensor:
        """Draw a latent variable for each cell from the prior, shape (n_cells, n_latent)."""
        return torch.randn(len(batch["log_size"]), self.encoder.n_latent, device=batch["log_size"].device)

    def terms(
        self, batch: Batch, kl_weight: float = 1.0, align: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the loss of a minibatch and its parts, means over its cells, in nats.

        Parameters
        ----------
        batch
            The minibatch.
        kl_weight
            Weight of ``kl``.
        align
            A penalty on the latent variables drawn, (n_cells, n_latent): what tells batches apart there.

        Returns
        -------
        ``loss`` = ``nll`` + ``kl_weight`` · ``kl`` (+ ``kl_library``) (+ ``alignment``).
        """
        if align is None and is_plain(self):
            return plain_terms(self, batch, kl_weight)
        posterior = self.encode(batch)
        log_size: Tensor = batch["log_size"]
        if posterior.log_size is not None:
            log_size = posterior.log_size.sample()[:, 0]
        z = posterior.z.sample()
        nll = self.nll(batch, z, log_size).mean()
        kl = posterior.z.kl_from_standard().mean()
        terms = {"loss": nll + kl_weight * kl, "nll": nll, "kl": kl}
        if posterior.log_size is not None:
            terms["kl_library"] = posterior.log_size.kl_from(self.prior_of_log_size(batch)).mean()
            terms["loss"] = terms["loss"] + terms["kl_library"]
        if align is not None:
            terms["alignment"] = align(z)
            terms["loss"] = terms["loss"] + terms["alignment"]
        return terms

    def nll_at_mean(self, batch: Batch) -> Tensor:
        """Return the negative log-likelihood of each cell with its latent variables at their posterior mean."""
        posterior = self.encode(batch)
        return self.nll(batch, posterior.z.mean, self.size_at_mean(batch, posterior))

    def size_at_mean(self, batch: Batch, posterior: Posterior) -> Tensor:
        """Return the log size of each cell, shape (n_cells,): observed, or its posterior mean."""
        return batch["log_size"] if posterior.log_size is None else posterior.log_size.mean[:, 0]

    def log_weight(self, batch: Batch, posterior: Posterior) -> Tensor:
        """Return log p(x, z) - log q(z | x) at one draw from the posterior, shape (n_cells,): an importance weight."""
        z = posterior.z.sample()
        log_size: Tensor = batch["log_size"]
        weight = standard_log_density(z) - posterior.z.log_density(z)
        if posterior.log_size is not None:
            draw = posterior.log_size.sample()
            weight = weight + self.prior_of_log_size(batch).log_density(draw) - posterior.log_size.log_density(draw)
            log_size = draw[:, 0]
        return weight - self.nll(batch, z, log_size)
