"""An autoencoder of expression that is to find a cell again after a translation into another batch."""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold.nn.autoencoder import Batch
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.expression_decoders import NormalDecoder
from tenfold.nn.expression_vae import ExpressionVAE
from tenfold.nn.mlp import Covariates
from tenfold.nn.priors import Gaussian
from tenfold.nn.vamp import VampPrior


class CycleVAE(ExpressionVAE):
    """An `ExpressionVAE` with latent cycle consistency, and a VampPrior where one is given.

    Parameters
    ----------
    encoder, decoder
        Both told batch and covariates.
    prior
        None for N(0, I).
    n_batches
        Number of batches, at least 2.
    as_reference
        Do not translate: encode the reconstruction in a cell's own batch as if it were of the other, as scvi-tools
        1.4.2 does.
    """

    def __init__(
        self, encoder: GaussianEncoder, decoder: NormalDecoder, prior: VampPrior | None, n_batches: int,
        as_reference: bool = False,
    ):  # fmt: skip
        super().__init__(encoder, decoder, encode_covariates=True)
        self.prior, self.n_batches, self.as_reference = prior, n_batches, as_reference

    def kl(self, posterior: Gaussian, z: Tensor) -> Tensor:
        """Return KL(q(z | x, s) ‖ prior) of each cell, shape (n_cells,); with a VampPrior, at the draw `z` only."""
        if self.prior is None:
            return super().kl(posterior, z)
        return posterior.log_density(z) - self.prior.log_density(z, self.encoder)

    def other_batch(self, levels: Tensor) -> Tensor:
        """Return covariates with another batch for each cell, drawn at random, shape as `levels`."""
        shift = torch.randint(1, self.n_batches, (len(levels),), device=levels.device)
        return torch.cat([((levels[:, 0] + shift) % self.n_batches)[:, None], levels[:, 1:]], dim=1)

    def cycle(self, batch: Batch, posterior: Gaussian, z: Tensor, mean: Tensor) -> Tensor:
        """Return how far cells are placed from themselves after a translation, shape (n_cells,).

        Latent variables `z` are decoded in another batch and encoded again. Distances are squared, after
        standardisation of each dimension over both posteriors' means, so that they cannot be made small by shrinking
        the space. `mean` is the expression decoded in each cell's own batch.
        """
        told = Covariates(self.other_batch(batch["levels"]), batch.get("continuous"))
        again = self.encoder(mean if self.as_reference else self.decoder.scale(z, told), told).mean.float()
        deviation = torch.cat([posterior.mean, again]).std(0)
        return ((posterior.mean - again) / deviation).square().sum(1)

    def cycle_terms(self, batch: Batch, kl_weight: float, cycle_weight: float) -> dict[str, Tensor]:
        """Return the loss of a minibatch and its parts, means over its cells.

        Returns
        -------
        ``loss`` = ``nll`` + ``kl_weight`` · ``kl`` + ``cycle_weight`` · ``cycle``.
        """
        posterior = self.encode(batch).z
        z = posterior.sample()
        mean = self.decoder.scale(z, self.covariates(batch))
        nll = self.decoder.nll_of(batch["expression"], mean)  # type: ignore[operator]
        terms = {"nll": nll, "kl": self.kl(posterior, z)}
        if cycle_weight:
            terms["cycle"] = self.cycle(batch, posterior, z, mean)
        means = {name: value.mean() for name, value in terms.items()}
        loss = means["nll"] + kl_weight * means["kl"] + cycle_weight * means.get("cycle", 0.0)
        return {"loss": loss, **means}
