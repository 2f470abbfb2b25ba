"""Whether an annotator knows when it is wrong: confidence against errors, new types, and honest probabilities."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tenfold.errors import DataError

BINS = 15


def aurc(right: np.ndarray, confidence: np.ndarray) -> float:
    """Area under the risk-coverage curve: mean error among the k most confident cells, over all k.

    From 0 to 1. Low is good; it mixes how many errors there are with how well confidence ranks them. Cells of equal
    confidence share the mean error of all of them.

    Parameters
    ----------
    right
        Whether the label of each cell is right, shape (n,).
    confidence
        Shape (n,).

    References
    ----------
    Geifman, Uziel, El-Yaniv (2019), doi:10.48550/arXiv.1805.08206.
    """
    hits, sure = _pair(right, confidence, "confidence")
    order = np.argsort(-sure, kind="stable")
    _, tie = np.unique(-sure[order], return_inverse=True)
    mean = np.bincount(tie, weights=1 - hits[order]) / np.bincount(tie)
    return float((np.cumsum(mean[tie]) / np.arange(1, len(hits) + 1)).mean())


def accuracy_auroc(right: np.ndarray, confidence: np.ndarray) -> float:
    """Chance that a rightly labelled cell has higher confidence than a wrongly labelled one (AUROC).

    From 0 to 1; 0.5 is chance; NaN where all cells, or none, are right. High is good.

    Parameters
    ----------
    right
        Whether the label of each cell is right, shape (n,).
    confidence
        Shape (n,).

    References
    ----------
    Hendrycks & Gimpel (2017), doi:10.48550/arXiv.1610.02136.
    """
    return novel_auroc(right, confidence)


def novel_auroc(novel: np.ndarray, score: np.ndarray) -> float:
    """Chance that a cell of a new type has a higher score than one of a known type (AUROC).

    From 0 to 1; 0.5 is chance; below it the score is misleading, as 1 - confidence is for distinct new types. NaN
    where all cells are new, or none. High is good.

    Parameters
    ----------
    novel
        Whether each cell is of a new type, shape (n,).
    score
        Novelty of each cell, large is novel, shape (n,).

    References
    ----------
    Hendrycks & Gimpel (2017), doi:10.48550/arXiv.1610.02136.
    """
    from scipy.stats import rankdata

    new, values = _pair(novel, score, "score")
    n_new = new.sum()
    if n_new in (0, len(new)):
        return float("nan")
    ranks = rankdata(values)
    return float((ranks[new > 0].sum() - n_new * (n_new + 1) / 2) / (n_new * (len(new) - n_new)))


def novel_aupr(novel: np.ndarray, score: np.ndarray) -> float:
    """Area under precision and recall for cells of a new type (average precision).

    From the share of new cells (chance) to 1; NaN where there are none. High is good. It depends on how many new cells
    there are: compare on the same cells only.

    Parameters
    ----------
    novel
        Whether each cell is of a new type, shape (n,).
    score
        Novelty of each cell, large is novel, shape (n,).

    References
    ----------
    Davis & Goadrich (2006), doi:10.1145/1143844.1143874.
    """
    from sklearn.metrics import average_precision_score

    new, values = _pair(novel, score, "score")
    return float(average_precision_score(new > 0, values)) if new.any() else float("nan")


def novel_fpr95(novel: np.ndarray, score: np.ndarray) -> float:
    """Share of known cells above the score that 95 % of the new cells reach: what finding them costs.

    From 0 to 1; 0.95 is chance; NaN where all cells are new, or none. Low is good.

    Parameters
    ----------
    novel
        Whether each cell is of a new type, shape (n,).
    score
        Novelty of each cell, large is novel, shape (n,).

    References
    ----------
    Liang, Li, Srikant (2018), doi:10.48550/arXiv.1706.02690.
    """
    new, values = _pair(novel, score, "score")
    if new.sum() in (0, len(new)):
        return float("nan")
    found = np.sort(values[new > 0])[::-1]
    limit = found[int(np.ceil(0.95 * len(found))) - 1]
    return float((values[new == 0] >= limit).mean())


def ece(probabilities: np.ndarray, codes: np.ndarray, bins: int = BINS, by_label: bool = False) -> float:
    """Expected calibration error: mean gap between confidence and accuracy, over bins with equally many cells.

    ``sum over bins of share of cells × |accuracy - mean confidence|``, from 0 to 1. Low is good. Biased upwards with
    few cells a bin; a useless annotator that always tells the frequencies of the labels scores 0.

    Parameters
    ----------
    probabilities
        Shape (n, n_labels).
    codes
        Column of the true label of each cell, shape (n,).
    bins
        Number of bins.
    by_label
        Take the bins within the cells of each predicted label, and the mean over labels weighted by their cells.

    References
    ----------
    Guo et al. (2017), doi:10.48550/arXiv.1706.04599; Nguyen & O'Connor (2015), doi:10.18653/v1/D15-1182 (equal mass).
    """
    p, truth = _probabilities(probabilities, codes)
    told, sure = p.argmax(axis=1), p.max(axis=1)
    right = (told == truth).astype(float)
    parts = [told == label for label in np.unique(told)] if by_label else [np.ones(len(truth), dtype=bool)]
    gaps = [_gap(right[part], sure[part], bins) * part.sum() for part in parts]
    return float(np.sum(gaps) / len(truth))


def brier(probabilities: np.ndarray, codes: np.ndarray) -> float:
    """Brier score: mean over cells of ``sum over labels of (p - [is the true label])²``.

    From 0 to 2. Low is good. A proper score: honest probabilities are the best ones.

    Parameters
    ----------
    probabilities
        Shape (n, n_labels).
    codes
        Column of the true label of each cell, shape (n,).

    References
    ----------
    Brier (1950), doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    p, truth = _probabilities(probabilities, codes)
    return float((np.square(p).sum(axis=1) - 2 * p[np.arange(len(truth)), truth] + 1).mean())


def nll(probabilities: np.ndarray, codes: np.ndarray) -> float:
    """Mean negative logarithm of the probability of the true label, in nats; at least 0, low is good.

    A proper score. A single confident error weighs much; probabilities below 1e-12 count as 1e-12.

    Parameters
    ----------
    probabilities
        Shape (n, n_labels).
    codes
        Column of the true label of each cell, shape (n,).

    References
    ----------
    Guo et al. (2017), doi:10.48550/arXiv.1706.04599.
    """
    p, truth = _probabilities(probabilities, codes)
    return float(-np.log(np.maximum(p[np.arange(len(truth)), truth], 1e-12)).mean())


def reliability(probabilities: np.ndarray, codes: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Return the table behind a reliability diagram: equally many cells a bin, from the least confident on.

    Parameters
    ----------
    probabilities
        Shape (n, n_labels).
    codes
        Column of the true label of each cell, shape (n,).
    bins
        Number of bins.

    Returns
    -------
    One row a bin: ``n``, mean ``confidence``, ``accuracy``.

    References
    ----------
    Guo et al. (2017), doi:10.48550/arXiv.1706.04599.
    """
    p, truth = _probabilities(probabilities, codes)
    sure, right = p.max(axis=1), p.argmax(axis=1) == truth
    rows = [(len(part), sure[part].mean(), right[part].mean()) for part in _bins(sure, bins)]
    return pd.DataFrame(rows, columns=["n", "confidence", "accuracy"])


def _bins(sure: np.ndarray, bins: int) -> list[np.ndarray]:
    return [part for part in np.array_split(np.argsort(sure, kind="stable"), bins) if len(part)]


def _gap(right: np.ndarray, sure: np.ndarray, bins: int) -> float:
    gaps = [len(part) * abs(right[part].mean() - sure[part].mean()) for part in _bins(sure, bins)]
    return float(np.sum(gaps) / len(right))


def _pair(flags: np.ndarray, values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(flags, dtype=float), np.asarray(values, dtype=float)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise DataError(f"`{name}` must have one entry for each cell; shapes are {first.shape} and {second.shape}.")
    if np.isnan(second).any():
        raise DataError(f"{int(np.isnan(second).sum())} cells have no `{name}` (NaN).")
    return first, second


def _probabilities(probabilities: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, truth = np.asarray(probabilities, dtype=float), np.asarray(codes)
    if p.ndim != 2 or truth.shape != (len(p),) or not len(p):
        raise DataError(f"Probabilities must be cells × labels, codes one a cell; shapes are {p.shape}, {truth.shape}.")
    if truth.min() < 0 or truth.max() >= p.shape[1]:
        raise DataError("codes must be columns of the probabilities; leave cells of other types out.")
    return p, truth.astype(np.int64)
