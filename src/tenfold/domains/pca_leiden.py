"""PCA and Leiden: domains from expression alone, the row that every method with positions has to beat."""

from __future__ import annotations

import numpy as np

from tenfold.data.heads import Head
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.base import DomainMethod


class PCALeiden(DomainMethod):
    """Principal components of expression, clustered without a look at where cells lie.

    **Use it** as the baseline of every comparison of spatial domains: what a method gains over it, it gains from space.

    **Do not use it** to find domains of a tissue: it finds cell types, or mixtures of them, wherever they lie.

    **Cost**: that of a PCA and of a graph of nearest neighbours.

    **Writes** ``obsm["X_pca_leiden"]`` and ``obs["pca_leiden"]`` (clusters).

    Parameters
    ----------
    n_components
        Number of principal components.
    n_top_genes
        Variable genes; ``None`` takes all.
    n_clusters
        Number of clusters, which the resolution is searched for; ``None``: what resolution 1 gives.
    head
        Clustering of the components: ``"leiden"``, ``"kmeans"`` or ``"mclust"``.
    refinement, n_refining
        The one use of positions: ``"majority"`` gives every cell the most frequent label of so many nearest cells,
        ``"outvoted"`` changes labels that have less than half and another more than half of the votes; ``"none"``
        leaves them.
    seed
        Of the clustering.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.PCALeiden(n_clusters=4).fit(adata)
    >>> len(set(model.cluster()))
    4

    References
    ----------
    Traag, Waltman, van Eck (2019), doi 10.1038/s41598-019-41695-z.
    """

    info = MethodInfo(
        title="PCA + Leiden",
        tasks=("domains",),
        family="classical",
        year=2019,
        doi="10.1038/s41598-019-41695-z",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="usable",
        advice="Expression only: the row in every comparison that shows what positions add.",
    )

    n_components: int = param(20, low=2)
    n_top_genes: int | None = param(3000, low=10)
    head: Head = "leiden"

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        return data.pca(self.n_components, self.n_top_genes).embedding
