"""scAtlasVAE: a model of counts whose encoder knows no batch, with linear heads for one or several sets of labels."""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold.annotators.latent import LatentAnnotator, known_labels
from tenfold.count_models.variational import VariationalMethod
from tenfold.data import check
from tenfold.data.inputs import Inputs
from tenfold.data.joined import joined
from tenfold.errors import KeyMissingError, ParameterError, closest
from tenfold.method import MethodInfo, param
from tenfold.types import RunOptions

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from tenfold.engine import Phase, Progress
    from tenfold.nn.autoencoder import ConditionalVAE

#: Epochs in which the heads are trained, and the minibatches that these are at least.
LABEL_EPOCHS, FEWEST_STEPS = 10, 1000


class ScAtlasVAE(VariationalMethod, LatentAnnotator):
    """Latent space that knows no batch, labels by linear heads on it, and one set of labels in terms of another.

    Counts are zero-inflated negative binomial with a dispersion of each gene in each cell. The decoder is told the
    batch as a learned vector; the encoder is not, so any cell can be placed. In the last epochs of training a linear
    head for each set of labels joins in, with weighted cross-entropy. With `more_labels`, atlases that were annotated
    in other words are trained together, each with its own column and `unlabeled` elsewhere; `alignment` then says how
    the words correspond.

    Labels come from a column of the fitted cells, some of them `unlabeled`, or from a ``reference``, with which the
    cells to label are trained together. Probabilities are those of the head at one temperature, fitted on cells that
    training held out.

    **Use it** to find out which labels of one annotation are which of another.

    **Do not use it** for labels alone: on 700 blood cells it was six to seven points of accuracy below the linear
    methods (``evidence/scatlasvae_acceptance.py``), and these are faster. For integration judged by labels see
    `SCANVI`, with which it shares the danger: the latent space separates the labels it was given, wrong ones too.

    **Cost**: that of `SCVI` with three outputs a gene (mean, dispersion, extra zeros), about twice it.

    **Writes** ``obs["scatlasvae_label"]``, ``obs["scatlasvae_confidence"]``, ``obsm["scatlasvae_probabilities"]`` (task
    annotate); ``obsm["X_scatlasvae"]`` (task integrate).

    Parameters
    ----------
    more_labels
        Columns of ``obs`` with further sets of labels, each of which gets a head.
    unlabeled
        The label of cells without a label, in every set. It is not a cell type.
    label_epochs
        Last epochs, in which the heads are trained. ``None``: 10 as published, and more where that would be fewer than
        1,000 minibatches, up to half of the epochs.
    classification_weight
        Weight of the mean cross-entropy of the heads.
    weight_cap
        Labels weigh in inverse proportion to how frequent they are; those rarer than one in so many times the number
        of labels weigh no more than that. ``None``, as published: a label of one cell can outweigh all others.
    gate_weight
        Weight of the expected number of extra zeros; with ``likelihood="zinb"``.
    mmd_weight
        Weight of the discrepancy (MMD) between batches of a minibatch; 0, as published: none.
    keep_embedding, keep_weight
        Key of ``obsm`` with coordinates that the cells are to keep (n_latent columns; NaN or 0 in a row: none), and
        the weight of the squared distance from them. To train an atlas again with more cells.
    learning_rate
        The published 0.00005 needs many thousands of minibatches.
    n_latent, n_hidden, n_layers, dropout, likelihood, latent_distribution, batch_norm, layer_norm
        As in `SCVI`.
    dispersion
        ``"gene-cell"``, ``"gene-batch"`` or ``"gene"``.
    batch_embedding
        Length of the vector of a batch; ``None``: one indicator a batch.
    encode_covariates, deeply_inject_covariates, library, log_variational
        As in `SCVI`. With ``encode_covariates=True`` cells of unknown batches cannot be placed.
    kl_start, kl_end, kl_warmup_epochs, kl_warmup_steps
        As in `SCVI`; by default the weight of the KL term rises over the whole training.
    epochs, batch_size, weight_decay, early_stopping, patience, schedule, n_top_genes, train_fraction
        As in `SCVI`.
    device, precision, seed
        As in `SCVI`.

    Notes
    -----
    The published code divides the summed cross-entropy of all heads by the number of further sets; here it is their
    mean. Its labels of cells that come later need a new training on old and new cells; here the encoder places them
    (``predict``), or `map_query` learns their batches and leaves the atlas as it is.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obs["broad"] = adata.obs["cell_type"].astype(str).str.split("+").str[0]
    >>> model = tf.annotate.ScAtlasVAE(epochs=3, more_labels=["broad"], n_top_genes=300).fit(adata, labels="cell_type")
    >>> model.probabilities_of("broad").shape
    (700, 7)

    References
    ----------
    Xue et al. (2024), doi 10.1038/s41592-024-02530-0.
    """

    info = MethodInfo(
        title="scAtlasVAE",
        tasks=("annotate", "integrate"),
        family="deep",
        year=2024,
        doi="10.1038/s41592-024-02530-0",
        needs=("labels",),
        accepts=("reference", "batch", "size_factor", "categorical_covariates", "continuous_covariates"),
        gives=("embedding", "labels", "probabilities", "alignment of label sets", "expression", "held-out likelihood"),
        readiness={"annotate": "caution", "integrate": "research"},
        sees_labels=True,
        advice="To align the annotations of several atlases; for labels alone a linear method is better.",
    )

    more_labels: list[str] | None = None
    unlabeled: str = "undefined"
    label_epochs: int | None = param(None, low=1)
    classification_weight: float = param(1.0, low=0.0)
    weight_cap: float | None = param(10.0, low=1.0)
    gate_weight: float = param(1.0, low=0.0)
    mmd_weight: float = param(0.0, low=0.0)
    keep_embedding: str | None = None
    keep_weight: float = param(1.0, low=0.0)
    likelihood: Literal["nb", "zinb", "poisson"] = "zinb"
    dispersion: Literal["gene", "gene-batch", "gene-cell"] = "gene-cell"
    batch_embedding: int | None = param(8, low=1)
    kl_warmup_epochs: int | None = param(None, low=0)
    train_fraction: float = param(0.8, low=0.01, high=1.0)

    # ---- network and loss --------------------------------------------------------------------------------------------

    def _build(self) -> ConditionalVAE:
        import torch

        from tenfold.nn.headed_vae import HeadedVAE

        weights = [torch.as_tensor(each) for each in self.label_weights_]
        return self._assembled(partial(HeadedVAE, label_weights=weights))

    def _loss(self, net: Any, batch: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Negative evidence lower bound with penalties; in the last epochs also the cross-entropy of the heads."""
        told = progress.epoch >= progress.epochs - self._label_epochs
        return self._joint_terms(net, batch, self._kl_weight(progress), self.classification_weight if told else 0.0)

    def _terms(self, net: Any, batch: dict[str, Any], kl_weight: float) -> dict[str, Any]:
        return self._joint_terms(net, batch, kl_weight, 0.0)

    def _joint_terms(self, net: Any, batch: dict[str, Any], kl_weight: float, labels: float) -> dict[str, Any]:
        return net.headed_terms(
            batch, kl_weight, gate=self.gate_weight, labels=labels, alignment=self.mmd_weight, kept=self.keep_weight
        )

    def _optimizer(self, parameters: list[Parameter]) -> Optimizer:
        from torch.optim import AdamW

        return AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def _take(self, data: Inputs, n_top_genes: int | None) -> dict[str, Any]:
        """Choose genes and covariates; number the labels of every set, -1 where there is none."""
        cells = super()._take(data, n_top_genes)
        known, cells["label"] = known_labels(
            self.design_["labels"], self.unlabeled, cells["label"], data.roles["labels"]
        )
        self.design_["labels"] = known
        names, columns = {self._key: known}, [cells["label"]]
        for key in self.more_labels or []:
            codes = check.categories(data.adata, key, "more_labels")
            names[key], column = known_labels(codes.names, self.unlabeled, codes.values, key)
            columns.append(column)
        self.label_sets_ = names
        cells["all_labels"] = np.stack(columns, axis=1)
        self.label_weights_ = [
            self._weights(column, len(of)) for column, of in zip(columns, names.values(), strict=True)
        ]
        if self._kept is not None:
            if self._kept.shape[1] != self.n_latent:
                raise ParameterError(
                    f"obsm['{self.keep_embedding}'] has {self._kept.shape[1]} columns and n_latent is {self.n_latent}; "
                    "set n_latent to the first."
                )
            cells["kept"] = self._kept
        return cells

    def _weights(self, label: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the weight of each label: how many cells there are for each of its own."""
        share = np.bincount(label[label >= 0], minlength=n_labels) / max((label >= 0).sum(), 1)
        least = 0.0 if self.weight_cap is None else 1 / (self.weight_cap * n_labels)
        return (1 / np.maximum(share, max(least, 1e-12))).astype(np.float32)

    def _phases(self, cells: dict[str, Any]) -> list[Phase]:
        phases = super()._phases(cells)
        fewest = min(ceil(FEWEST_STEPS / self._n_batches(len(cells["label"]))), phases[0].epochs // 2)
        self._label_epochs = self.label_epochs or max(LABEL_EPOCHS, fewest)
        return phases

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        self._key = str(data.roles["labels"] if data.reference is None else data.reference.roles["labels"])
        if self._key in (self.more_labels or []):
            raise ParameterError(f"more_labels: '{self._key}' is given as labels= already.")
        self._kept = self._coordinates(data)
        if data.reference is None:
            super()._fit(data)
            self._calibrate(data)
            return
        both, known = joined(data, self.unlabeled, self.more_labels or [])
        super()._fit(both)
        self._calibrate(both)
        # From here on the fitted cells are those to label.
        kept = {name: value[known] for name, value in self.fitted_.items()}
        self.reference_ = {name: kept[name] for name in ("mean", "levels", "label") if name in kept}
        self.fitted_ = {name: value[~known] for name, value in self.fitted_.items()}
        self.columns_, self.n_genes_ = data.adata.var_names.get_indexer(self.genes_), data.n_genes

    def _coordinates(self, data: Inputs) -> np.ndarray | None:
        """Return the coordinates that cells are to keep, NaN where there are none, those of a reference first."""
        if self.keep_embedding is None:
            return None
        source = data.reference or data
        if self.keep_embedding not in source.adata.obsm:
            known = list(source.adata.obsm)
            raise KeyMissingError(
                f"keep_embedding: obsm has no '{self.keep_embedding}'.{closest(self.keep_embedding, known)} It has: "
                f"{', '.join(known) or 'nothing'}."
            )
        found = np.array(source.adata.obsm[self.keep_embedding], dtype=np.float32)
        found[~found.any(axis=1)] = np.nan
        if data.reference is None:
            return found
        return np.concatenate([found, np.full((data.n_cells, found.shape[1]), np.nan, dtype=np.float32)])

    def _read_query(self, adata: AnnData, roles: dict[str, Any], run: RunOptions) -> tuple[Inputs, dict[str, Any]]:
        return super()._read_query(adata, {role: key for role, key in roles.items() if role != "labels"}, run)

    # ---- labels of cells ---------------------------------------------------------------------------------------------

    def _scores(self, mean: np.ndarray) -> np.ndarray:
        return self._heads(mean, 0)

    def _heads(self, mean: np.ndarray, number: int) -> np.ndarray:
        """Return what a head says at posterior means, shape (n_cells, n_labels)."""
        from tenfold.engine import predict

        return predict(self.net_, {"mean": mean}, lambda net, batch: net.heads[number](batch["mean"]).softmax(dim=1))

    def probabilities_of(self, labels: str, adata: AnnData | None = None) -> pd.DataFrame:
        """Return the probability of each label of one of the sets; that of `labels` is calibrated, others are not.

        Parameters
        ----------
        labels
            Column that the set was given as.
        adata
            As in `probabilities`.

        Returns
        -------
        One row a cell, one column a label, float32; rows sum to 1.
        """
        import pandas as pd

        self._check_fitted()
        if labels not in self.label_sets_:
            raise ParameterError(
                f"'{labels}' is no set of labels of this model.{closest(labels, self.label_sets_)} It has: "
                f"{', '.join(self.label_sets_)}."
            )
        number = list(self.label_sets_).index(labels)
        if number == 0:
            return self.probabilities(adata)
        found = self._heads(self.fitted_["mean"] if adata is None else self._means_of(adata), number)
        index = None if adata is None else adata.obs_names
        return pd.DataFrame(found.astype(np.float32), index=index, columns=self.label_sets_[labels])

    def alignment(self, rows: str, columns: str, adata: AnnData | None = None) -> pd.DataFrame:
        """Return which labels of one set cells have that have a label of another, by the heads.

        Parameters
        ----------
        rows, columns
            Columns that the two sets were given as.
        adata
            As in `probabilities`.

        Returns
        -------
        One row a label of the first set, one column a label of the second: share of the cells of the row, which sums to
        1 (0 where no cell has the label of the row).
        """
        import pandas as pd

        first, second = (self.probabilities_of(each, adata) for each in (rows, columns))
        table = np.zeros((first.shape[1], second.shape[1]))
        np.add.at(table, (first.to_numpy().argmax(axis=1), second.to_numpy().argmax(axis=1)), 1.0)
        table /= np.maximum(table.sum(axis=1, keepdims=True), 1)
        return pd.DataFrame(table, index=first.columns, columns=second.columns)
