"""VeloVAE: its time where it is known, whether it is reversed, and what it makes of permuted unspliced counts.

Set with known times: a simulation that branches. Real set: a pancreas whose course is known. Beside both, scVelo's
stochastic model, as its directions need no guess.
``python evidence/velovae_acceptance.py [branching_0] ... [exact_0] ... [null] [directions] [pancreas]``, a seed at the
end; results of other parts are kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from anndata import AnnData, read_h5ad
from deep_annotators import parts
from latentvelo_acceptance import stages_of
from recording import DATA, record, sha256
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from velocity_nulls import STAGES, records_of

import tenfold as tf
from tenfold.velocity._nulls import direction, labels_of, null_models, pairs_of

#: Least correlation of the latent time with the true one, and seeds.
LEAST, SEEDS = 0.85, (0, 1, 2, 3, 4)
PANCREAS = DATA / "pancreas_velocity.h5ad"
#: Genes and epochs of the null models of the pancreas, each a training; permutations of each kind.
GENES, SHORT, REPEATS = 300, 200, 1


def time_of(dataset: str, digest: str, adata: AnnData, roles: dict[str, str], seed: int, **params: Any) -> list[Any]:
    """Compare the time with the true one, and crossings of known boundaries, beside the stochastic model."""
    labels, pairs = labels_of(adata, {"labels": "cell_type"}), pairs_of(adata.uns["transitions"])
    found = []
    for make in (lambda: tf.velocity.VeloVAE(seed=seed, **params), lambda: tf.velocity.ScVeloStochastic(**params)):
        model = make().fit(adata, progress=False, **roles)
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
    return time_of("simulated branching, 500 cells × 100 genes", sha256(adata.X.data), adata, {}, seed)


def exact(seed: int) -> list[dict[str, Any]]:
    adata = tf.data.simulate_splicing(n_cells=500, n_genes=100, seed=0)
    adata.obsm["X_pca"] = PCA(20, random_state=0).fit_transform(np.log1p(adata.X)).astype(np.float32)
    adata.obs["cell_type"], adata.uns["transitions"] = stages_of(adata.obs["true_time"].to_numpy(), 5)
    dataset = "simulated splicing, 500 cells × 100 genes"
    return time_of(dataset, sha256(adata.X), adata, {"use_rep": "X_pca"}, seed, normalize=False)


def null() -> list[dict[str, Any]]:
    adata = tf.data.simulate_branching(n_cells=500, n_genes=100, seed=0)
    roles = {"labels": "cell_type", "transitions": adata.uns["transitions"]}
    found = null_models(lambda seed: tf.velocity.VeloVAE(seed=seed), adata, roles, 0, REPEATS)
    rows = records_of("velovae", found, "simulated branching, 500 cells × 100 genes", sha256(adata.X.data))
    return [{**row, "claim": f"{row['claim']}, simulated"} for row in rows]


def real(seed: int, **params: Any) -> tuple[Any, Any]:
    """Fit the pancreas, and say how its known boundaries are crossed in the space of genes."""
    adata = read_h5ad(PANCREAS)
    labels, pairs = labels_of(adata, {"labels": "cell_type"}), pairs_of(STAGES)
    models = (
        tf.velocity.VeloVAE(seed=seed, n_top_genes=GENES, **params),
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
    dataset, shown = f"{PANCREAS.name}, {GENES} genes at most", {"digest": sha256(PANCREAS)}
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
        lambda seed: tf.velocity.VeloVAE(n_top_genes=GENES, epochs=SHORT, seed=seed), adata, roles, 0, REPEATS
    )
    dataset = f"{PANCREAS.name}, {GENES} genes, {SHORT} epochs at most"
    return records_of("velovae", found, dataset, sha256(PANCREAS))


if __name__ == "__main__":
    torch.set_num_threads(1)
    simulations = {"branching": branching, "exact": exact}
    each = {f"{name}_{seed}": partial(part, seed) for name, part in simulations.items() for seed in SEEDS}
    parts({**each, "null": null, "directions": directions, "pancreas": pancreas})
