"""scVI by its default schedule and by that of scvi-tools: held-out lower bound, types apart, batches mixed.

The default is a quarter of the epochs at a rate that falls from 8e-3; the other is scvi-tools' (400 epochs at 1e-3, the
KL weight rising over all of them). Means over two seeds. Nothing may be worse by more than the margin. References of
scArches keep the longer schedule: why is measured by a query. Run ``python evidence/scvi_schedule.py``, or with the
names of data sets or ``surgery``; needs the real data sets beside the checkout.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import anndata as ad
import numpy as np
from domain_rows import write_part
from recording import DATA, record, sha256
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsClassifier

from tenfold.embed import SCVI
from tenfold.integrate.scarches import PRESET
from tenfold.metrics.diversity import clisi, ilisi
from tenfold.metrics.neighborhoods import neighbors

DATASETS = ("pbmc_3chem", "starmap_mpfc", "mouse_bladder_2k", "pbmc_sorted")
SEEDS = range(2)
#: Data set and batch that is mapped by surgery onto the others.
SURGERY, QUERY = "pbmc_3chem", "5p"
LONG: dict[str, Any] = {"epochs": 400, "learning_rate": 1e-3, "schedule": "constant", "kl_warmup_epochs": 400}
LAYERS: dict[str, Any] = {**PRESET, "n_layers": 2, "dropout": 0.2}
#: Metric → what it may fall by.
MARGINS = {
    "held-out lower bound per cell, nats": 0.0, "k-means ARI with types": 0.05, "cLISI of types": 0.02,
    "iLISI of batches": 0.05,
}  # fmt: skip


def measured(train: ad.AnnData, test: ad.AnnData, seed: int, options: dict[str, Any]) -> dict[str, float]:
    """Train on cells and return the values of all metrics."""
    batch = train.obs["batch"].astype(str).to_numpy() if "batch" in train.obs else np.zeros(train.n_obs, dtype="U1")
    roles = {"batch": "batch"} if len(set(batch)) > 1 else {}
    types = train.obs["cell_type"].astype(str).to_numpy()
    model = SCVI(train_fraction=1.0, seed=seed, device="cpu", **options).fit(train, progress=False, **roles)
    z = model.embed()
    found = KMeans(len(set(types)), n_init=5, random_state=0).fit_predict(z)
    near = neighbors(z, 90)
    values = (model.elbo(test, 10), adjusted_rand_score(types, found), clisi(near, types))
    return dict(zip(MARGINS, (*values, *([ilisi(near, batch)] if roles else [])), strict=False))


def means(train: ad.AnnData, test: ad.AnnData, options: dict[str, Any]) -> dict[str, float]:
    """Return the mean over seeds of each metric."""
    runs = [measured(train, test, seed, options) for seed in SEEDS]
    print(options, runs, flush=True)
    return {metric: float(np.mean([run[metric] for run in runs])) for metric in runs[0]}


def mapped(adata: ad.AnnData, seed: int, options: dict[str, Any], epochs: int) -> float:
    """Map a batch onto a reference of the others, and return how many of its cells neighbours there label right."""
    query, types = (adata.obs["batch"] == QUERY).to_numpy(), adata.obs["cell_type"].astype(str).to_numpy()
    reference = SCVI(seed=seed, device="cpu", n_top_genes=None, **LAYERS | options)
    reference.fit(adata[~query].copy(), batch="batch", progress=False)
    z = reference.map_query(adata[query].copy(), epochs=epochs, progress=False).embed()
    return float(KNeighborsClassifier(15).fit(reference.embed(), types[~query]).score(z, types[query]))


def surgery() -> list[dict[str, Any]]:
    """Return the record of scArches, whose references are trained for longer."""
    adata = cells(SURGERY)
    long = np.mean([mapped(adata, seed, {**LONG, "kl_warmup_epochs": 200}, 200) for seed in SEEDS])
    short = np.mean([mapped(adata, seed, {"schedule": "cosine"}, 200) for seed in SEEDS])
    return [
        record("scarches", "check", "a query is labelled better on a reference of the longer schedule, two seeds",
               SURGERY, sha256(DATA / f"{SURGERY}.h5ad"), f"accuracy of {QUERY} by 15 neighbours there", long,
               reference="the default schedule of scVI", reference_value=short, passed=long > short)
    ]  # fmt: skip


def cells(name: str) -> ad.AnnData:
    """Return a data set without genes that have no counts."""
    adata = ad.read_h5ad(DATA / f"{name}.h5ad")
    adata.X = adata.X.astype(np.float32)
    return adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()


def compared(name: str) -> list[dict[str, Any]]:
    """Return the records of one data set."""
    adata = cells(name)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    n_test = adata.n_obs // 10
    test, train = (adata[np.sort(rows)].copy() for rows in (order[:n_test], order[n_test:]))
    shared = {"dataset": name, "digest": sha256(DATA / f"{name}.h5ad"), "reference": "the schedule of scvi-tools"}
    short, long = means(train, test, {}), means(train, test, LONG)
    rows = [
        record("scvi", "check", "the default schedule is not worse, two seeds", metric=metric, value=short[metric],
               reference_value=long[metric], tolerance=margin, passed=short[metric] >= long[metric] - margin, **shared)
        for metric, margin in MARGINS.items() if metric in short
    ]  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or [*DATASETS, "surgery"]:
        write_part(surgery() if name == "surgery" else compared(name))


if __name__ == "__main__":
    main()
