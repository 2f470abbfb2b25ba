"""Prediction sets that hold the true label with a chosen probability: thresholds and sets, arrays in, arrays out.

A cell's set holds each label whose nonconformity score is at most a threshold. The threshold comes from cells whose
label is known and that the annotator was not trained on. As long as the cells to label could be exchanged for those,
the set misses the true label in at most a share `alpha` of cells, whatever the annotator.
"""

from __future__ import annotations

import math

import numpy as np

from tenfold.errors import ParameterError

#: Share of weights that are cut to the largest of the others: a few cells must not stand for all.
CLIPPED = 0.01
#: Quantiles of the scores by which labels are alike, for `clustered_thresholds`.
QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9)
#: RAPS: what each label beyond the free ones adds to the score.
PENALTY, FREE = 0.1, 2


def nonconformity(probabilities: np.ndarray, score: str = "lac", uniforms: np.ndarray | None = None) -> np.ndarray:
    """Return how badly each label fits each cell.

    Parameters
    ----------
    probabilities
        Shape (n_cells, n_labels).
    score
        ``"lac"``: 1 - p. ``"aps"``: the probability of all labels above this one, and a random part U of its own.
        ``"raps"``: the same, and `PENALTY` for each rank beyond `FREE`.
    uniforms
        U of each cell, in [0, 1], shape (n_cells,); for ``"aps"`` and ``"raps"``.

    Returns
    -------
    Shape (n_cells, n_labels), float64.

    References
    ----------
    Sadinle et al. (2019), doi 10.1080/01621459.2017.1395341; Romano et al. (2020), doi 10.48550/arXiv.2006.02544;
    Angelopoulos et al. (2021), doi 10.48550/arXiv.2009.14193.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if score == "lac":
        return 1 - p
    assert uniforms is not None
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    above = np.cumsum(ranked, axis=1) - ranked
    # Labels of equal probability have the same ones above them, whatever their order.
    above[:, 1:][ranked[:, 1:] == ranked[:, :-1]] = -np.inf
    above = np.maximum.accumulate(above, axis=1)
    found = above + np.asarray(uniforms)[:, None] * ranked
    if score == "raps":
        found += PENALTY * np.maximum(np.arange(1, p.shape[1] + 1) - FREE, 0)
    scores = np.empty_like(found)
    np.put_along_axis(scores, order, found, axis=1)
    return scores


def threshold(scores: np.ndarray, alpha: float) -> float:
    """Return the ⌈(n + 1)(1 - alpha)⌉-th smallest score; infinite where n is too small for that.

    Parameters
    ----------
    scores
        Of the true label of each calibration cell, shape (n,).
    alpha
        Share of cells whose set may miss the true label.
    """
    checked(alpha)
    place = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return float(np.partition(scores, place - 1)[place - 1]) if place <= len(scores) else math.inf


def class_thresholds(scores: np.ndarray, codes: np.ndarray, n_labels: int, alpha: float) -> np.ndarray:
    """Return a threshold for each label (Mondrian): coverage then holds for the cells of each label.

    A label with fewer than ⌈1 / alpha⌉ - 1 calibration cells has an infinite one: it is in every set.

    Parameters
    ----------
    scores, codes
        Of the true label, and its number, for each calibration cell, shape (n,).
    n_labels
        Number of labels.
    alpha
        Share of the cells of each label whose set may miss it.

    Returns
    -------
    Shape (n_labels,).

    References
    ----------
    Vovk et al. (2005), doi 10.1007/b106715.
    """
    return np.array([threshold(scores[codes == code], alpha) for code in range(n_labels)])


def clustered_thresholds(
    scores: np.ndarray, codes: np.ndarray, n_labels: int, alpha: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return a threshold for each label, shared by labels whose scores are alike.

    Part of the cells says which labels are alike (k-means of quantiles of their scores), the others give thresholds.
    Labels too rare to tell, and all of them where there are too few cells to group labels, have the common threshold.

    Returns
    -------
    Thresholds, and the group of each label, -1 for the common one; both of shape (n_labels,).

    References
    ----------
    Ding et al. (2023), doi 10.48550/arXiv.2306.09335.
    """
    sizes = np.bincount(codes, minlength=n_labels)
    fewest = 1 / min(alpha, 0.1) - 1
    enough = max(float(sizes.min()), fewest)
    able = int((sizes >= enough).sum())
    share = able / (75 + able)
    n_groups = min(int(share * enough / 2), able // 2)
    common = np.full(n_labels, -1)
    if n_groups < 2:
        return np.full(n_labels, threshold(scores, alpha)), common
    grouping = np.random.default_rng(seed).random(len(scores)) < share
    sizes = np.bincount(codes[grouping], minlength=n_labels)
    kept = np.flatnonzero(sizes >= fewest)
    rest = ~grouping
    if len(kept) < n_groups:
        return np.full(n_labels, threshold(scores[rest], alpha)), common
    from sklearn.cluster import KMeans

    points = np.array([np.quantile(scores[grouping & (codes == code)], QUANTILES) for code in kept])
    machine = KMeans(n_groups, n_init=10, random_state=seed).fit(points, sample_weight=np.sqrt(sizes[kept]))
    common[kept] = machine.labels_
    own = common[codes]
    of_group = {group: threshold(scores[rest & (own == group)], alpha) for group in range(n_groups)}
    of_group[-1] = threshold(scores[rest], alpha)
    return np.array([of_group[int(group)] for group in common]), common


def group_threshold(scores: np.ndarray, groups: np.ndarray, alpha: float) -> tuple[float, bool]:
    """Return a threshold for cells of a group (donor, batch) that is in none of the calibration groups.

    Every calibration group counts alike, and so does the new one: the (1 - alpha) quantile of the mixture of the
    groups' scores and an infinite one. With fewer than ⌈1 / alpha⌉ - 1 groups that is infinite; then the threshold is
    the largest of the groups' own, which promises nothing.

    Parameters
    ----------
    scores
        Of the true label of each calibration cell, shape (n,).
    groups
        Group of each, shape (n,).
    alpha
        Share of cells whose set may miss the true label.

    Returns
    -------
    The threshold, and whether it holds a promise.

    References
    ----------
    Lee, Barber, Willett (2023), doi 10.48550/arXiv.2306.06342.
    """
    levels, codes = np.unique(groups, return_inverse=True)
    share = 1 / np.bincount(codes)
    found = weighted_thresholds(scores, share[codes], np.ones(1), alpha)[0]
    if np.isfinite(found):
        return float(found), True
    return max(threshold(scores[codes == code], alpha) for code in range(len(levels))), False


def weighted_thresholds(
    scores: np.ndarray, weights: np.ndarray, own: np.ndarray, alpha: float
) -> np.ndarray:  # fmt: skip
    """Return a threshold for each cell to label, where calibration cells are weighted by how much they are like them.

    Parameters
    ----------
    scores, weights
        Of each calibration cell, shape (n,).
    own
        Weight of each cell to label, shape (n_cells,).
    alpha
        Share of cells whose set may miss the true label.

    Returns
    -------
    The smallest score up to which the weights sum to (1 - alpha) of all weights and the cell's own, shape (n_cells,);
    infinite where they do not.

    References
    ----------
    Tibshirani et al. (2019), doi 10.48550/arXiv.1904.06019.
    """
    checked(alpha)
    order = np.argsort(scores)
    reached = np.cumsum(weights[order], dtype=np.float64)
    wanted = (1 - alpha) * (reached[-1] + np.asarray(own, dtype=np.float64))
    places = np.searchsorted(reached, wanted * (1 - 1e-12))
    return np.append(scores[order], np.inf)[places]


def density_ratio(calibration: np.ndarray, query: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return how much more frequent cells like each one are among those to label than among the calibration cells.

    The odds of a logistic regression that tells the two apart, for calibration cells by five folds. Weights above their
    99th percentile are cut to it.

    Parameters
    ----------
    calibration, query
        Coordinates, shapes (n, d) and (n_cells, d).
    seed
        Of the folds.

    Returns
    -------
    Weights of calibration cells and of cells to label, means near 1, shapes (n,) and (n_cells,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([calibration, query]).astype(np.float64)
    asked = np.arange(len(x)) >= len(calibration)
    folds = StratifiedKFold(min(5, len(calibration), len(query)), shuffle=True, random_state=seed)
    machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    p = cross_val_predict(machine, x, asked, cv=folds, method="predict_proba")[:, 1]
    odds = p / np.maximum(1 - p, 1e-12) * len(calibration) / len(query)
    odds = np.minimum(odds, np.quantile(odds[~asked], 1 - CLIPPED))
    return odds[~asked], odds[asked]


def effective_size(weights: np.ndarray) -> float:
    """Return how many equally weighted cells would tell as much: (Σw)² / Σw²."""
    return float(weights.sum() ** 2 / np.maximum((weights**2).sum(), np.finfo(float).tiny))


def shift(calibration: np.ndarray, query: np.ndarray) -> tuple[float, float]:
    """Test whether the cells to label could be calibration cells, by a score of each (novelty).

    Kolmogorov-Smirnov of two samples: of the query's conformal p-values against uniform ones, with the uncertainty of a
    finite calibration taken into account.

    Returns
    -------
    Largest difference of the two distributions, 0 to 1, and its p-value.
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(calibration, query)
    return float(found.statistic), float(found.pvalue)


def cluster_sets(contains: np.ndarray, clusters: np.ndarray, n_clusters: int, beta: float = 0.1) -> np.ndarray:
    """Return the set of each cluster: the labels that are in the sets of at least 1 - `beta` of its cells.

    Parameters
    ----------
    contains
        Sets of cells, bool, shape (n_cells, n_labels).
    clusters
        Cluster of each cell, integers from 0, shape (n_cells,).
    n_clusters, beta
        Number of clusters; share of cells that may disagree.

    Returns
    -------
    Bool, shape (n_clusters, n_labels).
    """
    sums = np.zeros((n_clusters, contains.shape[1]))
    np.add.at(sums, clusters, contains)
    sizes = np.bincount(clusters, minlength=n_clusters)[:, None]
    return (sums >= (1 - beta) * sizes - 1e-9) & (sizes > 0)


def checked(alpha: float) -> None:
    """Raise `ParameterError` unless `alpha` is a share."""
    if not 0 < alpha < 1:
        raise ParameterError(f"alpha={alpha} is not valid: it is the share of sets that may miss, between 0 and 1.")
