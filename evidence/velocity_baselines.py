"""The baselines of velocity: random ones point nowhere; pseudotime is Scanpy's, its direction a rule of thumb.

Run ``python evidence/velocity_baselines.py``.
"""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData, read_h5ad
from recording import DATA, record, sha256, version, write
from scipy.stats import spearmanr
from velocity_nulls import STAGES

import tenfold as tf
from tenfold.metrics.velocity import cross_boundary_direction
from tenfold.velocity._nulls import pairs_of

PANCREAS = DATA / "pancreas_velocity.h5ad"
SEEDS = 10


def direction(model: tf.velocity.RandomVelocity, adata: AnnData) -> float:
    """Return the mean over known transitions of how far velocities point along them, in gene space."""
    genes = model.columns_[model.trusted_]
    own = model.velocity()[:, genes]
    found = cross_boundary_direction(
        model.spliced_[:, model.trusted_], own, model.neighbors_, adata.obs["cell_type"].to_numpy(),
        pairs_of(STAGES),
    )  # fmt: skip
    return float(np.mean([value for value, _ in found.values()]))


def of_chance() -> list[dict]:
    adata = read_h5ad(PANCREAS)
    models = [tf.velocity.RandomVelocity(seed=seed).fit(adata, progress=False) for seed in range(SEEDS)]
    found = [direction(model, adata) for model in models]
    least = 3 * np.std(found) / np.sqrt(SEEDS)
    shared = {"dataset": PANCREAS.stem, "digest": sha256(PANCREAS)}
    return [
        record("random_velocity", "check", f"mean of {SEEDS} seeds is chance: within three standard errors of 0",
               metric="direction in gene space", value=np.mean(found), reference_value=0.0, tolerance=least,
               passed=abs(np.mean(found)) <= least, **shared),
        record("random_velocity", "check", "coherent by averaging over neighbours alone, which is what it shows",
               metric="mean coherence", value=models[0].confidence().mean(), tolerance=0.3,
               passed=models[0].confidence().mean() >= 0.3, **shared),
    ]  # fmt: skip


def of_pseudotime() -> list[dict]:
    """Compare with ``scanpy.tl.dpt`` from the same graph and root; then look at the direction."""
    import scanpy as sc

    adata = read_h5ad(PANCREAS)
    model = tf.velocity.PseudotimeVelocity().fit(adata, progress=False)
    other = AnnData(np.zeros((adata.n_obs, 1), np.float32), obs=adata.obs[[]].copy())
    other.obsp["distances"], other.obsp["connectivities"] = model.distances_, model.connectivities_
    other.uns["neighbors"] = {"distances_key": "distances", "connectivities_key": "connectivities",
                              "params": {"n_neighbors": 30, "method": "umap"}}  # fmt: skip
    other.uns["iroot"] = int(model.time().argmin())
    sc.tl.diffmap(other, n_comps=10)
    sc.tl.dpt(other, n_dcs=10)
    same = spearmanr(model.time(), other.obs["dpt_pseudotime"]).statistic
    shared = {"dataset": PANCREAS.stem, "digest": sha256(PANCREAS)}
    where = direction(model, adata)
    return [
        record("pseudotime_velocity", "parity", "from the same graph and root", metric="Spearman of pseudotimes",
               value=same, reference=version("scanpy"), reference_value=1.0, tolerance=0.001, passed=same >= 0.999,
               **shared),
        record("pseudotime_velocity", "check", "in the known direction", metric="direction in gene space", value=where,
               tolerance=0.0, passed=where > 0, **shared),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    write([*of_chance(), *of_pseudotime()])


if __name__ == "__main__":
    main()
