"""spaVAE at places that were not measured, on a simulated field and a real slice; and its domains on annotated slices.

Run ``python evidence/spavae_acceptance.py [field] [held_out] [large] [slice ...]``: parts may be run alone. Beside the
interpolation: the nearest cell copied, as the sheet asks, and the mean of the six nearest, which nobody would need a
network for. Beside the domains: smoothed PCA and PCA + Leiden, number of domains known or not. The authors' 0.554 on
slice 151673 needs its counts, which are not at hand.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from typing import Any

import anndata as ad
import numpy as np
from domain_rows import rows, write_part
from domain_slices import digest, load
from recording import ROOT, record, run_apart, sha256
from scipy import sparse
from scipy.spatial import cKDTree

from tenfold.data.heads import clusters_of
from tenfold.domains.spavae import SpaVAE

#: Slice → seeds, and epochs at most: training takes minutes.
SLICES = {"dlpfc_151510": ((0,), 5000), "starmap_mpfc BZ9": ((0, 1), 200), "starmap_mpfc BZ5": ((0, 1), 200),
          "osmfish_ssp": ((0,), 60)}  # fmt: skip
#: Share of the cells that are left out and asked for.
LEFT_OUT = 0.15
#: Cells of slices whose memory is measured.
SIZES = (10_000, 20_000, 40_000)
NEAREST, MEAN = "the nearest cell copied", "mean of the six nearest cells"


def field() -> list[dict[str, Any]]:
    """Ask for left-out cells of a simulated tissue: three smooth fields × loadings, negative binomial counts."""
    rng = np.random.default_rng(0)
    n, n_genes, theta = 1_500, 200, 5.0
    where = rng.uniform(size=(n, 2))
    distance = ((where[:, None] - where[None]) ** 2).sum(axis=2)
    root = np.linalg.cholesky(np.exp(-distance / (2 * 0.15**2)) + 1e-8 * np.eye(n))
    loadings = rng.normal(scale=0.5, size=(3, n_genes))
    true = np.exp(rng.normal(-0.5, 1.0, n_genes) + root @ rng.normal(size=(n, 3)) @ loadings)
    depth = rng.lognormal(sigma=0.3, size=(n, 1))
    counts = rng.poisson(depth * true * rng.gamma(theta, 1 / theta, true.shape))
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.obsm["spatial"] = where
    shown = {"dataset": f"simulated, {n:,} cells x {n_genes} genes, three fields of length 0.15",
             "digest": sha256(counts)}  # fmt: skip
    return _asked(adata, np.log(true / true.sum(axis=1, keepdims=True)), "true log share", 200, **shown)


def held_out() -> list[dict[str, Any]]:
    """Ask for left-out spots of a real slice, whose own counts are all that is known of them."""
    adata = load("dlpfc_151510")
    share = adata.X.toarray() / np.asarray(adata.X.sum(axis=1)).ravel()[:, None]
    wanted = np.log1p(share * np.median(np.asarray(adata.X.sum(axis=1))))
    shown = {"dataset": "dlpfc_151510", "digest": digest("dlpfc_151510")}
    return _asked(adata, wanted, "log normalised counts", 60, **shown)


def _asked(adata: ad.AnnData, wanted: np.ndarray, what: str, epochs: int, **shown: Any) -> list[dict[str, Any]]:
    """Record the correlation over left-out cells of what is told of them with what is `wanted`, mean over genes."""
    out = np.zeros(adata.n_obs, bool)
    out[np.random.default_rng(1).choice(adata.n_obs, int(LEFT_OUT * adata.n_obs), replace=False)] = True
    where, kept = adata.obsm["spatial"], adata[~out].copy()
    model = SpaVAE(n_clusters=4, n_top_genes=None, epochs=epochs).fit(kept, progress=False)
    told = np.log(model.at(where[out]).to_numpy())
    totals = np.asarray(kept.X.sum(axis=1)).ravel()[:, None]
    logged = np.log1p(kept.X.toarray() / totals * np.median(totals))
    near = cKDTree(kept.obsm["spatial"]).query(where[out], k=6)[1]
    others = {NEAREST: logged[near[:, 0]], MEAN: logged[near].mean(axis=1)}
    value = _correlation(told, wanted[out])
    claim = f"{LEFT_OUT:.0%} of the cells left out, at most {epochs} epochs, one seed"
    return [
        record("spavae", "check", claim, metric=f"correlation with the {what} of cells left out, mean over genes",
               value=value, reference=name, reference_value=_correlation(other, wanted[out]),
               passed=value > _correlation(other, wanted[out]), **shown)
        for name, other in others.items()
    ]  # fmt: skip


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    centred = [part - part.mean(axis=0) for part in (first, second)]
    sizes = [np.sqrt((part**2).sum(axis=0)) for part in centred]
    told = (sizes[0] > 0) & (sizes[1] > 0)
    return float(((centred[0] * centred[1]).sum(axis=0)[told] / (sizes[0] * sizes[1])[told]).mean())


@cache
def embedded(name: str, seed: int) -> np.ndarray:
    """Return the embedding of a slice."""
    model = SpaVAE(n_clusters=2, epochs=SLICES[name][1], seed=seed).fit(load(name), progress=False)
    print(f"  seed {seed}: {model.history['epoch'].max() + 1} epochs, {model.run_['seconds']:.0f} s", flush=True)
    return model.embed()


def domains(name: str) -> list[dict[str, Any]]:
    """Return the rows of domains by k-means, as the authors cluster."""

    def fitted(adata: ad.AnnData, n: int | None, seed: int) -> np.ndarray:
        return clusters_of(embedded(name, seed), n, "kmeans", seed)

    print(name)
    seeds, epochs = SLICES[name]
    return rows("spavae", name, fitted, seeds, label=f"at most {epochs} epochs")


def large() -> list[dict[str, Any]]:
    """Record peak memory of growing slices, two epochs each, as ``benchmarks/domains_large.py`` does."""
    sys.path.append(str(ROOT / "benchmarks"))
    from domains_large import CODE, SETUP, SLACK

    peaks, records = [], []
    for n in SIZES:
        given = {"n": n, "n_genes": 3_000, "share": 0.1, "epochs": 2, "name": "spavae"}
        run = run_apart(CODE, given, SETUP, python=sys.executable)
        peaks.append(run["_peak_mb"])
        shown = {"dataset": f"random, {n:,} x 3,000, 10% non-zero", "digest": run["digest"]}
        claim = "defaults but 2 epochs, one thread, without clustering"
        records += [
            record("spavae", "benchmark", claim, metric="peak memory, MB", value=peaks[-1], passed=True, **shown),
            record("spavae", "benchmark", claim, metric="CPU seconds", value=run["_seconds"], passed=True, **shown),
        ]  # fmt: skip
    growth = (peaks[2] - peaks[1]) / (2 * (peaks[1] - peaks[0]))
    return [*records, record("spavae", "benchmark", "memory is linear in cells", tolerance=SLACK,
                             metric="growth of peak memory from half to all cells, over linear", value=growth,
                             passed=growth <= SLACK, **shown)]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    parts = {"field": field, "held_out": held_out, "large": large}
    for part in sys.argv[1:] or [*parts, *SLICES]:
        write_part(parts[part]() if part in parts else domains(part))


if __name__ == "__main__":
    main()
