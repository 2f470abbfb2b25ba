"""VeloAE beside the same regression of principal components on a real set, and what its learning rate does.

Run ``python evidence/veloae_acceptance.py [seed_0] ... [seed_4] [training]``; results of other parts are kept.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from anndata import read_h5ad
from deep_annotators import parts
from recording import DATA, record, sha256
from sklearn.decomposition import PCA
from velocity_nulls import STAGES

import tenfold as tf
from tenfold import metrics
from tenfold.velocity._nulls import labels_of, pairs_of

#: Cut short, so that a seed takes a quarter of a minute.
GENES, EPOCHS, SEEDS = 300, 150, range(5)


def components(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return principal components of both layers' averages, and their velocities by the model's own regression."""
    both = np.concatenate([model.spliced_, model.unspliced_])
    space = PCA(min(100, both.shape[1] - 1), random_state=0).fit(both)
    s, u = (space.transform(part) for part in (model.spliced_, model.unspliced_))
    gamma = model.net_.regression(torch.from_numpy(s), torch.from_numpy(u))[0].numpy()
    return s, u - gamma * s


def seeded(seed: int) -> list[dict[str, Any]]:
    path = DATA / "pancreas_velocity.h5ad"
    adata = read_h5ad(path)
    model = tf.velocity.VeloAE(n_top_genes=GENES, epochs=EPOCHS, seed=seed).fit(adata, progress=False)
    labels = labels_of(adata, {"labels": "cell_type"})
    names = np.asarray(labels.names, dtype=object)[labels.values]

    def across(positions: np.ndarray, velocities: np.ndarray) -> float:
        found = metrics.cross_boundary_direction(positions, velocities, model.neighbors_, names, pairs_of(STAGES))
        return float(np.mean([value for value, cells in found.values() if cells]))

    ours, beside = across(*model.latent()), across(*components(model))
    told = model.trusted_
    genes = across(model.spliced_[:, told], model.velocity_[:, told])
    shown = {"dataset": f"{path.name}, {GENES} genes, {EPOCHS} epochs", "digest": sha256(path)}
    return [
        record("veloae", "check", f"direction in the latent space beyond that of components, seed {seed}",
               metric="CBDir in the latent space", value=ours, reference="PCA(100) and the same regression",
               reference_value=beside, passed=ours > beside, **shown),
        record("veloae", "check", f"the known direction in gene space, seed {seed}", metric="CBDir in gene space",
               value=genes, tolerance=0.0, passed=genes > 0, **shown),
    ]  # fmt: skip


def training() -> list[dict[str, Any]]:
    """Train with the original's rate and with ours, for as many epochs: which has the lower loss?"""
    adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    losses = {}
    for rate in (1e-5, 3e-4):
        model = tf.velocity.VeloAE(epochs=300, learning_rate=rate).fit(adata, progress=False)
        losses[rate] = float(
            model.history.pivot(index="epoch", columns="term", values="train")["loss"].iloc[-20:].mean()
        )
    return [record(
        "veloae", "check", "a lower loss than at the original's learning rate, after 300 epochs of both",
        "simulated branching, 200 cells × 60 genes", sha256(adata.X.data), "mean loss of the last 20 epochs",
        losses[3e-4], reference="learning rate 1e-5", reference_value=losses[1e-5], passed=losses[3e-4] < losses[1e-5],
    )]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts({**{f"seed_{seed}": partial(seeded, seed) for seed in SEEDS}, "training": training})
