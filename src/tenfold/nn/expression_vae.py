"""The conditional variational autoencoder of log-expression: that of counts, with another input and decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tenfold.kernels.rows import SparseRows
from tenfold.nn.autoencoder import Batch, ConditionalVAE, Posterior
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.priors import Gaussian


class ExpressionVAE(ConditionalVAE):
    """Encoder q(z | x, s), prior N(0, I), decoder of log-expression x.

    A minibatch holds ``expression`` (`SparseRows` or dense) and, where the model has them, ``levels`` and
    ``continuous`` as in `ConditionalVAE`.

    Parameters
    ----------
    encoder
        The encoder.
    decoder
        Of `tenfold.nn.expression_decoders`, or with the same ``nll`` and ``scale``.
    **options
        ``encode_covariates`` and ``batch_vectors`` of `ConditionalVAE`.
    """

    def __init__(self, encoder: GaussianEncoder, decoder: Any, **options: Any):
        super().__init__(encoder, decoder, log_input=False, **options)

    def encoder_input(self, batch: Batch) -> SparseRows:
        """Return the expression that the encoder sees."""
        return batch["expression"]

    def encode(self, batch: Batch) -> Posterior:
        """Return the approximate posterior of each cell, in float32: in bfloat16 densities would be too coarse."""
        mean, variance = super().encode(batch).z
        return Posterior(Gaussian(mean.float(), variance.float()), None)

    def nll(self, batch: Batch, z: Tensor, log_size: Tensor | None = None) -> Tensor:
        """Return the reconstruction loss of each cell at a latent variable; `log_size` has no effect."""
        return self.decoder.nll(batch["expression"], self.place(z), log_size, self.covariates(batch), self.level(batch))  # type: ignore[arg-type]

    def draw_prior(self, batch: Batch) -> Tensor:
        """Draw a latent variable for each cell from the prior, shape (n_cells, n_latent)."""
        x = batch["expression"]
        return torch.randn(len(x), self.encoder.n_latent, device=x.device)

    def kl(self, posterior: Gaussian, z: Tensor) -> Tensor:
        """Return KL(q(z | x, s) ‖ prior) of each cell, shape (n_cells,); `z` is a draw, for priors that need one."""
        return posterior.kl_from_standard()

    def terms(
        self, batch: Batch, kl_weight: float = 1.0, align: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the loss of a minibatch and its parts, means over its cells; arguments as in `ConditionalVAE`.

        Returns
        -------
        ``loss`` = ``nll`` + ``kl_weight`` · ``kl`` (+ ``alignment``).
        """
        posterior = self.encode(batch).z
        z = posterior.sample()
        nll, kl = self.nll(batch, z).mean(), self.kl(posterior, z).mean()
        terms = {"loss": nll + kl_weight * kl, "nll": nll, "kl": kl}
        if align is not None:
            terms["alignment"] = align(z)
            terms["loss"] = terms["loss"] + terms["alignment"]
        return terms
