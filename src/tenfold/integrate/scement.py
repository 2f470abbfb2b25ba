"""SCEMENT: ComBat's linear model on sparse matrices, of the genes that every batch has measured."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.errors import DataError
from tenfold.integrate.combat import ComBat
from tenfold.method import MethodInfo

if TYPE_CHECKING:
    from tenfold.data.linear import Moments


class SCEMENT(ComBat):
    """ComBat for large data whose batches measured different genes; expression stays sparse until it is asked for.

    The model, its estimates and its options are those of ``combat``: on genes that every batch has, the values are the
    same to rounding. A gene without a single count in some batch was probably not measured there; it takes no part
    and stays as it is, unless ``gene_set="union"``.

    **Use it** as ``combat``, on data put together from studies with different gene lists, and on many cells: fit and
    components are made of sparse products; cells × genes are dense in blocks of 2,048 cells at most.

    **Do not use it** where batches hold different cell types or proportions and these are not given as covariates:
    like ComBat it makes the mean of every gene equal in all batches, so it removes that biology. A marker gene of a
    type that one batch lacks may have no count there and then stays uncorrected. Statistically it is nothing new.

    **Cost**: linear in cells; the fit itself in non-zero entries. `write` stores a dense
    layer, 4 bytes × cells × genes: for large data take ``embed()`` or ``correct(genes=...)`` instead.

    **Writes** ``obsm["X_scement"]`` (components of the corrected variable genes) and ``layers["scement"]`` (all
    genes).

    Parameters
    ----------
    gene_set
        ``"intersection"``: genes with counts in every batch. ``"union"``: all genes; the zeros of a batch that did
        not measure a gene are taken for measurements, and the difference that they make for a batch effect.
    n_components
        Number of components.
    n_top_genes
        Number of variable genes, of those that take part, that the components are taken from.
    prior, mean_only, reference_batch
        As of ``combat``.

    Attributes
    ----------
    included_
        Whether each gene takes part, (n_genes,), bool.
    slope_, intercept_, effects_, loadings_
        As of ``combat``; 1 and 0 for a gene that takes no part.

    Raises
    ------
    DataError
        A covariate is confounded with the batch, or hardly any gene has counts in every batch.
    ParameterError
        `reference_batch` is not a batch.

    Warns
    -----
    UserWarning
        With ``"union"``, genes have no counts in some batch; a batch of a single cell.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> scement = tf.integrate.SCEMENT(n_components=30).fit(adata, batch="batch")
    >>> scement.embed().shape, scement.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 30), (700, 2))

    References
    ----------
    Chockalingam, Aluru, Aluru (2025), doi 10.1093/bioinformatics/btaf057; Johnson, Li, Rabinovic (2007),
    doi 10.1093/biostatistics/kxj037.
    """

    info = MethodInfo(
        title="SCEMENT",
        tasks=("integrate",),
        family="classical",
        year=2025,
        doi="10.1093/bioinformatics/btaf057",
        needs=("batch",),
        accepts=("categorical_covariates", "continuous_covariates"),
        gives=("embedding", "expression"),
        stochastic=False,
        readiness="caution",
        advice="ComBat for large data and unequal gene lists; removes biology unless it is given as covariate.",
    )

    gene_set: Literal["intersection", "union"] = "intersection"

    def _included(self, sums: Moments) -> np.ndarray:
        everywhere = (sums.products[:, 0] > 0).all(axis=0)
        anywhere = (sums.products[:, 0] > 0).any(axis=0)
        apart = int((anywhere & ~everywhere).sum())
        self.included_ = everywhere if self.gene_set == "intersection" else np.ones_like(everywhere)
        if self.gene_set == "union" and apart:
            warnings.warn(
                f"SCEMENT: {apart:,} of {int(anywhere.sum()):,} genes have no count in some batch. If they were not "
                "measured there, their zeros make a batch effect that is none, in the corrected values and in the "
                "components. Use gene_set='intersection' unless all batches measured the same genes.",
                stacklevel=2,
            )
        if self.included_.sum() < 3:
            raise DataError(
                f"SCEMENT: only {int(self.included_.sum())} of {len(everywhere):,} genes have counts in every batch, "
                "too few to correct. Are names of genes written alike in all batches (symbols or Ensembl ids)? A batch "
                "of very few cells also empties the intersection: leave it out."
            )
        return self.included_
