"""LIGER: the sheet's checks, its objective against pyliger's from the same start, and null batches."""

from __future__ import annotations

import os
import warnings

import anndata as ad
import numpy as np
from anchor_data import acceptance, kept, null_pbmc
from recording import DATA, REFERENCE_PYTHON, record, run_apart, sha256, version, write
from scipy import optimize, sparse

import tenfold as tf
from tenfold.data.factorisation import Factorisation, integrative_nmf, quantile_aligned
from tenfold.data.inputs import Inputs
from tenfold.integrate.liger import LIGER

#: pyliger pins old packages, so it lives in an environment of its own.
PYTHON = os.environ.get("TENFOLD_LIGER_PYTHON", REFERENCE_PYTHON)
SETUP = """
import types
import anndata as ad, numpy as np
from scipy import sparse
from pyliger.factorization._iNMF_ANLS import optimize_ALS
from pyliger.tools._quantile_norm import quantile_norm
parts = []
for b in range(int(given["n"])):
    part = ad.AnnData(np.zeros_like(given[f"e{b}"]))
    part.layers["scale_data"] = sparse.csr_matrix(given[f"e{b}"])
    part.uns["sample_name"] = str(b)
    parts.append(part)
liger = types.SimpleNamespace(adata_list=parts, num_samples=len(parts), var_genes=np.arange(parts[0].shape[1]))
k, n = given["w"].shape[0], len(parts)
"""
CODE = """
optimize_ALS(liger, k, value_lambda=float(given["penalty"]), thresh=0.0, max_iters=int(given["steps"]),
             H_init=[given[f"h{b}"] for b in range(n)], W_init=given["w"], V_init=list(given["v"]))
seconds = time.process_time() - start
quantile_norm(liger, rand_seed=1)
result = {"w": parts[0].varm["W"].T, "v": np.stack([p.varm["V"].T for p in parts]), "seconds": seconds}
for b, part in enumerate(parts):
    result |= {f"h{b}": part.obsm["H"], f"a{b}": part.obsm["H_norm"], f"c{b}": part.obs["cluster"].to_numpy()}
"""
STEPS, PENALTY, K = 15, 5.0, 10


def planted_metagenes() -> list[dict]:
    """Plant five shared metagenes and small additions in two batches of counts; the best of five starts."""
    rng = np.random.default_rng(0)
    shared = rng.gamma(0.3, 1, size=(5, 500))
    rates = [rng.gamma(0.3, 1, size=(500, 5)) @ (shared + 0.1 * rng.gamma(0.3, 1, size=shared.shape)) for _ in range(2)]
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(np.concatenate(rates) + 1e-3).astype(np.float32)))
    adata.obs["batch"] = np.repeat(["a", "b"], 500)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    run = LIGER(n_factors=5, n_starts=5, n_steps=100).fit(adata, batch="batch", progress=False)
    # Genes were scaled to equal mean square: the truth on that scale.
    dense = adata.X.toarray() / adata.X.sum(axis=1).A1[:, None]
    both = [np.sqrt((dense[adata.obs["batch"] == b] ** 2).mean(axis=0)) for b in ("a", "b")]
    truth = shared / np.maximum(np.mean(both, axis=0), 1e-12)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (truth, run.metagenes_)]
    alike = unit[0] @ unit[1].T
    least = float(alike[optimize.linear_sum_assignment(-alike)].min())
    rise = float(np.diff(run.objective_).max() / run.objective_[-1])
    data, digest = "simulated, 5 metagenes, 2 batches of 500", sha256(adata.X.toarray())
    return [
        record("liger", "check", "planted metagenes come back", data, digest, "least cosine of a metagene", least,
               tolerance=0.9, passed=least >= 0.9),
        record("liger", "check", "the objective never rises", data, digest, "largest rise of a round, share", rise,
               tolerance=0.0, passed=rise <= 1e-12),
    ]  # fmt: skip


def against_pyliger() -> list[dict]:
    """Start both from the same factors; then align the factors of the original by our quantiles."""
    rows, reference = [], version("pyliger", PYTHON)
    for name in ("pbmc_3chem", "cellline_3x2"):
        path = DATA / f"{name}.h5ad"
        adata = ad.read_h5ad(path)
        adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
        data = Inputs(adata, {"batch": "batch"})
        members = [np.flatnonzero(data.batch.values == b) for b in range(len(data.batch.names))]
        matrices = LIGER(n_top_genes=1000)._scaled(data, members)
        rng, p = np.random.default_rng(0), matrices[0].shape[1]
        cells = [rng.uniform(0, 2, (len(c), K)) for c in members]
        shared, own = rng.uniform(0, 2, (K, p)), rng.uniform(0, 2, (len(members), K, p))
        given = {"n": len(members), "penalty": PENALTY, "steps": STEPS, "w": shared, "v": own}
        for b, (matrix, h) in enumerate(zip(matrices, cells, strict=True)):
            given |= {f"e{b}": matrix.toarray().astype(np.float64), f"h{b}": h}
        theirs = run_apart(CODE, given, SETUP, PYTHON)
        found = [theirs[f"h{b}"] for b in range(len(members))]
        start = Factorisation(cells, shared, own, np.zeros(0))
        ours = integrative_nmf(matrices, start, PENALTY, STEPS, 0.0).objective
        then = Factorisation(found, theirs["w"], theirs["v"], np.zeros(0))
        other = integrative_nmf(matrices, then, PENALTY, 0, 0.0).objective[0]
        off = float(ours[-1] / other - 1)
        rows.append(
            record("liger", "parity", "the objective of the reference from the same start", name, sha256(path),
                   f"objective after {STEPS} rounds", ours[-1], reference=f"{reference}, ANLS", reference_value=other,
                   tolerance=1e-3, passed=off < 1e-3)
        )  # fmt: skip
        clusters = [theirs[f"c{b}"] for b in range(len(members))]
        largest = int(np.argmax([len(c) for c in members]))
        aligned = quantile_aligned(found, clusters, largest, 50, 20, 1000, 0)
        worst = max(
            float(np.abs(a - theirs[f"a{b}"]).max() / np.abs(theirs[f"a{b}"]).max()) for b, a in enumerate(aligned)
        )
        rows.append(
            record("liger", "parity", "quantiles of the reference's factors are mapped alike", name, sha256(path),
                   "largest difference, share of the largest factor", worst, reference=reference, reference_value=0.0,
                   tolerance=0.02, passed=worst < 0.02)
        )  # fmt: skip
    return rows


def calibration() -> list[dict]:
    """Split one sample at random: neighbours should stay those of the factors before the alignment."""
    shares = []
    for seed in range(5):
        run = LIGER().fit(null_pbmc(seed), batch="batch", progress=False)
        shares.append(kept(run.factors_, run.embed()))
    share = float(np.mean(shares))
    return [
        record("liger", "check", "null batches keep their neighbours", "pbmc68k_reduced, split at random",
               sha256(tf.data.pbmc().X.toarray()), "15 nearest neighbours kept by the alignment, mean of 5 splits",
               share, tolerance=0.9, passed=share > 0.9)
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    write([*planted_metagenes(), *against_pyliger(), *acceptance(LIGER), *calibration()])


if __name__ == "__main__":
    main()
