"""Controls of annotation: does a method leak, does it see that a type is new, does it stand fewer counts?

Each fits the method on at most `CONTROL_CELLS` cells, and labels cells of batches that it was not fitted on where there
are batches.
"""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData

from tenfold import metrics
from tenfold.annotate._trial import Trial
from tenfold.annotators.confidence import Confident
from tenfold.data import check, splits, stress
from tenfold.data.splits import Fold
from tenfold.task import Control, Score, Verdict

#: Types that are left out, one after the other.
MOST_TYPES = 5
#: Deals of permuted labels, as long as agreement is above chance.
DEALS = 5
FEWEST_CELLS = 20
SHARES = (0.5, 0.25, 0.1)


def permuted_labels(trial: Trial, adata: AnnData, seed: int) -> tuple[Control, list[Score]]:
    """Fit with labels dealt out at random: labels of other cells must then be at chance, or something leaks.

    A single deal may give a cluster its own label by luck, so that all its cells are right; a leak is there every time.
    """
    fold = held_out(trial, adata, seed)
    kappas: list[float] = []
    for deal in range(DEALS):
        kappa, error = _agreement_with_permuted(trial, adata, fold, seed + deal)
        kappas.append(kappa)
        if kappa <= 3 * error + 0.02:
            break
    leaks = len(kappas) == DEALS and kappa > 3 * error + 0.02
    verdict: Verdict = "fail" if leaks else "pass"
    words = "above chance every time: it knows labels that it was not given" if leaks else "at chance, as it must be"
    sentence = f"With permuted reference labels, agreement beyond chance on held-out cells is {kappa:+.3f}: {words}."
    numbers = {"kappa": kappas, "standard_error": error, "cells": len(fold.test)}
    rule = (
        f"Cohen's kappa on held-out cells: fail where it is 3 standard errors and 0.02 above 0 in all of {DEALS} deals."
    )
    return Control("permuted_labels", "Permuted labels", verdict, sentence, rule, numbers), [
        Score("control", "permuted_kappa", min(kappas))
    ]


def _agreement_with_permuted(trial: Trial, adata: AnnData, fold: Fold, seed: int) -> tuple[float, float]:
    """Return Cohen's kappa after a fit on permuted labels, and its standard error where cells are independent."""
    truth = adata.obs[trial.labels].astype(str).to_numpy()
    mixed = truth.copy()
    mixed[fold.train] = np.random.default_rng(seed).permutation(truth[fold.train])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        answer = trial.ask(adata, fold, mixed)
    shares = [np.mean(answer.truth == name) * np.mean(answer.told == name) for name in np.unique(answer.truth)]
    expected = float(np.sum(shares))
    error = float(np.sqrt(expected / (len(answer.truth) * max(1 - expected, 1e-9))))
    return metrics.cohen_kappa(answer.truth, answer.told), error


def novel_type(trial: Trial, adata: AnnData, seed: int) -> tuple[Control, list[Score]]:
    """Leave out one type at a time: are its cells told from known ones, by novelty and by low confidence?"""
    split = splits.leave_cell_type_out(adata, trial.labels, batch=trial.batch, fewest=FEWEST_CELLS, seed=seed)
    scores: list[Score] = []
    by_score: dict[str, list[float]] = {}
    worse = []
    for fold in spread(split.folds):
        answer = trial.ask(adata, fold)
        novel = ~answer.known
        sure = answer.probabilities.to_numpy().max(axis=1)
        values = {"novel_by_confidence": metrics.novel_auroc(novel, 1 - sure)}
        if isinstance(answer.method, Confident):
            found = answer.method.novelty(trial.asked(adata, fold))
            values["novel_auroc"] = metrics.novel_auroc(novel, found["score"].to_numpy())
            values["novel_fpr95"] = metrics.novel_fpr95(novel, found["score"].to_numpy())
        values["novel_rejected"] = metrics.rejected_share(answer.told[novel], type(answer.method).UNKNOWN)
        for name, value in values.items():
            by_score.setdefault(name, []).append(value)
            scores.append(Score(f"label:{fold.name}", name, value))
        if values["novel_by_confidence"] < 0.5:
            worse.append(fold.name)
    means = {name: float(np.nanmean(values)) for name, values in by_score.items()}
    scores += [Score("novel", name, value) for name, value in means.items()]
    best = max(means["novel_by_confidence"], means.get("novel_auroc", 0.0))
    verdict: Verdict = "pass" if best >= 0.8 else "warn" if best >= 0.6 else "fail"
    return Control("novel_type", "A new type", verdict, _novel_sentence(means, worse), _NOVEL_RULE, means), scores


_NOVEL_RULE = (
    "AUROC of new against known cells, mean over types left out, by novelty or by low confidence, whichever is better: "
    "pass from 0.8, warn from 0.6."
)


def _novel_sentence(means: dict[str, float], worse: list[str]) -> str:
    parts = [f"low confidence {means['novel_by_confidence']:.2f}"]
    if "novel_auroc" in means:
        parts.insert(0, f"novelty {means['novel_auroc']:.2f}")
    sentence = f"Cells of a type that was left out are told from known ones with AUROC by {' and by '.join(parts)}"
    sentence += f"; {means['novel_rejected']:.0%} of them are rejected when labelled."
    if worse:
        sentence += f" Confidence is worse than chance, new cells being surer than known ones, for {', '.join(worse)}."
    return sentence


def fewer_counts(trial: Trial, adata: AnnData, seed: int) -> tuple[Control, list[Score]]:
    """Thin the counts of the cells to label: how much accuracy is lost?"""
    fold = held_out(trial, adata, seed)
    answer = trial.ask(adata, fold)
    numbers = {"accuracy": metrics.accuracy(answer.truth, answer.told)}
    for share in SHARES:
        thin = trial.asked(adata, fold)
        thin.X = stress.downsample_depth(thin.X, share, seed)
        told = np.asarray(answer.method.predict(thin)).astype(str)
        numbers[f"accuracy_at_{share:g}"] = metrics.accuracy(answer.truth, told)
    loss = numbers["accuracy"] - numbers["accuracy_at_0.25"]
    verdict: Verdict = "pass" if loss <= 0.1 else "warn" if loss <= 0.25 else "fail"
    sentence = (
        f"With a quarter of the counts, accuracy on held-out cells goes from {numbers['accuracy']:.2f} to "
        f"{numbers['accuracy_at_0.25']:.2f}; with a tenth, to {numbers['accuracy_at_0.1']:.2f}."
    )
    rule = "Accuracy lost with a quarter of the counts: pass up to 0.1, warn up to 0.25."
    return Control("fewer_counts", "Fewer counts", verdict, sentence, rule, numbers), [
        Score("control", "depth_loss", loss)
    ]


def held_out(trial: Trial, adata: AnnData, seed: int) -> Fold:
    """Return a fold that tests one batch, that nearest to a third of the cells, or a third of the cells at random."""
    if trial.batch is None or len(check.categories(adata, trial.batch, "batch").names) < 2:
        return splits.random_cv(adata, trial.labels, 3, seed).folds[0]
    folds = splits.leave_batch_out(adata, trial.batch, trial.labels, seed).folds
    return min(folds, key=lambda fold: abs(len(fold.test) - adata.n_obs / 3))


def spread(folds: list[Fold]) -> list[Fold]:
    """Return at most `MOST_TYPES` folds, from frequent to rare types."""
    if len(folds) <= MOST_TYPES:
        return folds
    order = sorted(folds, key=lambda fold: len(fold.test))
    return [order[place] for place in np.linspace(0, len(folds) - 1, MOST_TYPES).round().astype(int)]
