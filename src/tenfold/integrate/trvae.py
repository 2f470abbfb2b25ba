"""trVAE: a conditional variational autoencoder whose batches are drawn together by maximum mean discrepancy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold.count_models.variational import Part, VariationalMethod, balancing_weights
from tenfold.data.preprocess import DEPTH
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from torch import Tensor

    from tenfold.nn.autoencoder import ConditionalVAE

#: Pairs of batches whose discrepancies are summed; with more batches, the mean counts this many times.
MOST_PAIRS = 45


class TRVAE(VariationalMethod):
    """Conditional autoencoder of counts with a penalty on differences between batches in the latent space.

    Encoder and decoder are told the batch in their first layers. The loss is the evidence lower bound plus the maximum
    mean discrepancy (a sum of radial kernels) of every two batches in a minibatch, in which all batches are equally
    frequent. Decoding the latent variable in another batch predicts a cell there: ``denoise(transform_batch=...)``.

    **Use it** for batches of about the same composition, and to predict cells in another condition.

    **Do not use it** where cell types come in different proportions: the penalty compares whole batches, so it moves
    different types onto each other (recorded in ``evidence/trvae_acceptance.py``). A single batch is not penalised.

    **Cost**: that of scVI, and minibatch × minibatch kernel values a step, whatever the number of batches.

    **Writes** ``obsm["X_trvae"]`` (task integrate).

    Parameters
    ----------
    mmd_weight
        Weight of the penalty. From some 10 on it shrinks the latent space rather than aligning it, for the discrepancy
        of few cells is never 0.
    mmd_on
        ``"z"``, the latent variable, or ``"decoder"``, the first layer of the decoder, as in the publication.
    n_hidden
        Width of each hidden layer of the encoder; the decoder has them in reverse. One number: of `n_layers` layers.
    n_layers
        Number of hidden layers, where `n_hidden` is one number.
    likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``; or ``"mse"``: the squared error of log(1 + counts per 10,000 of the
        modelled genes), which the encoder sees, too. Then there are no synthetic cells and no likelihoods.
    dispersion
        ``"gene-batch"``, ``"gene"`` or ``"gene-cell"``; of no effect with ``likelihood="mse"``.
    epochs
        At most so many. ``None``: 400, fewer above 10,000 cells (10,000 / n_cells × 400).
    balance_batches
        Draw cells so that all batches are equally frequent; otherwise every cell once an epoch.
    early_stopping, patience
        As in `SCVI`.
    n_latent, dropout, latent_distribution, batch_norm, layer_norm
        As in `SCVI`.
    encode_covariates, deeply_inject_covariates, batch_embedding, library, log_variational
        As in `SCVI`.
    kl_start, kl_end, kl_warmup_epochs, kl_warmup_steps
        As in `SCVI`.
    batch_size, learning_rate, weight_decay, schedule, n_top_genes, train_fraction
        As in `SCVI`.
    device, precision, seed
        As in `SCVI`.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate(300, 100, n_batches=2)
    >>> model = tf.integrate.TRVAE(epochs=5, kl_warmup_epochs=2, early_stopping=False).fit(adata, batch="batch")
    >>> model.denoise(transform_batch="batch_2").shape
    (300, 100)

    References
    ----------
    Lotfollahi et al. (2020), doi 10.1093/bioinformatics/btaa800.
    """

    info = MethodInfo(
        title="trVAE",
        tasks=("integrate",),
        family="deep",
        year=2020,
        doi="10.1093/bioinformatics/btaa800",
        accepts=("batch", "labels", "size_factor", "categorical_covariates", "continuous_covariates"),
        gives=("embedding", "expression", "synthetic cells", "held-out likelihood"),
        readiness="caution",
        advice="Only where batches have about the same composition; it merges types whose proportions differ.",
    )

    n_hidden: int | tuple[int, ...] = (256, 64)  # type: ignore[assignment]
    dropout: float = param(0.05, low=0.0, high=0.99)
    likelihood: Literal["nb", "zinb", "poisson", "mse"] = "nb"  # type: ignore[assignment]
    dispersion: Literal["gene", "gene-batch", "gene-cell"] = "gene-batch"
    batch_norm: Part = "none"
    layer_norm: Part = "both"
    encode_covariates: bool = True
    deeply_inject_covariates: bool = False
    mmd_weight: float = param(1.0, low=0.0)
    mmd_on: Literal["z", "decoder"] = "z"
    balance_batches: bool = True
    kl_warmup_epochs: int | None = param(100, low=0)
    weight_decay: float = param(0.04, low=0.0)
    early_stopping: bool = True
    patience: int = param(20, low=1)

    def epochs_for(self, n_cells: int) -> int:
        """Return how many epochs so many cells are trained for, at most."""
        return self.epochs or max(1, min(round(10_000 / n_cells * 400), 400))

    def _build(self) -> ConditionalVAE:
        from tenfold.nn.autoencoder import ConditionalVAE
        from tenfold.nn.log_expression import LogExpressionVAE

        return self._assembled(LogExpressionVAE if self.likelihood == "mse" else ConditionalVAE)

    def _decoder(self, sizes: tuple[Any, ...], **inside: Any) -> Any:
        from tenfold.nn.log_expression import LogExpressionDecoder

        if self.likelihood != "mse":
            return super()._decoder(sizes, **inside)
        return LogExpressionDecoder(*sizes, depth=1.0 if self._design.sized else DEPTH, **inside)

    def _terms(self, net: Any, batch: dict[str, Any], kl_weight: float) -> dict[str, Any]:
        """Negative evidence lower bound and the discrepancy between batches."""
        if not self.mmd_weight or "levels" not in batch:
            return net.terms(batch, kl_weight)
        level, n_batches = batch["levels"][:, 0], len(self._design.batch)

        def discrepancy(z: Tensor) -> Tensor:
            from tenfold.nn.discrepancy import SCALES, mmd_of_groups

            first = net.decoder.hidden.layers[0]
            compared = z if self.mmd_on == "z" else first(net.place(z), net.covariates(batch))
            of_pairs = mmd_of_groups(compared.float(), level, n_batches, SCALES).sum() / 2
            n_pairs = n_batches * (n_batches - 1) / 2
            return self.mmd_weight * min(1.0, MOST_PAIRS / n_pairs) * of_pairs

        return net.terms(batch, kl_weight, discrepancy)

    def _sampling_weights(self, cells: dict[str, Any]) -> np.ndarray | None:
        return balancing_weights(cells) if self.balance_batches else None
