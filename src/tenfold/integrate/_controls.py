"""Controls of integration that ask for a known answer: a planted effect (D6), and neighbours within batches (D4).

D1 is in ``_null.py``, D2 and D3 in ``_types.py``, D7 in ``_expression.py``. Each refits the method on at most
`CONTROL_CELLS` cells, so that a control costs seconds to a minute whatever the size of the data.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold import metrics
from tenfold.data import simulation
from tenfold.data.inputs import Inputs
from tenfold.integrate._neighbors import K, Representation, nearest
from tenfold.integrate._trial import (
    BATCH,
    CONTROL_CELLS,
    N_COMPONENTS,
    N_GENES,
    Trial,
    components,
    judged,
    spread_over_cells,
    worse,
)
from tenfold.method import Method
from tenfold.metrics.neighborhoods import shared_neighbors
from tenfold.task import Control, Score, Verdict


def within_batch(trial: Trial, fitted: Method, adata: AnnData, batch: str, seed: int) -> tuple[Control, list[Score]]:
    """D4: are a cell's neighbours within its own batch still its neighbours after integration?"""
    title = "Neighbours within batches"
    rule = (
        "Overlap of a cell's 15 nearest neighbours in its own batch, before (PCA of that batch alone) and after, "
        "against what a PCA of all batches without correction keeps: pass down to 0.05 below, warn down to 0.15 below, "
        "for the worst batch. Models with a latent space of their own are not judged by this: PCs are not their "
        "yardstick. Beside it stands what two seeds of the method agree on: a loss that is no larger is chance."
    )
    after = Representation.of(fitted)
    twin = _twin(trial, adata, batch, seed)
    joint = Representation(Inputs(adata, {"batch": batch}).pca(N_COMPONENTS, N_GENES).embedding)
    codes = adata.obs[batch].astype(str).to_numpy()
    numbers, scores = {}, []
    for level in pd.unique(codes):
        inside = np.flatnonzero(codes == level)
        if len(inside) <= 2 * K:
            continue
        inside = np.sort(np.random.default_rng(seed).permutation(inside)[:CONTROL_CELLS])
        alone = nearest(Inputs(adata[inside], {}).pca(N_COMPONENTS, N_GENES).embedding)
        kept = metrics.neighbor_overlap(alone, nearest_inside(after, inside))
        uncorrected = metrics.neighbor_overlap(alone, nearest_inside(joint, inside))
        numbers[str(level)] = {"kept": kept, "kept_without_correction": uncorrected, "cells": len(inside)}
        if twin is not None:
            numbers[str(level)]["kept_between_seeds"] = metrics.neighbor_overlap(
                nearest_inside(after, inside), nearest_inside(twin, inside)
            )
        scores.append(Score(f"batch:{level}", "within_batch_neighbors", kept))
    if not numbers:
        return Control("within_batch", title, "not run", f"No batch has more than {2 * K} cells.", rule), []
    worst = max(entry["kept_without_correction"] - entry["kept"] for entry in numbers.values())
    mean, before = (
        float(np.mean([entry[key] for entry in numbers.values()])) for key in ("kept", "kept_without_correction")
    )
    verdict = "info" if fitted.info.family == "deep" else judged(worst)
    sentence = f"{mean:.0%} of the neighbours within batches are kept ({before:.0%} without any correction)."
    if twin is not None:
        agreed = float(np.mean([entry["kept_between_seeds"] for entry in numbers.values()]))
        sentence += f" Two seeds of the method agree on {agreed:.0%}."
    scores.append(Score("control", "within_batch_neighbors", mean))
    return Control("within_batch", title, verdict, sentence, rule, numbers), scores


def _twin(trial: Trial, adata: AnnData, batch: str, seed: int) -> Representation | None:
    """Fit once more with another seed; None where the seed changes nothing or the fit costs too much by default."""
    if trial.sparing or not trial.stochastic:
        return None
    again = AnnData(adata.X, obs=adata.obs.copy(), var=adata.var[[]].copy())
    again.obs[BATCH] = pd.Categorical(again.obs[batch].astype(str))
    return Representation.of(trial.fit(again, batch=True, seed=seed + 1))


def nearest_inside(representation: Representation, inside: np.ndarray) -> np.ndarray:
    """Return nearest neighbours among the cells `inside` only, as positions in `inside`."""
    if representation.embedding is not None:
        return nearest(representation.embedding[inside])
    sub = representation.connectivities[inside][:, inside]
    return Representation(None, sub.tocsr()).neighbors()


def planted_effect(trial: Trial, adata: AnnData, seed: int) -> tuple[Control, list[Score]]:
    """D6: plant a known batch effect on half of one batch; how many true neighbours does the method recover?"""
    halves = (np.random.default_rng(seed).random(adata.n_obs) < 0.5).astype(np.int32)
    planted = _planted(adata, halves, seed)
    thinned = _planted(adata, halves, seed, strength=0.0, ambient=0.0)
    found = Representation.of(trial.fit(planted, batch=True, seed=seed)).neighbors()

    def in_pcs(cells: AnnData) -> np.ndarray:
        return nearest(components(cells))

    def in_own_space(cells: AnnData) -> np.ndarray:
        # Truth from another seed than what is held against it: two fits of one seed agree for that alone.
        own_seed = seed + 1 if cells is adata else seed
        return Representation.of(trial.fit(cells, batch=False, seed=own_seed)).neighbors()

    truth = in_pcs(adata)
    numbers = _recovery(found, truth, in_pcs(planted), in_pcs(thinned))
    judged_on = numbers
    if trial.deep and trial.batch_free:
        judged_on = _recovery(found, *(in_own_space(cells) for cells in (adata, planted, thinned)))
        numbers |= {f"{name}_in_own_space": value for name, value in judged_on.items()}
    numbers["other_half_among_neighbors"] = 1 - metrics.neighbor_purity(found, halves)
    numbers["other_half_if_untouched"] = 1 - metrics.neighbor_purity(truth, halves)
    numbers["cells"] = adata.n_obs
    mixed = numbers["other_half_among_neighbors"] / max(numbers["other_half_if_untouched"], 1e-6)
    removed: Verdict = "pass" if mixed >= 0.8 else "warn" if mixed >= 0.5 else "fail"
    verdict = worse(removed, judged(judged_on["without_integration"] - judged_on["recovered"]))
    where = " (in the model's own latent space)" if judged_on is not numbers else ""
    sentence = (
        f"After a known batch effect was planted on half of the cells, the halves mix at {mixed:.0%} of what untouched "
        f"cells do, and {judged_on['recovered']:.0%} of the true neighbours are found again{where}: "
        f"{judged_on['without_integration']:.0%} without integration, {judged_on['ceiling']:.0%} if only the lower "
        "depth mattered."
    )
    rule = (
        "Two things are asked, and the worse counts. The halves mix again: neighbours from the other half, against "
        "those among untouched cells, pass from 0.8, warn from 0.5. True neighbours are not lost, against no "
        "integration: pass down to 0.05 below, warn down to 0.15 below. True neighbours are those of the untouched "
        "cells: in principal components, or, for a model with a latent space of its own, in its fit of them."
    )
    control = Control("planted_effect", "Planted batch effect", verdict, sentence, rule, numbers)
    return control, [
        Score("control", "recovered_neighbors", numbers["recovered"]),
        spread_over_cells("recovered_neighbors", shared_neighbors(truth, found)),
    ]


def _recovery(found: np.ndarray, truth: np.ndarray, hidden: np.ndarray, thinned: np.ndarray) -> dict[str, float]:
    """Return how many true neighbours are `found`, and how many without integration and without the effect."""
    recovered, floor, ceiling = (metrics.neighbor_overlap(truth, near) for near in (found, hidden, thinned))
    regained = (recovered - floor) / max(ceiling - floor, 1e-6)
    return {"recovered": recovered, "without_integration": floor, "ceiling": ceiling, "regained": regained}


def _planted(adata: AnnData, halves: np.ndarray, seed: int, strength: float = 0.4, ambient: float = 0.05) -> AnnData:
    counts = simulation.plant_batch(Inputs(adata, {}).counts, halves, strength=strength, ambient=ambient, seed=seed)[0]
    planted = AnnData(counts, obs=adata.obs.copy(), var=adata.var.copy())
    planted.obs[BATCH] = pd.Categorical(np.where(halves == 1, "planted", "untouched"))
    return planted
