"""trVAE on two simulated batches: they can no longer be told apart, types can; and what unequal proportions do to it.

In the second part one half of the types is ten times as frequent in the first batch as in the second, the other half
the reverse. What the penalty does there is the difference to the same network without it.
Run ``python evidence/trvae_acceptance.py``.
"""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
from recording import record, sha256, write
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import tenfold as tf
from tenfold.kernels.knn import knn
from tenfold.metrics.separability import separability_auc

SEED = 0
SETTINGS = {"n_top_genes": None, "epochs": 100, "kl_warmup_epochs": 40, "learning_rate": 2e-3, "seed": SEED}
N_TYPES = 4
BEFORE, AFTER, ARI_LOSS, PURITY_LOSS = 0.9, 0.65, 0.05, 0.05


def embedded(adata: ad.AnnData, batch: str | None, **params: object) -> np.ndarray:
    return tf.integrate.TRVAE(**SETTINGS, **params).fit(adata, batch=batch, progress=False).embed()


def scores(adata: ad.AnnData, name: str, batch_key: str | None, **params: object) -> dict[str, float]:
    """Return how well batches are told apart, clusters agree with types, and neighbours in the other batch do."""
    z = embedded(adata, batch_key, **params)
    batch, labels = (adata.obs[name].to_numpy().astype(str) for name in ("batch", "cell_type"))
    clusters = KMeans(N_TYPES, n_init=10, random_state=SEED).fit_predict(z)
    purity = []
    for level in np.unique(batch):
        indices, _ = knn(z[batch == level], z[batch != level], k=15)
        purity.append((labels[batch != level][indices] == labels[batch == level][:, None]).mean(axis=1))
    found = {
        "auc": separability_auc(z, batch), "ari": adjusted_rand_score(labels, clusters),
        "purity": float(np.concatenate(purity).mean()),
    }  # fmt: skip
    print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    return found


def unequal(adata: ad.AnnData) -> ad.AnnData:
    """Return cells of which a tenth is left, where type and batch do not go together."""
    number = adata.obs["cell_type"].astype("category").cat.codes.to_numpy()
    first = (adata.obs["batch"] == "batch_1").to_numpy()
    matches = (number < N_TYPES / 2) == first
    return adata[matches | (np.random.default_rng(0).random(adata.n_obs) < 0.1)].copy()


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.simulate(
        600, 200, n_types=N_TYPES, n_batches=2, batch_strength=0.4, type_strength=1.5, depth=600.0, seed=0
    )
    digest, data = sha256(adata.X.toarray()), "tenfold.data.simulate"
    claim = f"two batches, {SETTINGS['epochs']} epochs at most"
    before = scores(adata, "no batch, no penalty", None, mmd_weight=0.0)
    after = scores(adata, "trVAE", "batch")
    records = [
        record("trvae", "check", claim, data, digest, "AUC of the batch without batch and penalty", before["auc"],
               tolerance=BEFORE, passed=before["auc"] > BEFORE),
        record("trvae", "check", claim, data, digest, "AUC of the batch", after["auc"], tolerance=AFTER,
               passed=after["auc"] < AFTER),
        record("trvae", "check", claim, data, digest, "ARI of k-means clusters and types", after["ari"],
               reference="no batch, no penalty", reference_value=before["ari"], tolerance=ARI_LOSS,
               passed=after["ari"] >= before["ari"] - ARI_LOSS),
    ]  # fmt: skip
    skewed = unequal(adata)
    without = scores(skewed, "unequal, no penalty", "batch", mmd_weight=0.0)
    for weight in (1.0, 10.0):
        found = scores(skewed, f"unequal, weight {weight:g}", "batch", mmd_weight=weight)
        records.append(record(
            "trvae", "check", f"types 10:1 in one batch, 1:10 in the other, mmd_weight={weight:g}", data,
            sha256(skewed.X.toarray()), "label purity of 15 neighbours in the other batch", found["purity"],
            reference="mmd_weight=0", reference_value=without["purity"], tolerance=PURITY_LOSS,
            passed=found["purity"] >= without["purity"] - PURITY_LOSS,
        ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
