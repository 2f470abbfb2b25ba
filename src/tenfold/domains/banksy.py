"""BANKSY: expression beside the mean and the gradient of expression around each cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from tenfold.data.heads import Head
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions, nearest_cells
from tenfold.kernels.sparse_linear import csr_product
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.base import DomainMethod


class BANKSY(DomainMethod):
    """Principal components of expression together with that of the surroundings.

    Three matrices, each standardised by gene, lie side by side: log-expression of the cell, its mean over the
    cells around, and the size of its gradient there (azimuthal Gabor filter: the sum over neighbours of weight times
    deviation from their mean, with the direction to the neighbour as a complex phase). ``mixing`` is the share of the
    surroundings in the variance: small values keep cell types apart, large ones find domains.

    **Use it** for single cells where domains differ in composition, and with small ``mixing`` for cell types that are
    told apart by where they lie. It is closed form and needs seconds.

    **Do not use it** without looking at several values of ``mixing``: it changes conclusions more than anything else.
    Nor where the head was not looked at: in two annotated sections of mouse cortex, at 0.8, it was above `SmoothPCA`
    (2 rounds) in both with ``head="mclust"`` for both methods, in one with k-means; with Leiden, in neither.

    **Cost**: three dense matrices of cells × variable genes.

    **Writes** ``obsm["X_banksy"]`` (components) and ``obs["banksy"]`` (domains).

    Parameters
    ----------
    mixing
        Share λ of the surroundings: 0.2 for cell types (and, in the authors' hands, for Visium), 0.8 for domains.
    n_neighbors
        Cells around for the mean; the gradient takes twice as many.
    n_components
        Components that are kept and clustered.
    n_top_genes
        Variable genes; ``None`` takes all.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the embedding: ``"leiden"``, ``"mclust"`` or ``"kmeans"``.
    refinement, n_refining
        ``"majority"`` gives every cell the most frequent label of so many nearest cells, ``"outvoted"`` changes labels
        that have less than half and another more than half of the votes; ``"none"`` leaves them.
    seed
        Of the decomposition and the clustering.

    Notes
    -----
    Directions are those in the plane of the first two coordinates. The gradient is of deviations from the mean of the
    neighbours, as in the paper and the R package; the entry point of pybanksy 1.3.5 leaves the mean in. Sections do not
    share neighbours; batches are not corrected: give ``obsm["X_banksy"]`` to `Harmony` as ``use_rep`` where they should
    be.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.BANKSY(n_clusters=4, n_top_genes=500).fit(adata)
    >>> model.embed().shape[1]
    20

    References
    ----------
    Singhal et al. (2024), doi 10.1038/s41588-024-01664-3.
    """

    info = MethodInfo(
        title="BANKSY",
        tasks=("domains",),
        family="classical",
        year=2024,
        doi="10.1038/s41588-024-01664-3",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="usable",
        advice="Cell types and domains from the cell and its surroundings, over several values of mixing.",
    )

    mixing: float = param(0.8, low=0.0, high=1.0)
    n_neighbors: int = param(15, low=1)
    n_components: int = param(20, low=2)
    n_top_genes: int | None = param(2000, low=10)
    head: Head = "leiden"

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        expression = data.lognorm[:, data.variable_genes(self.n_top_genes)]
        features = augmented(expression, positions, self.n_neighbors, self.mixing)
        return leading(features, min(self.n_components, min(features.shape) - 1), self.seed)


def leading(features: np.ndarray, n_components: int, seed: int = 0) -> np.ndarray:
    """Return principal components of standardised features, shape (n_cells, n_components)."""
    from sklearn.utils.extmath import randomized_svd

    # The last components of few genes differ little in size: without many more directions they would be blends.
    left, values, _ = randomized_svd(features, n_components, n_oversamples=40, n_iter=10, random_state=seed)
    return left * values


def augmented(expression: sparse.csr_matrix, positions: Positions, n_neighbors: int, mixing: float) -> np.ndarray:
    """Return expression, its mean around and its gradient side by side, standardised, (n_cells, 3 × n_genes)."""
    around = surroundings(positions, n_neighbors)
    dense = expression.toarray()
    gradient = np.hypot(csr_product(around.east, dense), csr_product(around.north, dense))
    parts = (dense, csr_product(around.mean, dense), gradient)
    shares = (1 - mixing, mixing * 2 / 3, mixing / 3)
    scaled = [standardised(part) * np.float32(share**0.5) for part, share in zip(parts, shares, strict=True)]
    return np.concatenate(scaled, axis=1)


class Surroundings(NamedTuple):
    """Matrices of cells × cells that make features of the surroundings out of expression.

    Attributes
    ----------
    mean
        Weighted mean over the neighbours.
    east, north
        The two parts of the gradient.
    """

    mean: sparse.csr_matrix
    east: sparse.csr_matrix
    north: sparse.csr_matrix


def surroundings(positions: Positions, n_neighbors: int) -> Surroundings:
    """Return the mean over `n_neighbors`, and the gradient over twice as many, within sections.

    A neighbour at distance d weighs exp(-(d / median)²) by the median distance of the cell's neighbours, weights sum to
    1. The gradient's deviations are from the plain mean of the neighbours.
    """
    n = len(positions.points)
    rows, columns, values = [], [], []  # of mean, east, north
    for cells in positions.each():
        for kind, k in ((0, n_neighbors), (1, 2 * n_neighbors)):
            k = min(k, len(cells) - 1)
            if k < 1:
                continue
            points = positions.points[cells]
            near, distance = nearest_cells(points, k)
            middle = np.median(distance, axis=1, keepdims=True)
            weights = np.exp(-((distance / np.where(middle > 0, middle, 1)) ** 2))
            weights /= weights.sum(axis=1, keepdims=True)
            step = points[near] - points[:, None]
            angle = np.arctan2(step[..., 1], step[..., 0])
            parts = [weights] if kind == 0 else [weights * np.cos(angle), weights * np.sin(angle)]
            if kind:
                parts = [part - part.sum(axis=1, keepdims=True) / k for part in parts]
            for part in parts:
                values.append(part.ravel())
                rows.append(np.repeat(cells, k))
                columns.append(cells[near].ravel())
    built = []
    for first in range(3):
        which = slice(first, None, 3)
        at = (np.concatenate(rows[which]), np.concatenate(columns[which]))
        built.append(sparse.csr_matrix((np.concatenate(values[which]).astype(np.float32), at), shape=(n, n)))
    return Surroundings(*built)


def standardised(features: np.ndarray) -> np.ndarray:
    """Return features with mean 0 and variance 1; constant ones become 0."""
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = np.sqrt(np.square(centred).mean(axis=0, dtype=np.float64))
    return centred / np.where(deviation > 1e-6, deviation, np.inf).astype(np.float32)
