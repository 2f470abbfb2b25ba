"""What the scores of annotation mean, and those of confidence."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tenfold import metrics
from tenfold.annotate._trial import Answer
from tenfold.annotators.calibration import Calibration
from tenfold.annotators.confidence import Confident
from tenfold.annotators.sets import Asked, prediction_sets
from tenfold.task import Score

_WITHIN = "Within-batch estimate (optimistic): cells of one sample, and of one cluster, stand on both sides."
_FEW = "At most 6,000 cells are judged."


def _described(
    title: str, group: str, span: tuple[float, float | None], good: str, warning: str, formula: str,
    headline: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return {
        "title": title, "group": group, "range": list(span), "good": good, "headline": headline, "warning": warning,
        "formula": formula,
    }  # fmt: skip


DESCRIBED: dict[str, dict[str, Any]] = {
    "transfer_macro_f1": _described(
        "Macro F1, new batch", "transfer", (0, 1), "high",
        f"Labels of few cells are unsteady, and count as much as others. {_FEW}",
        "mean over labels of F1, cells of each batch labelled by a method fitted on the others", True,
    ),
    "transfer_accuracy": _described(
        "Accuracy, new batch", "transfer", (0, 1), "high", "Frequent types dominate it.",
        "share of cells with the right label; a rejected cell is wrong", True,
    ),
    "novel_auroc": _described(
        "New type found (novelty)", "novel", (0, 1), "high",
        "A mean over up to five types left out, of which some are distinct and some are subtypes of known ones.",
        "AUROC of the novelty of cells of a type left out against that of known cells", True,
    ),
    "novel_by_confidence": _described(
        "New type found (low confidence)", "novel", (0, 1), "high",
        "Below 0.5 cells of a new type are labelled with more confidence than known ones.",
        "AUROC of 1 - confidence", True,
    ),
    "novel_fpr95": _described(
        "Known cells lost", "novel", (0, 1), "low", "", "share of known cells as novel as 95 % of the new ones",
    ),
    "novel_rejected": _described(
        "New cells rejected", "novel", (0, 1), "high",
        "0 where the method rejects no cells by default.", "share of cells of a type left out that get no label",
    ),
    "transfer_balanced": _described(
        "Balanced accuracy", "transfer", (0, 1), "high", "", "mean over labels of the share of their cells found",
    ),
    "transfer_median_f1": _described(
        "Median F1", "transfer", (0, 1), "high", "Half of the labels may be lost without a trace in it.",
        "median over labels of F1",
    ),
    "transfer_rejected": _described(
        "Rejected", "transfer", (0, 1), "low", "", "share of cells of known types that get no label",
    ),
    "transfer_selective": _described(
        "Accuracy, not rejected", "transfer", (0, 1), "high", "Rejecting all but the easiest cells scores 1.",
        "accuracy on the cells that were not rejected",
    ),
    "transfer_half_width": _described(
        "± of accuracy", "transfer", (0, 1), "low",
        "From whole batches where there are five or more; else from cells, which is too narrow.",
        "half of the 95 % bootstrap interval of accuracy",
    ),
    "ece": _described(
        "Calibration error", "confidence", (0, 1), "low", "Biased upwards with few cells.",
        "mean gap between confidence and accuracy over 15 bins with equally many cells",
    ),
    "brier": _described("Brier", "confidence", (0, 2), "low", "", "mean squared error of the probabilities"),
    "nll": _described(
        "Log loss", "confidence", (0, None), "low", "A single confident error weighs much.",
        "mean negative log-probability of the true label, nats",
    ),
    "aurc": _described(
        "Risk over coverage", "confidence", (0, 1), "low", "Mixes how many errors there are with how they are ranked.",
        "mean error among the k most confident cells, over all k",
    ),
    "accuracy_auroc": _described(
        "Errors ranked by confidence", "confidence", (0, 1), "high", "",
        "chance that a rightly labelled cell is surer than a wrongly labelled one",
    ),
    "set_coverage": _described(
        "Coverage of sets", "confidence", (0, 1), "about 0.9", "0.9 is wanted; far below it, the batches differ.",
        "share of cells whose prediction set (LAC, 10 % may miss) holds the true label",
    ),
    "set_size": _described(
        "Size of sets", "confidence", (0, None), "low", "Of sets with too low a coverage it means nothing.",
        "mean number of labels in a set",
    ),
    "permuted_kappa": _described(
        "Permuted labels", "control", (-1, 1), "low", "", "Cohen's kappa on held-out cells, permuted labels given",
    ),
    "depth_loss": _described(
        "Lost with fewer counts", "control", (-1, 1), "low", "", "accuracy lost with a quarter of the counts",
    ),
    "within_accuracy": _described(
        "Accuracy within batches (optimistic)", "optimistic", (0, 1), "high", _WITHIN, "three random folds",
    ),
    "within_macro_f1": _described(
        "Macro F1 within batches (optimistic)", "optimistic", (0, 1), "high", _WITHIN, "three random folds",
    ),
    "within_half_width": _described(
        "± of accuracy (optimistic)", "optimistic", (0, 1), "low", f"{_WITHIN} From cells, so too narrow.",
        "half of the 95 % bootstrap interval of accuracy",
    ),
}  # fmt: skip


def confidence_scores(answers: list[Answer]) -> list[Score]:
    """Score the probabilities of cells whose label the method can know: mean over folds, weighted by their cells."""
    found: dict[str, list[float]] = {}
    sizes = []
    for answer in answers:
        known = answer.known
        if not known.any():
            continue
        names = [str(name) for name in answer.probabilities.columns]
        p = answer.probabilities.to_numpy()[known]
        codes = np.array([names.index(label) for label in answer.truth[known]])
        right, sure = p.argmax(axis=1) == codes, p.max(axis=1)
        values = {
            "ece": metrics.ece(p, codes), "brier": metrics.brier(p, codes), "nll": metrics.nll(p, codes),
            "aurc": metrics.aurc(right, sure), "accuracy_auroc": metrics.accuracy_auroc(right, sure),
            **_sets(answer, known, codes),
        }  # fmt: skip
        sizes.append(int(known.sum()))
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return [
        Score("confidence", name, float(np.average(values, weights=sizes)))
        for name, values in found.items()
        if len(values) == len(sizes)
    ]


def _sets(answer: Answer, known: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """Coverage and size of the sets of the annotator's own calibration; none where it has none."""
    if not isinstance(answer.method, Confident):
        return {}
    calibration = Calibration(**answer.method.calibration_)  # type: ignore[attr-defined]  # fitted state
    if not len(calibration.codes):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sets = prediction_sets(calibration, None, Asked(answer.probabilities, 0), 0.1, "lac")
    inside = sets.contains.to_numpy()[known]
    return {
        "set_coverage": float(inside[np.arange(len(codes)), codes].mean()),
        "set_size": float(inside.sum(axis=1).mean()),
    }
