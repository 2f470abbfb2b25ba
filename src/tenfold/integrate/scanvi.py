"""scANVI: scVI with cell-type labels, known for some cells or for all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tenfold.annotators.latent import LatentAnnotator, known_labels
from tenfold.count_models.variational import VariationalMethod
from tenfold.data import check
from tenfold.data.batches import warn_of_confounded
from tenfold.data.inputs import Inputs
from tenfold.data.joined import joined
from tenfold.method import MethodInfo, param
from tenfold.types import RunOptions

if TYPE_CHECKING:
    from anndata import AnnData

    from tenfold.engine import Batch, Minibatches, Phase, Progress
    from tenfold.nn.autoencoder import ConditionalVAE


class SCANVI(VariationalMethod, LatentAnnotator):
    """Latent space shaped by the labels of some or all cells, and labels for the others.

    The model of counts is scVI's. The prior of its latent variable z₁ is told the label y: p(z₁ | z₂, y), where z₂ has
    prior N(0, I) and holds what the label leaves open. A classifier q(y | z₁) weighs the labels of every cell; known
    labels enter as its cross-entropy at the posterior mean of z₁, on minibatches of labelled cells. Training begins as
    scVI's, without labels.

    Labels come from a column of the fitted cells, some of them `unlabeled`, or from a ``reference``, with which the
    cells to label are trained together, as a batch of their own where they have no other. Cells that come later are
    labelled by encoder and classifier, of any batch: by default the encoder is not told it. Probabilities are those
    of the classifier at one temperature, fitted on the labelled cells that training held out.

    **Use it** to integrate an atlas whose cell types are known in part, or to carry labels from some batches to others.

    **Do not use it** to judge integration by the labels it was given: it separates any labels, wrong and random ones
    too. Score it on labels that it has not seen. For rare types, neighbours in the latent space label better than the
    classifier (`transfer_labels`, of a model fitted with a ``reference``). The held-out cells are of the same batches
    as the others: in a new batch confidence is too high.

    **Cost**: that of scVI, and cells × labels × epochs of the joint training.

    **Writes** ``obsm["X_scanvi"]``; as an annotator ``obs["scanvi_label"]``, ``obs["scanvi_confidence"]``,
    ``obsm["scanvi_probabilities"]``.

    Parameters
    ----------
    unlabeled
        The label of cells without a label. It is not a cell type.
    joint_epochs
        Of the joint training with labels. ``None``: a third of those of scVI before it, at least 2 and at most 10. To
        sample from the prior, and with few cells, more are better (40 to 100).
    classification_weight
        Weight of the classifier's cross-entropy.
    balance_labels
        Draw the labelled cells so that all labels are equally frequent.
    linear_classifier
        A classifier without a hidden layer.
    epochs
        Of the training as scVI. ``None``: 100, fewer above 20,000 cells (20,000 / n_cells × 100).
    dispersion
        ``"gene"``, ``"gene-batch"`` or ``"gene-cell"``.
    early_stopping, patience
        Of the training as scVI.
    n_latent, n_hidden, n_layers, dropout, likelihood, latent_distribution, batch_norm, layer_norm
        As in `SCVI`; hidden layers and norms also of the classifier and of the networks between z₁ and z₂.
    encode_covariates, deeply_inject_covariates, batch_embedding, library, log_variational
        As in `SCVI`.
    kl_start, kl_end, kl_warmup_epochs, kl_warmup_steps
        As in `SCVI`; the joint training keeps the weight that the training as scVI rose to.
    batch_size, learning_rate, weight_decay, schedule, n_top_genes, train_fraction
        As in `SCVI`; both trainings begin at the same rate and follow the same schedule.
    device, precision, seed
        As in `SCVI`.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obs["known"] = adata.obs["cell_type"].astype(str)
    >>> adata.obs.loc[adata.obs_names[::3], "known"] = "Unknown"
    >>> model = tf.integrate.SCANVI(epochs=20, kl_warmup_epochs=10).fit(adata, labels="known")
    >>> model.predict().shape
    (700,)

    References
    ----------
    Xu et al. (2021), doi 10.15252/msb.20209620.
    """

    info = MethodInfo(
        title="scANVI",
        tasks=("integrate", "annotate"),
        family="deep",
        year=2021,
        doi="10.15252/msb.20209620",
        needs=("labels",),
        accepts=("reference", "batch", "size_factor", "categorical_covariates", "continuous_covariates"),
        gives=("embedding", "labels", "probabilities", "expression", "synthetic cells", "held-out likelihood"),
        readiness={"integrate": "recommended", "annotate": "usable"},
        sees_labels=True,
        advice="For atlases whose cell types are known in part; judge it only by labels that it has not seen.",
    )

    _most_epochs: ClassVar[int] = 100
    _warmup: ClassVar[float] = 0.5

    learning_rate: float = param(8e-3, low=0.0)
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    kl_warmup_epochs: int | None = param(None, low=0)
    unlabeled: str = "Unknown"
    joint_epochs: int | None = param(None, low=1)
    classification_weight: float = param(50.0, low=0.0)
    balance_labels: bool = False
    linear_classifier: bool = False
    dispersion: Literal["gene", "gene-batch", "gene-cell"] = "gene"

    # ---- network -----------------------------------------------------------------------------------------------------

    def _build(self) -> ConditionalVAE:
        from tenfold.nn.labelled_vae import LabelledVAE

        def norms(part: str) -> dict[str, bool]:
            return {"batch_norm": self.batch_norm in (part, "both"), "layer_norm": self.layer_norm in (part, "both")}

        return self._assembled(partial(
            LabelledVAE, n_labels=len(self._design.labels), n_hidden=self.n_hidden, n_layers=self.n_layers,
            dropout=self.dropout, encoder_norms=norms("encoder"), decoder_norms=norms("decoder"),
            linear_classifier=self.linear_classifier,
        ))  # fmt: skip

    # ---- labels ------------------------------------------------------------------------------------------------------

    def _take(self, data: Inputs, n_top_genes: int | None) -> dict[str, Any]:
        """Choose genes and covariates; give each cell the number of its label, -1 where it is not known."""
        cells = super()._take(data, n_top_genes)
        known, number = known_labels(self.design_["labels"], self.unlabeled, cells["label"], data.roles["labels"])
        self.design_["labels"] = known
        warn_of_confounded(number, data.batch_or_one.values)
        return {**cells, "label": number}

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        if data.reference is None:
            super()._fit(data)
            self._calibrate(data)
            return
        both, known = joined(data, self.unlabeled)
        super()._fit(both)
        self._calibrate(both)
        # From here on the fitted cells are those to label.
        kept = {name: value[known] for name, value in self.fitted_.items()}
        self.reference_ = {name: kept[name] for name in ("mean", "levels", "label") if name in kept}
        self.fitted_ = {name: value[~known] for name, value in self.fitted_.items()}
        self.columns_, self.n_genes_ = data.adata.var_names.get_indexer(self.genes_), data.n_genes

    def _phases(self, cells: dict[str, Any]) -> list[Phase]:
        from tenfold.engine import Phase, Progress

        alone = super()._phases(cells)
        n_epochs = alone[0].epochs
        reached = Progress("train", n_epochs, n_epochs, n_epochs * self._n_batches(len(cells["label"])))
        kl_weight = self._kl_weight(reached)
        labelled = self._labelled(cells)
        n_joint = self.joint_epochs or min(10, max(2, round(n_epochs / 3)))

        def loss(net: Any, batch: Batch, progress: Progress) -> dict[str, Any]:
            drawn = labelled.at(progress.step) if labelled is not None and net.training else None
            return net.joint_terms(batch, drawn, kl_weight, self.classification_weight)

        joint = Phase(
            "joint",
            n_joint,
            loss=loss,
            optimizer=self._optimizer,
            scheduler=self._schedule(n_joint),
            before_epoch=lambda net, cells, progress: {"kl_weight": kl_weight},
        )
        return [*alone, joint]

    def _labelled(self, cells: dict[str, Any]) -> _Cycle | None:
        """Return minibatches of labelled cells to train on; None where every minibatch will do."""
        from tenfold.engine import Minibatches, split
        from tenfold.engine.devices import find_device

        label = cells["label"]
        if label.min() >= 0 and not self.balance_labels:
            return None
        trained, _ = split(len(label), self.train_fraction, self.seed)
        # A label that no training cell has is learnt from the cells held out.
        chosen = np.isin(np.arange(len(label)), trained) | ~np.isin(label, label[trained])
        rows = np.flatnonzero(chosen & (label >= 0))
        weights = None
        if self.balance_labels:
            weights = np.zeros(len(label))
            weights[rows] = 1 / np.bincount(label[rows])[label[rows]]
        return _Cycle(Minibatches(
            cells, self.batch_size, index=rows, seed=self.seed, weights=weights, device=find_device(self.device),
        ))  # fmt: skip

    # ---- a query -----------------------------------------------------------------------------------------------------

    def _read_query(self, adata: AnnData, roles: dict[str, Any], run: RunOptions) -> tuple[Inputs, dict[str, Any]]:
        """Read a query, whose cells need no labels; -1 where the label is not known to the model, either."""
        known, key = self._design.labels, roles.get("labels")
        unlabelled = {role: value for role, value in roles.items() if role != "labels"}
        data, cells = super()._read_query(adata, unlabelled, run)
        if key is None:
            return data, {**cells, "label": np.full(data.n_cells, -1)}
        codes = check.categories(adata, key, "labels")
        strange = [name for name in codes.names if name not in (*known, self.unlabeled)]
        if strange:
            warnings.warn(
                f"obs['{key}'] has '{strange[0]}', which the reference does not know ({len(strange)} such labels in "
                "all); these cells count as unlabelled.",
                stacklevel=3,
            )
        number = np.array([known.index(name) if name in known else -1 for name in codes.names], dtype=np.int64)
        return data, {**cells, "label": number[codes.values]}

    def _query_terms(self, net: Any, batch: Batch) -> dict[str, Any]:
        return net.joint_terms(batch, None, self.kl_weight_, self.classification_weight)

    # ---- labels of cells ---------------------------------------------------------------------------------------------

    def _scores(self, mean: np.ndarray) -> np.ndarray:
        """Return uncalibrated probabilities at posterior means."""
        from tenfold.engine import predict

        return predict(self.net_, {"mean": mean}, lambda net, batch: net.classifier(batch["mean"]).softmax(dim=1))


class _Cycle:
    """Minibatches over and over. Which one comes at a step depends on nothing else, so training can resume anywhere."""

    def __init__(self, batches: Minibatches) -> None:
        self.batches, self._next = batches, -1
        self._rest: Iterator[Batch] = iter(())

    def at(self, step: int) -> Batch:
        """Return the minibatch of a step of the training."""
        epoch, number = divmod(step, len(self.batches))
        if step != self._next or number == 0:
            self._rest = self.batches.epoch(epoch, start=number)
        self._next = step + 1
        return next(self._rest)
