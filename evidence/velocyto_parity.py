"""velocyto's lines against velocyto.py's own fits, and the sheet's checks on a simulation that has steady states.

The package does not install any more; its ``estimation.py`` runs alone. Give the folder of the original's source
(github.com/velocyto-team/velocyto.py) as ``TENFOLD_VELOCYTO_SOURCE``, then run ``python evidence/velocyto_parity.py``.
"""

from __future__ import annotations

import os
import sys
import warnings

import numpy as np
from anndata import AnnData, read_h5ad
from recording import DATA, record, run_apart, sha256, write
from scipy.stats import spearmanr

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import moments_of
from tenfold.velocity.velocyto import _line

SETUP = """
import importlib.util, types
package, stand_in = types.ModuleType("velocyto"), types.ModuleType("velocyto.speedboosted")
package.__path__ = [str(given["source"]) + "/velocyto"]
for name in ("colDeltaCor", "colDeltaCorLog10", "colDeltaCorSqrt"):  # compiled code that fits of lines do not need
    setattr(stand_in, f"_{name}", None)
    setattr(stand_in, f"_{name}partial", None)
sys.modules.update({"velocyto": package, "velocyto.speedboosted": stand_in})
from velocyto.estimation import fit_slope_weighted_offset
"""
CODE = """
s, u = given["s"].T, given["u"].T
both = s / np.percentile(s, 99.9, 1)[:, None] + u / np.percentile(u, 99.9, 1)[:, None]
low, top = np.percentile(both, [2, 98], axis=1)
weights = ((both <= low[:, None]) | (both >= top[:, None])).astype(float)
gamma, q, r2 = fit_slope_weighted_offset(u, s, weights, return_R2=True)
loss = (weights * (u - gamma[:, None] * s - q[:, None]) ** 2).sum(1)
result = {"gamma": gamma, "q": q, "r2": r2, "loss": loss, "weights": weights.T}
"""
OURS = """
from tenfold.velocity.velocyto import _line
_line(given["s"], given["u"])
"""


def parity() -> list[dict]:
    """Compare lines from the same averages; where its optimiser stopped early, ours must lie lower."""
    path = DATA / "pancreas_velocity.h5ad"
    moments = moments_of(Inputs(read_h5ad(path), {}), mutual=False)
    s, u = moments.spliced.astype(np.float64), moments.unspliced.astype(np.float64)
    theirs = run_apart(CODE, {"s": s, "u": u, "source": os.environ["TENFOLD_VELOCYTO_SOURCE"]}, SETUP)
    seconds = run_apart(OURS + "result = {}", {"s": s, "u": u}, OURS, python=sys.executable)["_seconds"]
    gamma, q, _, _ = _line(s, u)
    loss = (theirs["weights"] * (u - gamma * s - q) ** 2).sum(axis=0)
    off = np.abs(gamma - theirs["gamma"]) > 1e-3 * np.maximum(theirs["gamma"], 0.01)
    shared = {"dataset": path.stem, "digest": sha256(path), "reference": "velocyto.py 0.17.17, its estimation.py"}
    claim = f"lines of {len(gamma):,} genes through the same averages"
    return [
        record("velocyto", "parity", claim, metric="share of genes with another slope (0.1 %)", value=off.mean(),
               reference_value=0.0, tolerance=0.05, passed=off.mean() <= 0.05, **shared),
        record("velocyto", "parity", claim, metric="highest ratio of losses", value=(loss / theirs["loss"]).max(),
               reference_value=1.0, tolerance=1e-6, passed=(loss / theirs["loss"]).max() <= 1 + 1e-6, **shared),
        record("velocyto", "benchmark", claim, metric="CPU seconds of the fits", value=seconds,
               reference_value=theirs["_seconds"], passed=seconds < theirs["_seconds"], **shared),
    ]  # fmt: skip


def checks() -> list[dict]:
    """Find slopes and signs of a simulation in which every gene comes to both of its steady states."""
    adata = tf.data.simulate_splicing(2_000, 100, t_max=60.0, switches=(0.4, 0.6), seed=0)  # each phase 24 at least
    model = tf.velocity.Velocyto(normalize=False, n_top_genes=None).fit(_timed(adata), use_rep="X_time", progress=False)
    rates = model.rates()
    truth = adata.var.loc[rates.index]
    slopes = spearmanr(rates["gamma"], truth["true_gamma"] / truth["true_beta"]).statistic
    found, true = model.velocity(), adata.layers["true_velocity"]
    fast = np.isfinite(found) & (np.abs(true) > np.median(np.abs(true)))
    signs = (np.sign(found[fast]) == np.sign(true[fast])).mean()
    shared = {"dataset": "exact two-phase simulation, 2,000 x 100", "digest": sha256(adata.layers["spliced"])}
    return [
        record("velocyto", "check", "slopes of all genes", metric="Spearman of gamma and gamma / beta", value=slopes,
               tolerance=0.95, passed=slopes >= 0.95, **shared),
        record("velocyto", "check", "faster half of the cells", metric="share of right signs of ds/dt", value=signs,
               tolerance=0.85, passed=signs >= 0.85, **shared),
    ]  # fmt: skip


def _timed(adata: AnnData) -> AnnData:
    """Neighbours are those in time: exact abundances of few genes say little of it."""
    adata.obsm["X_time"] = np.stack([adata.obs["true_time"], np.zeros(adata.n_obs)], axis=1)
    return adata


def main() -> None:
    warnings.simplefilter("ignore")
    write([*parity(), *checks()])


if __name__ == "__main__":
    main()
