"""Controls of spatial domains: are there domains where positions are shuffled, and do seeds agree?"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from tenfold import metrics
from tenfold.domains._trial import Tissue, Trial, labels_for, own_labels
from tenfold.method import Method
from tenfold.task import Control, Score, Verdict

#: Fits that differ in the seed only; fewer of a deep method, unless all controls were asked for.
SEEDS, FEW_SEEDS = 5, 2
_RULE = (
    "Share of the 6 nearest cells of the same domain, beyond chance, after positions were dealt out anew within each "
    "slice: pass up to 0.1; warn up to half of what the method reaches on the tissue; fail above. Averaging over "
    "neighbours makes domains contiguous where there are none, so that contiguity (PAS, CHAOS) proves nothing then."
)


def shuffled_positions(
    trial: Trial, fitted: Method, tissue: Tissue, number: int, seed: int
) -> tuple[Control, list[Score]]:
    """Fit on positions that mean nothing: a spatial method must not find contiguous domains there."""
    window = tissue.window()
    real = first_labels(trial, fitted, tissue, window, number, seed)
    nowhere = window.shuffled(seed)
    invented = own_labels(trial.fit(nowhere, seed, number))
    on_tissue, on_noise = (
        metrics.contiguity(place.positions.points, labels, place.sections)
        for place, labels in ((window, real), (nowhere, invented))
    )
    on_tissue, on_noise = (float(np.nan_to_num(value)) for value in (on_tissue, on_noise))
    verdict: Verdict = "pass" if on_noise <= 0.1 else "warn" if on_noise <= on_tissue / 2 else "fail"
    words = {
        "pass": "it finds none where there are none",
        "warn": "a part of the contiguity is the method's own",
        "fail": "it finds contiguous domains where there are none, so that contiguity is no evidence",
    }[verdict]
    sentence = (
        f"Contiguity of the domains is {on_tissue:.2f} on the tissue and {on_noise:.2f} on shuffled positions: {words}."
    )
    numbers = {"tissue": on_tissue, "shuffled": on_noise, "cells": window.adata.n_obs, "domains": number}
    return Control("shuffled_positions", "Shuffled positions", verdict, sentence, _RULE, numbers), [
        Score("control", "shuffled_contiguity", on_noise), Score("control", "contiguity_gain", on_tissue - on_noise),
    ]  # fmt: skip


def seeds(trial: Trial, fitted: Method, tissue: Tissue, number: int, seed: int) -> tuple[Control, list[Score]]:
    """Fit with other seeds: how far do the domains agree?"""
    window = tissue.window()
    n_fits = FEW_SEEDS if trial.sparing else SEEDS
    found = [first_labels(trial, fitted, tissue, window, number, seed)]
    found += [own_labels(trial.fit(window, seed + more, number)) for more in range(1, n_fits)]
    pairs = [metrics.ari(a, b) for a, b in combinations(found, 2)]
    mean, worst = float(np.mean(pairs)), float(np.min(pairs))
    verdict: Verdict = "pass" if mean >= 0.8 else "warn" if mean >= 0.6 else "fail"
    sentence = f"Domains of {n_fits} seeds agree with a mean ARI of {mean:.2f} (worst pair {worst:.2f})."
    if n_fits < SEEDS:
        sentence += ' Two seeds say little: controls="all" (--all-controls) runs five.'
    rule = "Mean ARI over pairs of seeds, number of domains given: pass from 0.8, warn from 0.6."
    numbers = {"mean": mean, "worst": worst, "seeds": n_fits, "cells": window.adata.n_obs}
    return Control("seeds", "Other seeds", verdict, sentence, rule, numbers), [Score("control", "seed_agreement", mean)]


def first_labels(trial: Trial, fitted: Method, tissue: Tissue, window: Tissue, number: int, seed: int) -> np.ndarray:
    """Return the domains in the window: those of the fitted method where the window is the whole tissue."""
    if window is tissue:
        labels = labels_for(fitted, tissue, number, None, seed)
        if labels is not None:
            return labels
    return own_labels(trial.fit(window, seed, number))
