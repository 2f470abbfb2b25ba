"""expiMap: a model of counts whose latent dimensions are programmes of genes that the user gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold.annotators.calibration import Calibration, smoothed
from tenfold.annotators.latent import LatentAnnotator, known_labels
from tenfold.annotators.neighbor_votes import neighbor_shares
from tenfold.count_models.programs import ProgramReadout
from tenfold.count_models.variational import TrainedMethod, balancing_weights
from tenfold.data.gene_sets import Programs, read_programs
from tenfold.data.inputs import Inputs
from tenfold.data.joined import on_shared_genes
from tenfold.errors import ParameterError, RoleError, closest
from tenfold.method import MethodInfo, param
from tenfold.types import RunOptions

if TYPE_CHECKING:
    from anndata import AnnData
    from torch.nn import Parameter
    from torch.optim import Optimizer

    from tenfold.engine import Phase
    from tenfold.nn.programs import Penalties, ProgramVAE

#: Where the loss on held-out cells has not fallen for so many epochs, the learning rate falls to this share.
LR_PATIENCE, LR_FACTOR = 13, 0.1


class ExpiMap(ProgramReadout, TrainedMethod, LatentAnnotator):
    """Latent space in which each dimension is a pathway, a query mapped onto it, and labels from its neighbours.

    Counts are negative binomial; their mean is the softmax of a linear map of the latent variables and the batch, in
    which a pathway has weights for its own genes only. So a latent variable says how active its pathway is. A penalty
    (group lasso) shrinks the weights of each pathway, and a large one silences pathways. A network that is told the
    batch gives the posterior.

    Pathways come from ``fit(adata, pathways="sets.gmt")`` or a dict of gene lists; a name with ``None`` in place of a
    list is a programme that may use any gene. Without pathways there are `n_latent` such programmes, and the method is
    a linearly decoded variational autoencoder. Genes in no pathway are left out.

    A query of other batches is mapped onto the fitted cells (`map_query`, or ``fit(query, reference=...)``): nothing is
    trained but what the new batches add, and programmes given as ``map_query(query, pathways={"new": None})``. Cells
    are labelled by their nearest labelled neighbours among the trained cells; cells of unknown batches that come after
    the fit are encoded as of an average batch.

    **Use it** to see which pathways tell cells or conditions apart, and to compare a query with a reference in them.

    **Do not use it** for labels alone: on 700 blood cells its labels were two to three points of accuracy below those
    of the linear methods (``evidence/expimap_acceptance.py``), and these are faster. Pathways that share genes share
    credit arbitrarily. That a pathway is kept does not mean that it is needed: on simulated cells none of five pathways
    without effect was silenced at the penalty that held-out likelihood chose, and no penalty told them from the others
    (the raised pathway came first in `enrichment`). A Bayes factor compares cells, not donors: it finds differences
    between any two samples.

    **Cost**: cells × epochs × (pathways × genes), and as much again for a query.

    **Writes** ``obs["expimap_label"]``, ``obs["expimap_confidence"]``, ``obsm["expimap_probabilities"]`` (task
    annotate, needs labels); ``obsm["X_expimap"]``, the pathways that are not silent (task integrate).

    Parameters
    ----------
    min_set_size, max_set_size
        Pathways with fewer genes among the variable ones, or with more genes at all, are left out.
    n_latent
        Programmes where no pathways are given.
    group_lasso
        Penalty on the weights of each pathway; it works through the learning rate and the number of minibatches, so
        few cells need more of it or more epochs. 0 silences none.
    penalty_weights
        Factor of this penalty for some pathways, by name; 1 for the others.
    soft_mask
        Genes outside a pathway may enter it, against the penalty `mask_l1`.
    mask_l1
        Penalty on weights outside the mask; with ``soft_mask=True`` only.
    free_l1
        Penalty on the weights of programmes that may use any gene, of those that were asked for with ``None``.
    independence
        Weight of the dependence (HSIC) of each of those on all other programmes.
    query_kl
        Weight of the KL term when a query is mapped.
    query_epochs
        Epochs of a query given with ``fit(query, reference=...)``; ``None``: as many as of the reference.
    n_neighbors
        Labelled neighbours that vote.
    unlabeled
        The label of cells without a label; they do not vote.
    n_hidden, n_layers
        Width of each hidden layer of the encoder; one number: of `n_layers` layers.
    dropout, likelihood
        Of the encoder; ``"nb"`` or ``"poisson"``.
    dispersion
        ``"gene-batch"`` or ``"gene"``.
    balance_batches
        Draw cells so that all batches are equally frequent; otherwise every cell once an epoch.
    early_stopping, patience
        Stop when the loss on held-out cells, with full weight of the KL term, has not fallen for so many epochs. The
        learning rate falls to a tenth when it has not for 13.
    kl_start, kl_end, kl_warmup_epochs, kl_warmup_steps
        As in `SCVI`; the published weight is 0.5.
    epochs, batch_size, learning_rate, weight_decay, n_top_genes, train_fraction
        As in `SCVI`; `epochs` at most.
    device, precision, seed
        As in `SCVI`.

    Notes
    -----
    Penalties act after each step of Adam. As Adam's steps differ between weights this is not exact proximal descent.
    The published code keeps a reference to the weights of the best epoch, not a copy, and so ends with the last ones,
    as here.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> genes = adata.var_names.tolist()
    >>> sets = {"one": genes[:60], "two": genes[60:200]}
    >>> model = tf.annotate.ExpiMap(epochs=3, kl_warmup_epochs=2).fit(adata, labels="cell_type", pathways=sets)
    >>> model.scores().columns.tolist()
    ['one', 'two']

    References
    ----------
    Lotfollahi et al. (2023), doi 10.1038/s41556-022-01072-x. Linear decoder: Svensson et al. (2020), doi
    10.1093/bioinformatics/btaa169.
    """

    info = MethodInfo(
        title="expiMap",
        tasks=("annotate", "integrate"),
        family="deep",
        year=2023,
        doi="10.1038/s41556-022-01072-x",
        accepts=("labels", "reference", "batch", "pathways", "size_factor"),
        gives=("embedding", "labels", "probabilities", "pathway scores", "pathway enrichment", "held-out likelihood"),
        readiness={"annotate": "usable", "integrate": "research"},
        sees_labels=False,
        advice="To compare cells, conditions, or a query with a reference, in your pathways; not for labels alone.",
    )

    min_set_size: int = param(13, low=1)
    max_set_size: int = param(1_000_000, low=1)
    n_latent: int = param(20, low=1)
    group_lasso: float = param(0.7, low=0.0)
    penalty_weights: dict | None = None
    soft_mask: bool = False
    mask_l1: float = param(0.5, low=0.0)
    free_l1: float = param(0.7, low=0.0)
    independence: float = param(1.0, low=0.0)
    query_kl: float = param(0.1, low=0.0)
    query_epochs: int | None = param(None, low=1)
    n_neighbors: int = param(15, low=1)
    unlabeled: str = "Unknown"
    n_hidden: int | tuple[int, ...] = (256, 256, 256)  # type: ignore[assignment]
    dropout: float = param(0.05, low=0.0, high=0.99)
    likelihood: Literal["nb", "poisson"] = "nb"
    dispersion: Literal["gene", "gene-batch"] = "gene-batch"
    balance_batches: bool = True
    kl_end: float = param(0.5, low=0.0)
    kl_warmup_epochs: int | None = param(100, low=0)
    weight_decay: float = param(0.0, low=0.0)
    early_stopping: bool = True
    patience: int = param(50, low=1)

    # ---- programmes --------------------------------------------------------------------------------------------------

    def _modelled(self, data: Inputs, n_top_genes: int | None) -> np.ndarray:
        """Choose the genes and the programmes over them."""
        columns = data.variable_genes(n_top_genes)
        if self._given is None:
            names = [f"program {number + 1}" for number in range(self.n_latent)]
            mask, free = np.ones((self.n_latent, len(columns)), dtype=bool), np.zeros(self.n_latent, dtype=bool)
        else:
            names, mask, free = self._programs(self._given, data.gene_names[columns])
            used = mask.any(axis=0)
            columns, mask = columns[used], mask[:, used]
        self.programs_, self.mask_, self.free_ = np.array(names, dtype=object), mask, free
        self.sizes_ = [len(names)]
        strange = set(self.penalty_weights or {}) - set(names)
        if strange:
            raise ParameterError(
                f"penalty_weights names '{min(strange)}', which is not among the pathways that are kept."
                f"{closest(min(strange), names)}"
            )
        return columns

    def _programs(self, given: Any, genes: np.ndarray) -> Programs:
        return read_programs(given, genes, self.min_set_size, self.max_set_size)

    def _penalties(self) -> Penalties:
        from tenfold.nn.programs import Penalties

        weights = np.array([(self.penalty_weights or {}).get(name, 1.0) for name in self.programs_])
        bound = ~self.free_ & (np.arange(len(self.free_)) < self.sizes_[0])
        outside = self.mask_l1 * ~self.mask_ if self.soft_mask else 0.0
        entries = self.free_l1 * self.free_[:, None] + outside + np.zeros(self.mask_.shape)
        return Penalties(self.group_lasso * weights * bound, entries)

    # ---- network and loss --------------------------------------------------------------------------------------------

    def _build(self) -> ProgramVAE:
        from tenfold.nn.programs import ProgramDecoder, ProgramEncoder, ProgramVAE

        design = self._design
        encoder = ProgramEncoder(
            self.mask_.shape[1], self.sizes_, n_hidden=self.n_hidden, n_layers=self.n_layers, batch_norm=False,
            layer_norm=True, dropout=self.dropout, categories=design.categories, deep_covariates=False,
        )  # fmt: skip
        decoder = ProgramDecoder(
            self.mask_, self.sizes_, self._penalties(), soft=self.soft_mask, categories=design.categories,
            likelihood=self.likelihood, dispersion=self.dispersion, n_levels=len(design.batch),
            link="softplus" if design.sized else "softmax",
        )  # fmt: skip
        self._network = ProgramVAE(encoder, decoder)
        return self._network

    def _terms(self, net: Any, batch: dict[str, Any], kl_weight: float) -> dict[str, Any]:
        """Negative evidence lower bound, and the dependence of programmes that may use any gene on the others."""
        apart = np.flatnonzero(self.free_) if self.independence and len(self.free_) > 1 else []
        return net.program_terms(batch, kl_weight, apart, self.independence)

    def _phase(self, n_cells: int) -> Phase:
        from functools import partial

        from torch.optim.lr_scheduler import ReduceLROnPlateau

        from tenfold.engine import EarlyStopping, Phase

        falling = partial(ReduceLROnPlateau, factor=LR_FACTOR, patience=LR_PATIENCE, threshold=0)
        epochs = self.epochs_for(n_cells)
        return Phase(
            "train", epochs, loss=self._loss, optimizer=self._optimizer, monitor="unweighted",
            scheduler=falling if self.early_stopping else None,
            validate_every=1 if self.early_stopping else max(1, epochs // 20),
            early_stopping=EarlyStopping(self.patience) if self.early_stopping else None,
            before_epoch=lambda net, cells, progress: {"kl_weight": self._kl_weight(progress)},
        )  # fmt: skip

    def _optimizer(self, parameters: list[Parameter]) -> Optimizer:
        from tenfold.nn.proximal import ProximalAdam

        options = {"lr": self.learning_rate, "eps": 0.01, "weight_decay": self.weight_decay}
        return ProximalAdam(parameters, self._network.decoder.shrink, **options)

    def _sampling_weights(self, cells: dict[str, Any]) -> np.ndarray | None:
        return balancing_weights(cells) if self.balance_batches else None

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _take(self, data: Inputs, n_top_genes: int | None) -> dict[str, Any]:
        cells = super()._take(data, n_top_genes)
        if "label" in cells:
            self.design_["labels"], cells["label"] = known_labels(
                self.design_["labels"], self.unlabeled, cells["label"], data.roles["labels"]
            )
        return cells

    def _fit(self, data: Inputs) -> None:
        source = data if data.reference is None else on_shared_genes(data)
        self._given = source.roles.get("pathways")
        super()._fit(source)
        self._calibrate(source)
        if data.reference is not None:
            roles = {role: key for role, key in data.roles.items() if role not in ("labels", "pathways", "key_added")}
            self._learn(data.adata, roles, data.run, self.query_epochs or self.epochs_for(data.n_cells))

    def _calibrate(self, data: Inputs) -> None:
        """Note who votes, and what the votes are worth."""
        if "label" not in self.fitted_:
            self.detector_, self.calibration_ = None, Calibration.none(1)._asdict()
            return
        label = self.fitted_["label"]
        chosen, columns = (label >= 0) & ~self._held_out(label), np.flatnonzero(self.active_)
        points = np.ascontiguousarray(self.fitted_["mean"][chosen][:, columns])
        self.voters_ = {"points": points, "codes": label[chosen], "columns": columns}
        super()._calibrate(data)

    # ---- a query -----------------------------------------------------------------------------------------------------

    def _learn(self, adata: AnnData, roles: dict[str, Any], run: RunOptions, epochs: int) -> None:
        """Learn the batches of a query that are new, and programmes that are given with it."""
        given = roles.get("pathways")
        self._added = None if given is None else self._programs(given, self.genes_)
        again = [] if self._added is None else [name for name in self._added[0] if name in self.programs_]
        if again:
            raise ParameterError(f"pathways: there is a programme '{again[0]}' already; give the new one another name.")
        super()._learn(adata, {role: key for role, key in roles.items() if role != "pathways"}, run, epochs)

    def _read_query(self, adata: AnnData, roles: dict[str, Any], run: RunOptions) -> tuple[Inputs, dict[str, Any]]:
        return super()._read_query(adata, {role: key for role, key in roles.items() if role != "labels"}, run)

    def _to_train_on(self, levels: np.ndarray, known: tuple[int, ...]) -> np.ndarray:
        return super()._to_train_on(levels, known) | (self._added is not None)

    def _grow(self, net: Any) -> None:
        if self._added is None:
            return
        names, mask, free = self._added
        self.programs_ = np.append(self.programs_, np.array(names, dtype=object))
        self.mask_, self.free_ = np.concatenate([self.mask_, mask]), np.append(self.free_, free)
        self.sizes_ = [*self.sizes_, len(names)]
        net.encoder.add(len(names))
        net.decoder.add(self.mask_, self._penalties())

    def _query_optimizer(self, parameters: list[Parameter]) -> Optimizer:
        return super()._query_optimizer(parameters) if self._added is None else self._optimizer(parameters)

    def _query_terms(self, net: Any, batch: dict[str, Any]) -> dict[str, Any]:
        return self._terms(net, batch, self.query_kl)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def _scores(self, mean: np.ndarray) -> np.ndarray:
        if not hasattr(self, "voters_"):
            raise RoleError("This expiMap was fitted without labels: give labels=..., the obs column with cell types.")
        points, codes, columns = (self.voters_[name] for name in ("points", "codes", "columns"))
        queries = np.ascontiguousarray(mean[:, columns])
        shares = neighbor_shares(points, codes, len(self._design.labels), self.n_neighbors, queries)
        return smoothed(shares, min(self.n_neighbors, len(codes)))

    def _encoder_of(self, adata: AnnData) -> tuple[Any, dict[str, np.ndarray], Inputs]:
        """Return what encodes new cells: those of batches that are not known count as of an average one."""
        from tenfold.nn.surgery import with_average_level

        data = Inputs(adata, {"layer": self.roles_["layer"]} if "layer" in self.roles_ else {})
        known, key = self._design.batch, self.roles_.get("batch")
        if len(known) == 1:
            return self.net_, {}, data
        levels = np.full((data.n_cells, 1), len(known), dtype=np.int64)
        if key in adata.obs:
            levels[:, 0] = [known.index(name) if name in known else len(known) for name in adata.obs[key].astype(str)]
        return with_average_level(self.net_), {"levels": levels}, data
