"""What velocity methods make of counts without velocity: unspliced counts permuted over cells, over genes, in groups.

A real set with a known direction (ductal cells become endocrine), and a simulation with exact kinetics and two
branches. Failures stand as they are: a method that is as confident of permuted counts gives no evidence.
``python evidence/velocity_nulls.py METHOD ...`` renews the records of some methods.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from anndata import AnnData, read_h5ad
from recording import DATA, ROOT, record, sha256, write

import tenfold as tf
from tenfold.velocity._nulls import LEAST_EXCESS, REPEATS, NullModels, null_models

METHODS = ("velocyto", "scvelo_deterministic", "scvelo_stochastic", "scvelo_dynamical")
#: Genes at most that a method is given, where its fits to many permutations would take long.
FEWER = {"scvelo_dynamical": 500}
STAGES = (
    "Ductal > Ngn3 low EP, Ngn3 low EP > Ngn3 high EP, Ngn3 high EP > Pre-endocrine, Pre-endocrine > Alpha, "
    "Pre-endocrine > Beta"
)


def records_of(name: str, found: NullModels, dataset: str, digest: str) -> list[dict[str, Any]]:
    strongest = found.mean(found.strongest)
    rows = (
        ("more coherent than permuted counts", "coherence (reference: the strongest null)", found.real.coherence,
         strongest, found.excess >= LEAST_EXCESS),
        ("in the known direction beyond permuted counts", "direction in gene space (reference: the highest null)",
         found.real.direction, float(found.directions.max()), bool(found.direction_beyond)),
        ("more genes with dynamics than permuted counts", "trusted genes (reference: the null with most)",
         found.real.genes, found.most_genes, found.real.genes > 3 * found.most_genes),
        ("more coherent than counts permuted within groups", "coherence (reference: permuted within groups)",
         found.real.coherence, found.mean("groups"), found.real.coherence - found.mean("groups") >= LEAST_EXCESS),
    )  # fmt: skip
    return [
        record(name, "check", claim, dataset, digest, metric, value, passed=passed, reference="permuted counts",
               reference_value=beside)
        for claim, metric, value, beside, passed in rows
    ]  # fmt: skip


def judged(name: str, adata: AnnData, transitions: str, dataset: str, digest: str) -> list[dict[str, Any]]:
    roles = {"labels": "cell_type", "transitions": transitions}
    params = {"n_top_genes": FEWER[name]} if name in FEWER else {}
    models = null_models(lambda _: tf.method("velocity", name, **params), adata, roles, 0, REPEATS)
    return records_of(name, models, f"{dataset}, {FEWER[name]} genes at most" if name in FEWER else dataset, digest)


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, chosen = DATA / "pancreas_velocity.h5ad", sys.argv[1:] or METHODS
    simulated = tf.data.simulate_branching(n_cells=700, n_genes=300, seed=0)
    kept = ROOT / "evidence" / "results" / "velocity_nulls.json"
    rows = [row for row in (json.loads(kept.read_text()) if kept.exists() else []) if row["method"] not in chosen]
    for method in chosen:
        rows += judged(method, read_h5ad(path), STAGES, path.name, sha256(path))
        rows += judged(method, simulated, simulated.uns["transitions"], "simulated branching, 700 cells × 300 genes",
                       sha256(simulated.X.data))  # fmt: skip
    write(rows)
