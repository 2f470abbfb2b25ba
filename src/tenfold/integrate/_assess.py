"""D5: should these batches be integrated at all?

The review asks to integrate only where a substantial batch effect shows. Here the batch must be readable from the cells
beyond what chance gives when batches are shuffled among cells of the same kind.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold import metrics
from tenfold.data import check, cluster, graph
from tenfold.data.inputs import Inputs
from tenfold.integrate._neighbors import K
from tenfold.metrics.diversity import WITHIN_LABELS
from tenfold.task import Assessment

ASSESSED_CELLS = 5000
N_PERMUTATIONS = 19
MARGIN = 0.05
_RULE = (
    f"How well a classifier reads the batch off 30 PCs (AUC, cross-validated) against {N_PERMUTATIONS} shuffles of the "
    f"batch among cells of the same kind (labels where given, else Leiden clusters): integrate when it exceeds every "
    f"shuffle and their mean by {MARGIN}. Clusters that hold one batch only count as an effect, since shuffling inside "
    "them changes nothing. PCR (variance explained by batch) and iLISI (batches around a cell) of the data and of the "
    "shuffles stand beside it. Where no label, or no level of a covariate, is found in two batches, batch and biology "
    "are confounded."
)


def assess(adata: AnnData, roles: dict[str, str], seed: int) -> Assessment:
    """Say whether the batches differ by more than chance, and whether that could be biology.

    Parameters
    ----------
    adata
        Cells × genes with counts in X.
    roles
        ``batch`` and, optionally, ``labels``.
    seed
        Of the sub-sample and the shuffles.
    """
    cells = _sample(adata, seed)
    data = Inputs(cells, {"batch": roles["batch"]}, needed=("batch",))
    assert data.batch is not None
    codes = data.batch.values
    pcs = data.pca(30, 2000).embedding
    labels = check.categories(cells, roles["labels"], "labels") if "labels" in roles else None
    clusters = cluster.leiden(graph.neighbor_graph(pcs, min(K, len(pcs) - 1)).connectivities, seed=seed)
    strata = clusters if labels is None else labels.values
    observed, null = _observed_and_null(pcs, codes, strata, seed)
    pure = _share_in_pure_strata(codes, clusters)
    numbers = {
        "batch_auc": observed["auc"],
        "batch_auc_shuffled_mean": float(np.mean(null["auc"])),
        "batch_auc_shuffled_max": float(np.max(null["auc"])),
        "batch_pcr": observed["pcr"],
        "batch_pcr_shuffled_mean": float(np.mean(null["pcr"])),
        "batch_ilisi": observed["ilisi"],
        "batch_ilisi_shuffled_mean": float(np.mean(null["ilisi"])),
        "share_of_cells_in_one_batch_clusters": pure,
        "cells": len(pcs),
        "strata": "labels" if labels is not None else "Leiden clusters",
    }
    confounded = _confounding(adata, roles)
    if confounded:
        return Assessment("confounded", confounded, _RULE, numbers)
    exceeds = observed["auc"] > np.max(null["auc"]) and observed["auc"] - np.mean(null["auc"]) >= MARGIN
    if exceeds or (labels is None and pure >= 0.3):
        sentence = (
            f"A classifier tells the batches apart by expression (AUC {observed['auc']:.2f}, where 0.5 is guessing and "
            f"1 is certain; {np.mean(null['auc']):.2f} when batches are shuffled among cells of the same kind): a "
            "substantial batch effect, worth integrating."
        )
        if labels is None and not exceeds:
            sentence = (
                f"{pure:.0%} of the cells sit in clusters that hold one batch only: either a batch effect hides shared "
                "types, or the batches hold different cells. Give labels= to tell the two apart."
            )
        return Assessment("integrate", sentence + _single_batch_types(adata, roles), _RULE, numbers)
    sentence = (
        f"No substantial batch effect found: a classifier hardly tells the batches apart (AUC {observed['auc']:.2f}, "
        f"where 0.5 is guessing; {np.mean(null['auc']):.2f} when shuffled). Integration is not advised: altering the "
        "data would lose information."
    )
    return Assessment("not advised", sentence, _RULE, numbers)


def _sample(adata: AnnData, seed: int) -> AnnData:
    if adata.n_obs <= ASSESSED_CELLS:
        return adata
    chosen = np.random.default_rng(seed).choice(adata.n_obs, ASSESSED_CELLS, replace=False)
    return adata[np.sort(chosen)].copy()


def _observed_and_null(
    pcs: np.ndarray, codes: np.ndarray, strata: np.ndarray, seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    rng = np.random.default_rng(seed)
    near = metrics.neighbors(pcs, WITHIN_LABELS)

    def measured(batch: np.ndarray) -> dict[str, float]:
        return {
            "auc": metrics.separability_auc(pcs, batch, seed=seed),
            "pcr": metrics.pcr(pcs, batch),
            "ilisi": metrics.ilisi(near, batch),
        }

    observed = measured(codes)
    null: dict[str, list[float]] = {name: [] for name in observed}
    for _ in range(N_PERMUTATIONS):
        shuffled = codes.copy()
        for stratum in np.unique(strata):
            inside = np.flatnonzero(strata == stratum)
            shuffled[inside] = rng.permutation(codes[inside])
        for name, value in measured(shuffled).items():
            null[name].append(value)
    return observed, null


def _share_in_pure_strata(codes: np.ndarray, strata: np.ndarray) -> float:
    table = pd.crosstab(strata, codes).to_numpy()
    sizes = table.sum(axis=1)
    return float(sizes[table.max(axis=1) >= 0.98 * sizes].sum() / sizes.sum())


def _confounding(adata: AnnData, roles: dict[str, str]) -> str:
    """Return a warning where no label, or no level of a covariate, is found in two batches; else an empty string."""
    if "labels" in roles and not (_batches_of(adata, roles["labels"], roles) >= 2).any():
        return (
            "No label is found in two batches, so what differs between batches cannot be told from what differs "
            "between labels. Integration would erase one with the other; do not trust a merged result."
        )
    for key in _covariates(roles):
        found = _batches_of(adata, key, roles)
        if len(found) > 1 and not (found >= 2).any():
            return (
                f"No level of '{key}' is found in two batches, so what differs between batches cannot be told from "
                f"what differs between levels of '{key}'. Integration would erase one with the other; do not trust a "
                "merged result."
            )
    return ""


def _single_batch_types(adata: AnnData, roles: dict[str, str]) -> str:
    """Name labels, and levels of covariates, that are found in one batch only."""
    said = ""
    for key in [roles[role] for role in ("labels",) if role in roles] + _covariates(roles):
        found = _batches_of(adata, key, roles)
        alone = [str(level) for level in found.index[found == 1]]
        if alone and key == roles.get("labels"):
            said += f" Found in one batch only, so look at them after integration: {', '.join(alone)}."
        elif alone and len(found) > 1:
            said += (
                f" Of '{key}', {', '.join(alone)} is found in one batch only: there its effect cannot be told from "
                "that of the batch."
            )
    return said


def _covariates(roles: dict[str, str]) -> list[str]:
    given = roles.get("categorical_covariates", [])
    return [given] if isinstance(given, str) else list(given)


def _batches_of(adata: AnnData, key: str, roles: dict[str, str]) -> pd.Series:
    """Return in how many batches each level of an obs column is found."""
    return (pd.crosstab(adata.obs[key], adata.obs[roles["batch"]]) > 0).sum(axis=1)
