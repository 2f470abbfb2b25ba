"""ComBat: every gene's mean and variance per batch removed, with estimates that borrow strength across genes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

from tenfold.data import check
from tenfold.data.inputs import Inputs
from tenfold.data.linear import GeneModel, batch_moments, fit_genes
from tenfold.errors import DataError, ParameterError, closest
from tenfold.method import Corrector, FixedEmbedder, Method, MethodInfo, param

if TYPE_CHECKING:
    from scipy import sparse

    from tenfold.types import Codes

_TOLERANCE = 1e-4  # largest relative change at which the shrinkage ends; part of the definition, as is its form
_MOST_STEPS = 1000
_CHUNK = 2048


class ComBat(Method, FixedEmbedder, Corrector):
    """Corrected log-expression by an empirical-Bayes model of location and scale, and its principal components.

    Each gene is modelled as mean + covariate effects + batch offset + noise with a variance of its own in each batch;
    offsets and variances are shrunk towards their average over genes, then removed. Everything is estimated from sums
    over the non-zero entries of the sparse matrix; the correction is kept as a slope and an intercept per gene and
    batch, and expanded in blocks: for the components, or when `correct` is called. The values equal those of
    ``scanpy.pp.combat`` on the same log-normalised matrix.

    **Use it** where corrected expression is needed, or as the linear yardstick that other methods must beat. Give the
    biology that differs between batches as ``categorical_covariates`` or ``continuous_covariates``, and it is kept.

    **Do not use it** where batches hold different cell types or proportions and these are not given as covariates:
    it makes the mean of every gene equal in all batches, so it removes that biology. In Antonsson & Melsted (2025) it
    left detectable artefacts on batches that differ in nothing. Corrected zeros are no longer zero.

    **Cost**: a second of processor time for 20,000 cells × 2,000 genes, most of it for the components; linear in
    non-zero entries. `write` stores a dense layer, 4 bytes × cells × genes: for large data take ``embed()`` or
    ``correct(genes=...)`` instead.

    **Writes** ``obsm["X_combat"]`` (components of the corrected variable genes) and ``layers["combat"]`` (all genes).

    Parameters
    ----------
    n_components
        Number of components.
    n_top_genes
        Number of variable genes that the components are taken from. The correction itself is of all genes.
    mean_only
        Correct offsets only and leave the variances of the batches as they are. Offsets are shrunk as those of means
        of n cells; the R package sva shrinks them as if n were 1, and so corrects less.
    reference_batch
        Level of ``batch`` whose cells stay as they are, and to which the others are fitted.

    Attributes
    ----------
    slope_, intercept_
        Correction of each gene in each batch, (n_batches, n_genes), float64: corrected = slope × x + intercept +
        (1 - slope) × covariates × effects.
    effects_
        Effects of the covariates, (n_covariate_columns, n_genes), float64.
    loadings_
        Of the components, (n_variable_genes, n_components), float32.

    Raises
    ------
    DataError
        A covariate is confounded with the batch, or no gene varies.
    ParameterError
        `reference_batch` is not a batch.

    Warns
    -----
    UserWarning
        A batch of a single cell has no variance: offsets alone are corrected (`mean_only`).

    Notes
    -----
    Genes that are constant in the whole data are left out and stay as they are. A gene that is constant within a batch
    takes part: its variance there is the shrunken one, and its cells there get the gene's mean.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> combat = tf.integrate.ComBat(n_components=30).fit(adata, batch="batch")
    >>> combat.embed().shape, combat.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 30), (700, 2))

    References
    ----------
    Johnson, Li, Rabinovic (2007), doi 10.1093/biostatistics/kxj037; the sparse form is that of SCEMENT (2025).
    Antonsson, Melsted (2025), Genome Research 35:1832 (calibration).
    """

    info = MethodInfo(
        title="ComBat",
        tasks=("integrate",),
        family="classical",
        year=2007,
        doi="10.1093/biostatistics/kxj037",
        needs=("batch",),
        accepts=("categorical_covariates", "continuous_covariates"),
        gives=("embedding", "expression"),
        stochastic=False,
        readiness="caution",
        advice="A fast linear correction; it removes biology that differs between batches unless given as covariate.",
    )

    n_components: int = param(50, low=2)
    n_top_genes: int = param(2000, low=10, high=4000)
    mean_only: bool = False
    reference_batch: str | None = None

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        sizes = np.bincount(data.batch.values)
        mean_only = self.mean_only or _single_cells(sizes, data.batch.names)
        reference = self._reference(data.batch.names)
        self.batch_, self.covariates_ = data.batch.values, _covariates(data, data.batch)
        self.expression_, self.genes_ = data.lognorm, data.gene_names
        sums = batch_moments(self.expression_, self.batch_, self.covariates_)
        shape = (len(sizes), data.n_genes)
        self.slope_, self.intercept_ = np.ones(shape), np.zeros(shape)
        self.effects_ = np.zeros((self.covariates_.shape[1], data.n_genes))
        model = fit_genes(sums, reference)
        varying = model.variance > 1e-10 * np.maximum(sums.squares.sum(axis=0) / len(self.batch_), 1e-30)
        if not varying.any():
            raise DataError("No gene varies beyond its batch and covariates: there is nothing for ComBat to correct.")
        model = GeneModel(*(values[..., varying] for values in model))
        for b, n in enumerate(sizes):
            if b == reference:
                continue
            offset, scale = shrink(model.offsets[b], model.scales[b], n, mean_only)
            slope = 1 / np.sqrt(scale)
            self.slope_[b, varying] = slope
            self.intercept_[b, varying] = model.mean * (1 - slope) - slope * np.sqrt(model.variance) * offset
        self.effects_[:, varying] = model.effects
        self._components(data.variable_genes(self.n_top_genes))

    def _reference(self, names: list[str]) -> int | None:
        if self.reference_batch is not None and self.reference_batch not in names:
            raise ParameterError(
                f"ComBat: reference_batch='{self.reference_batch}' is not a batch."
                f"{closest(self.reference_batch, names)} Batches are: {', '.join(names)}."
            )
        return None if self.reference_batch is None else names.index(self.reference_batch)

    def _expand(self, matrix: sparse.csr_matrix, cells: slice, genes: np.ndarray) -> np.ndarray:
        """Return corrected expression of some cells, dense, float64; `matrix` holds the columns `genes`."""
        batch, block = self.batch_[cells], matrix[cells]
        slope = self.slope_[:, genes]
        corrected = self.intercept_[:, genes][batch]
        rows = np.repeat(np.arange(len(batch)), np.diff(block.indptr))
        corrected[rows, block.indices] += slope[batch[rows], block.indices] * block.data
        if self.covariates_.shape[1]:
            corrected += (1 - slope)[batch] * (self.covariates_[cells] @ self.effects_[:, genes])
        return corrected

    def _components(self, genes: np.ndarray) -> None:
        """Principal components of the corrected genes, from their covariance, which is summed over blocks of cells."""
        n_cells = len(self.batch_)
        n_components = min(self.n_components, n_cells - 1, len(genes))
        matrix = self.expression_[:, genes]
        blocks = [slice(start, start + _CHUNK) for start in range(0, n_cells, _CHUNK)]
        mean = sum(self._expand(matrix, cells, genes).sum(axis=0) for cells in blocks) / n_cells
        scatter = np.zeros((len(genes), len(genes)))
        for cells in blocks:
            centred = (self._expand(matrix, cells, genes) - mean).astype(np.float32)  # nothing large cancels any more
            scatter += centred.T @ centred
        last = len(genes) - 1
        _, vectors = linalg.eigh(scatter, subset_by_index=(last - n_components + 1, last), overwrite_a=True)
        vectors = vectors[:, ::-1]
        largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(n_components)]
        self.loadings_ = (vectors * np.where(largest < 0, -1.0, 1.0)).astype(np.float32)
        parts = [(self._expand(matrix, cells, genes) - mean).astype(np.float32) @ self.loadings_ for cells in blocks]
        self.embedding_ = np.concatenate(parts)

    def _corrected(self, columns: np.ndarray) -> np.ndarray:
        matrix = self.expression_[:, columns]
        corrected = np.empty((len(self.batch_), len(columns)), dtype=np.float32)
        for start in range(0, len(corrected), _CHUNK):
            corrected[start : start + _CHUNK] = self._expand(matrix, slice(start, start + _CHUNK), columns)
        return corrected


def shrink(offset: np.ndarray, scale: np.ndarray, n: int, mean_only: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the posterior offset and variance of every gene in a batch of `n` cells; with `mean_only` variance 1.

    The squared distance to a new offset follows from the moments: sum (z - g)² = (n - 1) scale + n (offset - g)².
    """
    prior_mean, prior_variance = offset.mean(), offset.var()
    if mean_only:
        return (prior_variance * n * offset + prior_mean) / (prior_variance * n + 1), np.ones_like(scale)
    m, v = scale.mean(), max(scale.var(ddof=1) if len(scale) > 1 else 0.0, 1e-12)
    shape, rate = 2 + m**2 / v, m + m**3 / v
    g, d = offset, scale
    for _ in range(_MOST_STEPS):
        new_g = (prior_variance * n * offset + d * prior_mean) / np.maximum(prior_variance * n + d, 1e-300)
        new_d = (0.5 * ((n - 1) * scale + n * (offset - new_g) ** 2) + rate) / (n / 2 + shape - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Dividing by the signed offset is the reference's rule; another rule ends at another step.
            change = np.concatenate([np.abs(new_g - g) / g, np.abs(new_d - d) / d])
        g, d = new_g, new_d
        if not (change > _TOLERANCE).any():
            break
    return g, np.maximum(d, 1e-12)


def _covariates(data: Inputs, batch: Codes) -> np.ndarray:
    """Return centred covariate columns, (n_cells, q), or refuse a covariate that the batch (or another) determines."""
    design = np.eye(len(batch.names))[batch.values]
    for role, numeric in (("categorical_covariates", False), ("continuous_covariates", True)):
        named = data.roles.get(role, [])
        for key in [named] if isinstance(named, str) else named:
            if numeric:
                columns = check.numeric_column(data.adata, key, role)[:, None].astype(np.float64)
            else:
                codes = check.categories(data.adata, key, role)
                columns = np.eye(len(codes.names))[codes.values][:, 1:]
            columns = columns - columns.mean(axis=0)
            columns = columns / np.maximum(columns.std(axis=0), 1e-12)
            wider = np.column_stack([design, columns])
            if np.linalg.matrix_rank(wider.T @ wider, tol=1e-8 * len(wider), hermitian=True) < wider.shape[1]:
                raise DataError(
                    f"Covariate '{key}' cannot be told apart from the batch '{data.roles['batch']}' (or from another "
                    "covariate): at least one of its levels follows from them. ComBat would remove or keep both "
                    f"together. Leave '{key}' out, or compare only batches that hold several of its levels: "
                    f"pd.crosstab(adata.obs['{data.roles['batch']}'], adata.obs['{key}']) shows which."
                )
            design = wider
    return design[:, len(batch.names) :]


def _single_cells(sizes: np.ndarray, names: list[str]) -> bool:
    single = [name for name, size in zip(names, sizes, strict=True) if size == 1]
    if single:
        warnings.warn(
            f"ComBat: {len(single)} batches have a single cell (e.g. '{single[0]}') and so no variance. Only offsets "
            "are corrected (mean_only=True). Merge such batches with a similar one, or leave them out.",
            stacklevel=2,
        )
    return bool(single)
