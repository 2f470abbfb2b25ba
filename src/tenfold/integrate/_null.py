"""D1, the null batch: what does a method do to cells that need no correction?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold import metrics
from tenfold.integrate._neighbors import K, Representation, leiden
from tenfold.integrate._trial import BATCH, Trial, components, equivalent_noise, judged, spread_over_cells, worse
from tenfold.method import Corrector
from tenfold.metrics.neighborhoods import shared_neighbors
from tenfold.task import Control, Score, Verdict

_SPURIOUS = "share_of_genes_p_below_0.05"
_REPORTED = (
    " Reported beside it: displacement (after the best rotation and scaling, over the total variance), agreement of "
    "Leiden clusters, and how well a classifier reads the made-up batch (AUC 0.5: not at all; below: the halves were "
    "made more alike than random halves are)."
)
_WORDS = {
    "pass": "It leaves data alone that need no correction.",
    "warn": "It alters data that need no correction; keep an uncorrected result beside it.",
    "fail": "It strongly alters data that need no correction: expect invented structure.",
}


def null_batch(trial: Trial, adata: AnnData, seed: int) -> tuple[Control, list[Score]]:
    """D1: split one batch at random (50/50 twice, 90/10) and integrate the parts; cells should stay as they were."""
    before = components(adata)
    own = Representation.of(trial.fit(adata, batch=False, seed=seed + 1)) if trial.batch_free else None
    yardstick = Representation(before) if own is None else own
    splits, kept = zip(*[
        _split(trial, adata, yardstick, share, seed, repeat)
        for repeat, share in enumerate((0.5,) if trial.sparing else (0.5, 0.5, 0.1))
    ], strict=True)  # fmt: skip
    spread = spread_over_cells("null_batch_loss", np.mean(kept, axis=0))
    numbers = {name: float(np.mean([split[name] for split in splits])) for name in splits[0]}
    numbers |= {"splits": len(splits), "cells": adata.n_obs}
    if own is not None:
        control, scores = _judge_own(trial, adata, own, numbers, seed)
        return control, [*scores, spread]
    numbers["leiden_ari_between_seeds"] = metrics.ari(leiden(yardstick), leiden(yardstick, 1))
    control, scores = _judge(before, numbers, seed)
    return control, [*scores, spread]


def _split(
    trial: Trial, adata: AnnData, yardstick: Representation, share: float, seed: int, repeat: int
) -> tuple[dict[str, float], np.ndarray]:
    """Integrate cells whose batch was drawn at random; return what became of them, and the share kept by cell."""
    split = adata.copy()
    drawn = np.random.default_rng(seed + repeat).random(adata.n_obs) < share
    split.obs[BATCH] = pd.Categorical(np.where(drawn, "a", "b"))
    method = trial.fit(split, batch=True, seed=seed)
    result = Representation.of(method)
    kept = shared_neighbors(yardstick.neighbors(), result.neighbors())
    found = {
        "neighbors_kept": float(np.nanmean(kept)),
        "leiden_ari": metrics.ari(leiden(yardstick), leiden(result)),
    }
    if result.embedding is not None:
        found["fake_batch_auc"] = metrics.separability_auc(result.embedding, drawn.astype(int), seed=seed)
        if yardstick.embedding is not None:
            found["displacement"] = displacement(yardstick.embedding, result.embedding)
    if isinstance(method, Corrector):
        found[_SPURIOUS] = _share_significant(method.correct(), drawn)
    return found, kept


def displacement(before: np.ndarray, after: np.ndarray) -> float:
    """Return how far cells moved: ``sqrt(sum |z' - z|^2 / sum |z - mean|^2)`` after the best rotation and scaling.

    A latent space has neither direction nor scale of its own, so both are given away (Procrustes). From 0 to 1.

    Parameters
    ----------
    before, after
        Coordinates of the same cells, shapes (n, d) and (n, d2).
    """
    z, moved = (points.astype(np.float64) - points.mean(axis=0) for points in (before, after))
    overlap = np.linalg.svd(moved.T @ z, compute_uv=False).sum()
    explained = overlap**2 / max((z**2).sum() * (moved**2).sum(), 1e-300)
    return float(np.sqrt(max(0.0, 1 - explained)))


def _share_significant(expression: np.ndarray, drawn: np.ndarray) -> float:
    from scipy.stats import ttest_ind

    p = ttest_ind(expression[drawn], expression[~drawn], axis=0, equal_var=False).pvalue
    p = p[np.isfinite(p)]
    return float((p < 0.05).mean()) if p.size else float("nan")


def _judge_own(
    trial: Trial, adata: AnnData, own: Representation, numbers: dict[str, float], seed: int
) -> tuple[Control, list[Score]]:
    """Judge by what two runs without any batch agree on: the method's own noise."""
    twin = Representation.of(trial.fit(adata, batch=False, seed=seed))
    numbers["kept_between_seeds"] = metrics.neighbor_overlap(own.neighbors(), twin.neighbors())
    numbers["leiden_ari_between_seeds"] = metrics.ari(leiden(own), leiden(twin))
    if own.embedding is not None and twin.embedding is not None:
        numbers["displacement_between_seeds"] = displacement(own.embedding, twin.embedding)
    loss = numbers["kept_between_seeds"] - numbers["neighbors_kept"]
    sentence = (
        f"With a made-up batch, {numbers['neighbors_kept']:.0%} of a cell's {K} neighbours are kept; two runs without "
        f"any batch agree on {numbers['kept_between_seeds']:.0%}. "
    )
    rule = "Loss against two batch-free runs of the method: pass up to 0.05, warn up to 0.15."
    return _outcome(judged(loss), sentence, rule, numbers, loss)


def _judge(before: np.ndarray, numbers: dict[str, float], seed: int) -> tuple[Control, list[Score]]:
    """Judge by the noise that would lose as many neighbours of the uncorrected components."""
    noise = equivalent_noise(before, numbers["neighbors_kept"], seed)
    numbers["equivalent_noise_percent"] = noise
    sentence = (
        f"With a made-up batch, {numbers['neighbors_kept']:.0%} of a cell's {K} neighbours are kept, as after adding "
        f"{noise:.2g} % of noise. "
    )
    rule = "Noise that would lose as many neighbours: pass up to 1 % of the variance, warn up to 5 %."
    verdict: Verdict = "pass" if noise <= 1 else "warn" if noise <= 5 else "fail"
    return _outcome(verdict, sentence, rule, numbers, 1 - numbers["neighbors_kept"])


def _outcome(
    verdict: Verdict, sentence: str, rule: str, numbers: dict[str, float], loss: float
) -> tuple[Control, list[Score]]:
    sentence += _WORDS[verdict]
    if numbers.get(_SPURIOUS, 0.05) > 0.1:
        verdict = worse(verdict, "fail")
        sentence += " Corrected values show differential expression between random halves."
    rule += " Corrected expression: at most 10 % of genes may differ between the halves at p < 0.05." + _REPORTED
    control = Control("null_batch", "Null batch", verdict, sentence, rule, numbers)
    return control, [Score("control", "null_batch_loss", loss)]
