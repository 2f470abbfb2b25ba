"""The base of methods whose network reads log-normalised expression of variable genes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tenfold.data import check
from tenfold.data.batches import warn_of_lone_cell
from tenfold.data.covariates import Design
from tenfold.data.expression import GeneScale, Scaling, expression_of
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, ParameterError, closest
from tenfold.method import Corrector, Embedder, Method, param

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from tenfold.engine import Phase

#: Fewer cells than this are not trained on.
FEWEST_CELLS = 5


class ExpressionMethod(Method, Embedder, Corrector):
    """Latent space and decoded expression of a network on log(1 + counts per 10,000).

    A method says in ``_build`` which network it trains, and in its ``_fit``: `_take`, which chooses genes and returns
    what the network reads of each cell (``expression``; ``levels``, ``continuous`` and ``label`` where there are such),
    then `_train` with its phases. `_latent` and `_decoded` say how the network is asked; by default it is an
    `ExpressionVAE`.

    The fitted state is ``genes_`` (all genes), ``columns_`` (those that are modelled), ``scale_`` (a `GeneScale` as a
    dict), ``design_`` (a `Design` as a dict), ``net_``, ``fitted_`` (latent variables and covariates of the fitted
    cells) and ``history_``.
    """

    n_top_genes: int | None = param(2000, low=10)
    epochs: int | None = param(None, low=1)
    batch_size: int = param(128, low=3)
    learning_rate: float = param(1e-3, low=0.0)
    weight_decay: float = param(0.0, low=0.0)
    train_fraction: float = param(1.0, low=0.01, high=1.0)
    device: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = param(0, low=0)

    #: The encoder is not told of batch and covariates, so that new cells can do without.
    _blind: ClassVar[bool] = True
    #: Roles of the fit that are not asked of new cells.
    _fit_only: ClassVar[frozenset[str]] = frozenset({"key_added", "labels"})
    #: Of the optimiser, Adam.
    _epsilon: ClassVar[float] = 1e-8
    _progress = True

    # ---- what the network reads --------------------------------------------------------------------------------------

    def _take(self, data: Inputs, scaling: Scaling = "none") -> dict[str, Any]:
        """Choose genes, scaling and covariates from the cells of a fit; return what the network reads."""
        if data.n_cells < FEWEST_CELLS:
            raise DataError(
                f"{data.n_cells} cells are too few to train on; {self.info.title} needs {FEWEST_CELLS} at the very "
                "least."
            )
        self._progress = data.run.progress
        self.genes_ = data.gene_names
        self.columns_ = data.variable_genes(self.n_top_genes)
        self.design_ = vars(Design.of(data))
        batch = data.batch_or_one
        warn_of_lone_cell(batch)
        expression = expression_of(data, self.columns_, in_memory=scaling == "standard")
        self.scale_ = vars(GeneScale.of(scaling, expression, batch.values, batch.names))
        return self._read(data, expression) | self._design.encode(data)

    def _read(self, data: Inputs, expression: Any) -> dict[str, Any]:
        """Scale expression; warn of cells in which no modelled gene was seen."""
        seen = expression.lengths if hasattr(expression, "lengths") else np.diff(expression.indptr)
        if (seen == 0).any():
            warnings.warn(
                f"{(seen == 0).sum():,} cells have no counts in the {len(self.columns_):,} modelled genes; where they "
                "are placed means nothing. Filter cells of few counts, or raise n_top_genes.",
                stacklevel=2,
            )
        batch = data.batch_or_one
        return {"expression": self._scale.apply(expression, batch.values, batch.names)}

    def _cells(self, adata: AnnData, blind: bool = False) -> dict[str, Any]:
        """Return what the network reads of cells that come after the fit; a blind one is not told covariates."""
        self._check_fitted()
        told = self._design.categories != (1,) or self._design.n_continuous
        used = {"layer"} if blind or not told else set(self.roles_) - self._fit_only
        if self._uses_batch and self.roles_.get("batch") in adata.obs:
            used.add("batch")
        data = Inputs(adata, {role: key for role, key in self.roles_.items() if role in used})
        columns = check.gene_columns(adata, self.modelled_genes)
        cells = self._read(data, expression_of(data, columns, in_memory=self.scale_["kind"] == "standard"))
        return cells if blind else cells | self._design.encode(data)

    @property
    def _uses_batch(self) -> bool:
        """Whether cells are read batch by batch; new cells without a batch are then one of their own."""
        return self.scale_["kind"] == "batch max"

    @property
    def modelled_genes(self) -> np.ndarray:
        """Names of the genes that the network reads, shape (n_modelled,)."""
        return self.genes_[self.columns_]

    @property
    def _design(self) -> Design:
        return Design(**self.design_)

    @property
    def _scale(self) -> GeneScale:
        return GeneScale(**self.scale_)

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _train(self, data: Inputs, cells: dict[str, Any], phases: list[Phase], **options: Any) -> None:
        """Build and train the network, and keep it with what it infers of the fitted cells."""
        from tenfold.engine import fit, seeded

        with seeded(self.seed):
            net = self._build()
        history = fit(
            net, cells, phases, train_fraction=self.train_fraction, seed=self.seed, device=self.device,
            precision=self.precision, run=data.run, name=self.name(), fingerprint=self.parameters,
            **{"batch_size": self.batch_size, **options},
        )  # fmt: skip
        self._keep(net, history, cells)

    def _keep(self, net: Any, history: Any, cells: dict[str, Any]) -> None:
        """Keep the trained network, the course of its training, and where it places the fitted cells."""
        self.net_ = net.cpu()
        self.history_ = history.to_dict()
        told = {name: value for name, value in cells.items() if name != "expression"}
        self.fitted_ = {**told, "z": self._infer(cells)}

    def _optimizer(self, parameters: list[Parameter]) -> Optimizer:
        from torch.optim import Adam

        options = {"eps": self._epsilon, "weight_decay": self.weight_decay, "fused": True}
        return Adam(parameters, lr=self.learning_rate, **options)  # type: ignore[arg-type]

    def _infer(self, cells: dict[str, Any]) -> np.ndarray:
        """Return the latent variables of cells, shape (n_cells, n_latent)."""
        from tenfold.engine import predict

        show = f"{self.info.title}: embedding" if self._progress else ""
        return predict(self.net_, cells, self._latent, show=show)

    @property
    def history(self) -> pd.DataFrame:
        """Losses, one row an epoch and term: columns phase, epoch, term, train, validation."""
        from tenfold.engine import History

        self._check_fitted()
        return History.from_dict(self.history_).terms

    # ---- how the network is asked ------------------------------------------------------------------------------------

    @staticmethod
    def _latent(net: Any, batch: dict[str, Any]) -> Tensor:
        """Return where the network places the cells of a minibatch, (n_cells, n_latent)."""
        return net.encode(batch).z.mean

    @staticmethod
    def _decoded(net: Any, batch: dict[str, Any]) -> Tensor:
        """Return the expression at ``batch["z"]`` and the covariates of the batch, scaled, (n_cells, n_modelled)."""
        return net.scale(batch, batch["z"])

    # ---- latent variables and expression -----------------------------------------------------------------------------

    def embed(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the latent variables of cells (means, where they are random), (n_cells, n_latent), float32.

        Parameters
        ----------
        adata
            New cells, raw counts, with the fitted genes; ``None`` for the fitted ones.

        Raises
        ------
        KeyMissingError
            A modelled gene, or a covariate that the encoder is told, is not there.
        """
        return self._placed(adata)["z"]

    def _placed(self, adata: AnnData | None, decoding: bool = False) -> dict[str, Any]:
        """Return latent variables and covariates of cells; ``None`` for the fitted ones."""
        self._check_fitted()
        if adata is None:
            return self.fitted_
        # A decoder that is told more than the batch, which is chosen, needs the rest of each cell.
        others = bool(self._design.categorical or self._design.n_continuous)
        cells = self._cells(adata, self._blind and not (others and decoding))
        z = self._infer(cells)
        return {**{name: value for name, value in cells.items() if name != "expression"}, "z": z}

    def expression(
        self, adata: AnnData | None = None, *, transform_batch: str | list[str] | None = None,
        genes: list[str] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Return decoded log(1 + counts per 10,000) of cells.

        Parameters
        ----------
        adata
            New cells; ``None`` for the fitted ones.
        transform_batch
            As if the cells were of this batch; of several, the average. Default: the average of all.
        genes
            Names of the genes wanted; ``None`` for all of the fitted data, in their order.

        Returns
        -------
        Shape (n_cells, n_genes), float32; genes that are not modelled are NaN.

        Raises
        ------
        ParameterError
            No such batch.
        KeyMissingError
            No such gene.
        """
        cells = self._placed(adata, decoding=True)
        return self._expand(cells, check.named_columns(genes, self.genes_), self._batches(transform_batch))

    def _corrected(self, columns: np.ndarray) -> np.ndarray:
        return self._expand(self.fitted_, columns, self._batches(None))

    def _batches(self, names: str | list[str] | None) -> list[int]:
        known = self._design.batch
        wanted = known if names is None else [names] if isinstance(names, str) else names
        for name in wanted:
            if str(name) not in known:
                raise ParameterError(
                    f"transform_batch='{name}': there is none.{closest(name, known)} There are: {', '.join(known)}."
                )
        return [known.index(str(name)) for name in wanted]

    def _expand(self, cells: dict[str, Any], columns: np.ndarray, batches: list[int]) -> np.ndarray:
        """Decode cells in each of some batches and average; NaN for columns that are not modelled."""
        from tenfold.engine import predict

        place = np.searchsorted(self.columns_, columns).clip(max=len(self.columns_) - 1)
        modelled = self.columns_[place] == columns
        out = np.full((len(cells["z"]), len(columns)), np.nan, dtype=np.float32)
        total = np.zeros((len(out), int(modelled.sum())), dtype=np.float32)
        for code in batches:

            def decoded(net: Any, batch: dict[str, Any], code: int = code) -> Any:
                return self._decoded(net, as_if(batch, code))[:, place[modelled]]

            total += self._scale.undo(predict(self.net_, cells, decoded), code, place[modelled])
        out[:, modelled] = total / len(batches)
        return out


def as_if(cells: dict[str, Any], code: int) -> dict[str, Any]:
    """Return a minibatch with latent variables as if its cells were of the batch with this code."""
    levels = cells["levels"].clone() if "levels" in cells else cells["index"].new_zeros(len(cells["index"]), 1)
    levels[:, 0] = code
    return {**cells, "levels": levels}
