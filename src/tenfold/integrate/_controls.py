"""Controls of integration: does a method alter data that need no correction, lose types, or miss a known effect?

They follow the tests D1, D2, D4 and D6 that the docs page on integration describes. Each refits the method on at most
`CONTROL_CELLS` cells, so that a control costs seconds to a minute whatever the size of the data.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold import metrics
from tenfold.data import cluster, graph, simulation
from tenfold.data.inputs import Inputs
from tenfold.integrate._neighbors import K, Representation, nearest
from tenfold.integrate._trial import (
    BATCH,
    CONTROL_CELLS,
    N_COMPONENTS,
    N_GENES,
    Trial,
    components,
    equivalent_noise,
    sample_cells,
    variable,
)
from tenfold.method import Corrector, Method
from tenfold.task import Control, Score, Verdict

MIN_LABEL_CELLS = 20
_SEVERITY = ("pass", "warn", "fail")


def null_batch(trial: Trial, adata: AnnData, seed: int) -> tuple[Control, list[Score]]:
    """D1: split one batch at random and integrate the halves; neighbours should stay as they were."""
    before = components(adata)
    own = Representation.of(trial.fit(adata, batch=False, seed=seed + 1)) if trial.batch_free else None
    kept, aucs, aris, spurious = [], [], [], []
    for repeat, share in enumerate((0.5,) if trial.deep else (0.5, 0.5, 0.1)):
        rng = np.random.default_rng(seed + repeat)
        split = adata.copy()
        split.obs[BATCH] = pd.Categorical(np.where(rng.random(adata.n_obs) < share, "a", "b"))
        method = trial.fit(split, batch=True, seed=seed)
        result = Representation.of(method)
        reference = own.neighbors() if own is not None else nearest(before)
        kept.append(metrics.neighbor_overlap(reference, result.neighbors()))
        aris.append(metrics.ari(_leiden(Representation(before)), _leiden(result)))
        if result.embedding is not None:
            codes = split.obs[BATCH].cat.codes.to_numpy()
            aucs.append(metrics.separability_auc(result.embedding, codes, seed=seed))
        if isinstance(method, Corrector):
            spurious.append(_share_significant(method.correct(), split.obs[BATCH].cat.codes.to_numpy()))
    numbers = {
        "neighbors_kept": float(np.mean(kept)),
        "leiden_ari": float(np.mean(aris)),
        "leiden_ari_between_seeds": metrics.ari(_leiden(Representation(before)), _leiden(Representation(before), 1)),
        "splits": len(kept),
        "cells": adata.n_obs,
    }
    if aucs:
        numbers["fake_batch_auc"] = float(np.mean(aucs))
    if spurious:
        numbers["share_of_genes_p_below_0.05"] = float(np.mean(spurious))
    if own is not None:
        return _judge_own_null(trial, adata, own, numbers, seed)
    return _judge_null(before, numbers, seed)


def _judge_own_null(
    trial: Trial, adata: AnnData, own: Representation, numbers: dict, seed: int
) -> tuple[Control, list[Score]]:
    twin = Representation.of(trial.fit(adata, batch=False, seed=seed))
    numbers["kept_between_seeds"] = metrics.neighbor_overlap(own.neighbors(), twin.neighbors())
    loss = numbers["kept_between_seeds"] - numbers["neighbors_kept"]
    verdict = judged(loss)
    sentence = (
        f"With a made-up batch, {numbers['neighbors_kept']:.0%} of a cell's {K} neighbours are kept; two runs without "
        f"any batch agree on {numbers['kept_between_seeds']:.0%}. " + _NULL_WORDS[verdict]
    )
    rule = "Loss against two batch-free runs of the method: pass up to 0.05, warn up to 0.15."
    return Control("null_batch", "Null batch", verdict, sentence, rule, numbers), [
        Score("control", "null_batch_loss", loss)
    ]


def _judge_null(before: np.ndarray, numbers: dict, seed: int) -> tuple[Control, list[Score]]:
    noise = equivalent_noise(before, numbers["neighbors_kept"], seed)
    numbers["equivalent_noise_percent"] = noise
    verdict = "pass" if noise <= 1 else "warn" if noise <= 5 else "fail"
    sentence = (
        f"With a made-up batch, {numbers['neighbors_kept']:.0%} of a cell's {K} neighbours are kept, as after adding "
        f"{noise:.2g} % of noise. " + _NULL_WORDS[verdict]
    )
    if numbers.get("share_of_genes_p_below_0.05", 0.05) > 0.1:
        verdict = "fail"
        sentence += " Corrected values show differential expression between random halves."
    rule = (
        "Noise that would lose as many neighbours: pass up to 1 % of the variance, warn up to 5 %. Corrected "
        "expression: at most 10 % of genes may differ between the halves at p < 0.05."
    )
    return Control("null_batch", "Null batch", verdict, sentence, rule, numbers), [
        Score("control", "null_batch_loss", 1 - numbers["neighbors_kept"])
    ]


_NULL_WORDS = {
    "pass": "It leaves data alone that need no correction.",
    "warn": "It alters data that need no correction; keep an uncorrected result beside it.",
    "fail": "It strongly alters data that need no correction: expect invented structure.",
}


def _leiden(result: Representation, seed: int = 0) -> np.ndarray:
    if result.connectivities is not None:
        return cluster.leiden(result.connectivities, seed=seed)
    return cluster.leiden(graph.neighbor_graph(result.embedding, K).connectivities, seed=seed)


def _share_significant(expression: np.ndarray, codes: np.ndarray) -> float:
    from scipy.stats import ttest_ind

    first, second = expression[codes == 0], expression[codes == 1]
    p = ttest_ind(first, second, axis=0, equal_var=False).pvalue
    p = p[np.isfinite(p)]
    return float((p < 0.05).mean()) if p.size else float("nan")


def removed_type(trial: Trial, adata: AnnData, batch: str, labels: str, seed: int) -> tuple[Control, list[Score]]:
    """D2: leave a cell type in one batch only; after integration it must not be merged with other types."""
    adata = variable(sample_cells(adata, seed))
    adata.obs[BATCH] = pd.Categorical(adata.obs[batch].astype(str))
    table = pd.crosstab(adata.obs[labels], adata.obs[BATCH])
    shared = table[(table >= MIN_LABEL_CELLS).sum(axis=1) >= 2]
    chosen = shared.sum(axis=1).sort_values(ascending=False).index[: 3 if trial.deep else 5]
    title = "Removed cell type"
    rule = (
        "Share of same-label neighbours of the type that is left in one batch only, against the same cells in that "
        "batch alone without correction: pass down to 0.05 below, warn down to 0.15 below, for the worst type."
    )
    if len(chosen) == 0:
        sentence = f"No label has {MIN_LABEL_CELLS} cells in two batches, so none could be removed from one."
        return Control("removed_type", title, "not run", sentence, rule), []
    numbers, scores, drops = {}, [], {}
    for label in chosen:
        home = str(table.loc[label].idxmax())
        is_label = (adata.obs[labels] == label).to_numpy()
        kept = adata[~is_label | (adata.obs[BATCH] == home).to_numpy()].copy()
        if kept.obs[BATCH].nunique() < 2:
            continue
        purity, f1 = _label_purity(trial, kept, labels, label, seed)
        alone = kept[kept.obs[BATCH] == home].copy()
        same = (alone.obs[labels] == label).to_numpy()
        reference = float(same[nearest(components(alone))][same].mean())
        drops[str(label)] = reference - purity
        numbers[str(label)] = {"purity": purity, "purity_alone": reference, "leiden_f1": f1, "batch": home}
        scores.append(Score(f"label:{label}", "removed_type_purity", purity))
    worst = max(drops, key=drops.__getitem__)
    verdict = judged(drops[worst])
    words = {
        "pass": "Types that one batch lacks stay apart.",
        "warn": "A type that one batch lacks is partly merged with others.",
        "fail": "A type that one batch lacks is merged with others: real differences can be erased.",
    }
    sentence = (
        f"{words[verdict]} Worst of {len(drops)}: {worst}, with {numbers[worst]['purity']:.0%} of neighbours of its "
        f"own type ({numbers[worst]['purity_alone']:.0%} before)."
    )
    mean = float(np.mean([entry["purity"] for entry in numbers.values()]))
    scores.append(Score("control", "removed_type_purity", mean))
    return Control("removed_type", title, verdict, sentence, rule, numbers), scores


def _label_purity(trial: Trial, adata: AnnData, labels: str, label: str, seed: int) -> tuple[float, float]:
    result = Representation.of(trial.fit(adata, batch=True, seed=seed))
    same = (adata.obs[labels] == label).to_numpy()
    near = result.neighbors()[same]
    purity = float((same[near] & (near >= 0)).sum() / max((near >= 0).sum(), 1))  # -1 in a graph: no neighbour
    clusters = _leiden(result)
    f1 = max(
        2 * (same & (clusters == c)).sum() / (same.sum() + (clusters == c).sum()) for c in np.unique(clusters[same])
    )
    return purity, float(f1)


def within_batch(fitted: Method, adata: AnnData, batch: str, seed: int) -> tuple[Control, list[Score]]:
    """D4: are a cell's neighbours within its own batch still its neighbours after integration?"""
    title = "Neighbours within batches"
    rule = (
        "Overlap of a cell's 15 nearest neighbours in its own batch, before (PCA of that batch alone) and after, "
        "against what a PCA of all batches without correction keeps: pass down to 0.05 below, warn down to 0.15 below, "
        "for the worst batch. Models with a latent space of their own are not judged by this: PCs are not their "
        "yardstick."
    )
    after = Representation.of(fitted)
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
        scores.append(Score(f"batch:{level}", "within_batch_neighbors", kept))
    if not numbers:
        return Control("within_batch", title, "not run", f"No batch has more than {2 * K} cells.", rule), []
    worst = max(entry["kept_without_correction"] - entry["kept"] for entry in numbers.values())
    mean, before = (
        float(np.mean([entry[key] for entry in numbers.values()])) for key in ("kept", "kept_without_correction")
    )
    verdict = "info" if fitted.info.family == "deep" else judged(worst)
    sentence = f"{mean:.0%} of the neighbours within batches are kept ({before:.0%} without any correction)."
    scores.append(Score("control", "within_batch_neighbors", mean))
    return Control("within_batch", title, verdict, sentence, rule, numbers), scores


def judged(loss: float) -> Verdict:
    """Return the verdict on a share of neighbours lost: pass up to 0.05, warn up to 0.15."""
    return "pass" if loss <= 0.05 else "warn" if loss <= 0.15 else "fail"


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
    verdict = max(removed, judged(judged_on["without_integration"] - judged_on["recovered"]), key=_SEVERITY.index)
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
    return control, [Score("control", "recovered_neighbors", numbers["recovered"])]


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
