"""scVI: a conditional variational autoencoder of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tenfold.count_models.variational import VariationalMethod
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from tenfold.nn.autoencoder import ConditionalVAE


class SCVI(VariationalMethod):
    """Latent space, batch correction, denoised expression and synthetic cells from one model of counts.

    Counts of a cell are negative binomial with mean l·ρ(z, s): l is the cell's sum over the modelled genes, ρ sums to
    1, z is a latent variable with prior N(0, I), s are batch and covariates. Networks give ρ and the posterior of z;
    both are trained on the evidence lower bound, with the weight of the KL term raised from 0.

    Model and loss are those of scvi-tools; the schedule is shorter. A learning rate eight times as high, which falls
    along a half cosine, comes in a quarter of the epochs to a better held-out likelihood and lower bound on two real
    sets (``benchmarks/scvi.py``). For the original's schedule, set ``epochs=400`` (fewer above 20,000 cells),
    ``learning_rate=1e-3``, ``schedule="constant"`` and ``kl_warmup_epochs=400``.

    **Use it** to remove strong or nested batch effects, to compare cells by held-out likelihood, or where one model
    is to serve embedding, denoising and sampling.

    **Do not use it** for clustering alone (no better than PCA), below some 1,000 cells, or to feed its denoised
    expression to a frequentist test of differential expression (false positives: use `differential_expression`).

    **Cost**: linear in cells × genes × epochs.

    **Writes** ``obsm["X_scvi"]`` (tasks embed, integrate) or ``layers["scvi"]`` (task denoise).

    Parameters
    ----------
    n_latent, n_hidden, n_layers
        Latent dimensions; width and number of hidden layers of encoder and decoder.
    dropout
        Share of the encoder's units silenced in training.
    likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"``. UMI counts need no zero inflation.
    dispersion
        ``"gene"``, ``"gene-batch"``, ``"gene-label"`` (needs labels, and sees them) or ``"gene-cell"``.
    latent_distribution
        ``"normal"``, or ``"ln"``: coordinates are positive and sum to 1.
    batch_norm, layer_norm
        Where to normalise.
    encode_covariates
        Tell the encoder, not the decoder alone, of batch and covariates.
    deeply_inject_covariates
        Tell every layer, not the first alone.
    batch_embedding
        Dimensions of a learned vector for each batch, instead of one indicator a batch; for many small batches.
    library
        ``"observed"`` or ``"latent"`` library size. A ``size_factor`` column overrides both.
    log_variational
        The encoder sees log(1 + x).
    kl_start, kl_end, kl_warmup_epochs, kl_warmup_steps
        First and last weight of the KL term, and the epochs (``None``: half of them) or minibatches it takes to rise;
        steps win.
    epochs
        ``None``: 100, fewer above 20,000 cells (20,000 / n_cells × 100).
    batch_size, learning_rate, weight_decay
        Of the optimiser, Adam.
    schedule
        Of the learning rate: ``"cosine"`` lets it fall to nearly nothing, ``"plateau"`` multiplies it by 0.6 after 30
        epochs without improvement, ``"constant"`` leaves it.
    early_stopping, patience
        Stop when the validation loss has not fallen for so many epochs, counted once the KL weight has risen.
    n_top_genes
        Variable genes to model, chosen batch by batch; ``None`` takes all.
    train_fraction
        Share of cells to train on; the others are for validation.
    device, precision
        As in ``tenfold.engine.fit``.
    seed
        Of weights, split and minibatches.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.embed.SCVI(epochs=20, kl_warmup_epochs=10).fit(adata)
    >>> model.write(adata)
    >>> adata.obsm["X_scvi"].shape
    (700, 10)

    References
    ----------
    Lopez et al. (2018), doi 10.1038/s41592-018-0229-2.
    """

    info = MethodInfo(
        title="scVI",
        tasks=("embed", "integrate", "denoise", "generate"),
        family="deep",
        year=2018,
        doi="10.1038/s41592-018-0229-2",
        accepts=("batch", "labels", "size_factor", "categorical_covariates", "continuous_covariates"),
        gives=("embedding", "expression", "synthetic cells", "differential expression", "held-out likelihood"),
        readiness={"embed": "recommended", "integrate": "usable", "denoise": "caution", "generate": "usable"},
        advice="For large data with strong batch effects, and where denoising or sampling needs a model of counts.",
    )

    _most_epochs: ClassVar[int] = 100
    _warmup: ClassVar[float] = 0.5

    learning_rate: float = param(8e-3, low=0.0)
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    kl_warmup_epochs: int | None = param(None, low=0)

    def _build(self) -> ConditionalVAE:
        from tenfold.nn.autoencoder import ConditionalVAE

        return self._assembled(ConditionalVAE)
