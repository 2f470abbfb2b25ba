"""scGen: an autoencoder of expression in whose latent space batches and perturbations are shifts of cell types."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tenfold.data.expression import grouped_means
from tenfold.errors import DataError, ParameterError
from tenfold.expression_models.base import ExpressionMethod
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from anndata import AnnData

    from tenfold.data.inputs import Inputs
    from tenfold.engine import Batch, Progress
    from tenfold.integrate._perturbation import Perturbation
    from tenfold.nn.expression_vae import ExpressionVAE


class SCGen(ExpressionMethod):
    """Batch removal with known cell types, and prediction of a perturbation, by shifts in a latent space.

    An autoencoder of log-expression (variational, but with a KL weight of 0.000025) is trained without being told
    batch or label. Then, of each cell type that several batches have, the latent mean in each batch is moved to that
    in the batch with most of its cells. Decoded, this is corrected expression; encoded again, the embedding. A type
    that a single batch has is left alone.

    **Use it** where cell types are known and batches only are to be removed, or to predict how a cell type responds to
    a treatment that was seen in other types (`predict_perturbation`, with conditions as ``batch``).

    **Do not use it** to judge integration by the labels that it was given: they define the answer, and any labels, also
    wrong ones, come out well mixed and apart. Within a type, sub-states of different proportions are merged. One shift
    cannot describe responses that differ between types; and where responses are alike, the average shift gene by gene
    predicts better (so in our check on simulated cells): always look at the two baselines that come with a prediction.

    **Cost**: linear in cells × genes × epochs; the network is wide (4.7 million weights for 2,000 genes).

    **Writes** ``obsm["X_scgen"]`` (corrected latent variables) and ``layers["scgen"]`` (corrected log-expression; NaN
    for genes that are not modelled).

    Parameters
    ----------
    n_latent, n_hidden, n_layers
        Latent dimensions; width and number of hidden layers of encoder and decoder.
    dropout
        Share of hidden units silenced in training.
    kl_weight
        Weight of the KL term beside half the squared error.
    n_top_genes
        Variable genes to model, chosen batch by batch; ``None`` takes all.
    epochs
        ``None``: 100, fewer above 5,000 cells (5,000 / n_cells × 100).
    early_stopping, patience
        Stop when the validation loss has not fallen for so many epochs.
    batch_size, learning_rate, weight_decay
        Of the optimiser, Adam.
    train_fraction
        Share of cells to train on; the others are for validation.
    device, precision
        As in ``tenfold.engine.fit``.
    seed
        Of weights, split and minibatches.

    Attributes
    ----------
    shift_
        What is added to the latent variables of each type and batch, (n_types, n_batches, n_latent); zero where it has
        no cells.
    reference_
        The batch that each type is moved to.

    Warns
    -----
    UserWarning
        No type is in two batches: nothing is corrected.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> scgen = tf.integrate.SCGen(epochs=10, n_top_genes=300).fit(adata, batch="batch", labels="cell_type")
    >>> scgen.embed().shape
    (700, 100)

    References
    ----------
    Lotfollahi et al. (2019), doi 10.1038/s41592-019-0494-8.
    """

    info = MethodInfo(
        title="scGen",
        tasks=("integrate",),
        family="deep",
        year=2019,
        doi="10.1038/s41592-019-0494-8",
        needs=("batch", "labels"),
        gives=("embedding", "expression", "response to a perturbation"),
        readiness="caution",
        sees_labels=True,
        advice="For batches whose cell types are all known; predictions only beside their linear baselines.",
    )

    n_latent: int = param(100, low=1)
    n_hidden: int = param(800, low=1)
    n_layers: int = param(2, low=1)
    dropout: float = param(0.2, low=0.0, high=0.99)
    kl_weight: float = param(2.5e-5, low=0.0)
    early_stopping: bool = True
    patience: int = param(25, low=1)
    weight_decay: float = param(1e-6, low=0.0)
    train_fraction: float = param(0.9, low=0.01, high=1.0)

    _blind: ClassVar[bool] = False
    _fit_only: ClassVar[frozenset[str]] = frozenset({"key_added"})
    _epsilon: ClassVar[float] = 0.01

    # ---- network and training ----------------------------------------------------------------------------------------

    def _build(self) -> ExpressionVAE:
        from tenfold.nn.encoders import GaussianEncoder
        from tenfold.nn.expression_decoders import SquaredErrorDecoder
        from tenfold.nn.expression_vae import ExpressionVAE

        n_genes, size = len(self.columns_), (self.n_hidden, self.n_layers)
        inside: dict[str, Any] = {"dropout": self.dropout, "activation": "leaky_relu"}
        return ExpressionVAE(
            GaussianEncoder(n_genes, self.n_latent, *size, **inside),
            SquaredErrorDecoder(self.n_latent, n_genes, *size, **inside),
        )

    def _loss(self, net: Any, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Half the squared error and the weighted KL term, mean over cells."""
        return net.terms(batch, self.kl_weight)

    def _fit(self, data: Inputs) -> None:
        from tenfold.engine import EarlyStopping, Phase

        cells = self._take(data)
        self.means_ = grouped_means(cells["expression"], cells["label"], cells["levels"][:, 0], self._shape)
        epochs = self.epochs or max(1, min(100, round(5_000 / data.n_cells * 100)))
        stopping = EarlyStopping(self.patience) if self.early_stopping else None
        self._train(data, cells, [
            Phase("train", epochs, loss=self._loss, optimizer=self._optimizer, early_stopping=stopping,
                  validate_every=1 if self.early_stopping else max(1, epochs // 20)),
        ])  # fmt: skip

    # ---- batch removal -----------------------------------------------------------------------------------------------

    def _keep(self, net: Any, history: Any, cells: dict[str, Any]) -> None:
        """Keep what `ExpressionMethod` keeps, with the latent variables shifted; then encode what they decode to."""
        super()._keep(net, history, cells)
        label, batch, z = cells["label"], cells["levels"][:, 0], self.fitted_["z"]
        means = grouped_means(z, label, batch, self._shape)
        sizes = np.zeros(self._shape, dtype=np.int64)
        np.add.at(sizes, (label, batch), 1)
        most = sizes.argmax(axis=1)
        self.reference_ = [self._design.batch[code] for code in most]
        self.shift_ = np.nan_to_num(means[np.arange(len(most)), most][:, None] - means)
        if ((sizes > 0).sum(axis=1) < 2).all():
            warnings.warn(
                "No label is found in two batches, so there is nothing that scGen could match: batches stay as they "
                "are. Give labels with the same names in all batches.",
                stacklevel=2,
            )
        self.fitted_["z"] = z + self.shift_[label, batch]
        self.embedding_ = self._encoded_again(self.fitted_["z"])

    def _placed(self, adata: AnnData | None, decoding: bool = False) -> dict[str, Any]:
        cells = super()._placed(adata, decoding)
        if adata is None:
            return cells
        where = cells["label"], cells["levels"][:, 0]
        unknown = np.isnan(self.means_[where][:, 0])
        if unknown.any():
            warnings.warn(
                f"{unknown.sum():,} cells are of a type that the model has not seen in their batch; they stay where "
                "they are.",
                stacklevel=3,
            )
        return {**cells, "z": cells["z"] + self.shift_[where]}

    def _encoded_again(self, z: np.ndarray) -> np.ndarray:
        """Return the latent means of the expression that latent variables decode to."""
        from tenfold.engine import predict

        return predict(self.net_, {"z": z}, lambda net, batch: net.encoder(net.decoder.scale(batch["z"])).mean)

    def embed(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the latent means of the corrected expression, shape (n_cells, n_latent), float32.

        Parameters
        ----------
        adata
            New cells, raw counts, with the fitted genes, and with batch and labels among the fitted ones, whose shifts
            they take; ``None`` for the fitted cells.
        """
        placed = self._placed(adata)
        return self.embedding_ if adata is None else self._encoded_again(placed["z"])

    def _batches(self, names: str | list[str] | None) -> list[int]:
        if names is not None:
            raise ParameterError("scGen's decoder is not told the batch: leave transform_batch= out.")
        return [0]

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self._design.labels), len(self._design.batch)

    # ---- perturbation ------------------------------------------------------------------------------------------------

    def predict_perturbation(
        self, control: str, stimulated: str, cell_type: str | None = None, adata: AnnData | None = None, *,
        types: list[str] | None = None, as_reference: bool = False,
    ) -> Perturbation:  # fmt: skip
        """Predict cells of a type under a treatment from its untreated cells and the response of other types.

        The shift is the latent mean of treated cells less that of untreated ones, every type weighted equally: what
        over-sampling all types to the same size gives on average. For an honest test leave the treated cells of
        `cell_type` out of the fit.

        Parameters
        ----------
        control, stimulated
            Levels of ``batch``: untreated and treated.
        cell_type
            The type to predict, whose untreated cells are among the fitted ones.
        adata
            Or other untreated cells, raw counts, with the fitted genes.
        types
            The types to learn the response from. Default: all that are in both conditions, but `cell_type`.
        as_reference
            Take all types of each condition, as the original does: then types that are in one condition only count
            as response, too.

        Returns
        -------
        Predicted cells, the shift, and means beside the two baselines.

        Raises
        ------
        ParameterError
            A level that is not there; both or neither of `cell_type` and `adata`.
        DataError
            No type is in both conditions, or no cell to start from.
        """
        from tenfold.integrate._perturbation import Responses, predicted

        self._check_fitted()
        if (cell_type is None) == (adata is None):
            raise ParameterError("Give either cell_type=, a label of the fitted cells, or adata=, untreated cells.")
        label, batch = self.fitted_["label"], self.fitted_["levels"][:, 0]
        z = self.fitted_["z"] - self.shift_[label, batch]
        responses = Responses(
            self._design.labels, self._design.batch, grouped_means(z, label, batch, self._shape), self.means_
        )
        pair = responses.batch(control), responses.batch(stimulated)
        kind = -1 if cell_type is None else responses.label(cell_type)
        shifts = responses.shifts(*pair, kind, types, as_reference)
        if adata is None:
            rows = np.flatnonzero((label == kind) & (batch == pair[0]))
            if len(rows) == 0:
                raise DataError(f"There are no cells of '{cell_type}' in '{control}' to start from.")
            start, before, obs = z[rows], self.means_[kind, pair[0]], {"template": rows}
        else:
            cells = self._cells(adata, blind=True)
            one = np.zeros(adata.n_obs, dtype=np.int64)
            before = grouped_means(cells["expression"], one, one, (1, 1))[0, 0]
            start, obs = self._infer(cells), adata.obs
        expression = self._expand({"z": start + shifts[0]}, self.columns_, [0])
        return predicted(expression, obs, self.modelled_genes, before, shifts)
