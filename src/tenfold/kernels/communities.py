"""Communities of a cell graph: Leiden and Louvain by modularity, from scikit-network (BSD licence)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.errors import DataError, ParameterError

if TYPE_CHECKING:
    from collections.abc import Callable


def leiden(connectivities: sparse.spmatrix, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Cluster a graph by the Leiden algorithm.

    Parameters
    ----------
    connectivities
        Weighted undirected graph, sparse, shape (n, n), weights not negative. The diagonal is ignored. Where the two
        directions of an edge differ, their mean counts.
    resolution
        Larger values give more and smaller clusters.
    seed
        Order in which cells are visited. The same seed gives the same clusters.

    Returns
    -------
    Cluster of every cell, shape (n,), int32; 0 is the largest cluster. A cell without edges is a cluster of its own.

    Raises
    ------
    DataError
        The graph is not square, has no edges, or holds negative or non-finite weights.
    ParameterError
        The resolution is not positive.

    References
    ----------
    Traag, Waltman, van Eck, Scientific Reports 2019, doi:10.1038/s41598-019-41695-z.
    """
    from sknetwork.clustering import Leiden

    return _communities(Leiden, connectivities, resolution, seed)


def louvain(connectivities: sparse.spmatrix, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Cluster a graph by the Louvain algorithm.

    Parameters, result and errors are those of `leiden`. Louvain clusters can be badly connected inside; Leiden's
    cannot, so prefer `leiden` unless an earlier analysis has to be repeated.

    Parameters
    ----------
    connectivities
        Weighted undirected graph, sparse, shape (n, n).
    resolution
        Larger values give more and smaller clusters.
    seed
        Order in which cells are visited.

    References
    ----------
    Blondel et al., J. Stat. Mech. 2008, doi:10.1088/1742-5468/2008/10/P10008.
    """
    from sknetwork.clustering import Louvain

    return _communities(Louvain, connectivities, resolution, seed)


def modularity(connectivities: sparse.spmatrix, clusters: np.ndarray, resolution: float = 1.0) -> float:
    """Return Newman's modularity of a clustering: edge weight inside clusters beyond what chance would put there.

    Parameters
    ----------
    connectivities
        Weighted undirected graph, sparse, shape (n, n); both directions of every edge are stored.
    clusters
        Cluster of every cell, shape (n,), int from 0.
    resolution
        Factor of the part expected by chance.

    References
    ----------
    Newman & Girvan, Phys. Rev. E 2004, doi:10.1103/PhysRevE.69.026113.
    """
    graph = _checked(connectivities)
    inside = graph.data[np.repeat(clusters, np.diff(graph.indptr)) == clusters[graph.indices]].sum(dtype=np.float64)
    degree = np.asarray(graph.sum(axis=1, dtype=np.float64)).ravel()
    total = degree.sum()
    return float(inside / total - resolution * ((np.bincount(clusters, weights=degree) / total) ** 2).sum())


def _communities(
    algorithm: Callable[..., Any], connectivities: sparse.spmatrix, resolution: float, seed: int
) -> np.ndarray:
    if not resolution > 0:
        raise ParameterError(f"`resolution` must be positive, not {resolution}.")
    graph = _checked(connectivities)
    model = algorithm(
        resolution=resolution, shuffle_nodes=True, random_state=seed, return_probs=False, return_aggregate=False
    )
    return _by_size(model.fit_predict(graph))


def _checked(connectivities: sparse.spmatrix) -> sparse.csr_matrix:
    if not sparse.issparse(connectivities) or connectivities.shape[0] != connectivities.shape[1]:
        raise DataError("The graph must be a sparse matrix with as many rows as columns: one of each per cell.")
    graph = sparse.csr_matrix(connectivities, dtype=np.float32, copy=True)
    if not np.isfinite(graph.data).all() or (graph.data < 0).any():
        raise DataError("The graph holds negative, NaN or infinite weights. Give connectivities, not distances.")
    graph.setdiag(0)
    graph.eliminate_zeros()
    if graph.nnz == 0:
        raise DataError("The graph has no edges, so there is nothing to cluster.")
    if (abs(graph - graph.T)).nnz:
        graph = (graph + graph.T) * np.float32(0.5)
    return graph.tocsr()


def _by_size(clusters: np.ndarray) -> np.ndarray:
    """Number clusters by falling size; equal sizes by the first cell, so that the numbers do not depend on luck."""
    _, first, codes, sizes = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order))
    return rank[codes]
