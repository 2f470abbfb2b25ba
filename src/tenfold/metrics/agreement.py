"""Agreement of a clustering with labels: counts in a contingency table, nothing else."""

from __future__ import annotations

import numpy as np

from tenfold.metrics._checks import groups


def ari(first: np.ndarray, second: np.ndarray) -> float:
    """Adjusted Rand index: agreement of two groupings on pairs of cells, beyond chance.

    ``(S - E) / ((A + B) / 2 - E)``: S, A and B count the pairs of cells that share a group in both, in the first and in
    the second grouping; ``E = A B / C(n, 2)`` is expected by chance. At most 1 (the same grouping); 0 is chance. High
    is good. Large groups dominate it, so a lost rare type hardly shows; and labels that were themselves made by PCA
    and graph clustering favour such pipelines.

    Parameters
    ----------
    first, second
        Group of every cell, shape (n,). Which comes first does not matter.

    References
    ----------
    Hubert & Arabie, J. Classif. 1985, doi:10.1007/BF01908075.
    """
    return _ari_of(_table(first, second))


def nmi(first: np.ndarray, second: np.ndarray) -> float:
    """Normalised mutual information: what one grouping tells about the other.

    ``I(a; b) / ((H(a) + H(b)) / 2)``, the arithmetic mean (older papers divide by the geometric mean or the maximum).
    From 0 (independent) to 1 (the same grouping). High is good. Not adjusted for chance: it grows with the number of
    clusters, so use `ami` where that number differs between methods.

    Parameters
    ----------
    first, second
        Group of every cell, shape (n,). Which comes first does not matter.

    References
    ----------
    Vinh, Epps, Bailey, JMLR 2010, https://jmlr.org/papers/v11/vinh10a.html.
    """
    return _nmi_of(_table(first, second))


def errors_over_cells(first: np.ndarray, second: np.ndarray, draws: int = 100, seed: int = 0) -> tuple[float, float]:
    """Standard errors of `nmi` and `ari` over cells: what they vary by among samples of as many cells, drawn again.

    The groupings are kept, so that of a clustering neither its instability nor the choice of its resolution is counted.

    Parameters
    ----------
    first, second
        Group of every cell, shape (n,).
    draws
        Number of samples.
    seed
        Of the samples.
    """
    table = _table(first, second)
    n_cells = int(table.sum())
    drawn = np.random.default_rng(seed).multinomial(n_cells, table.ravel() / n_cells, size=draws).astype(float)
    tables = drawn.reshape(draws, *table.shape)
    spread = [float(np.std([score(part) for part in tables], ddof=1)) for score in (_nmi_of, _ari_of)]
    return spread[0], spread[1]


def ami(first: np.ndarray, second: np.ndarray) -> float:
    """Adjusted mutual information: `nmi` with chance subtracted, for groupings with different numbers of groups.

    ``(I - E[I]) / ((H(a) + H(b)) / 2 - E[I])`` with the expectation over random groupings of the same sizes. At most 1;
    0 is chance. High is good.

    Parameters
    ----------
    first, second
        Group of every cell, shape (n,).

    References
    ----------
    Vinh, Epps, Bailey, JMLR 2010, https://jmlr.org/papers/v11/vinh10a.html.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    a = groups(first, "first")
    return float(adjusted_mutual_info_score(a.codes, groups(second, "second", len(a.codes)).codes))


def homogeneity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Homogeneity: whether each cluster holds cells of one label only.

    ``I / H(labels)``, from 0 to 1. High is good; cutting every cluster into single cells also gives 1, so read it with
    `completeness`. The harmonic mean of the two (V-measure) equals `nmi`.

    Parameters
    ----------
    clusters, labels
        Group of every cell, shape (n,).

    References
    ----------
    Rosenberg & Hirschberg, EMNLP 2007, https://aclanthology.org/D07-1043.
    """
    shared, _, entropy = _information(_table(clusters, labels))
    return 1.0 if entropy == 0 else float(np.clip(shared / entropy, 0.0, 1.0))


def completeness(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Completeness: whether all cells of a label are in one cluster.

    ``I / H(clusters)``, from 0 to 1. High is good; one cluster for everything also gives 1, so read it with
    `homogeneity`.

    Parameters
    ----------
    clusters, labels
        Group of every cell, shape (n,).

    References
    ----------
    Rosenberg & Hirschberg, EMNLP 2007, https://aclanthology.org/D07-1043.
    """
    return homogeneity(labels, clusters)


def matched_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy after the best one-to-one matching of clusters with labels (Hungarian algorithm).

    Share of cells whose cluster is matched with their label, from 0 to 1. High is good. It has no meaning where the
    number of clusters differs from that of labels: whole clusters are then left without a partner and count as wrong.

    Parameters
    ----------
    clusters, labels
        Group of every cell, shape (n,).

    References
    ----------
    Kuhn, Naval Research Logistics 1955, doi:10.1002/nav.3800020109.
    """
    from scipy.optimize import linear_sum_assignment

    table = _table(clusters, labels)
    return float(table[linear_sum_assignment(-table)].sum() / table.sum())


def f1_per_label(clusters: np.ndarray, labels: np.ndarray) -> dict:
    """F1 of every label with the cluster that fits it best.

    ``2 |C and L| / (|C| + |L|)``, the largest over clusters C, from 0 to 1. High is good. It shows the rare types that
    `ari` and `nmi` hide.

    Parameters
    ----------
    clusters, labels
        Group of every cell, shape (n,).

    Returns
    -------
    F1 by label.
    """
    table = _table(clusters, labels)
    f1 = 2 * table / (table.sum(axis=1, keepdims=True) + table.sum(axis=0))
    return dict(zip(groups(labels, "labels").levels, f1.max(axis=0).tolist(), strict=True))


def _table(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count the cells in each pair of groups, shape (levels of first, levels of second), float64."""
    a = groups(first, "first")
    b = groups(second, "second", len(a.codes))
    shape = (len(a.levels), len(b.levels))
    return np.bincount(a.codes * shape[1] + b.codes, minlength=shape[0] * shape[1]).reshape(shape).astype(float)


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1) / 2).sum())


def _ari_of(table: np.ndarray) -> float:
    both, rows, columns = (_pairs(counts) for counts in (table, table.sum(axis=1), table.sum(axis=0)))
    expected = rows * columns / max(_pairs(table.sum()), 1.0)
    ceiling = (rows + columns) / 2
    return 1.0 if ceiling == expected else float((both - expected) / (ceiling - expected))


def _nmi_of(table: np.ndarray) -> float:
    shared, entropy_first, entropy_second = _information(table)
    mean = (entropy_first + entropy_second) / 2
    return 1.0 if mean == 0 else float(np.clip(shared / mean, 0.0, 1.0))


def _information(table: np.ndarray) -> tuple[float, float, float]:
    """Return mutual information and the two entropies, in nats."""
    entropies = [_entropy(counts / table.sum()) for counts in (table.sum(axis=1), table.sum(axis=0), table.ravel())]
    return entropies[0] + entropies[1] - entropies[2], entropies[0], entropies[1]


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())
