"""Checks that the evidence of methods with rates of each cell shares: simulations, a real set, and permuted counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from anndata import AnnData, read_h5ad
from recording import DATA, record, sha256
from scipy.stats import spearmanr
from velocity_nulls import STAGES, records_of

import tenfold as tf
from tenfold.data.graph import layout
from tenfold.velocity._nulls import direction, labels_of, null_models, pairs_of
from tenfold.velocity_models.base import VelocityMethod

Make = Callable[..., VelocityMethod]
BESIDE = "scvelo_stochastic"
PANCREAS = DATA / "pancreas_velocity.h5ad"


def on_off() -> AnnData:
    """Return genes that are switched on and off, without sampling, with components to find neighbours in."""
    adata = tf.data.simulate_splicing(n_cells=800, n_genes=100, seed=0)
    logs = np.log1p(adata.X)
    left, values, _ = np.linalg.svd(logs - logs.mean(axis=0), full_matrices=False)
    adata.obsm["X_pca"] = (left[:, :10] * values[:10]).astype(np.float32)
    return adata


def simulations() -> dict[str, tuple[AnnData, dict[str, Any], dict[str, str]]]:
    """Return data, parameters and roles of each simulation."""
    branching = tf.data.simulate_branching(n_cells=700, n_genes=300, seed=0)
    exact = {"normalize": False, "n_top_genes": None}
    return {
        "simulated on/off genes, 800 cells × 100 genes": (on_off(), exact, {"use_rep": "X_pca"}),
        "simulated branching, 700 cells × 300 genes": (branching, {}, {}),
    }


def known(method: VelocityMethod, adata: AnnData) -> tuple[float, float, float]:
    """Return the share of right signs among fast entries of moving genes, the mean cosine to the truth, and of time."""
    moves = np.abs(adata.layers["true_velocity"][:, method.columns_]).max(axis=0) > 1e-3
    genes = method.trusted_ & moves
    own, truth = method.velocity_[:, genes], adata.layers["true_velocity"][:, method.columns_[genes]]
    signs = tf.metrics.direction_accuracy(own, truth)
    cosine = float(tf.metrics.velocity_agreement(own, truth).mean())
    return signs, cosine, float(spearmanr(method.time(), adata.obs["true_time"])[0])


def on_simulations(name: str, make: Make, least_signs: float | None = None) -> list[dict[str, Any]]:
    """Pass what is at most 0.05 below the reference model; signs where they reach `least_signs`, if given."""
    rows = []
    for dataset, (adata, params, roles) in simulations().items():
        found = known(make(**params).fit(adata, progress=False, **roles), adata)
        beside = known(tf.method("velocity", BESIDE, **params).fit(adata, progress=False, **roles), adata)
        claims = (
            "right signs of ds/dt among fast entries",
            "cosine to the true velocity",
            "rank correlation with time",
        )
        for claim, value, other in zip(claims, found, beside, strict=True):
            passed = value >= (least_signs if least_signs and claim.startswith("right") else other - 0.05)
            rows.append(
                record(name, "check", claim, dataset, sha256(adata.layers["true_velocity"]), claim, value,
                       passed=passed, reference=BESIDE, reference_value=other)
            )  # fmt: skip
    return rows


def known_direction(method: VelocityMethod, adata: AnnData, points: np.ndarray) -> tuple[float, float]:
    """Return the mean direction across known boundaries in the space of genes and in a layout."""
    labels, pairs = labels_of(adata, {"labels": "cell_type"}), pairs_of(STAGES)
    genes = direction(method, labels, pairs)
    names = adata.obs["cell_type"].to_numpy().astype(object)
    flat = tf.metrics.cross_boundary_direction(points, method.project(points), method.neighbors_, names, pairs)
    return tuple(float(np.mean([value for value, cells in found.values() if cells])) for found in (genes, flat))


def on_pancreas(name: str, make: Make, seeds: int) -> list[dict[str, Any]]:
    adata = read_h5ad(PANCREAS)
    reference = tf.method("velocity", BESIDE).fit(adata, progress=False)
    points = layout(reference.connectivities_, seed=0)
    beside = known_direction(reference, adata, points)
    found = np.mean(
        [known_direction(make(seed=s).fit(adata, progress=False), adata, points) for s in range(seeds)], axis=0
    )
    spaces = ("gene space", "a layout of the neighbour graph")
    return [
        record(name, "check", f"ductal to endocrine in {space}, at most 0.05 below {BESIDE}", PANCREAS.name,
               sha256(PANCREAS), f"CBDir, mean over 5 boundaries and {seeds} seeds", value,
               passed=value >= other - 0.05, reference=BESIDE, reference_value=other, tolerance=0.05)
        for space, value, other in zip(spaces, found, beside, strict=True)
    ]  # fmt: skip


def on_permuted_pancreas(name: str, make: Make, repeats: int, note: str = "") -> list[dict[str, Any]]:
    adata, roles = read_h5ad(PANCREAS), {"labels": "cell_type", "transitions": STAGES}
    found = null_models(lambda seed: make(seed=seed), adata, roles, 0, repeats)
    print(found.numbers(), flush=True)
    return records_of(name, found, f"{PANCREAS.name}, {repeats} permutations of each kind{note}", sha256(PANCREAS))


def on_permuted_branching(name: str, make: Make, repeats: int) -> list[dict[str, Any]]:
    adata = tf.data.simulate_branching(n_cells=700, n_genes=300, seed=0)
    roles = {"labels": "cell_type", "transitions": adata.uns["transitions"]}
    found = null_models(lambda seed: make(seed=seed), adata, roles, 0, repeats)
    print(found.numbers(), flush=True)
    dataset = f"simulated branching, 700 cells × 300 genes, {repeats} permutations of each kind"
    return records_of(name, found, dataset, sha256(adata.X.data))
