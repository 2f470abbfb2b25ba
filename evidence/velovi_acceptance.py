"""veloVI's acceptance check, with one state for both RNAs ("tied") and one for each, as the original has it.

On an exact simulation: rates, velocities, permutation scores, uncertainty of genes without dynamics. On a pancreas
whose course is known: direction and coherence, beside permuted counts.
``python evidence/velovi_acceptance.py [PART ...]`` renews some parts: simulated, shuffled, pancreas.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
from anndata import AnnData, read_h5ad
from recording import DATA, ROOT, record, sha256, write
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import tenfold as tf
from tenfold.velocity._nulls import null_models
from tenfold.velocity.velovi import VeloVI

KINDS = {"a state for each": False, "tied": True}
STAGES = (
    "Ductal > Ngn3 low EP, Ngn3 low EP > Ngn3 high EP, Ngn3 high EP > Pre-endocrine, Pre-endocrine > Alpha, "
    "Pre-endocrine > Beta"
)
#: Genes of the pancreas, and permutations of each kind: each is a training of its own.
GENES, REPEATS = 200, 1


def along(adata: AnnData) -> AnnData:
    """Name true time as what neighbours are searched in, and halves of it as groups."""
    adata.obsm["X_true"] = np.stack([adata.obs["true_time"], np.zeros(adata.n_obs)], axis=1)
    adata.obs["part"] = np.where(adata.obs["true_time"] < adata.obs["true_time"].median(), "early", "late")
    return adata


def simulated() -> list[dict[str, Any]]:
    adata = along(tf.data.simulate_splicing(n_cells=1000, n_genes=100, seed=0))
    name, digest, rows = "exact simulation, 1,000 cells × 100 genes", sha256(adata.layers["spliced"]), []
    for kind, tied in KINDS.items():
        model = VeloVI(n_top_genes=None, normalize=False, tied=tied).fit(adata, use_rep="X_true", progress=False)
        genes, table = model.columns_[model.modelled_], model.rates()
        truth = (adata.var["true_gamma"] / adata.var["true_beta"]).loc[table.index]
        known = table["ratio"].notna()
        agreement = tf.metrics.velocity_agreement(model.velocity()[:, genes], adata.layers["true_velocity"][:, genes])
        score = model.permutation_score(adata, "part")["highest"]
        times = np.mean([spearmanr(own, adata.obs["true_time"])[0] for own in model.gene_times().T])
        for claim, metric, value, bar in (
            ("rates", "Spearman of γ / β with the truth", spearmanr(table["ratio"][known], truth[known])[0], 0.9),
            ("velocity", "mean cosine to the true velocity", agreement.mean(), 0.8),
            ("time", "Spearman of velocity pseudotime and true time",
             spearmanr(model.time(), adata.obs["true_time"])[0], 0.9),
            ("times of genes", "mean Spearman of a gene's time and true time", times, 0.7),
            ("genes with dynamics", "median permutation score", score.median(), 3.0),
        ):  # fmt: skip
            rows.append(record(
                "velovi", "check", f"{claim}, {kind}", name, digest, metric, value, passed=value >= bar, tolerance=bar
            ))  # fmt: skip
    return rows


def shuffled() -> list[dict[str, Any]]:
    """Fit averages of which half of the genes were permuted over cells, spliced and unspliced apart."""
    adata = along(tf.data.simulate_splicing(n_cells=1000, n_genes=100, seed=1))
    own = VeloVI(n_top_genes=None, normalize=False, epochs=1).fit(adata, use_rep="X_true", progress=False)
    rng, mixed = np.random.default_rng(0), np.arange(100) % 2 == 0
    for name, part in (("spliced", own.spliced_), ("unspliced", own.unspliced_)):
        part = part.copy()
        part[:, mixed] = rng.permuted(part[:, mixed], axis=0)
        adata.layers[name] = part
    rows, digest = [], sha256(adata.layers["spliced"])
    name = "exact simulation, 1,000 cells × 100 genes, half of the genes permuted"
    for kind, tied in KINDS.items():
        model = VeloVI(n_top_genes=None, normalize=False, n_neighbors=3, min_r2=-1e9, min_ratio=0.0, tied=tied)
        model.fit(adata, use_rep="X_true", progress=False)
        which = mixed[model.columns_[model.modelled_]]
        score = model.permutation_score(adata, "part")[["early", "late"]].to_numpy()
        draws = model.velocity_samples(25)
        unsure = (draws.std(axis=0) / np.maximum(draws.std(axis=(0, 1)), 1e-9)).mean(axis=0)
        area = float(roc_auc_score(which, unsure))
        for claim, metric, value, passed, bar in (
            ("permutation score of genes without dynamics", "median", np.median(score[which]),
             abs(np.median(score[which])) < 1, 1.0),
            ("permutation score of genes with dynamics", "median", np.median(score[~which]),
             np.median(score[~which]) > 3, 3.0),
            ("uncertainty tells genes without dynamics", "AUROC of spread over draws relative to that over cells",
             area, area > 0.9, 0.9),
        ):  # fmt: skip
            rows.append(record(
                "velovi", "check", f"{claim}, {kind}", name, digest, metric, value, passed=passed, tolerance=bar
            ))  # fmt: skip
    return rows


def pancreas() -> list[dict[str, Any]]:
    path = DATA / "pancreas_velocity.h5ad"
    roles = {"labels": "cell_type", "transitions": STAGES}
    found = null_models(lambda seed: VeloVI(n_top_genes=GENES, seed=seed), read_h5ad(path), roles, 0, REPEATS)
    strongest = found.mean(found.strongest)
    return [
        record(
            "velovi", "check", claim, f"{path.name}, {GENES} genes", sha256(path), metric, value, passed=passed,
            reference="permuted counts", reference_value=beside,
        )
        for claim, metric, value, beside, passed in (
            ("in the known direction beyond permuted counts", "direction in gene space (reference: the highest null)",
             found.real.direction, found.directions.max(), bool(found.direction_beyond)),
            ("more coherent than permuted counts", "coherence (reference: the strongest null)", found.real.coherence,
             strongest, found.real.coherence - strongest >= 0.1),
            ("more coherent than counts permuted within groups", "coherence (reference: permuted within groups)",
             found.real.coherence, found.mean("groups"), found.real.coherence - found.mean("groups") >= 0.1),
            ("more genes with dynamics than permuted counts", "modelled genes (reference: the null with most)",
             found.real.genes, found.most_genes, found.real.genes > 3 * found.most_genes),
        )
    ]  # fmt: skip


PARTS = {"simulated": simulated, "shuffled": shuffled, "pancreas": pancreas}

if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = ROOT / "evidence" / "results" / "velovi_acceptance.json"
    for part in sys.argv[1:] or PARTS:
        new = PARTS[part]()
        old = json.loads(kept.read_text()) if kept.exists() else []
        done = {(row["claim"], row["dataset"]) for row in new}
        write([row for row in old if (row["claim"], row["dataset"]) not in done] + new)
