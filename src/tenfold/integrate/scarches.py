"""scArches: a reference is learnt once, and other batches are mapped onto it by architecture surgery."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold import catalog
from tenfold.count_models.mapping import ReferenceMapper
from tenfold.data.batches import warn_of_lone_cell
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, ParameterError, RoleError, closest
from tenfold.method import Embedder, Method, MethodInfo, param

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from tenfold.types import Codes

#: The network of scVI and scANVI that surgery needs: the first layers are told the batch, and norms keep no memory.
PRESET: dict[str, Any] = {
    "layer_norm": "both", "batch_norm": "none", "encode_covariates": True, "deeply_inject_covariates": False,
    "schedule": "constant",
}  # fmt: skip
#: Epochs of a reference of scVI or scANVI, fewer above 20,000 cells: those of the published recipe, at a constant rate.
MOST_EPOCHS = 400
#: Share of the reference's epochs over which the KL weight rises: a reference that is trained for less than 400 epochs
#: is else never given the full weight, and places a query worse.
WARMUP = 0.5


class ScArches(Method, Embedder):
    """A reference from some batches, and the other batches mapped onto it without changing it.

    The reference is a conditional variational autoencoder. For a query its first layers are given a row of weights for
    each new batch, and only these rows are trained, on the query alone. Cells of the reference keep their coordinates
    bit for bit; labels can be carried over by `transfer_labels`.

    **Use it** where a reference exists and must stay as it is: to place new samples in an atlas, with the saved model
    and without the atlas's cells.

    **Do not use it** where all batches are at hand: training on all of them together is simpler, and labelled a query
    about as well in our checks (one point better to one worse; ``evidence/scarches_acceptance.py``). Do not rely on it
    to find new cell types: one that the reference lacks is drawn towards the nearest that it has. The uncertainty of
    labels gave away missing monocytes, hardly missing B cells, and not NK cells, which passed for T cells. A query of
    one cell type cannot be told from its batch effect, and a reference that was trained briefly places a query poorly.

    **Cost**: that of the base model on the reference's cells, and about half as much per cell and epoch of the query.

    **Writes** ``obsm["X_scarches"]``.

    Parameters
    ----------
    reference
        Folder of a saved model to map all cells onto: scVI, scANVI or trVAE, in whatever settings (best with
        ``encode_covariates=True``), or one that cells were mapped onto before. Cells of batches that it knows are only
        embedded. ``None``: a reference is trained on `reference_batches`.
    base
        Model of the reference to train: ``"scvi"``, ``"scanvi"`` (needs labels, and sees those of the reference) or
        ``"trvae"``.
    reference_batches
        Batches to train the reference on; ``None``: the largest ones that together hold half of the cells.
    epochs
        Of the reference. ``None``: 400, fewer above 20,000 cells (20,000 / n_cells × 400; of trVAE half as many). The
        KL weight rises over the first half of them (of trVAE: over 100 at most), so that a reference of few epochs is
        regular, too.
    query_epochs
        Of the query. ``None``: 200, fewer above 20,000 cells (20,000 / n_cells × 200), and at most `epochs`.
    n_latent, n_top_genes, batch_size, learning_rate
        As in `SCVI`, of the reference to train.
    n_hidden, n_layers, dropout
        As in `SCVI`, of a reference of scVI or scANVI to train.
    unlabeled
        As in `SCANVI`: the label of cells without a label.
    device, seed
        As in `SCVI`.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate(300, 100, n_batches=2)
    >>> method = tf.integrate.ScArches(epochs=5).fit(adata, batch="batch", labels="cell_type")
    >>> method.embed().shape
    (300, 10)
    >>> list(method.transfer_labels().columns)
    ['label', 'uncertainty', 'disagreement', 'unknown']

    References
    ----------
    Lotfollahi et al. (2022), doi 10.1038/s41587-021-01001-7.
    """

    info = MethodInfo(
        title="scArches",
        tasks=("integrate",),
        family="deep",
        year=2022,
        doi="10.1038/s41587-021-01001-7",
        accepts=("batch", "labels"),
        gives=("embedding", "labels", "a model of reference and query"),
        readiness="usable",
        advice="To place new batches in a reference that must not change; with all data at hand, integrate at once.",
    )

    reference: str | None = None
    base: Literal["scvi", "scanvi", "trvae"] = "scvi"
    reference_batches: list[str] | None = None
    epochs: int | None = param(None, low=1)
    query_epochs: int | None = param(None, low=1)
    n_latent: int = param(10, low=1)
    n_hidden: int = param(128, low=1)
    n_layers: int = param(2, low=1)
    dropout: float = param(0.2, low=0.0, high=0.99)
    n_top_genes: int | None = param(2000, low=10)
    batch_size: int = param(128, low=3)
    learning_rate: float = param(1e-3, low=0.0)
    unlabeled: str = "Unknown"
    device: str = "auto"
    seed: int = param(0, low=0)

    def __post_init__(self) -> None:
        if self.base == "scanvi" and self.reference is None:
            self.info = replace(self.info, sees_labels=True)  # type: ignore[misc]

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        data.counts  # noqa: B018  (checked before anything is trained)
        warn_of_lone_cell(data.batch_or_one)
        roles = {role: key for role, key in data.roles.items() if role != "key_added"}
        options = {"progress": data.run.progress, "checkpoint": data.run.checkpoint}
        if self.reference is not None:
            is_query = np.ones(data.n_cells, dtype=bool)
            trained, embedding = self._loaded(self.reference), np.zeros((data.n_cells, 0), dtype=np.float32)
        else:
            is_query = self._query_cells(data)
            trained = self._untrained(int((~is_query).sum())).fit(_part(data, ~is_query), **options, **roles)
            embedding = trained.embed()
        told = {role: key for role, key in roles.items() if role != "labels"}
        n_query = int(is_query.sum())
        limit = min(200, self.epochs or 200)
        epochs = self.query_epochs or max(1, min(round(20_000 / n_query * 200), limit))
        self.model_ = trained.map_query(_part(data, is_query), epochs=epochs, seed=self.seed, **options, **told)
        of_query = self.model_.embed()
        self.query_ = np.flatnonzero(is_query)
        self.embedding_ = np.empty((data.n_cells, of_query.shape[1]), dtype=np.float32)
        self.embedding_[is_query] = of_query
        if not is_query.all():
            self.embedding_[~is_query] = embedding

    def _loaded(self, folder: str) -> ReferenceMapper:
        model = catalog.load(folder)
        if isinstance(model, ScArches):
            return model.model_
        if not isinstance(model, ReferenceMapper):
            raise ParameterError(
                f"'{folder}' holds a model of {model.info.title}, which has no batches to add by surgery. "
                "Give one of scVI, scANVI, trVAE or scArches."
            )
        return model

    def _query_cells(self, data: Inputs) -> np.ndarray:
        """Return which cells are to be mapped, shape (n_cells,)."""
        if self.base == "scanvi" and data.labels is None:
            raise RoleError("base='scanvi' needs labels=...: the obs column with cell types. Or use base='scvi'.")
        if data.batch is None:
            raise RoleError("scArches needs batch=... to tell reference and query apart, or reference=: a saved model.")
        batch = data.batch
        if len(batch.names) < 2:
            raise DataError(
                f"obs['{data.roles['batch']}'] has a single level, '{batch.names[0]}'; a reference and a query are at "
                "least two. To map one batch onto a saved model, set reference=."
            )
        chosen = _largest(batch) if self.reference_batches is None else self.reference_batches
        unknown = [name for name in chosen if name not in batch.names]
        if unknown:
            raise ParameterError(
                f"reference_batches: there is no batch '{unknown[0]}'.{closest(unknown[0], batch.names)}"
            )
        is_query = ~np.isin(np.array(batch.names, dtype=object), chosen)[batch.values]
        if is_query.all() or not is_query.any():
            raise ParameterError("reference_batches must name some of the batches, not all and not none.")
        return is_query

    def _untrained(self, n_cells: int) -> ReferenceMapper:
        """Return the model of a reference of so many cells."""
        shared = ("n_latent", "n_top_genes", "batch_size", "learning_rate", "device", "seed")
        params = {name: getattr(self, name) for name in shared}
        if self.epochs is not None:
            params["epochs"] = self.epochs
        if self.base != "trvae":
            params |= {**PRESET, "n_hidden": self.n_hidden, "n_layers": self.n_layers, "dropout": self.dropout}
            params["epochs"] = self.epochs or max(1, min(round(20_000 / n_cells * MOST_EPOCHS), MOST_EPOCHS))
        if self.base == "scanvi":
            params["unlabeled"] = self.unlabeled
        model: Any = catalog.method("integrate", self.base, **params)
        epochs = model.epochs_for(n_cells)
        model.kl_warmup_epochs = min(model.kl_warmup_epochs or epochs, round(WARMUP * epochs))
        return model

    # ---- results -----------------------------------------------------------------------------------------------------

    @property
    def model(self) -> ReferenceMapper:
        """The base model with the query mapped onto it: ``denoise``, ``sample``, ``map_query``; scANVI: ``predict``."""
        self._check_fitted()
        return self.model_

    def embed(self, adata: AnnData | None = None) -> np.ndarray:
        """Return latent coordinates, shape (n_cells, n_latent), float32.

        Parameters
        ----------
        adata
            Other cells of the batches of reference or query, raw counts; ``None`` for the fitted ones, all of them.
        """
        self._check_fitted()
        return self.embedding_ if adata is None else self.model_.embed(adata)

    def transfer_labels(self, labels: np.ndarray | None = None, **options: Any) -> pd.DataFrame:
        """Label the query's cells by their neighbours in the reference; the index holds their rows in the data.

        Parameters
        ----------
        labels
            Label of each cell of the reference; ``None`` where the reference was fitted with labels.
        **options
            ``n_neighbors`` and ``error``.

        Returns
        -------
        As `ReferenceMapper.transfer_labels`: ``label``, ``uncertainty``, ``disagreement``, ``unknown``.
        """
        self._check_fitted()
        return self.model_.transfer_labels(labels, **options).set_axis(self.query_, axis=0)

    # ---- save and load -----------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        state = super()._state()
        if "model_" in state:
            model = state["model_"]
            state["model_"] = {"name": model.name(), "parameters": model.parameters, "state": model._state()}
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        stored = state.pop("model_")
        model = catalog.method("integrate", stored["name"], **stored["parameters"])
        model._restore(stored["state"])
        super()._restore({**state, "model_": model})


def _largest(batch: Codes) -> list[str]:
    """Return the largest batches that together hold half of the cells, at least one and not all."""
    sizes = np.bincount(batch.values, minlength=len(batch.names))
    order = np.argsort(-sizes, kind="stable")
    n_chosen = int(np.searchsorted(sizes[order].cumsum(), 0.5 * sizes.sum())) + 1
    return [batch.names[code] for code in order[: min(n_chosen, len(order) - 1)]]


def _part(data: Inputs, rows: np.ndarray) -> AnnData:
    """Return some cells, with their counts where the roles say."""
    import pandas as pd
    from anndata import AnnData

    counts, layer = data.counts[rows], data.roles.get("layer")
    var = pd.DataFrame(index=data.adata.var_names)
    in_layer = {"layers": {layer: counts}} if layer is not None else {"X": counts}
    return AnnData(obs=data.adata.obs.iloc[rows], var=var, **in_layer)
