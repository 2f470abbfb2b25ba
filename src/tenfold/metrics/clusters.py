"""Clusterings of an embedding or a graph, compared with labels as scIB and scib-metrics do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import sparse

from tenfold.errors import DataError
from tenfold.kernels.communities import leiden
from tenfold.metrics._checks import groups, points
from tenfold.metrics.agreement import ari, f1_per_label, nmi
from tenfold.metrics.silhouettes import isolated

#: Resolutions among which scIB chooses the clustering with the highest NMI.
RESOLUTIONS = tuple(round(0.2 * step, 1) for step in range(1, 11))


class Agreement(NamedTuple):
    """Agreement of one clustering with labels."""

    nmi: float
    ari: float


def kmeans_clusters(cells: np.ndarray, n_clusters: int, seed: int = 0, restarts: int = 10) -> np.ndarray:
    """Cluster by k-means (k-means++ starts, the best of `restarts` by sum of squares).

    Parameters
    ----------
    cells
        Embedding, shape (n, d).
    n_clusters
        Number of clusters, at most n.
    seed
        Of the starts.
    restarts
        How often to start anew.

    Returns
    -------
    Cluster of every cell, shape (n,), int32.
    """
    from sklearn.cluster import KMeans

    found = points(cells).astype(np.float32)
    if not 1 <= n_clusters <= len(found):
        raise DataError(f"{n_clusters} clusters cannot be made of {len(found)} cells.")
    return KMeans(n_clusters, n_init=restarts, random_state=seed).fit(found - found.mean(axis=0)).labels_


def leiden_clusterings(
    connectivities: sparse.spmatrix, resolutions: Iterable[float] = RESOLUTIONS, seed: int = 0
) -> list[np.ndarray]:
    """Cluster a graph by Leiden at several resolutions.

    Parameters
    ----------
    connectivities
        Weights, sparse, shape (n, n), symmetric, not negative.
    resolutions
        Default 0.2, 0.4, ..., 2.0.
    seed
        Of the order in which cells are visited.

    Returns
    -------
    One clustering a resolution, each of shape (n,), int32.
    """
    return [leiden(connectivities, resolution, seed) for resolution in resolutions]


def nmi_ari_kmeans(cells: np.ndarray, labels: np.ndarray, seed: int = 0) -> Agreement:
    """NMI and ARI of k-means with as many clusters as there are labels (scib-metrics' default).

    Each from 0 (ARI: chance) to 1; high is good. k-means splits large types rather than find rare ones, and knowing
    the true number of types is a help that a user does not have.

    Parameters
    ----------
    cells
        Embedding, shape (n, d).
    labels
        Label of every cell, shape (n,).
    seed
        Of the starts.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8.
    """
    label = groups(labels, "labels", len(points(cells)))
    clusters = kmeans_clusters(cells, len(label.levels), seed)
    return Agreement(nmi(clusters, label.codes), ari(clusters, label.codes))


def nmi_ari_leiden(graph: sparse.spmatrix | Sequence[np.ndarray], labels: np.ndarray, seed: int = 0) -> Agreement:
    """NMI and ARI of the Leiden clustering, among ten resolutions, whose NMI with the labels is highest (scIB).

    Each from 0 (ARI: chance) to 1; high is good. Choosing the resolution by the labels is optimistic for every method
    alike, and labels that came from an integrated object favour the method that made it.

    Parameters
    ----------
    graph
        Connectivities, sparse, shape (n, n); or the clusterings that `leiden_clusterings` returned.
    labels
        Label of every cell, shape (n,).
    seed
        Of the clustering.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8.
    """
    found = leiden_clusterings(graph, seed=seed) if sparse.issparse(graph) else graph
    best = max(found, key=lambda clusters: nmi(clusters, labels))
    return Agreement(nmi(best, labels), ari(best, labels))


def isolated_labels_f1(clusterings: Sequence[np.ndarray], labels: np.ndarray, batch: np.ndarray) -> dict:
    """F1 of each label that is found in the fewest batches, with the best cluster of any clustering.

    From 0 to 1; high is good: types that few batches hold are the first that over-correction loses. The mean of the
    values is scIB's isolated-label F1.

    Parameters
    ----------
    clusterings
        From `leiden_clusterings`, each of shape (n,).
    labels, batch
        Groups, shape (n,).

    Returns
    -------
    F1 by label. Empty where every label is in every batch: none is isolated.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8.
    """
    rare, everywhere = isolated(labels, batch)
    if everywhere:
        return {}
    found = [f1_per_label(clusters, labels) for clusters in clusterings]
    return {level: max(scores[level] for scores in found) for level in rare}


def stability(clusterings: Sequence[np.ndarray]) -> float:
    """Mean pairwise ARI of clusterings of the same cells (other seeds, or sub-samples).

    At most 1; high is good, but a clustering can be stably wrong. Cells that a sub-sample left out are marked by a
    value below 0, and each pair is compared on the cells that both have.

    Parameters
    ----------
    clusterings
        At least two, each of shape (n,), int.

    Raises
    ------
    DataError
        Fewer than two clusterings, of different lengths, or a pair without shared cells.

    References
    ----------
    Lange et al., Neural Computation 2004, doi:10.1162/089976604773717621.
    """
    found = [np.asarray(clusters) for clusters in clusterings]
    if len(found) < 2 or len({len(clusters) for clusters in found}) > 1:
        raise DataError("Stability needs at least two clusterings of the same cells.")
    scores = []
    for a, b in combinations(found, 2):
        shared = (a >= 0) & (b >= 0)
        if not shared.any():
            raise DataError("Two of the clusterings have no cell in common.")
        scores.append(ari(a[shared], b[shared]))
    return float(np.mean(scores))
