"""Labels smoothed over clusters: the cells of a cluster take the label that most of them have."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import sparse

from tenfold.data import preprocess
from tenfold.data.cluster import leiden
from tenfold.data.graph import neighbor_graph
from tenfold.data.inputs import Inputs

#: Resolution of the clusters, up to so many cells.
RESOLUTIONS = {5_000: 5.0, 20_000: 10.0, 40_000: 15.0, 100_000: 20.0, 200_000: 25.0}
LARGEST_RESOLUTION = 30.0
_GENES, _COMPONENTS, _NEIGHBORS = 2500, 50, 10
#: Scaled genes: standard deviations above the mean at which they are capped, and cells that must express them.
_CAP, _FEWEST_CELLS = 10.0, 5
#: What cells are called whose cluster has no label frequent enough.
HETEROGENEOUS = "Heterogeneous"


def fine_clusters(data: Inputs, seed: int = 0, scaled: bool = False) -> np.ndarray:
    """Find many small clusters of cells, whose number grows with that of the cells.

    Parameters
    ----------
    data
        The cells.
    seed
        Order in which cells are visited.
    scaled
        All variable genes count alike in the components: they are scaled to variance 1 and capped.

    Returns
    -------
    Cluster of each cell, shape (n_cells,).
    """
    x = data.lognorm[:, data.variable_genes(_GENES)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_components")
        points = preprocess.pca(_scaled(x) if scaled else x, _COMPONENTS, seed).embedding
    graph = neighbor_graph(points, min(_NEIGHBORS, data.n_cells - 1), seed=seed)
    resolution = next((found for most, found in RESOLUTIONS.items() if data.n_cells < most), LARGEST_RESOLUTION)
    return leiden(graph.connectivities, resolution, seed)


def _scaled(x: sparse.csr_matrix) -> sparse.csr_matrix:
    scaled = preprocess.unit_variance(x[:, x.getnnz(axis=0) >= _FEWEST_CELLS])
    caps = np.asarray(scaled.mean(axis=0)).ravel() + _CAP
    scaled.data = np.minimum(scaled.data, caps[scaled.indices]).astype(np.float32)
    return scaled


def majority(labels: np.ndarray, clusters: np.ndarray, min_share: float = 0.0) -> np.ndarray:
    """Give all cells of a cluster its most frequent label.

    Parameters
    ----------
    labels, clusters
        Of each cell, shape (n_cells,).
    min_share
        Clusters in which no label has this share of the cells are "Heterogeneous".

    Returns
    -------
    Labels, shape (n_cells,); of equally frequent ones the first by name.
    """
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    groups = np.unique(clusters, return_inverse=True)[1]
    table = np.zeros((groups.max() + 1, len(names)), dtype=np.int64)
    np.add.at(table, (groups, codes), 1)
    share = table.max(axis=1) / table.sum(axis=1)
    voted = np.where(share >= min_share, names[table.argmax(axis=1)].astype(object), HETEROGENEOUS)
    return voted[groups]
