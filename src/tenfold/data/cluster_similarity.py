"""Clusters of each batch by itself, how alike clusters of different batches are, and which pairs of them to match."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from tenfold.data.cluster import leiden
from tenfold.data.graph import neighbor_graph
from tenfold.data.preprocess import pca
from tenfold.kernels.sparse_ranks import shifted_ranks

_NEIGHBORS = 15
#: Smaller batches are one cluster.
_FEWEST_TO_CLUSTER = 10
#: Cells that vote, at most, and of each cluster at least.
_MOST_CELLS, _FEWEST_OF_CLUSTER = 3_000, 20


class BatchClusters(NamedTuple):
    """Clusters that each lie within a batch.

    Attributes
    ----------
    cluster
        Cluster of every cell, shape (n_cells,), int64.
    home
        Batch of every cluster, ascending, shape (n_clusters,), int64.
    """

    cluster: np.ndarray
    home: np.ndarray


def batch_clusters(
    lognorm: sparse.csr_matrix, batch: np.ndarray, resolution: float = 0.6, n_components: int = 20, seed: int = 0
) -> BatchClusters:
    """Cluster the cells of each batch by themselves: principal components, neighbour graph, Leiden.

    Parameters
    ----------
    lognorm
        Log-expression, cells × variable genes, CSR.
    batch
        Batch of every cell, codes from 0, shape (n_cells,).
    resolution, n_components, seed
        Of Leiden; of the principal components; of both.
    """
    cluster = np.zeros(len(batch), dtype=np.int64)
    home: list[int] = []
    for code in range(int(batch.max()) + 1):
        rows = np.flatnonzero(batch == code)
        found = np.zeros(len(rows), dtype=np.int64)
        if len(rows) >= _FEWEST_TO_CLUSTER:
            n = min(n_components, len(rows) - 1, lognorm.shape[1] - 1)
            embedding = pca(lognorm[rows], n, seed).embedding
            graph = neighbor_graph(embedding, min(_NEIGHBORS, len(rows)), seed=seed)
            found = leiden(graph.connectivities, resolution, seed).astype(np.int64)
        cluster[rows] = found + len(home)
        home += [code] * (int(found.max(initial=-1)) + 1)
    return BatchClusters(cluster, np.array(home, dtype=np.int64))


def neighbour_votes(lognorm: sparse.csr_matrix, clusters: BatchClusters, seed: int = 0) -> np.ndarray:
    """Return how well the cells of one cluster pick out those of another (MetaNeighbor, unsupervised).

    Cells vote by the rank of Spearman's correlation of their expression among those of all pairs of cells. The votes of
    a cluster for a cell are divided by those of all cells; the area under the ROC curve says whether they are higher
    for the cells of the other cluster than for the rest of its batch, and is averaged over the two directions.

    Of more than 3,000 cells so many are drawn, of each cluster in proportion to its size, but 20 where it has them.

    Parameters
    ----------
    lognorm
        Log-expression, cells × variable genes, CSR, nothing negative. Cells without any of these genes do not vote.
    clusters
        From `batch_clusters`.
    seed
        Of the draw.

    Returns
    -------
    Shape (n_clusters, n_clusters), symmetric, from 0 to 1; 0.5 is chance. NaN within a batch, and between two batches
    of a single cluster each.

    References
    ----------
    Crow et al. (2018), doi 10.1038/s41467-018-03282-0.
    """
    rows = _drawn(np.where(np.diff(lognorm.indptr) > 0, clusters.cluster, -1), seed)
    cluster, n_clusters = clusters.cluster[rows], len(clusters.home)
    votes = _votes(lognorm[rows], cluster, n_clusters)
    area = np.full((n_clusters, n_clusters), np.nan)
    for code in np.unique(clusters.home):
        here = np.flatnonzero(clusters.home[cluster] == code)
        own, others = np.flatnonzero(clusters.home == code), np.flatnonzero(clusters.home != code)
        rank = rankdata(votes[np.ix_(here, others)], axis=0)
        for target in own:
            inside = cluster[here] == target
            n_in, n_out = int(inside.sum()), int((~inside).sum())
            if n_in and n_out:
                area[target, others] = (rank[inside].mean(axis=0) - (n_in + 1) / 2) / n_out
    both = np.stack([area, area.T])
    known = np.isfinite(both)
    total = np.where(known, both, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _drawn(cluster: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows of the cells that vote; a cluster of -1 does not."""
    rng = np.random.default_rng([seed, 7])
    share = min(1.0, _MOST_CELLS / max(1, (cluster >= 0).sum()))
    rows = []
    for code in np.unique(cluster[cluster >= 0]):
        own = np.flatnonzero(cluster == code)
        rows.append(rng.permutation(own)[: max(round(share * len(own)), _FEWEST_OF_CLUSTER)])
    return np.sort(np.concatenate(rows))


def _votes(lognorm: sparse.csr_matrix, cluster: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the share of each cluster in the votes for each cell, (n_cells, n_clusters)."""
    unit = shifted_ranks(lognorm).toarray().astype(np.float64)
    unit -= unit.mean(axis=1, keepdims=True)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-6)
    n_cells = len(unit)
    above = np.triu_indices(n_cells, 1)
    order = (unit @ unit.T)[above].argsort()
    ranks = np.zeros((n_cells, n_cells))
    # Each correlation is in the symmetric matrix twice, and those of cells with themselves share the highest rank.
    ranks[above[0][order], above[1][order]] = 2 * np.arange(len(order)) + 1.5
    ranks += ranks.T
    np.fill_diagonal(ranks, 2 * len(order) + (n_cells + 1) / 2)
    return ranks @ np.eye(n_clusters)[cluster] / ranks.sum(axis=0)[:, None]


def similar_pairs(similarity: np.ndarray, home: np.ndarray, least: float) -> np.ndarray:
    """Return the pairs of clusters that are to be matched.

    A pair counts where one of the two is the most similar cluster of its batch to the other, and the similarity
    reaches `least`.

    Parameters
    ----------
    similarity
        Shape (n_clusters, n_clusters), symmetric; NaN within a batch.
    home
        Batch of each cluster, shape (n_clusters,).
    least
        Smallest similarity.

    Returns
    -------
    Shape (n_pairs, 2), int64; the first of each pair is the lower, pairs are sorted.

    References
    ----------
    Wang et al. (2019), doi 10.1186/s13059-019-1764-6.
    """
    best = np.zeros(similarity.shape, dtype=bool)
    value = np.where(np.isfinite(similarity), similarity, -np.inf)
    for code in np.unique(home):
        columns, rows = np.flatnonzero(home == code), np.flatnonzero(home != code)
        best[rows, columns[value[np.ix_(rows, columns)].argmax(axis=1)]] = True
    return np.argwhere(np.triu((best | best.T) & (value >= least), 1))
