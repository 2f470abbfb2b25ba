"""The conditional variational autoencoder whose prior is told the label of a cell, and a classifier of cells."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.autoencoder import Batch, ConditionalVAE, Posterior
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.label_prior import is_written_out, label_densities
from tenfold.nn.mlp import MLP, NOTHING, Covariates
from tenfold.nn.normed import hidden_units
from tenfold.nn.priors import Gaussian


class GaussianDecoder(GaussianEncoder):
    """p(z₁ | z₂, y): as `GaussianEncoder`, without a floor for the variance."""

    def forward(self, x: Any, covariates: Covariates = NOTHING) -> Gaussian:
        """Return the distribution of z₁ for each cell, shape (n_cells, n_latent)."""
        return self.of_hidden(self.hidden(x, covariates))

    def of_hidden(self, h: Tensor) -> Gaussian:
        """Return the distribution of z₁ given the last hidden layer, (n_cells, n_hidden)."""
        mean, log_variance = self.heads(h).split(self.n_latent, dim=1)
        return Gaussian(mean, log_variance.exp())


class LabelledVAE(ConditionalVAE):
    """A `ConditionalVAE` whose latent variable has the prior y ~ uniform, z₂ ~ N(0, I), z₁ ~ p(z₁ | z₂, y).

    A classifier q(y | z₁) stands for the labels, known or not; an encoder q(z₂ | z₁, y) tells what the label leaves
    open.

    Parameters
    ----------
    encoder, decoder
        As in `ConditionalVAE`.
    n_labels
        Number of labels, at least 2.
    n_hidden, n_layers
        Width and number of hidden layers of the three networks.
    dropout
        Of classifier and encoder.
    encoder_norms, decoder_norms
        Norms of `MLP`, of classifier and encoder, and of the decoder.
    linear_classifier
        A classifier without hidden layers.
    **options
        Of `ConditionalVAE`.

    References
    ----------
    Xu et al. (2021), doi 10.15252/msb.20209620.
    """

    def __init__(
        self, encoder: GaussianEncoder, decoder: Any, *, n_labels: int, n_hidden: int, n_layers: int, dropout: float,
        encoder_norms: dict[str, Any], decoder_norms: dict[str, Any], linear_classifier: bool = False, **options: Any,
    ):  # fmt: skip
        super().__init__(encoder, decoder, **options)
        self.n_labels, n_latent = n_labels, encoder.n_latent
        size: dict[str, Any] = {"n_hidden": n_hidden, "n_layers": n_layers}
        inside: dict[str, Any] = {**encoder_norms, "dropout": dropout}
        hidden = [] if linear_classifier else [MLP(n_latent, **size, **inside)]
        self.classifier = nn.Sequential(*hidden, nn.Linear(n_hidden if hidden else n_latent, n_labels))
        told: dict[str, Any] = {**size, "categories": (n_labels,)}
        self.label_encoder = GaussianEncoder(n_latent, n_latent, **told, **inside)
        self.label_decoder = GaussianDecoder(n_latent, n_latent, **told, **decoder_norms)

    def encode(self, batch: Batch) -> Posterior:
        """Return the approximate posterior of each cell."""
        if self.library is not None:
            return super().encode(batch)
        h = hidden_units(self.encoder.hidden, self.encoder_input(batch), self.encoder_covariates(batch))
        return Posterior(self.encoder.of_hidden(h), None)

    def of_prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Bound the log prior density of each cell's z₁ from below, with every label weighed by its probability.

        Returns
        -------
        Σ π log p(z₁ | z₂, y) at a draw of z₂ for every label y, and Σ π KL(q(z₂ | z₁, y) ‖ N(0, I)) + KL(π ‖ uniform):
        their difference is the bound. Both of shape (n_cells,), in nats.
        """
        log_share = self._logits(z).log_softmax(dim=1)
        share = log_share.exp()
        if is_written_out(self.label_encoder, self.label_decoder, z):
            density, kl = (part.t() for part in label_densities(self.label_encoder, self.label_decoder, z))
        else:
            density, kl = self._densities(z)
        kl_of_label = (share * (log_share + log(self.n_labels))).sum(dim=1)
        return (share * density).sum(dim=1), (share * kl).sum(dim=1) + kl_of_label

    def _densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z₁ | z₂, y) and KL(q(z₂ | z₁, y) ‖ N(0, I)) for every label, both (n_cells, n_labels)."""
        n_cells = len(z)
        # All labels of all cells at once, label by label.
        each = z.repeat(self.n_labels, 1)
        below = _in_float32(self._of_labels(self.label_encoder, z[None], n_cells))
        above = self._of_labels(self.label_decoder, below.sample().view(self.n_labels, n_cells, -1), n_cells)
        density = _in_float32(above).log_density(each)
        return (
            density.view(self.n_labels, n_cells).t(),
            below.kl_from_standard().view(self.n_labels, n_cells).t(),
        )

    def _of_labels(self, network: GaussianEncoder, x: Tensor, n_cells: int) -> Gaussian:
        """Return what a network that is told the label says for every label, (n_labels · n_cells, n_latent).

        `x` has shape (n_labels or 1, n_cells, n_latent).
        """
        told = torch.arange(self.n_labels, device=x.device).repeat_interleave(n_cells)[:, None]
        return network(x.expand(self.n_labels, -1, -1).flatten(0, 1), Covariates(told))

    def _logits(self, z: Tensor) -> Tensor:
        """Return the classifier's logits, (n_cells, n_labels), float32."""
        first: Any = self.classifier[0]
        if isinstance(first, MLP):
            return self.classifier[1](hidden_units(first, z)).float()
        return self.classifier(z).float()

    def cell_terms(self, batch: Batch, posterior: Posterior) -> dict[str, Tensor]:
        """Return the parts of the negative evidence lower bound of each cell, at one draw, shape (n_cells,), in nats.

        Returns
        -------
        ``nll``: of the counts. ``gap``: log q(z₁ | x) - Σ π log p(z₁ | z₂, y). ``kl``: of z₂, of the labels, and of the
        library size where it is latent.
        """
        q = _in_float32(posterior.z)
        z, log_size = q.sample(), batch["log_size"]
        density, kl = self.of_prior(z)
        if posterior.log_size is not None:
            log_size = posterior.log_size.sample()[:, 0]
            kl = kl + posterior.log_size.kl_from(self.prior_of_log_size(batch))
        return {"nll": self.nll(batch, z, log_size), "gap": q.log_density(z) - density, "kl": kl}

    def log_weight(self, batch: Batch, posterior: Posterior) -> Tensor:
        """Return the evidence lower bound of each cell at one draw, shape (n_cells,)."""
        return -sum(self.cell_terms(batch, posterior).values(), start=torch.zeros(()))

    def classification_loss(self, batch: Batch, posterior: Posterior) -> Tensor:
        """Return the cross-entropy of the classifier at the posterior mean, mean over the labelled cells; 0 if none.

        ``batch["label"]`` is below 0 where the label is not known.
        """
        logits, label = self._logits(posterior.z.mean), batch["label"]
        total = F.cross_entropy(logits, label.clamp(min=-1), ignore_index=-1, reduction="sum")
        return total / (label >= 0).sum().clamp(min=1)

    def joint_terms(
        self, batch: Batch, labelled: Batch | None, kl_weight: float, classification_weight: float
    ) -> dict[str, Tensor]:
        """Return the loss of a minibatch and its parts, means over cells, in nats.

        Parameters
        ----------
        batch
            Cells of every kind.
        labelled
            Cells to classify; None for those of `batch` that have a label.
        kl_weight, classification_weight
            Weights of ``kl`` and of ``classification``.
        """
        posterior = self.encode(batch)
        terms = {name: value.mean() for name, value in self.cell_terms(batch, posterior).items()}
        classified = (batch, posterior) if labelled is None else (labelled, self.encode(labelled))
        terms["classification"] = self.classification_loss(*classified)
        bound = terms["nll"] + terms["gap"] + kl_weight * terms["kl"]
        return {"loss": bound + classification_weight * terms["classification"], **terms}

    def draw_prior(self, batch: Batch) -> Tensor:
        """Draw z₁ for each cell from the prior of its label; where it has none, of a label drawn at random."""
        label = batch["label"]
        drawn = torch.where(label >= 0, label, torch.randint_like(label, self.n_labels))
        below = super().draw_prior(batch)
        return self.label_decoder(below, Covariates(drawn[:, None])).sample()


def _in_float32(found: Gaussian) -> Gaussian:
    """Return a distribution in float32: with products in bfloat16, densities would be too coarse."""
    return Gaussian(found.mean.float(), found.variance.float())
