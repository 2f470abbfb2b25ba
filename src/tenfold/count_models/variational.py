"""What scVI and its kin share beside their outputs: hyper-parameters, network, training."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from math import ceil, cos, pi
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tenfold.count_models.mapping import ReferenceMapper, library_prior
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, RoleError
from tenfold.method import param

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.nn import Parameter
    from torch.optim import Optimizer

    from tenfold.engine import Phase, Progress
    from tenfold.nn.autoencoder import ConditionalVAE

Part = Literal["encoder", "decoder", "both", "none"]


class TrainedMethod(ReferenceMapper):
    """A method that trains a `ConditionalVAE` of its own making; `tenfold.embed.SCVI` describes the hyper-parameters.

    The method itself says in ``_build`` which network it trains, and in ``_phases`` what follows the training of scVI.
    """

    #: Epochs by default, up to 20,000 cells; fewer above, so that there are never more minibatches than with these.
    _most_epochs: ClassVar[int] = 400
    #: Share of the epochs over which the KL weight rises, where the method is not told.
    _warmup: ClassVar[float] = 1.0

    n_latent: int = param(10, low=1)
    n_hidden: int = param(128, low=1)
    n_layers: int = param(1, low=1)
    dropout: float = param(0.1, low=0.0, high=0.99)
    likelihood: Literal["nb", "zinb", "poisson"] = "nb"
    dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene"
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
    n_top_genes: int | None = param(2000, low=10)
    train_fraction: float = param(0.9, low=0.01, high=1.0)
    device: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = param(0, low=0)

    def __post_init__(self) -> None:
        if self.dispersion == "gene-label":
            self.info = replace(self.info, sees_labels=True)  # type: ignore[misc]

    # ---- loss --------------------------------------------------------------------------------------------------------

    def _loss(self, net: Any, batch: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Negative evidence lower bound with a weighted KL term, mean over cells."""
        return self._terms(net, batch, self._kl_weight(progress))

    def _kl_weight(self, progress: Progress) -> float:
        warmup = self._warmup_epochs(progress.epochs)
        return progress.ramp(self.kl_start, self.kl_end, warmup, self.kl_warmup_steps)

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        from tenfold.engine import fit, seeded

        if self.dispersion == "gene-label" and data.labels is None:
            raise RoleError('dispersion="gene-label" needs labels=...: the obs column with cell types.')
        if data.n_cells < 5:
            raise DataError(
                f"{data.n_cells} cells are too few to train on; {self.info.title} needs 5 at the very least."
            )
        cells = self._take(data, self.n_top_genes)
        self.library_prior_ = library_prior(cells["log_size"], data.batch_or_one.values)
        with seeded(self.seed):
            net = self._build()
        history = fit(
            net, cells, self._phases(cells), batch_size=self.batch_size, train_fraction=self.train_fraction,
            weights=self._sampling_weights(cells), seed=self.seed, device=self.device, precision=self.precision,
            run=data.run, name=self.name(), fingerprint=self.parameters,
        )  # fmt: skip
        self._keep(net, history.to_dict(), cells)
        self.kl_weight_ = history.last("kl_weight")
        if self.kl_weight_ < 0.95 * self.kl_end:
            warnings.warn(
                f"Training ended with a KL weight of {self.kl_weight_:.2f}, not {self.kl_end:g}: z is less regular "
                "than the prior says, so sample from fitted cells rather than from the prior. For the full weight, "
                "set kl_warmup_epochs (or kl_warmup_steps) below the length of the training.",
                stacklevel=2,
            )

    def _sampling_weights(self, cells: dict[str, Any]) -> np.ndarray | None:
        """Return how often each cell is drawn, in proportion; None: once an epoch."""
        return None

    def epochs_for(self, n_cells: int) -> int:
        """Return how many epochs so many cells are trained for, at most."""
        return self.epochs or max(1, min(round(20_000 / n_cells * self._most_epochs), self._most_epochs))

    def _warmup_epochs(self, epochs: int) -> int:
        """Return over how many of these epochs the KL weight rises."""
        return ceil(self._warmup * epochs) if self.kl_warmup_epochs is None else self.kl_warmup_epochs

    def _phases(self, cells: dict[str, Any]) -> list[Phase]:
        return [self._phase(len(cells["log_size"]))]

    def _phase(self, n_cells: int) -> Phase:
        from tenfold.engine import EarlyStopping, Phase

        epochs = self.epochs_for(n_cells)
        warmup = self._warmup_epochs(epochs)
        if self.kl_warmup_steps is not None:
            warmup = ceil(self.kl_warmup_steps / self._n_batches(n_cells))
        if self.early_stopping and warmup + self.patience >= epochs:
            warnings.warn(
                f"Early stopping cannot act: for {warmup} epochs the KL weight rises, then {self.patience} of patience "
                f"count, and there are {epochs} epochs. Lower kl_warmup_epochs.",
                stacklevel=2,
            )
        scheduler = self._schedule(epochs)
        return Phase(
            "train",
            epochs,
            loss=self._loss,
            optimizer=self._optimizer,
            scheduler=scheduler,
            validate_every=1 if self._watches_validation() else max(1, epochs // 20),
            early_stopping=EarlyStopping(self.patience, start_epoch=warmup) if self.early_stopping else None,
            before_epoch=lambda net, cells, progress: {"kl_weight": self._kl_weight(progress)},
        )

    def _decoder(self, sizes: tuple[Any, ...], **inside: Any) -> Any:
        """Return the decoder of these sizes, with covariates and norms."""
        from tenfold.nn.decoders import CountDecoder

        design = self._design
        groups = {"gene-batch": design.batch, "gene-label": design.labels}.get(self.dispersion, [""])
        return CountDecoder(
            *sizes, likelihood=self.likelihood, dispersion=self.dispersion, n_levels=len(groups),
            link="softplus" if design.sized else "softmax", **inside,
        )  # fmt: skip

    def _watches_validation(self) -> bool:
        """Whether the course of the training depends on the validation loss."""
        return self.early_stopping

    def _optimizer(self, parameters: list[Parameter]) -> Optimizer:
        from tenfold.kernels.adam import Adam

        return Adam(parameters, lr=self.learning_rate, eps=0.01, weight_decay=self.weight_decay)

    def _n_batches(self, n_cells: int) -> int:
        """Return the minibatches in an epoch; a last one of one or two cells joins the one before."""
        return max(1, ceil((n_cells * self.train_fraction - 2) / self.batch_size))


class VariationalMethod(TrainedMethod):
    """A method whose `ConditionalVAE` is made of the parts of scVI."""

    latent_distribution: Literal["normal", "ln"] = "normal"
    batch_norm: Part = "both"
    layer_norm: Part = "none"
    encode_covariates: bool = False
    deeply_inject_covariates: bool = True
    batch_embedding: int | None = param(None, low=1)
    library: Literal["observed", "latent"] = "observed"
    log_variational: bool = True
    schedule: Literal["constant", "cosine", "plateau"] = "constant"

    def _assembled(self, kind: Callable[..., ConditionalVAE], **more: Any) -> ConditionalVAE:
        """Return a network of the parts of scVI, and of what a `kind` of it takes besides."""
        import torch
        from torch import nn

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
        mirrored = self.n_hidden if isinstance(self.n_hidden, int) else self.n_hidden[::-1]
        latent_library = self.library == "latent" and not design.sized
        return kind(
            GaussianEncoder(n_genes, self.n_latent, self.n_hidden, self.n_layers, **inside),
            self._decoder((self.n_latent, n_genes, mirrored, self.n_layers), **norms("decoder"), **told),
            log_input=self.log_variational, latent=self.latent_distribution, encode_covariates=self.encode_covariates,
            batch_vectors=vectors,
            library=GaussianEncoder(n_genes, 1, self.n_hidden, **inside) if latent_library else None,
            library_prior=torch.as_tensor(self.library_prior_) if latent_library else None, **more,
        )  # fmt: skip

    def _watches_validation(self) -> bool:
        return self.early_stopping or self.schedule == "plateau"

    def _schedule(self, epochs: int) -> Callable[[Optimizer], Any] | None:
        from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

        if self.schedule == "plateau":
            return partial(ReduceLROnPlateau, factor=0.6, patience=30, threshold=0)
        if self.schedule == "cosine":  # the rate of an epoch is that of its middle: few epochs end low, too
            return partial(LambdaLR, lr_lambda=lambda epoch: (1 + cos(pi * min(1, (epoch + 0.5) / epochs))) / 2)
        return None


def balancing_weights(cells: dict[str, Any]) -> np.ndarray | None:
    """Return how often each cell is drawn if all batches are to be equally frequent; None where there is one."""
    if "levels" not in cells:
        return None
    batch = cells["levels"][:, 0]
    return 1 / np.bincount(batch)[batch]
