"""scVI by its default schedule and by that of scvi-tools: held-out lower bound, types apart, batches mixed.

The default is a quarter of the epochs at a rate that falls from 8e-3; the other is scvi-tools' (400 epochs at 1e-3, the
KL weight rising over all of them). Means over two seeds. Nothing may be worse by more than the margin. The same is
asked of the network that scArches needs, whose reference keeps the longer schedule.
Run ``python evidence/scvi_schedule.py``, or with the names of data sets; needs the real data sets beside the checkout.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import anndata as ad
import numpy as np
from recording import DATA, ROOT, record, sha256
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from tenfold.embed import SCVI
from tenfold.integrate.scarches import PRESET
from tenfold.metrics.diversity import clisi, ilisi
from tenfold.metrics.neighborhoods import neighbors

DATASETS = ("pbmc_3chem", "starmap_mpfc", "mouse_bladder_2k", "pbmc_sorted")
SEEDS = range(2)
#: Whose batches are mapped onto one another by surgery.
SURGERY = "pbmc_3chem"
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


def compared(name: str) -> list[dict[str, Any]]:
    """Return the records of one data set."""
    path = DATA / f"{name}.h5ad"
    adata = ad.read_h5ad(path)
    adata.X = adata.X.astype(np.float32)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    order = np.random.default_rng(0).permutation(adata.n_obs)
    n_test = adata.n_obs // 10
    test, train = (adata[np.sort(rows)].copy() for rows in (order[:n_test], order[n_test:]))
    shared = {"dataset": name, "digest": sha256(path), "reference": "the schedule of scvi-tools"}
    short, long = means(train, test, {}), means(train, test, LONG)
    rows = [
        record("scvi", "check", "the default schedule is not worse, two seeds", metric=metric, value=short[metric],
               reference_value=long[metric], tolerance=margin, passed=short[metric] >= long[metric] - margin, **shared)
        for metric, margin in MARGINS.items() if metric in short
    ]  # fmt: skip
    if name == SURGERY:
        kept = means(train, test, {**LONG, "kl_warmup_epochs": 200, **LAYERS})
        other = means(train, test, {**LAYERS, "schedule": "cosine"})
        shared["reference"] = "the default schedule of scVI"
        rows += [
            record("scarches", "check", "the reference's network by its schedule, two seeds", metric=metric,
                   value=kept[metric], reference_value=other[metric], tolerance=margin,
                   passed=kept[metric] >= other[metric] - margin, **shared)
            for metric, margin in MARGINS.items() if metric in kept
        ]  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    path = ROOT / "evidence" / "results" / "scvi_schedule.json"
    for name in sys.argv[1:] or DATASETS:
        fresh = compared(name)
        kept = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps([row for row in kept if row["dataset"] != name] + fresh, indent=1) + "\n")


if __name__ == "__main__":
    main()
