"""D7, corrected expression: are relations between genes, and between cell types, the same as before within a batch?"""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy.stats import rankdata

from tenfold.data.inputs import Inputs
from tenfold.integrate._trial import CONTROL_CELLS, worse
from tenfold.method import Corrector
from tenfold.task import Control, Score, Verdict

MIN_CELLS = 20
N_GENES = 300
N_MARKERS = 30
TITLE = "Corrected expression"
RULE = (
    f"Within each batch, over its {N_GENES} most variable genes. Correlations between genes, before and after, "
    "correlate: pass from 0.9, warn from 0.7, for the worst batch. With labels, fold changes of each type against the "
    f"rest of its batch, for the {N_MARKERS} genes that mark it most clearly: the sign stays (pass from 0.95, warn "
    "from 0.85) and so does the rank (Spearman: pass from 0.8, warn from 0.5), for the worst type. The worst of these "
    "counts. Differences invented where there are none are counted in the null batch."
)


def expression_kept(
    corrector: Corrector, adata: AnnData, batch: str, labels: str | None, seed: int
) -> tuple[Control, list[Score]]:
    """D7: compare corrected with uncorrected log-expression inside each batch; nothing is fitted again."""
    data = Inputs(adata, {"batch": batch})
    known = set(corrector.genes_)  # type: ignore[attr-defined]  # fitted state
    columns = np.array([c for c in data.variable_genes(N_GENES) if data.gene_names[c] in known], dtype=int)
    after = corrector.correct(data.gene_names[columns].tolist())
    before = data.lognorm[:, columns]
    types = None if labels is None else adata.obs[labels].astype(str).to_numpy()
    codes = adata.obs[batch].astype(str).to_numpy()
    numbers: dict[str, dict[str, float]] = {}
    folds: dict[str, list[tuple[float, float]]] = {}
    for level in np.unique(codes):
        inside = np.flatnonzero(codes == level)
        if len(inside) < MIN_CELLS:
            continue
        inside = np.sort(np.random.default_rng(seed).permutation(inside)[:CONTROL_CELLS])
        x, y = before[inside].toarray().astype(np.float64), after[inside].astype(np.float64)
        numbers[level] = {"correlations_kept": correlations_kept(x, y), "cells": len(inside)}
        for name in [] if types is None else np.unique(types[inside]):
            own = types[inside] == name
            if min(own.sum(), (~own).sum()) >= MIN_CELLS:
                folds.setdefault(str(name), []).append(fold_changes_kept(x, y, own))
    if not numbers:
        sentence = f"No batch has {MIN_CELLS} cells."
        return Control("expression_kept", TITLE, "not run", sentence, RULE), []
    return _judge(numbers, {name: tuple(np.mean(found, axis=0)) for name, found in folds.items()})


def correlations_kept(before: np.ndarray, after: np.ndarray) -> float:
    """Return the correlation, over pairs of genes, of gene-gene correlations before and after; shapes (n, genes)."""
    varies = (before.std(axis=0) > 1e-8) & (after.std(axis=0) > 1e-8)
    if varies.sum() < 3:
        return float("nan")
    pair = np.triu_indices(int(varies.sum()), 1)
    first, second = (np.corrcoef(x[:, varies], rowvar=False)[pair] for x in (before, after))
    return float(np.corrcoef(first, second)[0, 1])


def fold_changes_kept(before: np.ndarray, after: np.ndarray, own: np.ndarray) -> tuple[float, float]:
    """Return, over the markers of a type, the share of fold changes of the same sign, and the rank correlation.

    Parameters
    ----------
    before, after
        Log-expression of the cells of one batch, shape (n, genes).
    own
        Whether a cell is of the type, shape (n,).
    """
    change, new = (x[own].mean(axis=0) - x[~own].mean(axis=0) for x in (before, after))
    noise = np.sqrt(before[own].var(axis=0) / own.sum() + before[~own].var(axis=0) / (~own).sum())
    clear = np.abs(change) / np.maximum(noise, 1e-8)
    markers = np.argsort(-clear, kind="stable")[:N_MARKERS]
    ranks = rankdata(change[markers]), rankdata(new[markers])
    rank = np.corrcoef(*ranks)[0, 1] if min(r.std() for r in ranks) > 0 else 0.0
    return float((np.sign(change[markers]) == np.sign(new[markers])).mean()), float(rank)


def _judge(numbers: dict[str, dict[str, float]], folds: dict[str, tuple[float, float]]) -> tuple[Control, list[Score]]:
    pairs = {level: entry["correlations_kept"] for level, entry in numbers.items()}
    scores = [Score(f"batch:{level}", "correlations_kept", value) for level, value in pairs.items()]
    scores.append(Score("control", "correlations_kept", float(np.nanmean(list(pairs.values())))))
    lowest = min(pairs, key=pairs.__getitem__)
    verdict = _reaches(pairs[lowest], 0.9, 0.7)
    sentence = f"Correlations between genes stay the same to {pairs[lowest]:.2f} in the worst batch ({lowest})."
    if folds:
        for name, (sign, rank) in folds.items():
            numbers[f"label {name}"] = {"signs_kept": sign, "ranks_kept": rank}
            scores.append(Score(f"label:{name}", "fold_changes_kept", rank))
        scores.append(Score("control", "fold_changes_kept", float(np.mean([rank for _, rank in folds.values()]))))
        worst = min(folds, key=lambda name: sum(folds[name]))
        for sign, rank in folds.values():
            verdict = worse(verdict, worse(_reaches(sign, 0.95, 0.85), _reaches(rank, 0.8, 0.5)))
        sign, rank = folds[worst]
        sentence += (
            f" Of the markers of the worst type ({worst}), {sign:.0%} keep the sign of their fold change, and their "
            f"ranks correlate by {rank:.2f}."
        )
    words = {
        "pass": "Corrected values may be used to look at genes; test differences on the counts all the same.",
        "warn": "Do not compare genes or types by the corrected values without looking at the counts.",
        "fail": "Do not use the corrected values for anything but neighbours.",
    }
    return Control("expression_kept", TITLE, verdict, f"{sentence} {words[verdict]}", RULE, numbers), scores


def _reaches(value: float, passing: float, warning: float) -> Verdict:
    return "pass" if value >= passing else "warn" if value >= warning else "fail"
