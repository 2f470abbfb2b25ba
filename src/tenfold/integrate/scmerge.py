"""scMerge2: what differs between pseudo-bulks of matched clusters is unwanted, and is subtracted from every cell."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.data import anchors as shared
from tenfold.data import check, preprocess
from tenfold.data import replicates as rep
from tenfold.data.inputs import Inputs
from tenfold.data.unwanted import Factors, control_weights, replicate_factors
from tenfold.integrate._scmerge import FactorRemoval
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from scipy import sparse

    from tenfold.types import Codes

_FOLDS = 30
_SEARCH_COMPONENTS = 20  # fewer wrong matches in small batches than with 50; 15 to 30 do alike


class ScMerge(FactorRemoval):
    """Corrected log-expression without the factors in which replicates differ, and its principal components.

    Each batch is clustered on its own; clusters of different batches that are each other's nearest are taken for
    replicates of the same kind of cell. Averages of random thirtieths of each cluster (pseudo-bulks) should then
    differ by noise only within a group of replicates: the leading factors of these differences are regressed out of
    every cell, as in scMerge2's fastRUV-III. Cells are cosine-normalised first, and the result stays on that scale.

    The published method always removes 20 factors, most of which are noise: of a sample split at random only half of
    the nearest neighbours stay. Here **permutations decide**, unless ``n_factors`` is given: factors are those in which
    averages of matched clusters differ; batches are shuffled over cells, everything is repeated, and only factors
    larger than the largest of every shuffle are removed; none, if none is. ``n_factors=20`` is the published recipe.

    **Use it** where corrected expression is needed and some cell types are missing from some batches: a cluster
    without a partner adds nothing to the factors.

    **Do not use it** where several batches hold a type of their own: such types can be each other's nearest, are then
    taken for replicates, and merge (simulated: two types, each in one batch only, mixed fully). The same happens to
    batches that share no type. Read `matches_`. All genes are controls by default, so biology along the factors is
    removed as well: read `lost_variance_`. Not for tests of differential expression; corrected zeros are not zero.

    **Cost**: 13 seconds of processor time for 20,000 cells × 2,000 genes in 2 batches, 6 with ``n_factors=20``;
    memory is that of the sparse matrix and 30 × clusters × genes. `write` stores a dense layer, 4 bytes × cells ×
    genes: for large data take ``embed()`` or ``correct(genes=...)`` instead.

    **Writes** ``obsm["X_scmerge"]`` (components of the corrected variable genes) and ``layers["scmerge"]`` (all
    genes).

    Parameters
    ----------
    n_factors
        Number of factors to remove; ``None`` lets permutations decide, 20 is the published method's, 0 removes nothing.
    n_permutations
        Shuffles that decide; more are stricter. Unused where `n_factors` is given.
    pseudo_bulk
        ``"average"``: means of the normalised cells of random thirtieths of each batch. ``"divide"``: counts of random
        thirtieths of each cluster, pooled and thinned to the depth of one cell. ``"pool_divide"``: the same of cells of
        like depth. Thinned pools are as sparse as cells, so factors are noisier.
    control_genes
        Names of genes that should not vary between replicates, by which a cell's factors are measured; ``None`` for
        all.
    n_neighbors
        Of the graph of shared neighbours in which each batch is clustered.
    resolution
        Higher gives more clusters.
    n_components
        Number of components.
    n_top_genes
        Number of variable genes for clusters, matches and components. The correction itself is of all genes.
    seed
        Of clusters, folds and permutations.

    Attributes
    ----------
    matches_
        One dict a pair of matched clusters: names of the batches on the ``left`` and ``right``, number of each cluster
        (``left_cluster``) and of its cells (``left_cells``), median ``correlation`` of pseudo-bulks, and whether both
        are in the ``same_group`` of replicates.
    replicates_, batch_clusters_
        Group of replicates, and cluster within the batch (and condition), of each cell, (n_cells,), int.
    alpha_, factors_
        Effects (k, n_genes) and factors of cells (n_cells, k), float32: corrected = expression - factors × alpha.
    spread_, null_spread_
        Root mean square of pseudo-bulks along each factor; with ``n_factors=None`` that of averages of clusters, in
        units of the spread within clusters, and the largest of each shuffle, (n_permutations,).
    lost_variance_
        Share of each batch's own variance that was removed, (n_batches,).
    loadings_
        Of the components, (n_variable_genes, n_components), float32.

    Raises
    ------
    DataError
        A batch with fewer cells than `n_neighbors`, or fewer than 3 varying genes.
    KeyMissingError
        A control gene is not in the data.

    Warns
    -----
    UserWarning
        No clusters match, so nothing is corrected; fewer factors exist than `n_factors`; or a batch lost over 20 % of
        its own variance.

    Notes
    -----
    Of the reference's choices these are other ones here: exact neighbours in 20 components; edges weighted by the
    Jaccard index; groups of replicates by Louvain (the same modularity, greedily maximised there); variable genes
    ranked as by Seurat v3. As there, known types (`labels`) take the place of the clusters, and are then matched;
    conditions (``categorical_covariates``) keep their effects, as only clusters of the same condition are matched.
    ``embed(new_cells)`` and `correct_cells` apply the effects to cells that were not in the fit.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> scmerge = tf.integrate.ScMerge(n_components=30).fit(adata, batch="batch")
    >>> scmerge.embed().shape, scmerge.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 30), (700, 2))

    References
    ----------
    Lin et al. (2019), doi 10.1073/pnas.1820006116; scMerge2: Lin et al. (2023), doi 10.1038/s41467-023-39923-2.
    """

    info = MethodInfo(
        title="scMerge2",
        tasks=("integrate",),
        family="classical",
        year=2023,
        doi="10.1038/s41467-023-39923-2",
        needs=("batch",),
        accepts=("labels", "categorical_covariates"),
        gives=("embedding", "expression"),
        readiness="usable",
        advice="Corrected expression where a batch lacks some types; read the table of matched clusters.",
    )

    n_factors: int | None = param(None, low=0)
    n_permutations: int = param(5, low=1)
    pseudo_bulk: Literal["average", "divide", "pool_divide"] = "average"
    control_genes: list[str] | None = None
    n_neighbors: int = param(10, low=2)
    resolution: float = param(1.0, low=0.01)
    n_components: int = param(50, low=2)
    n_top_genes: int = param(2000, low=10, high=4000)
    seed: int = 0

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        shared.cells_of_batches(data.batch, self.n_neighbors, "scMerge2", "n_neighbors")
        self.genes_, self.controls_ = data.gene_names, check.named_columns(self.control_genes, data.gene_names)
        genes = data.variable_genes(self.n_top_genes)
        lognorm = data.lognorm[:, genes]
        shared.check_genes_vary(lognorm, "scMerge2")
        self.expression_, self._counts = self._scaled(data.lognorm), data.counts
        rng = np.random.default_rng(self.seed)
        types = None if data.labels is None else data.labels.values
        condition = _crossed(data.categorical("categorical_covariates"), data.n_cells)
        bulks, groups = self._replicates(data.batch, types, condition, lognorm, genes, rng)
        if self.n_factors is None:
            effects = self._chosen(bulks, groups, data.batch, types, condition, lognorm, genes, rng)
        else:
            effects = self._given(bulks, groups, self.n_factors)
        del self._counts
        self._remove(effects, control_weights(effects, self.controls_), genes, data.batch)

    def _replicates(
        self, batch: Codes, types: np.ndarray | None, condition: np.ndarray, lognorm: sparse.csr_matrix,
        genes: np.ndarray, rng: np.random.Generator,
    ) -> tuple[rep.PseudoBulks, np.ndarray]:  # fmt: skip
        """Return the pseudo-bulks and the group of each cluster; sets the diagnostics."""
        if types is None:
            points = [
                preprocess.pca(part, min(_SEARCH_COMPONENTS, min(part.shape) - 1)).embedding
                for part in (lognorm[batch.values == b] for b in range(len(batch.names)))
            ]
            types = self._clusters(points, batch.values)
        self.batch_clusters_ = _numbered(batch.values, types, condition)
        bulks, matches, groups, batch_of = self._matched(batch.values, self.batch_clusters_, condition, genes, rng)
        cells = np.bincount(self.batch_clusters_)
        self.matches_ = rep.matching_table(matches, groups, batch_of, cells, batch.names)
        self.replicates_ = groups[self.batch_clusters_]
        if not matches:
            warnings.warn(
                "scMerge2: no cluster of one batch is matched with a cluster of another, as every batch is a single "
                "cluster. Nothing is corrected. Raise resolution or lower n_neighbors, or use harmony.",
                stacklevel=2,
            )
        return bulks, groups

    def _clusters(self, points: list[np.ndarray], batch: np.ndarray) -> np.ndarray:
        """Cluster each batch by its own coordinates; clusters are numbered on from batch to batch."""
        clusters, start = np.empty(len(batch), dtype=np.int64), 0
        for b, own in enumerate(points):
            cells = np.flatnonzero(batch == b)
            clusters[cells] = start + rep.shared_neighbor_clusters(own, self.n_neighbors, self.resolution, self.seed)
            start = int(clusters[cells].max()) + 1
        return clusters

    def _matched(
        self, batch: np.ndarray, clusters: np.ndarray, condition: np.ndarray, genes: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[rep.PseudoBulks, list[rep.Match], np.ndarray, np.ndarray]:  # fmt: skip
        """Return pseudo-bulks, matches, the group of each cluster, and its batch."""
        if self.pseudo_bulk == "average":
            bulks = rep.pseudo_bulks(self.expression_, _numbered(batch, condition), clusters, _FOLDS, rng)
        else:
            bulks = rep.thinned_bulks(self._counts, clusters, _FOLDS, self.pseudo_bulk == "pool_divide", rng)
        batch_of, condition_of = np.empty((2, int(clusters.max()) + 1), dtype=np.int64)
        batch_of[clusters], condition_of[clusters] = batch, condition
        matches = rep.mutual_clusters(bulks, batch_of, genes, condition_of)
        return bulks, matches, rep.replicate_groups(matches, len(batch_of)), batch_of

    def _given(self, bulks: rep.PseudoBulks, groups: np.ndarray, n_factors: int) -> np.ndarray:
        """Return the effects of the first factors in which pseudo-bulks of a group differ, as the reference does."""
        found = replicate_factors(bulks.profiles, groups[bulks.cluster], np.ones(len(bulks.cluster)), n_factors)
        self.spread_, self.null_spread_ = found.spread, np.zeros(0)
        most = min(len(found.effects), len(self.controls_)) if self.matches_ else 0
        if most < n_factors and self.matches_:
            warnings.warn(
                f"scMerge2: n_factors={n_factors} is more than {len(bulks.cluster)} pseudo-bulks in "
                f"{len(np.unique(groups))} groups and {len(self.controls_)} control genes allow; {most} are removed.",
                stacklevel=2,
            )
        return found.effects[: min(most, n_factors)]

    def _chosen(
        self, bulks: rep.PseudoBulks, groups: np.ndarray, batch: Codes, types: np.ndarray | None,
        condition: np.ndarray, lognorm: sparse.csr_matrix, genes: np.ndarray, rng: np.random.Generator,
    ) -> np.ndarray:  # fmt: skip
        """Return the effects of the factors in which matched clusters differ more than those of shuffled batches."""
        found = _between_clusters(bulks, groups)
        # A shuffled batch is a sample of all cells, so components of all cells serve every one.
        points = preprocess.pca(lognorm, min(_SEARCH_COMPONENTS, min(lognorm.shape) - 1)).embedding
        largest = np.zeros(self.n_permutations)
        for i in range(self.n_permutations):
            codes = batch.values.copy()
            for level in np.unique(condition):
                codes[condition == level] = rng.permutation(codes[condition == level])
            found_types = types
            if types is None:
                found_types = self._clusters([points[codes == b] for b in range(len(batch.names))], codes)
            clusters = _numbered(codes, found_types, condition)
            shuffled, _, null_groups, _ = self._matched(codes, clusters, condition, genes, rng)
            largest[i] = _between_clusters(shuffled, null_groups).spread.max(initial=0)
        self.spread_, self.null_spread_ = found.spread, largest
        n_factors = min(int((found.spread > largest.max()).sum()), len(self.controls_)) if self.matches_ else 0
        return found.effects[:n_factors]

    def _scaled(self, lognorm: sparse.csr_matrix) -> sparse.csr_matrix:
        return shared.cosine_normalised(lognorm, np.arange(lognorm.shape[1]))


def _between_clusters(bulks: rep.PseudoBulks, groups: np.ndarray) -> Factors:
    """Return the factors in which averages of matched clusters differ; spread in units of that within clusters."""
    averages, sizes, within = rep.cluster_averages(bulks)
    found = replicate_factors(averages, groups, sizes, len(sizes))
    return found._replace(spread=found.spread / (within or 1.0))


def _numbered(*codes: np.ndarray) -> np.ndarray:
    """Number the combinations of codes that occur, (n_cells,), int64."""
    return np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].ravel()


def _crossed(covariates: list[Codes], n_cells: int) -> np.ndarray:
    """Return the combination of conditions of each cell; zeros where there are none."""
    return _numbered(*(codes.values for codes in covariates)) if covariates else np.zeros(n_cells, dtype=np.int64)
