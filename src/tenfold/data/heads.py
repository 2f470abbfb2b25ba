"""Clusters of an embedding: what turns coordinates into domains, chosen and reported apart from the method.

The choice moves scores by up to 0.3, more than most methods do.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np

from tenfold.data.cluster import leiden
from tenfold.data.graph import neighbor_graph
from tenfold.errors import DataError, ParameterError

Head = Literal["kmeans", "mclust", "leiden"]
#: A component of a mixture with a smaller share of the cells than this holds outliers, not a domain.
SMALLEST_COMPONENT = 0.005
#: Cells that the agglomerative start of a mixture looks at, as in mclust.
TREE_CELLS = 2000
#: Numbers of clusters that are tried where none is given.
TRIED = range(2, 16)
#: Clusters of one half of the cells are there in the other half where the prediction strength is at least this.
STRENGTH = 0.8
#: Pairs of halves, and cells of a half at most.
_PAIRS, _HALF = 5, 2000
_N_NEIGHBORS = 15


def clusters_of(embedding: np.ndarray, n_clusters: int | None, head: Head, seed: int = 0) -> np.ndarray:
    """Cluster an embedding.

    Parameters
    ----------
    embedding
        Shape (n_cells, n_dimensions).
    n_clusters
        Number of clusters; ``None`` to choose it: the largest that is found again in other cells (k-means and mclust,
        see `stable_number`), or what resolution 1 gives (Leiden).
    head
        ``"kmeans"``; ``"mclust"``, a mixture of Gaussians that share one full covariance (mclust's EEE); ``"leiden"``
        on the 15-nearest-neighbour graph, with the resolution that comes nearest to `n_clusters`.
    seed
        Of starts and sub-samples.

    Returns
    -------
    Integers from 0 (largest cluster), shape (n_cells,).

    Raises
    ------
    ParameterError
        More clusters than cells.
    """
    if n_clusters is not None and not 1 <= n_clusters <= len(embedding):
        raise ParameterError(f"n_clusters={n_clusters} of {len(embedding):,} cells is not possible.")
    embedding = np.asarray(embedding, dtype=np.float64)
    found = {"kmeans": _kmeans, "mclust": _mixture, "leiden": _communities}[head](embedding, n_clusters, seed)
    order = np.argsort(-np.bincount(found), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[found]


def stable_number(embedding: np.ndarray, seed: int = 0) -> int:
    """Return the largest number of k-means clusters of one half of the cells that are there in the other half, too.

    The prediction strength of a number: the cells of one half are clustered, and put to the nearest centres of the
    other half. Of each cluster it is the share of pairs of cells that are together there as well; the least of the
    shares counts, mean over five pairs of halves. The largest number of 2 to 15 that reaches 0.8 is taken, and that
    with the greatest strength where none does.

    Parameters
    ----------
    embedding
        Shape (n_cells, n_dimensions).
    seed
        Of the halves and starts.

    References
    ----------
    Tibshirani and Walther (2005), doi 10.1198/106186005X59243.
    """
    rng = np.random.default_rng(seed)
    n = min(len(embedding) // 2, _HALF)
    tried = [k for k in TRIED if 2 * k <= n]
    if not tried:
        raise DataError(f"{len(embedding)} cells are too few to look for clusters; give n_clusters.")
    halves = [np.split(rng.permutation(len(embedding))[: 2 * n], 2) for _ in range(_PAIRS)]
    found = {k: float(np.mean([_strength(embedding[a], embedding[b], k, seed) for a, b in halves])) for k in tried}
    strong = [k for k in tried if found[k] >= STRENGTH]
    return strong[-1] if strong else max(tried, key=lambda k: found[k])


def _strength(first: np.ndarray, second: np.ndarray, k: int, seed: int) -> float:
    from sklearn.cluster import KMeans

    of_first, of_second = (KMeans(k, n_init=3, random_state=seed).fit(part) for part in (first, second))
    table = np.zeros((k, k))
    np.add.at(table, (of_second.labels_, of_first.predict(second)), 1)
    size = table.sum(axis=1)
    together = (table * (table - 1)).sum(axis=1) / np.maximum(size * (size - 1), 1)
    return float(together[size > 1].min(initial=1.0))


def _kmeans(embedding: np.ndarray, n_clusters: int | None, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    number = stable_number(embedding, seed) if n_clusters is None else n_clusters
    return KMeans(number, n_init=10, random_state=seed).fit_predict(embedding)


def _communities(embedding: np.ndarray, n_clusters: int | None, seed: int) -> np.ndarray:
    connectivities = neighbor_graph(embedding, min(_N_NEIGHBORS, len(embedding) - 1)).connectivities
    if n_clusters is None:
        return leiden(connectivities, 1.0, seed)
    low, high, best = 0.0, 4.0, None
    for _ in range(20):
        resolution = (low + high) / 2
        found = leiden(connectivities, resolution, seed)
        reached = int(found.max()) + 1
        if best is None or abs(reached - n_clusters) < abs(int(best.max()) + 1 - n_clusters):
            best = found
        if reached == n_clusters:
            break
        low, high = (resolution, high) if reached < n_clusters else (low, resolution)
    assert best is not None
    if best.max() + 1 != n_clusters:
        warnings.warn(
            f"No resolution of Leiden between 0 and 4 gives {n_clusters} clusters; {best.max() + 1} is the nearest.",
            stacklevel=5,
        )
    return best


def _mixture(embedding: np.ndarray, n_clusters: int | None, seed: int) -> np.ndarray:
    """Cluster by a mixture of Gaussians with one covariance; by k-means where every mixture is spoilt by outliers.

    References
    ----------
    Scrucca et al. (2016), doi 10.32614/RJ-2016-021 (mclust; its agglomerative start is replaced by two others, of which
    the likelier end is kept).
    """
    if n_clusters is None:
        n_clusters = stable_number(embedding, seed)
    found = _likeliest(embedding, n_clusters, seed)
    if found is None:
        warnings.warn(
            "Every mixture of Gaussians put single outlying cells into a component of their own; the clusters are "
            "those of k-means.",
            stacklevel=5,
        )
        return _kmeans(embedding, n_clusters, seed)
    return found


def _likeliest(embedding: np.ndarray, k: int, seed: int) -> np.ndarray | None:
    """Return the clusters of the likelier of two mixtures; None if both hold outliers."""
    ends = []
    for start in (_kmeans(embedding, k, seed), _agglomerated(embedding, k, seed)):
        mixture = _fitted(embedding, start, k)
        if mixture is not None:
            labels = mixture.predict(embedding)
            if np.bincount(labels, minlength=k).min() >= max(1, SMALLEST_COMPONENT * len(labels)):
                ends.append((labels, mixture.lower_bound_))
    return max(ends, key=lambda end: end[1])[0] if ends else None


def _fitted(embedding: np.ndarray, start: np.ndarray, k: int):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    means = np.stack([embedding[start == code].mean(axis=0) for code in range(k)])
    within = np.cov((embedding - means[start]).T, bias=True).reshape(embedding.shape[1], -1)
    within += 1e-6 * np.trace(within) / len(within) * np.eye(len(within))
    mixture = GaussianMixture(
        k, covariance_type="tied", weights_init=np.bincount(start, minlength=k) / len(start), means_init=means,
        precisions_init=np.linalg.inv(within), tol=1e-5, reg_covar=1e-8, max_iter=1000,
    )  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return mixture.fit(embedding)
    except ValueError:  # a singular covariance
        return None


def _agglomerated(embedding: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return clusters by Ward's criterion in whitened coordinates, of a sample; the others go to the nearest centre."""
    from scipy.cluster.hierarchy import fcluster, linkage

    n = len(embedding)
    sample = np.arange(n)
    if n > TREE_CELLS:
        sample = np.sort(np.random.default_rng(seed).choice(n, TREE_CELLS, replace=False))
    standard = (embedding - embedding.mean(axis=0)) / np.maximum(embedding.std(axis=0), 1e-12)
    _, values, axes = np.linalg.svd(standard[sample], full_matrices=False)
    scaled = standard @ axes.T / np.sqrt(np.maximum(values, 1e-12))
    cut = fcluster(linkage(scaled[sample], "ward"), k, "maxclust") - 1
    _, cut = np.unique(cut, return_inverse=True)
    if cut.max() + 1 < k:  # ties in the tree
        return _kmeans(embedding, k, seed)
    centres = np.stack([scaled[sample][cut == code].mean(axis=0) for code in range(k)])
    distances = ((scaled[:, None] - centres) ** 2).sum(axis=2) if n * k < 10**7 else None
    if distances is not None:
        return distances.argmin(axis=1)
    return np.concatenate([((part[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
                           for part in np.array_split(scaled, -(-n * k // 10**7))])  # fmt: skip
