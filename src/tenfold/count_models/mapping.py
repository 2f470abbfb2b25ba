"""Cells mapped onto a fitted model by architecture surgery, and labels that they take over from its cells."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tenfold.count_models.base import CountModelMethod
from tenfold.data.genes import with_genes
from tenfold.data.inputs import Inputs, digest_of
from tenfold.data.streamed import StreamedCounts
from tenfold.data.transfer import label_threshold, transfer_labels
from tenfold.errors import DataError, ParameterError
from tenfold.types import RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from anndata import AnnData
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from tenfold.engine import Progress
    from tenfold.nn.autoencoder import ConditionalVAE

#: Roles of a fit that a query does not have for that.
_NOT_OF_A_QUERY = ("labels", "pathways", "key_added")
#: Fewest cells to learn a batch effect from.
FEWEST_CELLS = 5


class ReferenceMapper(CountModelMethod):
    """A count model that other cells can be mapped onto; its hyper-parameters are those of `VariationalMethod`.

    A mapped model has ``reference_`` (latent means, levels and, where known, labels of the reference's cells) besides.
    """

    def map_query(
        self, adata: AnnData, *, epochs: int = 200, learning_rate: float | None = None, seed: int | None = None,
        progress: bool = True, checkpoint: str | Path | None = None, **roles: Any,
    ) -> Self:  # fmt: skip
        """Map other cells onto this model, which stays as it is, without the cells that it was fitted on.

        The network is given room for the batches (and levels of further covariates) that it does not know: rows of the
        tables of its layers, and dispersions where these differ between batches. Only these are trained; the reference
        is embedded as before, bit for bit. Of batches that it knows, nothing is trained.

        A cell type that the reference lacks is drawn to the nearest one that it has: see ``uncertainty`` of
        `transfer_labels`. Where the encoder is not told the batch (scVI's default), the embedding of the query is the
        model's as it is, and training serves the decoder alone: ``denoise`` and likelihoods. To correct the embedding,
        fit the reference with ``encode_covariates=True``; `tenfold.integrate.ScArches` does.

        Parameters
        ----------
        adata
            The query: cells with raw counts. Genes are found by name; of the modelled ones a fifth may be missing.
        epochs
            Of training.
        learning_rate, seed
            Default: those of the model, whose schedule the rate follows. There is no weight decay.
        progress, checkpoint
            As in `fit`.
        **roles
            As in `fit`; by default the names that were given there. ``labels`` are not needed.

        Returns
        -------
        A fitted method of the same kind, whose fitted cells are the query's.

        Raises
        ------
        NotFittedError
            Before `fit`.
        DataError
            More than a fifth of the modelled genes are missing, or the new batches have fewer than 5 cells.

        References
        ----------
        Lotfollahi et al. (2022), doi 10.1038/s41587-021-01001-7.
        """
        self._check_fitted()
        if epochs < 1:
            raise ParameterError(f"epochs={epochs}; give at least 1.")
        by_default = {role: key for role, key in self.roles_.items() if role not in _NOT_OF_A_QUERY}
        if self.net_.decoder.dispersion == "gene-label":
            by_default["labels"] = self.roles_["labels"]
        given = self._checked_roles({**by_default, **roles}, needs=())
        mapped = type(self)(**self.parameters)
        mapped.task = self.task  # type: ignore[misc]
        if seed is not None:
            mapped.seed = seed
        if learning_rate is not None:
            mapped.learning_rate = learning_rate
        vars(mapped).update(self._state())
        with mapped._measured():
            run = RunOptions(progress, None if checkpoint is None else str(checkpoint))
            mapped._learn(adata, given, run, epochs)
        return mapped

    # ---- training ----------------------------------------------------------------------------------------------------

    def _learn(self, adata: AnnData, roles: dict[str, Any], run: RunOptions, epochs: int) -> None:
        """Learn the levels of the query that are new; the fitted state is still the reference's."""
        known, reference = self._design.categories, self.net_
        if not hasattr(self, "reference_"):
            self.reference_ = {name: self.fitted_[name] for name in ("mean", "levels", "label") if name in self.fitted_}
        self._progress = run.progress
        self._remember(digest_of(adata), roles)
        data, cells = self._read_query(self._matched(adata), roles, run)
        self.columns_, self.n_genes_ = adata.var_names.get_indexer(self.genes_), adata.n_vars
        levels = cells.get("levels", np.zeros((data.n_cells, 1), dtype=np.int64))
        self._extend_library_prior(cells["log_size"], levels[:, 0])
        is_new = self._to_train_on(levels, known)
        if is_new.any():
            if is_new.sum() < FEWEST_CELLS:
                raise DataError(
                    f"{is_new.sum()} cells have a batch that {self.info.title} does not know; to learn its effect, "
                    f"{FEWEST_CELLS} are needed at the very least. Merge it with another batch, or leave it out."
                )
            net, history = self._operate(reference, _rows(cells, is_new), run, epochs)
        else:
            net, history = deepcopy(reference), self.history_
        self._keep(net, history, cells)

    def _to_train_on(self, levels: np.ndarray, known: tuple[int, ...]) -> np.ndarray:
        """Return the cells of a query that teach something new, shape (n_cells,), bool: those of unknown levels."""
        return (levels >= known).any(axis=1)

    def _operate(
        self, reference: ConditionalVAE, cells: dict[str, Any], run: RunOptions, epochs: int
    ) -> tuple[ConditionalVAE, dict[str, Any]]:
        from tenfold.engine import Phase, fit, seeded
        from tenfold.nn.surgery import graft, heal

        with seeded(self.seed):
            net = self._build()
            graft(reference, net)
            self._grow(net)

        def loss(net: Any, batch: dict[str, Any], progress: Progress) -> dict[str, Any]:
            net.eval()  # no dropout, and norms as the reference's cells have left them
            return self._query_terms(net, batch)

        phase = Phase(
            "query", epochs, loss=loss, optimizer=self._query_optimizer, scheduler=self._schedule(epochs),
            validate_every=max(1, epochs // 20),
        )  # fmt: skip
        history = fit(
            net, cells, [phase], batch_size=self.batch_size, train_fraction=self.train_fraction, seed=self.seed,
            device=self.device, precision=self.precision, run=run, name=f"{self.name()}_query",
            fingerprint=self.parameters,
        )  # fmt: skip
        heal(net.cpu())
        return net, history.to_dict()

    def _schedule(self, epochs: int) -> Callable[[Optimizer], Any] | None:
        """Return what makes the schedule of the learning rate; None: it stays."""
        return None

    def _grow(self, net: Any) -> None:
        """Add to the network what a query brings beside levels; nothing, but for models with programmes of genes."""

    def _query_optimizer(self, parameters: list[Parameter]) -> Optimizer:
        from torch.optim import Adam

        return Adam(parameters, lr=self.learning_rate, eps=0.01)

    def _query_terms(self, net: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the loss of a minibatch of the query, with the KL weight that the reference ended with."""
        return self._terms(net, batch, self.kl_weight_)

    def _terms(self, net: Any, batch: dict[str, Any], kl_weight: float) -> dict[str, Any]:
        """Return the loss of a minibatch and its parts."""
        return net.terms(batch, kl_weight)

    def _read_query(self, adata: AnnData, roles: dict[str, Any], run: RunOptions) -> tuple[Inputs, dict[str, Any]]:
        """Extend the design by the levels of the query; return its cells as the network reads them."""
        data = Inputs(adata, roles, run)
        self.design_ = vars(self._design.extended(data))
        return data, self._arrays(data)

    def _matched(self, adata: AnnData) -> AnnData:
        return with_genes(adata, self.genes_, self.roles_.get("layer")) if hasattr(self, "reference_") else adata

    def _extend_library_prior(self, log_size: np.ndarray, batch: np.ndarray) -> None:
        n_known = self.library_prior_.shape[1]
        new = batch >= n_known
        if new.any():
            added = library_prior(log_size[new], batch[new] - n_known)
            self.library_prior_ = np.concatenate([self.library_prior_, added], axis=1)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def transfer_labels(
        self, labels: np.ndarray | None = None, *, n_neighbors: int = 15, error: float = 0.05
    ) -> pd.DataFrame:
        """Label the mapped cells by their nearest neighbours among the reference's in the latent space.

        Parameters
        ----------
        labels
            Label of each cell of the reference, in the order of its fit; ``None`` where it was fitted with ``labels``.
        n_neighbors
            Number of neighbours.
        error
            Share of the reference's own cells that may count as unknown, each labelled by the others (by those of other
            batches, where there are several). It sets the threshold of uncertainty.

        Returns
        -------
        DataFrame, one row a query cell: ``label``; ``uncertainty``, 0 to 1: how much neighbours disagree, or how far
        they are; ``disagreement`` alone, the published rule (see `tenfold.data.transfer.transfer_labels`); and
        ``unknown``: the uncertainty is above the threshold.

        Raises
        ------
        DataError
            This model was not mapped, or the labels are not those of the reference's cells.
        """
        self._check_fitted()
        if not hasattr(self, "reference_"):
            raise DataError("These cells are the reference itself. Map others onto it first: model.map_query(adata).")
        stored = self.reference_
        if labels is None:
            if "label" not in stored:
                raise DataError("The reference was fitted without labels: give labels=, one for each of its cells.")
            names = np.array([*self._design.labels, ""], dtype=object)  # the last one for those not known
            labels = names[stored["label"]]
        labels = np.asarray(labels).astype(str)
        if labels.shape != (len(stored["mean"]),):
            raise DataError(f"labels has shape {labels.shape}; the reference has {len(stored['mean']):,} cells.")
        has = labels != ""
        points, labels = stored["mean"][has], labels[has]
        batch = stored["levels"][has, 0] if "levels" in stored else None
        asked = self.fitted_["mean"][:, : points.shape[1]]  # programmes that a query brought come last
        table = transfer_labels(points, labels, asked, n_neighbors)
        table["unknown"] = table["uncertainty"] > label_threshold(points, labels, batch, n_neighbors, error)
        return table


def library_prior(log_size: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Mean and variance of log library sizes in each batch, (2, n_batches); a lone cell has the overall variance."""
    sizes = [log_size[batch == code] for code in range(batch.max() + 1)]
    overall = max(float(log_size.var()), 1e-4)
    variance = [max(float(size.var()), 1e-4) if len(size) > 1 else overall for size in sizes]
    return np.array([[size.mean() for size in sizes], variance], dtype=np.float32)


def _rows(cells: dict[str, Any], chosen: np.ndarray) -> dict[str, Any]:
    """Return the chosen cells; all where counts are on disk, for cells of known batches train nothing."""
    if chosen.all() or isinstance(cells["counts"], StreamedCounts):
        return cells
    return {name: value[chosen] for name, value in cells.items()}
