"""Controls with cell types: one missing from all batches but one (D2), none in common, unequal proportions (D3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold import metrics
from tenfold.integrate._neighbors import Representation, leiden, nearest
from tenfold.integrate._trial import BATCH, Trial, components, judged, sample_cells, variable
from tenfold.task import Control, Score

MIN_LABEL_CELLS = 20
PROPORTION = 10
_K_CLISI = 90


def removed_type(trial: Trial, adata: AnnData, batch: str, labels: str, seed: int) -> tuple[Control, list[Score]]:
    """D2: leave a cell type in one batch only; after integration it must not be merged with other types."""
    adata, table = _few_cells(adata, batch, labels, seed)
    shared = table[(table >= MIN_LABEL_CELLS).sum(axis=1) >= 2]
    chosen = shared.sum(axis=1).sort_values(ascending=False).index[: 3 if trial.sparing else 5]
    title = "Removed cell type"
    rule = (
        "Share of same-label neighbours of the type that is left in one batch only, against the same cells in that "
        "batch alone without correction: pass down to 0.05 below, warn down to 0.15 below, for the worst type. Beside "
        "it: the F1 of its best Leiden cluster, and the share of its cells that came closer to the nearest type of "
        "another batch."
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
        found = _left_alone(trial, kept, labels, label, home, seed)
        drops[str(label)] = found["purity_alone"] - found["purity"]
        numbers[str(label)] = {**found, "batch": home}
        scores.append(Score(f"label:{label}", "removed_type_purity", found["purity"]))
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


def _few_cells(adata: AnnData, batch: str, labels: str, seed: int) -> tuple[AnnData, pd.DataFrame]:
    """Return few cells on their variable genes, with the column `BATCH`, and the cells of each label and batch."""
    adata = variable(sample_cells(adata, seed))
    adata.obs[BATCH] = pd.Categorical(adata.obs[batch].astype(str))
    adata.obs[labels] = pd.Categorical(adata.obs[labels].astype(str))
    return adata, pd.crosstab(adata.obs[labels], adata.obs[BATCH])


def _left_alone(trial: Trial, adata: AnnData, labels: str, label: str, home: str, seed: int) -> dict[str, float]:
    """Return how well the cells of `label`, found in the batch `home` only, stay together."""
    result = Representation.of(trial.fit(adata, batch=True, seed=seed))
    same = (adata.obs[labels] == label).to_numpy()
    clusters = leiden(result)
    f1 = max(
        2 * (same & (clusters == c)).sum() / (same.sum() + (clusters == c).sum()) for c in np.unique(clusters[same])
    )
    alone = adata[adata.obs[BATCH] == home].copy()
    found = {
        "purity": _purity(result.neighbors(), same),
        "purity_alone": _purity(nearest(components(alone)), (alone.obs[labels] == label).to_numpy()),
        "leiden_f1": float(f1),
    }
    if result.embedding is not None:
        groups = adata.obs[labels].astype(str).to_numpy()
        elsewhere = (adata.obs[BATCH] != home).to_numpy()
        before, after = (
            _to_nearest_type(points, same, elsewhere, groups) for points in (components(adata), result.embedding)
        )
        found["share_moved_closer"] = float((after < before).mean())
    return found


def _purity(near: np.ndarray, same: np.ndarray) -> float:
    """Return the share of neighbours of the cells `same` that are such cells themselves; -1 is no neighbour."""
    own = near[same]
    return float((same[own] & (own >= 0)).sum() / max((own >= 0).sum(), 1))


def _to_nearest_type(points: np.ndarray, cells: np.ndarray, elsewhere: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the distance of `cells` to the nearest centroid of a type in another batch, in units of the spread."""
    centroids = np.stack([points[elsewhere & (groups == name)].mean(axis=0) for name in np.unique(groups[elsewhere])])
    apart = np.linalg.norm(points[cells][:, None] - centroids, axis=2).min(axis=1)
    return apart / np.sqrt(points.var(axis=0).sum())


def no_common_type(trial: Trial, adata: AnnData, batch: str, labels: str, seed: int) -> tuple[Control, list[Score]]:
    """D2, the extreme: two batches without any type in common must stay apart."""
    title = "No common type"
    rule = (
        "Of the two largest batches each keeps every other label, so that nothing should mix. Share of neighbours in "
        "the cell's own batch, against the same cells without correction: pass down to 0.05 below, warn down to 0.15."
    )
    adata, table = _few_cells(adata, batch, labels, seed)
    pair, table = _two_largest(table)
    kept, taken = np.zeros(adata.n_obs, dtype=bool), dict.fromkeys(pair, 0)
    for label in table.index[(table >= MIN_LABEL_CELLS).any(axis=1)]:
        able = [name for name in pair if table.loc[label, name] >= MIN_LABEL_CELLS]
        home = min(able, key=taken.__getitem__)
        taken[home] += int(table.loc[label, home])
        kept |= ((adata.obs[labels] == label) & (adata.obs[BATCH] == home)).to_numpy()
    if not all(taken.values()):
        sentence = f"There are no two labels with {MIN_LABEL_CELLS} cells for the two largest batches."
        return Control("no_common_type", title, "not run", sentence, rule), []
    cells = adata[kept].copy()
    side = (cells.obs[BATCH] == pair[0]).to_numpy().astype(int)
    after = metrics.neighbor_purity(Representation.of(trial.fit(cells, batch=True, seed=seed)).neighbors(), side)
    before = metrics.neighbor_purity(nearest(components(cells)), side)
    verdict = judged(before - after)
    words = {
        "pass": "Two batches without a type in common stay apart",
        "warn": "Two batches without a type in common are partly merged",
        "fail": "Two batches without a type in common are merged, though nothing in them belongs together",
    }
    sentence = f"{words[verdict]}: {after:.0%} of neighbours are of the same batch ({before:.0%} without correction)."
    numbers = {"own_batch": after, "own_batch_without_correction": before, "cells": cells.n_obs}
    return Control("no_common_type", title, verdict, sentence, rule, numbers), [
        Score("control", "apart_without_common_type", after)
    ]


def _two_largest(table: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """Return the two batches with the most cells, and their columns with the largest label first."""
    pair = list(table.sum(axis=0).sort_values(ascending=False, kind="stable").index[:2])
    order = table[pair].sum(axis=1).sort_values(ascending=False, kind="stable").index
    return pair, table.loc[order, pair]


def unequal_proportions(
    trial: Trial, adata: AnnData, batch: str, labels: str, seed: int
) -> tuple[Control, list[Score]]:
    """D3: types that are ten times as frequent in one batch as in the other must not be moved onto each other."""
    title = "Unequal proportions"
    rule = (
        f"Of the two largest batches one keeps all cells of every other label and one in {PROPORTION} of the rest, the "
        "other the reverse; the balanced run keeps as many cells of each label, evenly. Purity (share of same-label "
        "neighbours) and cLISI, mean over labels, fall by how much more than without correction? The larger fall "
        "counts: pass up to 0.05, warn up to 0.15."
    )
    adata, table = _few_cells(adata, batch, labels, seed)
    pair, table = _two_largest(table)
    chosen = [str(label) for label in table.index[(table >= MIN_LABEL_CELLS).all(axis=1)]]
    if len(chosen) < 2:
        sentence = f"Fewer than two labels have {MIN_LABEL_CELLS} cells in each of the two largest batches."
        return Control("unequal_proportions", title, "not run", sentence, rule), []
    known = {}
    for name, cells in _sub_sampled(adata, labels, pair, chosen, seed).items():
        known[name] = _kept_apart(Representation.of(trial.fit(cells, batch=True, seed=seed)), cells, labels)
        known[f"{name}_without_correction"] = _kept_apart(Representation(components(cells)), cells, labels)
    numbers, scores = {}, []
    for label in chosen:
        numbers[label] = {f"{measure}_{name}": known[name][measure][label] for name in known for measure in known[name]}
        scores.append(Score(f"label:{label}", "unequal_purity", known["unequal"]["purity"][label]))
    falls = {measure: np.array([_fall(known, measure, label) for label in chosen]) for measure in ("purity", "clisi")}
    verdict = judged(max(fall.mean() for fall in falls.values()))
    worst = chosen[int(falls["purity"].argmax())]
    words = {
        "pass": "Unequal proportions of types do little harm.",
        "warn": "Where proportions of types differ between batches, types are partly merged.",
        "fail": "Where proportions of types differ between batches, types are merged.",
    }
    sentence = (
        f"{words[verdict]} At {PROPORTION}:1, purity falls by {falls['purity'].mean():.2f} and cLISI by "
        f"{falls['clisi'].mean():.2f} more than without correction; worst: {worst}, from "
        f"{numbers[worst]['purity_balanced']:.0%} to {numbers[worst]['purity_unequal']:.0%} neighbours of its own type."
    )
    mean = float(np.mean([known["unequal"]["purity"][label] for label in chosen]))
    scores.append(Score("control", "unequal_purity", mean))
    return Control("unequal_proportions", title, verdict, sentence, rule, numbers), scores


def _sub_sampled(adata: AnnData, labels: str, pair: list[str], chosen: list[str], seed: int) -> dict[str, AnnData]:
    """Return cells of two batches with types 10:1, and as many cells of each type evenly; other labels are left out."""
    rng = np.random.default_rng(seed)
    unequal, balanced = [], []
    for place, label in enumerate(chosen):
        of_label = (adata.obs[labels] == label).to_numpy()
        rich, poor = pair if place % 2 == 0 else pair[::-1]
        cells = {name: rng.permutation(np.flatnonzero(of_label & (adata.obs[BATCH] == name))) for name in pair}
        most = min(map(len, cells.values()))
        few = max(1, round(most / PROPORTION))
        unequal += [cells[rich][:most], cells[poor][:few]]
        half = (most + few) // 2
        balanced += [cells[rich][:half], cells[poor][:half]]
    parts = {"balanced": balanced, "unequal": unequal}
    return {name: adata[np.sort(np.concatenate(rows))].copy() for name, rows in parts.items()}


def _kept_apart(result: Representation, cells: AnnData, labels: str) -> dict[str, dict[str, float]]:
    """Return purity and cLISI of every label."""
    names = cells.obs[labels].astype(str).to_numpy()
    near = result.neighbors()
    return {
        "purity": {name: _purity(near, names == name) for name in np.unique(names)},
        "clisi": metrics.clisi_per_label(result.lists(_K_CLISI), names),
    }


def _fall(known: dict[str, dict[str, dict[str, float]]], measure: str, label: str) -> float:
    """Return how much lower the measure is with unequal proportions, beyond what the same cells lose uncorrected."""

    def value(name: str) -> float:
        return known[name][measure][label]

    uncorrected = value("balanced_without_correction") - value("unequal_without_correction")
    return value("balanced") - value("unequal") - uncorrected
