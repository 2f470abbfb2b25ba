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
from tenfold.task import Assessment

ASSESSED_CELLS = 5000
N_PERMUTATIONS = 19
MARGIN = 0.05
_RULE = (
    f"How well a classifier reads the batch off 30 PCs (AUC, cross-validated) against {N_PERMUTATIONS} shuffles of the "
    f"batch among cells of the same kind (labels where given, else Leiden clusters): integrate when it exceeds every "
    f"shuffle and their mean by {MARGIN}. Clusters that hold one batch only count as an effect, since shuffling inside "
    "them changes nothing."
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
        "share_of_cells_in_one_batch_clusters": pure,
        "cells": len(pcs),
        "strata": "labels" if labels is not None else "Leiden clusters",
    }
    confounded = _confounding(cells, roles)
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
        return Assessment("integrate", sentence + _single_batch_types(cells, roles), _RULE, numbers)
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
    observed = {"auc": metrics.separability_auc(pcs, codes, seed=seed), "pcr": metrics.pcr(pcs, codes)}
    null: dict[str, list[float]] = {"auc": [], "pcr": []}
    for _ in range(N_PERMUTATIONS):
        shuffled = codes.copy()
        for stratum in np.unique(strata):
            inside = np.flatnonzero(strata == stratum)
            shuffled[inside] = rng.permutation(codes[inside])
        null["auc"].append(metrics.separability_auc(pcs, shuffled, seed=seed))
        null["pcr"].append(metrics.pcr(pcs, shuffled))
    return observed, null


def _share_in_pure_strata(codes: np.ndarray, strata: np.ndarray) -> float:
    table = pd.crosstab(strata, codes).to_numpy()
    sizes = table.sum(axis=1)
    return float(sizes[table.max(axis=1) >= 0.98 * sizes].sum() / sizes.sum())


def _confounding(adata: AnnData, roles: dict[str, str]) -> str:
    """Return a warning where no label is found in two batches, else an empty string."""
    if "labels" not in roles:
        return ""
    table = pd.crosstab(adata.obs[roles["labels"]], adata.obs[roles["batch"]])
    if ((table > 0).sum(axis=1) >= 2).any():
        return ""
    return (
        "No label is found in two batches, so what differs between batches cannot be told from what differs between "
        "labels. Integration would erase one with the other; do not trust a merged result."
    )


def _single_batch_types(adata: AnnData, roles: dict[str, str]) -> str:
    if "labels" not in roles:
        return ""
    table = pd.crosstab(adata.obs[roles["labels"]], adata.obs[roles["batch"]])
    alone = [str(label) for label in table.index[(table > 0).sum(axis=1) == 1]]
    return f" Found in one batch only, so look at them after integration: {', '.join(alone)}." if alone else ""
