"""stLearn: expression smoothed over the neighbours that look alike in the tissue and express alike."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import pca, unit_variance
from tenfold.data.similar_cells import similar_cells
from tenfold.data.spatial import Positions, spatial_graph
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.base import DomainMethod
from tenfold.spatial_models.pictures import Histology, seen


class StLearn(DomainMethod):
    """Components of expression after SME: smoothing by space, morphology and expression.

    The weight of two spots within reach is the cosine of what the picture shows around them times the correlation of
    their expression. Every spot is averaged over the spots of the largest weights, itself among them, and the mean of
    that and its own expression is kept, scaled, reduced to components and clustered. Nothing is trained, and nothing
    but the smoothing knows of space.

    **Use it** for spots with a stained picture in good resolution, beside `SmoothPCA`.

    **Do not use it** to find domains that smoothing must bring out: a spot counts for well over half of its own
    average, so that domains are hardly smoother than those of plain components. Do not take it that the picture helps:
    in a breast tumour it was above `SmoothPCA`, but the nearest spots alone (``weights="space"``) did as well, and
    predicted held-out counts better than any choice by picture or expression.

    **Cost**: linear in edges; the original makes three matrices of cells × cells.

    **Writes** ``obsm["X_stlearn"]`` (components) and ``obs["stlearn"]`` (domains).

    Parameters
    ----------
    n_components
        Principal components after smoothing.
    n_similar
        Spots of largest weight that are averaged, the spot itself among them.
    reach
        Of neighbours, in units of the distance to the nearest cell.
    n_similarity
        Components of expression whose correlation weighs.
    weights
        ``"all"``; ``"space_expression"`` or ``"space_morphology"`` leave a part out; ``"space"`` weighs all equal and
        takes the nearest.
    histology
        ``"yes"`` needs a picture in ``uns["spatial"]``, ``"auto"`` takes one where there is one, ``"no"`` never.
    network, network_weights
        Network of timm, and the file of its weights, for what the picture shows; ``None`` for stains, histograms and
        texture in squares of one, two and four spots.
    n_top_genes
        Variable genes; ``None`` takes all, as the original does.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the components: ``"kmeans"``, ``"mclust"`` or ``"leiden"``.
    refinement, n_refining
        ``"majority"`` gives every cell the most frequent label of so many nearest cells, ``"outvoted"`` changes labels
        that have less than half and another more than half of the votes; ``"none"`` leaves them.
    seed
        Of the clustering.

    Notes
    -----
    The original finds the pitch of the array by two regressions that share one object, which makes its reach on Visium
    0.7 of what is written; here it is as written. Negative correlations weigh nothing. Its picture features are those
    of a network trained on photographs, which it downloads; give ``network="resnet50"`` and its weights for them.
    Domains are not cut into their separate pieces.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.StLearn(n_clusters=4, histology="no").fit(adata)
    >>> model.embed().shape[1]
    15

    References
    ----------
    Pham et al. (2023), doi 10.1038/s41467-023-43120-6.
    """

    info = MethodInfo(
        title="stLearn",
        tasks=("domains",),
        family="classical",
        year=2023,
        doi="10.1038/s41467-023-43120-6",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="caution",
        advice="Spots with a picture in good resolution; beside smooth_pca.",
    )

    n_components: int = param(15, low=2)
    n_similar: int = param(3, low=1)
    reach: float = param(3.0, low=0.5)
    n_similarity: int = param(50, low=2)
    weights: Literal["all", "space_expression", "space_morphology", "space"] = "all"
    histology: Histology = "auto"
    network: str | None = None
    network_weights: str | None = None
    n_top_genes: int | None = param(None, low=10)

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        columns = data.variable_genes(self.n_top_genes)
        expression = data.lognorm[:, columns]
        picture = None
        if self.weights in ("all", "space_morphology"):
            without = "neighbours are weighed without it"
            picture = seen(data, positions, self.histology, self.network, self.network_weights, without)
        self.saw_picture_ = picture is not None
        similar = None
        if self.weights in ("all", "space_expression"):
            similar = pca(expression, min(self.n_similarity, min(expression.shape) - 1), self.seed).embedding
        near = spatial_graph(positions, "radius", radius=self.reach)
        smooth = sparse.csr_matrix(smoother(near, positions.points, picture, similar, self.n_similar) @ expression)
        return pca(unit_variance(smooth), self.n_components, self.seed).embedding


def smoother(
    near: sparse.csr_matrix, points: np.ndarray, picture: np.ndarray | None, expression: np.ndarray | None,
    n_similar: int,
) -> sparse.csr_matrix:  # fmt: skip
    """Return the matrix that replaces each cell by the mean of itself and the average over the most similar cells.

    Parameters
    ----------
    near
        Cells within reach, without the cells themselves.
    points
        Positions, which decide between equal weights.
    picture, expression
        Components whose cosine and correlation, where positive, are multiplied; None leaves a factor out.
    n_similar
        Cells that are averaged, each cell itself, of weight 1, among them.

    Returns
    -------
    Rows sum to 1, shape (n_cells, n_cells), float32.
    """
    n = near.shape[0]
    others = similar_cells(near, points, ((picture, False), (expression, True)), n_similar - 1)
    total = 1 + np.asarray(others.sum(axis=1)).ravel()
    identity = sparse.identity(n, format="csr")
    average = sparse.diags_array(1 / total) @ (others + identity)
    return sparse.csr_matrix((average + identity) / 2, dtype=np.float32)
