"""scVI: a conditional variational autoencoder of counts."""

from __future__ import annotations

import warnings
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold.count_models import CountModelMethod
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, RoleError
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from tenfold.engine import Phase, Progress
    from tenfold.nn.autoencoder import ConditionalVAE

Part = Literal["encoder", "decoder", "both", "none"]


class SCVI(CountModelMethod):
    """Latent space, batch correction, denoised expression and synthetic cells from one model of counts.

    Counts of a cell are negative binomial with mean l·ρ(z, s): l is the cell's sum over the modelled genes, ρ sums to
    1, z is a latent variable with prior N(0, I), s are batch and covariates. Networks give ρ and the posterior of z;
    both are trained on the evidence lower bound, with the weight of the KL term raised from 0.

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
        First and last weight of the KL term, and the epochs (``None``: all) or minibatches it takes to rise; steps win.
    epochs
        ``None``: 400, fewer above 20,000 cells (20,000 / n_cells × 400).
    batch_size, learning_rate, weight_decay
        Of the optimiser, Adam.
    early_stopping, patience
        Stop when the validation loss has not fallen for so many epochs, counted once the KL weight has risen.
    reduce_learning_rate
        Multiply the rate by 0.6 after 30 epochs without improvement.
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

    n_latent: int = param(10, low=1)
    n_hidden: int = param(128, low=1)
    n_layers: int = param(1, low=1)
    dropout: float = param(0.1, low=0.0, high=0.99)
    likelihood: Literal["nb", "zinb", "poisson"] = "nb"
    dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene"
    latent_distribution: Literal["normal", "ln"] = "normal"
    batch_norm: Part = "both"
    layer_norm: Part = "none"
    encode_covariates: bool = False
    deeply_inject_covariates: bool = True
    batch_embedding: int | None = param(None, low=1)
    library: Literal["observed", "latent"] = "observed"
    log_variational: bool = True
    kl_start: float = param(0.0, low=0.0)
    kl_end: float = param(1.0, low=0.0)
    kl_warmup_epochs: int | None = param(400, low=0)
    kl_warmup_steps: int | None = param(None, low=0)
    epochs: int | None = param(None, low=1)
    batch_size: int = param(128, low=3)
    learning_rate: float = param(1e-3, low=0.0)
    weight_decay: float = param(1e-6, low=0.0)
    early_stopping: bool = False
    patience: int = param(45, low=1)
    reduce_learning_rate: bool = False
    n_top_genes: int | None = param(2000, low=10)
    train_fraction: float = param(0.9, low=0.01, high=1.0)
    device: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = param(0, low=0)

    # ---- network -----------------------------------------------------------------------------------------------------

    def _build(self) -> ConditionalVAE:
        import torch
        from torch import nn

        from tenfold.nn.autoencoder import ConditionalVAE
        from tenfold.nn.decoders import CountDecoder
        from tenfold.nn.encoders import GaussianEncoder

        design, n_genes = self._design, len(self.genes_)
        categories, n_continuous, vectors = design.categories, design.n_continuous, None
        if self.batch_embedding is not None and len(design.batch) > 1:
            vectors = nn.Embedding(categories[0], self.batch_embedding)
            categories, n_continuous = categories[1:], n_continuous + self.batch_embedding
        told: dict[str, Any] = {"categories": categories, "n_continuous": n_continuous}
        told["deep_covariates"] = self.deeply_inject_covariates

        def norms(part: str) -> dict[str, bool]:
            return {"batch_norm": self.batch_norm in (part, "both"), "layer_norm": self.layer_norm in (part, "both")}

        inside = {**norms("encoder"), "dropout": self.dropout, **(told if self.encode_covariates else {})}
        groups = {"gene-batch": design.batch, "gene-label": design.labels}.get(self.dispersion, [""])
        latent_library = self.library == "latent" and not design.sized
        return ConditionalVAE(
            GaussianEncoder(n_genes, self.n_latent, self.n_hidden, self.n_layers, **inside),
            CountDecoder(
                self.n_latent, n_genes, self.n_hidden, self.n_layers, likelihood=self.likelihood,
                dispersion=self.dispersion, n_levels=len(groups), link="softplus" if design.sized else "softmax",
                **norms("decoder"), **told,
            ),
            log_input=self.log_variational, latent=self.latent_distribution, encode_covariates=self.encode_covariates,
            batch_vectors=vectors,
            library=GaussianEncoder(n_genes, 1, self.n_hidden, **inside) if latent_library else None,
            library_prior=torch.as_tensor(self.library_prior_) if latent_library else None,
        )  # fmt: skip

    # ---- loss --------------------------------------------------------------------------------------------------------

    def _loss(self, net: Any, batch: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Negative evidence lower bound with a weighted KL term, mean over cells."""
        return net.terms(batch, self._kl_weight(progress))

    def _kl_weight(self, progress: Progress) -> float:
        return progress.ramp(self.kl_start, self.kl_end, self.kl_warmup_epochs, self.kl_warmup_steps)

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        from tenfold.engine import fit, seeded

        if self.dispersion == "gene-label" and data.labels is None:
            raise RoleError('dispersion="gene-label" needs labels=...: the obs column with cell types.')
        if data.n_cells < 5:
            raise DataError(f"{data.n_cells} cells are too few to train on; scVI needs 5 at the very least.")
        cells = self._take(data, self.n_top_genes)
        self.library_prior_ = _library_prior(cells["log_size"], data.batch_or_one.values)
        with seeded(self.seed):
            net = self._build()
        history = fit(
            net, cells, [self._phase(data.n_cells)], batch_size=self.batch_size, train_fraction=self.train_fraction,
            seed=self.seed, device=self.device, precision=self.precision, run=data.run, name=self.name(),
            fingerprint=self.parameters,
        )  # fmt: skip
        self._keep(net, history, cells)
        self.kl_weight_ = history.last("kl_weight")
        if self.kl_weight_ < 0.95 * self.kl_end:
            warnings.warn(
                f"Training ended with a KL weight of {self.kl_weight_:.2f}, not {self.kl_end:g}: z is less regular "
                "than the prior says, so sample from fitted cells rather than from the prior. For the full weight, "
                "set kl_warmup_epochs (or kl_warmup_steps) below the length of the training.",
                stacklevel=2,
            )

    def _phase(self, n_cells: int) -> Phase:
        import torch

        from tenfold.engine import EarlyStopping, Phase

        epochs = self.epochs or max(1, min(round(20_000 / n_cells * 400), 400))
        warmup = epochs if self.kl_warmup_epochs is None else self.kl_warmup_epochs
        if self.kl_warmup_steps is not None:
            # A last minibatch of one or two cells joins the one before.
            n_batches = max(1, ceil((n_cells * self.train_fraction - 2) / self.batch_size))
            warmup = ceil(self.kl_warmup_steps / n_batches)
        if self.early_stopping and warmup + self.patience >= epochs:
            warnings.warn(
                f"Early stopping cannot act: for {warmup} epochs the KL weight rises, then {self.patience} of patience "
                f"count, and there are {epochs} epochs. Lower kl_warmup_epochs.",
                stacklevel=2,
            )
        plateau = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.6, patience=30, threshold=0)
        return Phase(
            "train",
            epochs,
            loss=self._loss,
            optimizer=partial(
                torch.optim.Adam, lr=self.learning_rate, eps=0.01, weight_decay=self.weight_decay, fused=True
            ),
            scheduler=plateau if self.reduce_learning_rate else None,
            validate_every=1 if self.early_stopping or self.reduce_learning_rate else max(1, epochs // 20),
            early_stopping=EarlyStopping(self.patience, start_epoch=warmup) if self.early_stopping else None,
            before_epoch=lambda net, cells, progress: {"kl_weight": self._kl_weight(progress)},
        )


def _library_prior(log_size: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Mean and variance of log library sizes in each batch, (2, n_batches); a lone cell has the overall variance."""
    sizes = [log_size[batch == code] for code in range(batch.max() + 1)]
    overall = max(float(log_size.var()), 1e-4)
    variance = [max(float(size.var()), 1e-4) if len(size) > 1 else overall for size in sizes]
    return np.array([[size.mean() for size in sizes], variance], dtype=np.float32)
