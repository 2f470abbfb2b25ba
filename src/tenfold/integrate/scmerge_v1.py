"""scMerge: what differs between single cells of matched clusters is unwanted, as measured by stable genes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tenfold.data import anchors as shared
from tenfold.data import check, preprocess, unwanted
from tenfold.data import replicates as rep
from tenfold.data.batches import warn_of_confounded
from tenfold.data.dispersed_genes import dispersion_test
from tenfold.data.inputs import Inputs
from tenfold.data.stable_genes import stable_genes
from tenfold.errors import ParameterError
from tenfold.integrate._scmerge import FactorRemoval
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from scipy import sparse

    from tenfold.types import Codes

_COMPONENTS = 10  # of each batch, for k-means; and of the corrected genes, for the choice of n_factors
_MOST_FACTORS = 50
_MOST_CELLS = {"correlations of a cluster": 1000, "stable genes": 1000, "silhouettes": 5000}
_FEWEST_GENES = 50


class ScMergeV1(FactorRemoval):
    """Corrected log-expression by the first scMerge: replicates are single cells, controls are stable genes.

    Each batch is clustered by k-means; clusters of different batches that are each other's nearest are taken for
    replicates of the same kind of cell. The leading factors in which replicate **cells** differ are measured in each
    cell by stably expressed genes, and regressed out of all genes (RUV-III). Known types can take the place of the
    clusters, or of the whole matching.

    **Use it** where the number of types in each batch is known, or the types themselves (`labels`), and cells that come
    later are to be corrected by the same effects: `correct_cells`, and ``embed(new_cells)``.

    **Do not use it** on a batch effect that may not be there: the given number of factors is removed in any case
    (``scmerge`` can let permutations decide). Cells of one kind differ by noise as well, so many of 20 factors are
    noise or biology within a type: of samples split at random, only 38 % and 44 % of the nearest neighbours stayed
    (recorded in the evidence; the second version's 20 factors kept 49 % and 52 %). Types that only one batch holds can
    be each other's nearest, are then taken for replicates, and merge: read `matches_`. With `labels`, the result has
    seen them. Not for tests of differential expression; corrected zeros are not zero.

    **Cost**: linear in cells. `write` stores a dense layer, 4 bytes × cells × genes: for large data take ``embed()`` or
    ``correct(genes=...)`` instead.

    **Writes** ``obsm["X_scmerge_v1"]`` (components of the corrected variable genes) and ``layers["scmerge_v1"]`` (all
    genes).

    Parameters
    ----------
    n_clusters
        Of the k-means in each batch: one number for all, or a dict by name of batch. ``None`` takes as many as the
        graph of shared neighbours has (our addition; the reference demands the numbers).
    n_factors
        Number of factors to remove; 0 removes nothing. Of a list, the one is taken at which types are apart and
        batches are not: 2ab / (a + b), where a is the rescaled silhouette of types (or of replicates) and b one less
        that of batches.
    control_genes
        Names of genes that should not vary between replicates; ``None`` takes the most stable ones of these data by
        the scSEG index.
    n_control_genes
        How many of them, at most half of those with an index.
    replicate_prop
        Share of each cluster, nearest its median, that counts as replicates.
    labels_as
        Where `labels` are given: ``"replicates"``, cells of a type are replicates in all batches and nothing is
        matched; ``"clusters"``, they are the clusters of each batch, which are then matched.
    unlabeled
        Label of cells whose type is not known: they keep the replicates that clusters and matches give them.
    n_starts
        Of k-means, each from seeds that are spread out.
    n_components
        Number of components.
    seed
        Of k-means and samples.

    Attributes
    ----------
    matches_
        One dict a pair of matched clusters, as of ``scmerge``; correlations are between cells.
    replicates_, batch_clusters_
        Group of replicates, and cluster within the batch, of each cell, (n_cells,), int; a cell that is nobody's
        replicate has a group of its own.
    alpha_, factors_
        Effects (k, n_genes) and factors of cells (n_cells, k), float32: corrected = expression - factors × alpha.
    controls_, variable_
        Columns of the control genes, and of the variable genes.
    choice_
        One dict an entry of `n_factors`: number, both silhouettes, score.
    lost_variance_
        Share of each batch's own variance that was removed, (n_batches,).
    loadings_
        Of the components, (n_variable_genes, n_components), float32.

    Raises
    ------
    DataError
        A batch with fewer than 3 cells.
    KeyMissingError
        A control gene is not in the data.
    ParameterError
        `n_clusters` does not name every batch, or is more than its cells; or partly known labels are to be clusters.

    Warns
    -----
    UserWarning
        No clusters match; a batch lost over 20 % of its own variance; fewer than 50 genes have less than 80 % zeros.

    Notes
    -----
    Wanted variation (``categorical_covariates``) splits replicates: cells of other levels are not compared. Medians of
    correlations are taken over at most 1,000 cells of a cluster, the index over 1,000 cells, silhouettes over 5,000
    cells and the variable genes. A batch with fewer than 50 significant genes takes the 50 most dispersed. Batches that
    are all a single cluster are not matched (the reference joins the two most alike of three or more).

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> scmerge = tf.integrate.ScMergeV1(n_clusters=6, n_components=30).fit(adata, batch="batch")
    >>> scmerge.embed().shape, scmerge.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 30), (700, 2))

    References
    ----------
    Lin et al. (2019), doi 10.1073/pnas.1820006116; scSEG index: Lin et al. (2019), doi 10.1093/gigascience/giz106;
    Brennecke et al. (2013), doi 10.1038/nmeth.2645.
    """

    info = MethodInfo(
        title="scMerge (first version)",
        tasks=("integrate",),
        family="classical",
        year=2019,
        doi="10.1073/pnas.1820006116",
        needs=("batch",),
        accepts=("labels", "categorical_covariates"),
        gives=("embedding", "expression"),
        readiness="caution",
        advice="Corrected expression where types per batch, or their number, are known; scmerge is safer where not.",
    )

    n_clusters: int | dict[str, int] | None = param(None, low=1)
    n_factors: int | list[int] = param(20, low=0)
    control_genes: list[str] | None = None
    n_control_genes: int = param(1000, low=1)
    replicate_prop: float = param(1.0, low=0.01, high=1.0)
    labels_as: Literal["replicates", "clusters"] = "replicates"
    unlabeled: str = "Unknown"
    n_starts: int = param(20, low=1)
    n_components: int = param(50, low=2)
    seed: int = 0

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        shared.cells_of_batches(data.batch, 3, self.info.title)
        self.genes_, self.expression_ = data.gene_names, data.lognorm
        variable = self._variable_genes(data.counts, data.batch)
        shared.check_genes_vary(self.expression_[:, variable], self.info.title)
        self.replicates_ = self._groups(data, data.batch, variable)
        self.controls_ = self._controls(data)
        deviation = unwanted.pooled_deviation(self.expression_, data.batch.values)
        scaled = unwanted.scaled_columns(self.expression_, 1 / deviation)
        most = min(_MOST_FACTORS, len(self.controls_))
        effects = unwanted.cell_replicate_factors(scaled, self.replicates_, most).effects
        n_factors = self._number(scaled, effects, data, data.batch, variable)
        effects = effects[:n_factors]
        weights = unwanted.control_weights(effects, self.controls_) / deviation[:, None]
        self._remove(effects * deviation, weights, variable, data.batch)

    def _scaled(self, lognorm: sparse.csr_matrix) -> sparse.csr_matrix:
        return lognorm

    # ---- genes -------------------------------------------------------------------------------------------------------

    def _variable_genes(self, counts: sparse.csr_matrix, batch: Codes) -> np.ndarray:
        """Set the variable genes of each batch, and return those of any."""
        self.batch_genes_ = []
        for b in range(len(batch.names)):
            found = dispersion_test(counts[batch.values == b])
            first = np.argsort(-found.ratio, kind="stable")[:_FEWEST_GENES]
            few = found.significant.sum() < _FEWEST_GENES
            self.batch_genes_.append(np.sort(first) if few else np.flatnonzero(found.significant))
        return np.unique(np.concatenate(self.batch_genes_))

    def _controls(self, data: Inputs) -> np.ndarray:
        if self.control_genes is not None:
            return check.named_columns(self.control_genes, data.gene_names)
        labels = None if data.labels is None else data.labels.values
        index = stable_genes(data.lognorm, labels, _MOST_CELLS["stable genes"], self.seed).score
        known = np.flatnonzero(np.isfinite(index))
        if len(known) < _FEWEST_GENES:
            warnings.warn(
                f"scMerge: only {len(known)} genes have less than 80 % zeros, too few to choose stable ones from; all "
                f"{len(index):,} genes are controls, so that biology along the factors is removed as well. Give "
                "control_genes, or use deeper data.",
                stacklevel=2,
            )
            return np.arange(len(index))
        most = min(self.n_control_genes, len(known) // 2)
        return np.sort(known[np.argsort(-index[known], kind="stable")[:most]])

    # ---- replicates --------------------------------------------------------------------------------------------------

    def _groups(self, data: Inputs, batch: Codes, variable: np.ndarray) -> np.ndarray:
        """Return the group of replicates of each cell."""
        labels, known = data.labels, np.zeros(data.n_cells, dtype=bool)
        if labels is not None:
            known = np.array([name != self.unlabeled for name in labels.names])[labels.values]
            warn_of_confounded(np.where(known, labels.values, -1), batch.values)
        if labels is not None and self.labels_as == "replicates" and known.all():
            self.matches_, self.batch_clusters_ = [], labels.values.astype(np.int64)
            groups, near = labels.values, rep.central(self.expression_, labels.values, self.replicate_prop)
        else:
            groups, near = self._matched(data, batch, variable, known)
            if labels is not None and self.labels_as == "replicates":
                groups = np.where(known, groups.max() + 1 + labels.values, groups)
                near |= known
        for wanted in data.categorical("categorical_covariates"):
            groups = groups * len(wanted.names) + wanted.values
        groups = np.where(near, groups, groups.max() + 1 + np.arange(len(groups)))
        return np.unique(groups, return_inverse=True)[1]

    def _matched(
        self, data: Inputs, batch: Codes, variable: np.ndarray, known: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return groups by mutual nearest clusters, and which cells are near enough to their cluster's median."""
        near, clusters, start = np.zeros(data.n_cells, dtype=bool), np.empty(data.n_cells, dtype=np.int64), 0
        for b, name in enumerate(batch.names):
            cells = np.flatnonzero(batch.values == b)
            own = self.expression_[cells][:, self.batch_genes_[b]]
            if data.labels is not None and self.labels_as == "clusters":
                if not known.all():
                    raise ParameterError(
                        f"scMerge: labels_as='clusters' needs the type of every cell, and some are "
                        f"'{self.unlabeled}'. Use labels_as='replicates', or leave these cells out."
                    )
                found = np.unique(data.labels.values[cells], return_inverse=True)[1]
            else:
                found = self._k_means(own, name)
            near[cells] = rep.central(own, found, self.replicate_prop)
            clusters[cells] = start + found
            start = int(clusters[cells].max()) + 1
        self.batch_clusters_, batch_of = clusters, np.empty(start, dtype=np.int64)
        batch_of[clusters] = batch.values
        cells = rep.sampled(clusters, _MOST_CELLS["correlations of a cluster"], np.random.default_rng(self.seed))
        profiles = rep.PseudoBulks(self.expression_[cells][:, variable].toarray(), clusters[cells])
        matches = rep.mutual_clusters(profiles, batch_of, np.arange(len(variable)))
        groups = rep.replicate_groups(matches, start)
        self.matches_ = rep.matching_table(matches, groups, batch_of, np.bincount(clusters), batch.names)
        if not matches:
            warnings.warn(
                "scMerge: no cluster of one batch is matched with a cluster of another, as every batch is a single "
                "cluster: only differences within clusters are removed. Raise n_clusters, or use harmony.",
                stacklevel=2,
            )
        return groups[clusters], near

    def _k_means(self, own: sparse.csr_matrix, name: str) -> np.ndarray:
        """Cluster one batch on components of its standardised variable genes."""
        from sklearn.cluster import KMeans

        deviation = unwanted.pooled_deviation(own, np.zeros(own.shape[0], dtype=np.int64))
        scaled = unwanted.scaled_columns(own, 1 / deviation)
        points = preprocess.pca(scaled, min(_COMPONENTS, min(own.shape) - 1), self.seed).embedding
        n_clusters = self.n_clusters
        if isinstance(n_clusters, dict):
            n_clusters = n_clusters.get(name, 0)
        if n_clusters is None:
            n_clusters = int(rep.shared_neighbor_clusters(points, 10, 1.0, self.seed).max()) + 1
        if not 1 <= n_clusters <= len(points):
            raise ParameterError(
                f"scMerge: n_clusters of batch '{name}' is {n_clusters}; it must be a number from 1 to its "
                f"{len(points):,} cells. A dict must name every batch."
            )
        return KMeans(n_clusters, n_init=self.n_starts, random_state=self.seed).fit_predict(points).astype(np.int64)

    # ---- number of factors -------------------------------------------------------------------------------------------

    def _number(
        self, scaled: sparse.csr_matrix, effects: np.ndarray, data: Inputs, batch: Codes, variable: np.ndarray
    ) -> int:
        """Return how many factors to remove; of several numbers the one with the highest score."""
        self.choice_: list[dict[str, Any]] = []
        if isinstance(self.n_factors, int):
            return min(self.n_factors, len(effects))
        from tenfold.metrics.silhouettes import silhouette_samples

        types = self.replicates_ if data.labels is None else data.labels.values
        cells = rep.sampled(
            np.zeros(data.n_cells, dtype=np.int64), _MOST_CELLS["silhouettes"], np.random.default_rng(self.seed)
        )
        mean = np.asarray(scaled.mean(axis=0, dtype=np.float64)).ravel()
        for n_factors in self.n_factors:
            alpha = effects[:n_factors]
            factors = unwanted.cell_factors(scaled, mean, alpha, self.controls_)
            points = unwanted.standard_components(scaled[:, variable], factors, alpha[:, variable], _COMPONENTS)[cells]
            of_types, of_batches = (
                float(silhouette_samples(points, codes[cells]).mean()) for codes in (types, batch.values)
            )
            a, b = (of_types + 1) / 2, 1 - (of_batches + 1) / 2
            self.choice_.append({
                "n_factors": n_factors, "silhouette_types": of_types, "silhouette_batches": of_batches,
                "score": 2 * a * b / (a + b),
            })  # fmt: skip
        best = max(self.choice_, key=lambda choice: choice["score"])
        return min(best["n_factors"], len(effects))
