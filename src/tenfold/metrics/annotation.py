"""Agreement of predicted with true labels, where an annotator may also refuse to tell: counts in one table.

`truth` and `predicted` hold a label for each cell; `unknown` is what a cell is called that was rejected. Cells whose
true type the annotator cannot know are judged by `rejected_share` and the metrics of novelty, so leave them out of the
others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from tenfold.metrics._checks import groups

UNKNOWN = "Unknown"


class _Table(NamedTuple):
    """Hits, true cells and predictions of each label that is in the truth; `assigned` marks cells not rejected."""

    labels: list
    hits: np.ndarray
    sizes: np.ndarray
    named: np.ndarray
    assigned: np.ndarray
    right: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        return 2 * self.hits / np.maximum(self.sizes + self.named, 1)


def _table(truth: np.ndarray, predicted: np.ndarray, unknown: str) -> _Table:
    known = groups(np.asarray(truth).astype(str), "truth")
    told = np.asarray(predicted).astype(str)
    groups(told, "predicted", len(known.codes))
    codes = pd.Index(known.levels).get_indexer(told)  # -1 for a label that no cell truly has, and for unknown
    right = codes == known.codes
    n = len(known.levels)
    hits = np.bincount(known.codes[right], minlength=n)
    return _Table(known.levels, hits, known.sizes, np.bincount(codes[codes >= 0], minlength=n), told != unknown, right)


def accuracy(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Accuracy: share of cells with the right label; a rejected cell counts as wrong.

    From 0 to 1. High is good. Frequent types dominate it: read it with `macro_f1`.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called.
    """
    return float(_table(truth, predicted, unknown).right.mean())


def rejected_share(predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Share of cells that were rejected, from 0 to 1: low is good for known types, high for new ones.

    Parameters
    ----------
    predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called.
    """
    told = np.asarray(predicted).astype(str)
    groups(told, "predicted")
    return float((told == unknown).mean())


def selective_accuracy(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Accuracy on the cells that were not rejected, from 0 to 1; NaN where all were. High is good.

    Rejecting all but the easiest cells scores 1: read it with `rejected_share`.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called.

    References
    ----------
    Geifman & El-Yaniv (2017), doi:10.48550/arXiv.1705.08500.
    """
    table = _table(truth, predicted, unknown)
    return float(table.right[table.assigned].mean()) if table.assigned.any() else float("nan")


def macro_f1(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Macro F1: mean over the labels in the truth of ``2 hits / (cells + predictions)``.

    From 0 to 1. High is good. A rare type counts as much as a frequent one; with few cells of it the value is unsteady.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called; they count as missed.

    References
    ----------
    Sokolova & Lapalme (2009), doi:10.1016/j.ipm.2009.03.002.
    """
    return float(_table(truth, predicted, unknown).f1.mean())


def median_f1(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Median over labels of the F1 of `macro_f1`; up to half of the labels may be lost without a trace in it.

    From 0 to 1. High is good.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called; they count as missed.

    References
    ----------
    Abdelaal et al. (2019), doi:10.1186/s13059-019-1795-z.
    """
    return float(np.median(_table(truth, predicted, unknown).f1))


def weighted_f1(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Mean over labels of the F1 of `macro_f1`, weighted by the cells of each; frequent types dominate it.

    From 0 to 1. High is good.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called; they count as missed.

    References
    ----------
    Sokolova & Lapalme (2009), doi:10.1016/j.ipm.2009.03.002.
    """
    table = _table(truth, predicted, unknown)
    return float(np.average(table.f1, weights=table.sizes))


def benchmark_f1(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Median F1 as in the benchmark of 22 classifiers: rejected cells are dropped first.

    That flatters rejection. From 0 to 1; NaN where all cells were rejected. Only for comparison with published figures,
    beside `median_f1`.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called.

    References
    ----------
    Abdelaal et al. (2019), doi:10.1186/s13059-019-1795-z.
    """
    told = np.asarray(predicted).astype(str)
    kept = told != unknown
    return median_f1(np.asarray(truth)[kept], told[kept], unknown) if kept.any() else float("nan")


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Mean over labels of the share of their cells that is found (recall), from 0 to 1. High is good.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called; they count as missed.

    References
    ----------
    Brodersen et al. (2010), doi:10.1109/ICPR.2010.764.
    """
    table = _table(truth, predicted, unknown)
    return float((table.hits / table.sizes).mean())


def cohen_kappa(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Cohen's kappa: accuracy beyond chance, ``(accuracy - E) / (1 - E)``.

    E is expected where predictions of the same frequencies are dealt out at random. At most 1; 0 is chance. High is
    good.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called; a label like any.

    References
    ----------
    Cohen (1960), doi:10.1177/001316446002000104.
    """
    table = _table(truth, predicted, unknown)
    n = len(table.right)
    expected = float(table.sizes @ table.named) / n**2
    return 1.0 if expected == 1 else (float(table.right.mean()) - expected) / (1 - expected)


def matthews(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> float:
    """Matthews correlation of true and predicted labels, for any number of them.

    From -1 to 1; 0 is chance, also where all cells have one label. High is good.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called; a label like any.

    References
    ----------
    Gorodkin (2004), doi:10.1016/j.compbiolchem.2004.09.006.
    """
    table = _table(truth, predicted, unknown)
    n = len(table.right)
    _, all_named = np.unique(np.asarray(predicted).astype(str), return_counts=True)
    spread = float(n**2 - np.square(table.sizes).sum()) * float(n**2 - np.square(all_named).sum())
    return 0.0 if spread == 0 else float(table.right.sum() * n - table.sizes @ table.named) / np.sqrt(spread)


def label_scores(truth: np.ndarray, predicted: np.ndarray, unknown: str = UNKNOWN) -> pd.DataFrame:
    """Precision, recall and F1 of each label, with its number of cells and the share that was rejected.

    Parameters
    ----------
    truth, predicted
        Label of every cell, shape (n,).
    unknown
        What rejected cells are called.

    Returns
    -------
    One row a label of the truth: ``n``, ``precision`` (NaN where never predicted), ``recall``, ``f1``, ``rejected``.
    """
    table = _table(truth, predicted, unknown)
    codes = pd.Index(table.labels).get_indexer(np.asarray(truth).astype(str))
    rejected = np.bincount(codes[~table.assigned], minlength=len(table.labels)) / table.sizes
    with np.errstate(invalid="ignore"):
        precision = table.hits / table.named
    columns = {"n": table.sizes, "precision": precision, "recall": table.hits / table.sizes, "f1": table.f1}
    return pd.DataFrame({**columns, "rejected": rejected}, index=pd.Index(table.labels, name="label"))
