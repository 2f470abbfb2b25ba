"""scVelo 0.3.4's dynamical model beside both schedules here: rates, loss under one rule, latent time, CPU seconds.

Real cells, and an exact two-phase simulation of which rates and times are known. All sides start from the same averages
and neighbours; scVelo (numpy < 2.4) runs in the reference environment, on one thread as we do. An argument,
``pancreas`` or ``simulation``, renews the records of one data set.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from anndata import read_h5ad
from recording import DATA, ROOT, record, run_apart, sha256, version, write
from scipy.stats import spearmanr

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments, moments_of
from tenfold.kernels.two_phase import N_ROWS
from tenfold.kernels.two_phase_fit import prepare
from tenfold.kernels.two_phase_genes import TwoPhaseFits, fit_genes
from tenfold.kernels.two_phase_profile import _orthogonal
from tenfold.velocity_models.steady_state import all_cells, by_blocks, steady_state

REFERENCE = """
import scvelo as scv
import anndata as ad
from scipy.sparse import csr_matrix
scv.settings.verbosity = 0
n = len(given["Ms"])
def square(name):
    return csr_matrix(tuple(given[f"{name}_{part}"] for part in ("data", "indices", "indptr")), shape=(n, n))
a = ad.AnnData(np.zeros_like(given["Ms"]))
a.layers.update({"Ms": given["Ms"], "Mu": given["Mu"], "spliced": given["Ms"], "unspliced": given["Mu"]})
a.obsp["distances"], a.obsp["connectivities"] = square("distances"), square("connectivities")
a.uns["neighbors"] = {"connectivities_key": "connectivities", "distances_key": "distances",
                      "params": {"n_neighbors": 30, "method": "umap"}}
"""
FIT = """
begun = time.process_time()
scv.tl.recover_dynamics(a, var_names="all", n_jobs=1, show_progress_bar=False, backend="threading")
seconds = time.process_time() - begun
names = ("alpha", "beta", "gamma", "t_", "scaling", "likelihood", "alignment_scaling")
result = {name: a.var[f"fit_{name}"].values for name in names}
result["seconds"] = seconds
if "roots" in given:
    scv.tl.velocity(a, mode="dynamical")
    scv.tl.velocity_graph(a, n_jobs=1, show_progress_bar=False, backend="threading")
    a.obs["root_cells"], a.obs["end_points"] = given["roots"], given["ends"]
    scv.tl.latent_time(a)
    result["time"] = a.obs["latent_time"].values
"""
_RECORDS: list[dict[str, Any]] = []


def add(claim: str, dataset: str, digest: str, metric: str, value: float, passed: bool, kind: str = "parity",
        **more: Any) -> None:  # fmt: skip
    _RECORDS.append(record("scvelo_dynamical", kind, claim, dataset, digest, metric, value, passed=passed, **more))


def timed(moments: Moments, genes: np.ndarray, profile: bool) -> tuple[TwoPhaseFits, float]:
    u, s = moments.unspliced[:, genes], moments.spliced[:, genes]
    fit_genes(u[:, :1], s[:, :1], moments.mean, profile)  # compile
    start = time.process_time()
    fits = fit_genes(u, s, moments.mean, profile)
    return fits, time.process_time() - start


def projected_losses(moments: Moments, genes: np.ndarray, rates: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Loss of given rates under one rule for all: nearest points of the curve, phases chosen with neighbours."""
    mean = moments.mean
    graph = (mean.indptr.astype(np.int64), mean.indices.astype(np.int32), 1.0 / np.diff(mean.indptr))
    n, out = len(moments.spliced), []
    for place, gene in enumerate(genes):
        u, s = (part[:, gene].astype(np.float64) for part in (moments.unspliced, moments.spliced))
        own, work = prepare(u, s, graph), np.empty((N_ROWS + 2, n))
        out.append(_orthogonal(own, rates[place], ratio[place], work, np.empty(n), np.empty(n, np.int64)))
    return np.array(out)


def given_of(moments: Moments, genes: np.ndarray) -> dict[str, np.ndarray]:
    given = {"Ms": moments.spliced[:, genes], "Mu": moments.unspliced[:, genes]}
    for name, matrix in zip(("distances", "connectivities"), moments.graph, strict=True):
        given |= {f"{name}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr")}
    return given


def theirs_of(moments: Moments, genes: np.ndarray, **more: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return scVelo's rates, each gene in the time in which it was fitted, and all else."""
    found = run_apart(FIT, {**given_of(moments, genes), **more}, setup=REFERENCE)
    rates = np.stack([found[name] for name in ("alpha", "beta", "gamma", "t_", "scaling")], axis=1)
    stretched = np.nan_to_num(found["alignment_scaling"], nan=1.0)
    rates[:, :3] *= stretched[:, None]
    rates[:, 3] /= stretched
    rates[:, 1] *= rates[:, 4]
    return rates, found


def compare(
    moments: Moments, genes: np.ndarray, rates: np.ndarray, their_seconds: float, dataset: str, digest: str
) -> tuple[TwoPhaseFits, TwoPhaseFits]:
    peer = version("scvelo")
    (ours, seconds), (fast, fast_seconds) = timed(moments, genes, False), timed(moments, genes, True)
    same = np.abs(ours.rates / rates - 1).max(axis=1) < 1e-4
    claim = "scVelo's own schedule, compiled"
    add(
        claim,
        dataset,
        digest,
        "share of genes with the same rates (1e-4)",
        same.mean(),
        same.mean() >= 0.8,
        reference=peer,
    )
    loss = projected_losses(moments, genes, rates, ours.ratio)
    ratio = projected_losses(moments, genes, ours.rates, ours.ratio) / loss
    add(
        claim,
        dataset,
        digest,
        "median ratio of losses under one rule",
        np.median(ratio),
        abs(np.median(ratio) - 1) < 0.01,
        reference=peer,
        reference_value=1.0,
        tolerance=0.01,
    )
    off = np.log(np.maximum(ratio, 1e-9))
    add(
        claim,
        dataset,
        digest,
        "90 % quantile of |log ratio of losses|",
        np.quantile(np.abs(off), 0.9),
        np.quantile(np.abs(off), 0.9) < 0.1,
        reference=peer,
        tolerance=0.1,
    )
    add(
        claim,
        dataset,
        digest,
        "CPU time of scVelo / ours",
        their_seconds / seconds,
        their_seconds >= 10 * seconds,
        "benchmark",
        reference=f"{peer}, 1 thread",
        tolerance=10.0,
    )
    claim = "profile fit: at least as close to the cells as scVelo, both timed by projection"
    lower = projected_losses(moments, genes, fast.rates, fast.ratio) <= loss
    add(
        claim,
        dataset,
        digest,
        "share of genes with a loss at most scVelo's",
        lower.mean(),
        lower.mean() >= 0.95,
        "check",
        reference=peer,
        tolerance=0.95,
    )
    add(
        claim,
        dataset,
        digest,
        "CPU time of scVelo / ours",
        their_seconds / fast_seconds,
        their_seconds >= 20 * fast_seconds,
        "benchmark",
        reference=f"{peer}, 1 thread",
        tolerance=20.0,
    )
    return ours, fast


def pancreas() -> None:
    name = "pancreas_velocity.h5ad"
    adata, digest = read_h5ad(DATA / name), sha256(DATA / name)
    moments = moments_of(Inputs(adata, {}))
    good = by_blocks(all_cells, moments.spliced, moments.unspliced)[0] > 0.01
    good &= by_blocks(steady_state, moments.spliced, moments.unspliced)[0] > 0.01
    genes = np.sort(np.random.default_rng(0).choice(np.flatnonzero(good), 150, replace=False))
    rates, theirs = theirs_of(moments, genes)
    compare(moments, genes, rates, theirs["seconds"], f"{name}, 150 genes", digest)


def simulation() -> None:
    adata = tf.data.simulate_splicing(2000, 100, seed=0)
    adata.obsm["X_log"] = np.log1p(adata.layers["spliced"])
    roles = {"use_rep": "X_log"}
    moments = moments_of(Inputs(adata, roles), n_top_genes=None, normalize=False)
    digest, dataset = sha256(adata.layers["spliced"]), "exact two-phase simulation, 2,000 cells × 100 genes"
    models = {
        schedule: tf.velocity.ScVeloDynamical(n_top_genes=None, normalize=False, schedule=schedule).fit(adata, **roles)
        for schedule in ("reference", "profile")
    }
    first, genes = models["reference"], np.arange(len(moments.columns))
    rates, theirs = theirs_of(moments, genes, roots=first.roots_.astype(float), ends=first.ends_.astype(float))
    fits = compare(moments, genes, rates, theirs["seconds"], dataset, digest)
    var, known = adata.var.iloc[moments.columns], adata.obs["true_time"]
    best = float(spearmanr(theirs["time"], known)[0])
    for found, (schedule, model) in zip(fits, models.items(), strict=True):
        ratio = found.rates[:, 2] / (found.rates[:, 1] / found.rates[:, 4])
        rho = float(spearmanr(ratio, var["true_gamma"] / var["true_beta"])[0])
        add(
            f"{schedule}: rates of a simulation",
            dataset,
            digest,
            "Spearman of gamma / beta with truth",
            rho,
            rho >= 0.98,
            "check",
            tolerance=0.98,
        )
        rho = float(spearmanr(model.time(), known)[0])
        add(
            f"{schedule}: latent time of a simulation",
            dataset,
            digest,
            "Spearman of latent time with truth",
            rho,
            rho >= 0.999,
            "check",
            reference=version("scvelo"),
            reference_value=best,
            tolerance=0.999,
        )
        own = model.columns_[model.trusted_]
        cosine = tf.metrics.velocity_agreement(model.velocity()[:, own], adata.layers["true_velocity"][:, own]).mean()
        add(
            f"{schedule}: velocity of a simulation",
            dataset,
            digest,
            "mean cosine with the true velocity",
            cosine,
            cosine >= 0.97,
            "check",
            tolerance=0.97,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in sys.argv[1:] or ("pancreas", "simulation"):
        {"pancreas": pancreas, "simulation": simulation}[part]()
    kept = ROOT / "evidence" / "results" / "velocity_dynamical_parity.json"
    stored = json.loads(kept.read_text()) if kept.exists() else []
    renewed = {row["dataset"] for row in _RECORDS}
    write([row for row in stored if row["dataset"] not in renewed] + _RECORDS)
