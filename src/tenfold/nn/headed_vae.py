"""A conditional variational autoencoder with linear heads that tell labels from its latent variable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.autoencoder import Batch, ConditionalVAE, Posterior
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.discrepancy import SCALES, mmd_of_groups
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.normed import hidden_units


class HeadedVAE(ConditionalVAE):
    """A `ConditionalVAE` whose latent variable is read by one linear head a set of labels.

    Parameters
    ----------
    encoder, decoder
        As in `ConditionalVAE`.
    label_weights
        For each set of labels the weight of each label in its cross-entropy.
    **options
        Of `ConditionalVAE`.

    References
    ----------
    Xue et al. (2024), doi 10.1038/s41592-024-02530-0.
    """

    def __init__(
        self, encoder: GaussianEncoder, decoder: CountDecoder, *, label_weights: Sequence[Tensor], **options: Any
    ):
        super().__init__(encoder, decoder, **options)
        self.heads = nn.ModuleList(nn.Linear(encoder.n_latent, len(weights)) for weights in label_weights)
        for number, weights in enumerate(label_weights):
            self.register_buffer(f"label_weights_{number}", weights, persistent=False)

    def encode(self, batch: Batch) -> Posterior:
        """Return the approximate posterior of each cell."""
        if self.library is not None:
            return super().encode(batch)
        h = hidden_units(self.encoder.hidden, self.encoder_input(batch), self.encoder_covariates(batch))
        return Posterior(self.encoder.of_hidden(h), None)

    def classification_loss(self, batch: Batch, z: Tensor) -> Tensor:
        """Return the weighted cross-entropy of the heads at a latent variable: means over labelled cells, and heads.

        ``batch["all_labels"]``, shape (n_cells, n_heads), is below 0 where a label is not known.
        """
        total = z.new_zeros(())
        for number, head in enumerate(self.heads):
            label = batch["all_labels"][:, number]
            weights = getattr(self, f"label_weights_{number}")
            loss = F.cross_entropy(head(z).float(), label, weights, ignore_index=-1, reduction="sum")
            total = total + loss / (label >= 0).sum().clamp(min=1)
        return total / len(self.heads)

    def headed_terms(
        self, batch: Batch, kl_weight: float, *, gate: float = 0.0, labels: float = 0.0, alignment: float = 0.0,
        kept: float = 0.0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the loss of a minibatch and its parts, means over its cells, in nats.

        Parameters
        ----------
        batch
            The minibatch; with ``kept``, where it has the coordinates that cells are to keep, (n_cells, n_latent), NaN
            where there are none.
        kl_weight
            Weight of ``kl``.
        gate
            Weight of ``gate``, the expected number of genes whose zero is an extra one.
        labels
            Weight of ``classification``; 0: it is left out.
        alignment
            Weight of ``alignment``, the discrepancy between batches of the posterior means.
        kept
            Weight of ``kept``, the squared distance of the posterior means from those coordinates.
        """
        posterior = self.encode(batch)
        log_size: Tensor = batch["log_size"]
        if posterior.log_size is not None:
            log_size = posterior.log_size.sample()[:, 0]
        z = posterior.z.sample()
        h = hidden_units(self.decoder.hidden, self.place(z), self.covariates(batch))
        nll, extra = self.decoder.nll_of_hidden(batch["counts"], h, log_size, self.level(batch))
        terms = {"nll": nll.mean(), "kl": posterior.z.kl_from_standard().mean()}
        loss = terms["nll"] + kl_weight * terms["kl"]
        weighed: list[tuple[str, float, Tensor]] = []
        if posterior.log_size is not None:
            weighed.append(("kl_library", 1.0, posterior.log_size.kl_from(self.prior_of_log_size(batch)).mean()))
        if gate and extra is not None:
            weighed.append(("gate", gate, extra.sigmoid().sum(1).mean()))
        if labels:
            weighed.append(("classification", labels, self.classification_loss(batch, z)))
        if alignment and "levels" in batch:
            level = batch["levels"][:, 0]
            of_pairs = mmd_of_groups(posterior.z.mean.float(), level, int(level.max()) + 1, SCALES).sum() / 2
            weighed.append(("alignment", alignment, of_pairs))
        if kept and "kept" in batch:
            weighed.append(("kept", kept, _mean_square(posterior.z.mean, batch["kept"])))
        for name, weight, value in weighed:
            terms[name], loss = value, loss + weight * value
        return {"loss": loss, **terms}


def _mean_square(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared distance, mean over the cells that have coordinates; 0 if none has."""
    known = ~wanted.isnan().any(dim=1)
    squared = (found - torch.where(known[:, None], wanted, found.detach())).square().sum(dim=1)
    return (squared * known).sum() / known.sum().clamp(min=1)
