"""VeloVAE: its time where it is known, whether it is reversed, and what it makes of permuted unspliced counts.

Set with known times: a simulation that branches. Real set: a pancreas whose course is known. Beside both, scVelo's
stochastic model. Trainings are cut short, and their learning rate is set, as `SHORT` says.
``python evidence/velovae_acceptance.py [branching_0] ... [directions] [pancreas]``, a seed at the end; results of other
parts are kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from anndata import AnnData, read_h5ad
from deep_annotators import parts
from recording import DATA, record, sha256
from scipy.stats import spearmanr
from velocity_nulls import STAGES, records_of

import tenfold as tf
from tenfold.velocity._nulls import direction, labels_of, null_models, pairs_of

#: Least correlation of the latent time with the true one, and seeds.
LEAST, SEEDS = 0.85, (0, 1, 2, 3, 4)
PANCREAS = DATA / "pancreas_velocity.h5ad"
#: Genes of the pancreas, and permutations of each kind; what keeps each of the trainings short.
GENES, REPEATS = 200, 1
SHORT: dict[str, Any] = {"epochs": 200, "n_rounds": 5, "learning_rate": 5e-4}
TOLD = "200 epochs and 5 rounds at most"


def time_of(dataset: str, digest: str, adata: AnnData, seed: int) -> list[dict[str, Any]]:
    """Compare the time with the true one, and crossings of known boundaries, beside the stochastic model."""
    labels, pairs = labels_of(adata, {"labels": "cell_type"}), pairs_of(adata.uns["transitions"])
    found = []
    for model in (tf.velocity.VeloVAE(seed=seed, **SHORT), tf.velocity.ScVeloStochastic()):
        model.fit(adata, progress=False)
        crossed = [value for value, cells in direction(model, labels, pairs).values() if cells]
        found.append((float(spearmanr(model.time(), adata.obs["true_time"])[0]), float(np.mean(crossed))))
    shown = {"dataset": dataset, "digest": digest, "reference": "tenfold scvelo_stochastic"}
    (time, across), (beside, beside_across) = found
    return [
        record("velovae", "check", f"{claim}, {dataset}, seed {seed}", metric=metric, value=value,
               reference_value=other, tolerance=bar, passed=value >= bar, **shown)
        for claim, metric, value, other, bar in (
            ("time follows the true one", "Spearman", time, beside, LEAST),
            ("time is right but for its direction", "|Spearman|", abs(time), abs(beside), LEAST),
            ("known boundaries are crossed forwards", "CBDir in gene space", across, beside_across, 0.0),
        )
    ]  # fmt: skip


def branching(seed: int) -> list[dict[str, Any]]:
    adata = tf.data.simulate_branching(n_cells=500, n_genes=100, seed=0)
    return time_of(f"simulated branching, 500 cells × 100 genes, {TOLD}", sha256(adata.X.data), adata, seed)


def real(seed: int) -> tuple[Any, Any]:
    """Fit the pancreas, and say how its known boundaries are crossed in the space of genes."""
    adata = read_h5ad(PANCREAS)
    labels, pairs = labels_of(adata, {"labels": "cell_type"}), pairs_of(STAGES)
    models = (
        tf.velocity.VeloVAE(seed=seed, n_top_genes=GENES, **SHORT),
        tf.velocity.ScVeloStochastic(n_top_genes=GENES),
    )
    fitted = [model.fit(adata, progress=False) for model in models]
    return fitted, [float(np.mean([v for v, n in direction(one, labels, pairs).values() if n])) for one in fitted]


def directions() -> list[dict[str, Any]]:
    """Directions of several seeds on the pancreas, beside that of the stochastic model, and how alike times are."""
    across, times = [], []
    for seed in SEEDS[:3]:
        models, (own, beside) = real(seed)
        across.append(own)
        times.append(models[0].time())
    dataset, shown = f"{PANCREAS.name}, {GENES} genes, {TOLD}", {"digest": sha256(PANCREAS)}
    alike = [float(spearmanr(times[i], times[j])[0]) for i in range(len(times)) for j in range(i)]
    return [
        *(record("velovae", "check", f"known boundaries are crossed forwards, {dataset}, seed {seed}", dataset,
                 metric="CBDir in gene space", value=own, reference="tenfold scvelo_stochastic", reference_value=beside,
                 tolerance=0.0, passed=own >= 0, **shown) for seed, own in zip(SEEDS, across, strict=False)),
        record("velovae", "check", f"seeds agree on the direction of time, {dataset}", dataset,
               metric="least Spearman of times of two seeds", value=min(alike), tolerance=0.5, passed=min(alike) >= 0.5,
               **shown),
    ]  # fmt: skip


def pancreas() -> list[dict[str, Any]]:
    adata, roles = read_h5ad(PANCREAS), {"labels": "cell_type", "transitions": STAGES}
    found = null_models(
        lambda seed: tf.velocity.VeloVAE(n_top_genes=GENES, seed=seed, **SHORT), adata, roles, 0, REPEATS
    )
    return records_of("velovae", found, f"{PANCREAS.name}, {GENES} genes, {TOLD}", sha256(PANCREAS))


if __name__ == "__main__":
    torch.set_num_threads(1)
    each = {f"branching_{seed}": partial(branching, seed) for seed in SEEDS}
    parts({**each, "directions": directions, "pancreas": pancreas})
