"""Smoothed PCA: the baseline of spatial domains that nobody prints."""

from __future__ import annotations

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.spatial import GraphKind, Positions, averaging, spatial_graph
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.base import DomainMethod


class SmoothPCA(DomainMethod):
    """Principal components averaged over the cells around each cell, then clustered.

    Nothing is trained: the components of log-expression are replaced, a few times over, by the mean of the cell and its
    spatial neighbours.

    **Use it** first, and beside every other method: it needs milliseconds, and on several annotated tissues it reaches
    what is printed for deep methods.

    **Do not use it** for domains that are small or scattered: what is thinner than the reach of the averaging is
    blurred away. And averaging alone makes domains contiguous, also where there are none. Say how many domains there
    are, if you know: in five annotated slices with 4 to 11 layers the number that other cells show again
    (``n_clusters=None``) was 2 to 4, and Leiden found 22 to 70.

    **Cost**: that of a PCA.

    **Writes** ``obsm["X_smooth_pca"]`` and ``obs["smooth_pca"]`` (domains).

    Parameters
    ----------
    n_components
        Number of principal components.
    n_rounds
        How often to average: 2 for spots that hold several cells, 5 for single cells; 0 is plain PCA.
    graph
        Neighbours in space: ``"knn"``, ``"radius"`` or ``"delaunay"``.
    n_neighbors
        Of the graph ``"knn"``.
    radius
        Of the graph ``"radius"``, in units of the distance to the nearest cell.
    n_top_genes
        Variable genes; ``None`` takes all.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the embedding: ``"kmeans"``, ``"mclust"`` or ``"leiden"``.
    refinement, n_refining
        ``"majority"`` gives every cell the most frequent label of so many nearest cells, ``"outvoted"`` changes labels
        that have less than half and another more than half of the votes; ``"none"`` leaves them.
    seed
        Of the clustering.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.SmoothPCA(n_clusters=4).fit(adata)
    >>> len(set(model.cluster()))
    4

    References
    ----------
    Hotelling (1933), doi 10.1037/h0071325.
    """

    info = MethodInfo(
        title="Smoothed PCA",
        tasks=("domains",),
        family="classical",
        year=1933,
        doi="10.1037/h0071325",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="recommended",
        advice="The baseline of spatial domains: run it first, and keep it unless another method does better.",
    )

    n_components: int = param(20, low=2)
    n_rounds: int = param(2, low=0)
    graph: GraphKind = "knn"
    n_neighbors: int = param(6, low=1)
    radius: float = param(1.5, low=0.1)
    n_top_genes: int | None = param(3000, low=10)

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        embedding = data.pca(self.n_components, self.n_top_genes).embedding
        mean = averaging(spatial_graph(positions, self.graph, self.n_neighbors, self.radius))
        for _ in range(self.n_rounds):
            embedding = mean @ embedding
        return embedding
