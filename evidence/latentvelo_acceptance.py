"""LatentVelo: latent time and directions where they are known, and what it makes of permuted unspliced counts.

Sets with known times: exact kinetics, a simulation that branches, and a dyngen simulation, whose files
(notebooks/simulated of github.com/StatBiomed/UniTVelo) are read from ``TENFOLD_UNITVELO_SOURCE``. Run
``python evidence/latentvelo_acceptance.py [exact_0] [branching_0] [dyngen_0] ... [pancreas]``, a seed at the end;
results of other parts are kept.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, read_h5ad
from deep_annotators import parts
from recording import DATA, record, sha256
from scipy.io import mmread
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from velocity_nulls import STAGES, records_of

import tenfold as tf
from tenfold.velocity._nulls import direction, labels_of, null_models, pairs_of

#: Least correlation of the latent time with the true one, and seeds of the simulations.
LEAST, SEEDS = 0.8, (0, 1, 2)
#: Cut short, since each permutation and each seed is a training: epochs, and genes of the null models.
SHORT, GENES, REPEATS = 20, 300, 1


def time_of(
    dataset: str, digest: str, adata: AnnData, roles: dict[str, str], seed: int, epochs: int = 50, **params: Any
) -> list[dict[str, Any]]:
    """Compare the latent time with the true one, beside the steady-state model whose beginnings are used."""
    labels, pairs = labels_of(adata, {"labels": "cell_type"}), pairs_of(adata.uns["transitions"])
    found = []
    for make in (
        lambda: tf.velocity.LatentVelo(seed=seed, epochs=epochs, **params),
        lambda: tf.velocity.ScVeloDeterministic(**params),
    ):
        model = make().fit(adata, progress=False, **roles)
        crossed = [value for value, cells in direction(model, labels, pairs).values() if cells]
        found.append((float(spearmanr(model.time(), adata.obs["true_time"])[0]), float(np.mean(crossed))))
    shown = {"dataset": dataset, "digest": digest, "reference": "tenfold scvelo_deterministic"}
    (time, across), (beside, beside_across) = found
    return [
        record("latentvelo", "check", f"latent time follows the true one, {dataset}, seed {seed}, {epochs} epochs",
               metric="Spearman", value=time, reference_value=beside, tolerance=LEAST, passed=time >= LEAST, **shown),
        record("latentvelo", "check", f"known boundaries are crossed forwards, {dataset}, seed {seed}, {epochs} epochs",
               metric="CBDir in gene space", value=across, reference_value=beside_across, tolerance=0.0,
               passed=across >= 0, **shown),
    ]  # fmt: skip


def stages_of(times: np.ndarray, n: int) -> tuple[pd.Categorical, str]:
    """Divide cells into n stages of as many cells each, in the order of their true times."""
    number = pd.qcut(times, n, labels=False)
    order = [f"stage {i + 1}" for i in range(n)]
    return pd.Categorical([order[i] for i in number]), ", ".join(f"{a} > {b}" for a, b in pairwise(order))


def exact(seed: int) -> list[dict[str, Any]]:
    adata = tf.data.simulate_splicing(n_cells=500, n_genes=100, seed=0)
    adata.obsm["X_pca"] = PCA(20, random_state=0).fit_transform(np.log1p(adata.X)).astype(np.float32)
    adata.obs["cell_type"], adata.uns["transitions"] = stages_of(adata.obs["true_time"].to_numpy(), 5)
    dataset = "simulated splicing, 500 cells × 100 genes"
    return time_of(dataset, sha256(adata.X), adata, {"use_rep": "X_pca"}, seed, normalize=False)


def branching(seed: int) -> list[dict[str, Any]]:
    adata = tf.data.simulate_branching(n_cells=500, n_genes=100, seed=0)
    return time_of("simulated branching, 500 cells × 100 genes", sha256(adata.X.data), adata, {}, seed)


def dyngen(seed: int) -> list[dict[str, Any]]:
    folder = Path(os.environ["TENFOLD_UNITVELO_SOURCE"])
    layers = {name: mmread(folder / f"{name}.mtx").tocsr().astype(np.float32) for name in ("spliced", "unspliced")}
    adata = AnnData(layers["spliced"], layers=layers)
    adata.obs["true_time"] = pd.read_csv(folder / "cellinfo.csv")["sim_time"].to_numpy()
    adata.obs["cell_type"], adata.uns["transitions"] = stages_of(adata.obs["true_time"].to_numpy(), 6)
    dataset = "dyngen simulation of UniTVelo, 2,000 cells × 264 genes"
    return time_of(dataset, sha256(adata.X.data), adata, {}, seed, SHORT, max_unspliced=0.9)


def pancreas() -> list[dict[str, Any]]:
    path = DATA / "pancreas_velocity.h5ad"
    adata, roles = read_h5ad(path), {"labels": "cell_type", "transitions": STAGES}
    found = null_models(
        lambda seed: tf.velocity.LatentVelo(n_top_genes=GENES, epochs=SHORT, seed=seed), adata, roles, 0, REPEATS
    )
    return records_of("latentvelo", found, f"{path.name}, {GENES} genes at most, {SHORT} epochs", sha256(path))


if __name__ == "__main__":
    torch.set_num_threads(1)
    simulations = {"exact": exact, "branching": branching, "dyngen": dyngen}
    each = {f"{name}_{seed}": partial(part, seed) for name, part in simulations.items() for seed in SEEDS}
    parts({**each, "pancreas": pancreas})
