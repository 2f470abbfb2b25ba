"""Pseudo-replicates: clusters of each batch, their averages, and those of two batches that are each other's nearest."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse, stats

from tenfold.kernels.communities import louvain
from tenfold.kernels.knn import knn


class PseudoBulks(NamedTuple):
    """Averages over the cells of a cluster that fell into one random fold.

    Attributes
    ----------
    profiles
        (n_rows, n_genes), float32.
    cluster
        Cluster of each row, (n_rows,), int; clusters of different batches have different numbers.
    """

    profiles: np.ndarray
    cluster: np.ndarray


class Match(NamedTuple):
    """Two clusters of different batches that are each other's nearest, and how alike their pseudo-bulks are."""

    left: int
    right: int
    correlation: float  # median over pairs of pseudo-bulks


def shared_neighbor_clusters(points: np.ndarray, n_neighbors: int, resolution: float, seed: int) -> np.ndarray:
    """Cluster cells by Louvain on the graph of shared nearest neighbours.

    Two cells are linked by the share of their neighbours (themselves included) that they have in common.

    Parameters
    ----------
    points
        (n_cells, d).
    n_neighbors
        Neighbours of a cell, itself not counted; lowered to the cells that there are.
    resolution, seed
        Of Louvain.

    Returns
    -------
    Clusters from 0, (n_cells,), int32.
    """
    n_cells = len(points)
    k = min(n_neighbors + 1, n_cells)
    near, _ = knn(points, k=k, seed=seed)
    pointers = np.arange(0, n_cells * k + 1, k)
    member = sparse.csr_matrix((np.ones(near.size, np.float32), near.ravel(), pointers), shape=(n_cells, n_cells))
    graph = (member @ member.T).tocsr()
    graph.data /= 2 * k - graph.data
    graph.setdiag(0)
    graph.eliminate_zeros()
    return louvain(graph, resolution, seed) if graph.nnz else np.arange(n_cells, dtype=np.int32)


def pseudo_bulks(
    matrix: sparse.csr_matrix, batch: np.ndarray, cluster: np.ndarray, n_folds: int, rng: np.random.Generator
) -> PseudoBulks:
    """Split the cells of each batch at random into folds of equal size, and average each cluster within each fold.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    batch, cluster
        Codes, (n_cells,). A cluster lies in one batch.
    n_folds
        At most so many rows a cluster; a fold without a cell of it gives none.
    rng
        Draws the folds.
    """
    fold = np.empty(len(batch), dtype=np.int64)
    for b in np.unique(batch):
        cells = np.flatnonzero(batch == b)
        fold[cells] = rng.permutation(len(cells)) % n_folds
    keys, row, sizes = np.unique(cluster * n_folds + fold, return_inverse=True, return_counts=True)
    weights = (1 / sizes[row]).astype(np.float32)
    member = sparse.csr_matrix((weights, (row, np.arange(len(row)))), shape=(len(keys), len(row)))
    return PseudoBulks((member @ matrix).toarray().astype(np.float32, copy=False), keys // n_folds)


def thinned_bulks(
    counts: sparse.csr_matrix, cluster: np.ndarray, n_folds: int, by_depth: bool, rng: np.random.Generator
) -> PseudoBulks:
    """Pool the counts of each fold of a cluster, thin them to the depth of one cell, and normalise them like cells.

    Values are log(1 + counts at the mean depth of the cluster's pools), cosine-normalised. A cluster of at most as many
    cells as folds gives its cells.

    Parameters
    ----------
    counts
        Cells × genes, CSR, whole numbers.
    cluster
        Codes, (n_cells,). A cluster lies in one batch.
    n_folds
        At most so many rows a cluster.
    by_depth
        Folds are of cells of like depth, in order, rather than of random ones.
    rng
        Draws the folds, and the counts that stay.
    """
    fold, depth = np.empty(len(cluster), dtype=np.int64), np.asarray(counts.sum(axis=1)).ravel()
    for c in np.unique(cluster):
        cells = np.flatnonzero(cluster == c)
        order = np.argsort(np.argsort(depth[cells], kind="stable")) if by_depth else rng.permutation(len(cells))
        fold[cells] = order * min(n_folds, len(cells)) // len(cells)
    keys, row, sizes = np.unique(cluster * n_folds + fold, return_inverse=True, return_counts=True)
    member = sparse.csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), shape=(len(keys), len(row)))
    pools = (member @ counts.astype(np.float64)).tocsr()
    pools.data = rng.binomial(np.rint(pools.data).astype(np.int64), np.repeat(1 / sizes, np.diff(pools.indptr)))
    profiles, own = pools.toarray().astype(np.float64), keys // n_folds
    totals = profiles.sum(axis=1)
    mean = np.bincount(own, totals) / np.maximum(np.bincount(own), 1)
    profiles = np.log1p(profiles * (mean[own] / np.maximum(totals, 1))[:, None])
    profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-30)
    return PseudoBulks(profiles.astype(np.float32), own)


def cluster_averages(bulks: PseudoBulks) -> tuple[np.ndarray, np.ndarray, float]:
    """Average the pseudo-bulks of each cluster.

    Returns
    -------
    Averages (n_clusters, n_genes), float64; pseudo-bulks of each (n_clusters,); and the root mean square distance of a
    pseudo-bulk from its cluster's average, corrected for the degrees of freedom (0 where no cluster has two).
    """
    sizes = np.bincount(bulks.cluster)
    member = sparse.csr_matrix((1 / sizes[bulks.cluster], (bulks.cluster, np.arange(len(bulks.cluster)))))
    averages = member @ bulks.profiles.astype(np.float64)
    squares = float((bulks.profiles.astype(np.float64) ** 2).sum() - sizes @ (averages**2).sum(axis=1))
    degrees = len(bulks.cluster) - len(sizes)
    return averages, sizes, float(np.sqrt(max(squares, 0.0) / degrees)) if degrees else 0.0


def mutual_clusters(
    bulks: PseudoBulks, batch_of: np.ndarray, genes: np.ndarray, condition_of: np.ndarray | None = None
) -> list[Match]:
    """Find clusters of different batches that are each other's nearest.

    The distance of two clusters is the median of 1 - Pearson correlation over all pairs of their pseudo-bulks. Two
    batches of a single cluster each are not compared: their clusters would be nearest whatever they hold.

    Parameters
    ----------
    bulks
        Pseudo-bulks of all clusters.
    batch_of
        Batch of each cluster, (n_clusters,).
    genes
        Columns that the correlation is taken over.
    condition_of
        Condition of each cluster, (n_clusters,): only clusters of the same one are compared; ``None`` for a single one.
    """
    condition_of = np.zeros(len(batch_of), dtype=np.int64) if condition_of is None else condition_of
    scaled = bulks.profiles[:, genes] - bulks.profiles[:, genes].mean(axis=1, keepdims=True)
    scaled /= np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-30)
    rows = [scaled[bulks.cluster == c] for c in range(len(batch_of))]
    found = []
    pairs_of_batches = combinations(np.unique(batch_of), 2)
    for (a, b), condition in product(pairs_of_batches, np.unique(condition_of)):
        left, right = (np.flatnonzero((batch_of == side) & (condition_of == condition)) for side in (a, b))
        if len(left) == len(right) == 1 or not len(left) or not len(right):
            continue
        alike = np.array([[np.median(rows[p] @ rows[q].T) for q in right] for p in left])
        best, back = alike.argmax(axis=1), alike.argmax(axis=0)
        pairs = [(i, j) for i, j in enumerate(best) if back[j] == i]
        found += [Match(int(left[i]), int(right[j]), float(alike[i, j])) for i, j in pairs]
    return found


def replicate_groups(matches: list[Match], n_clusters: int) -> np.ndarray:
    """Join matched clusters into groups of replicates: communities of the graph of matches, by modularity.

    Parameters
    ----------
    matches
        Edges of the graph.
    n_clusters
        Its nodes; a cluster without a match is a group of its own.

    Returns
    -------
    Group of each cluster, (n_clusters,), int.
    """
    if not matches:
        return np.arange(n_clusters)
    left, right = (np.array([match[side] for match in matches]) for side in (0, 1))
    edges = sparse.coo_matrix((np.ones(len(matches)), (left, right)), shape=(n_clusters, n_clusters))
    return louvain((edges + edges.T).tocsr(), seed=0).astype(np.int64)


def matching_table(
    matches: list[Match], groups: np.ndarray, batch_of: np.ndarray, cells: np.ndarray, names: list[str]
) -> list[dict[str, Any]]:
    """Write the matches as one dict each: batches, cells in either cluster, correlation, group of replicates.

    Parameters
    ----------
    matches, groups, batch_of
        As of `mutual_clusters` and `replicate_groups`.
    cells
        Number of cells of each cluster, (n_clusters,).
    names
        Of the batches.
    """
    return [
        {
            "left": names[batch_of[match.left]], "left_cluster": match.left, "left_cells": int(cells[match.left]),
            "right": names[batch_of[match.right]], "right_cluster": match.right,
            "right_cells": int(cells[match.right]), "correlation": match.correlation,
            "same_group": bool(groups[match.left] == groups[match.right]),
        }
        for match in matches
    ]  # fmt: skip


def sampled(cluster: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return the cells of clusters of at most `most` cells, and so many at random of larger ones, in order."""
    kept = []
    for c in np.unique(cluster):
        cells = np.flatnonzero(cluster == c)
        kept.append(cells if len(cells) <= most else rng.choice(cells, most, replace=False))
    return np.sort(np.concatenate(kept))


def central(matrix: sparse.csr_matrix, cluster: np.ndarray, share: float) -> np.ndarray:
    """Return which cells are among the given share of their cluster that is nearest to its median, (n_cells,), bool.

    Parameters
    ----------
    matrix
        Cells × genes, CSR, without negative values.
    cluster
        Codes, (n_cells,).
    share
        Over 0 and up to 1; 1 keeps all.
    """
    near = np.ones(len(cluster), dtype=bool)
    if share == 1:
        return near
    for c in np.unique(cluster):
        cells = np.flatnonzero(cluster == c)
        own = matrix[cells]
        median = np.zeros(matrix.shape[1])
        seen = np.flatnonzero(2 * own.getnnz(axis=0) >= len(cells))  # the median of any other gene is zero
        median[seen] = np.median(own[:, seen].toarray(), axis=0)
        distance = np.asarray(own.power(2).sum(axis=1)).ravel() - 2 * (own @ median)
        near[cells] = stats.rankdata(distance) / len(cells) <= share
    return near
