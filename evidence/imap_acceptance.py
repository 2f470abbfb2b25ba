"""iMAP: what the second stage adds to the first, with both stages, on simulated cells and on blood cells.

Removed type: a type that one batch alone has. Null batch: cells of one batch, divided at random.
Run ``python evidence/imap_acceptance.py``.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import anndata as ad
import numpy as np
from deep_checks import frequent_types, other_batch, purity, without_type
from recording import DATA, record, sha256, write

import tenfold as tf
from tenfold import metrics
from tenfold.integrate._neighbors import nearest
from tenfold.integrate._trial import components
from tenfold.integrate.imap import IMAP

SIZES: dict[str, Any] = {"n_top_genes": None, "n_hidden": 256, "n_latent": 64, "epochs": 60}
NAME, LOST, NULL = "pbmc_3chem", 0.05, 0.05


def fit(adata: ad.AnnData, translate: bool, batch: str = "batch", seed: int = 0) -> IMAP:
    return IMAP(translate=translate, seed=seed, **SIZES).fit(adata, batch=batch, progress=False)


def stages(adata: ad.AnnData, dataset: str, digest: str) -> list[dict[str, Any]]:
    """Return mixing, purity and CPU time of both stages beside those of the first."""
    labels, batch = (adata.obs[name].to_numpy().astype(str) for name in ("cell_type", "batch"))
    found = []
    for translate in (False, True):
        start = time.process_time()
        near = nearest(fit(adata, translate).embed())
        seconds = time.process_time() - start
        found.append(((batch[near] != batch[:, None]).mean(), (labels[near] == labels[:, None]).mean(), seconds))
    plain = other_batch(components(adata), batch)
    shared: dict[str, Any] = {"dataset": dataset, "digest": digest, "reference": "first stage alone"}
    (mixed, pure, before), (mixed_2, pure_2, after) = found
    return [
        record("imap", "check", "both stages", metric=f"share of neighbours in another batch (PCs: {plain:.3f})",
               value=mixed_2, reference_value=mixed, passed=mixed_2 >= mixed, **shared),
        record("imap", "check", "both stages", metric="share of neighbours of the same type", value=pure_2,
               reference_value=pure, passed=pure_2 >= pure, **shared),
        record("imap", "check", "both stages", metric="CPU seconds of fit", value=after, reference_value=before,
               passed=True, **shared),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    simulated = tf.data.simulate(600, 200, n_types=4, n_batches=2, batch_strength=0.4, type_strength=1.5, seed=0)
    records = stages(simulated, "tenfold.data.simulate", sha256(simulated.X.toarray()))
    path = DATA / f"{NAME}.h5ad"
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    digest = sha256(path)
    records += stages(adata, NAME, digest)
    write(records)
    label = frequent_types(adata, 1)[0]
    kept, alone = without_type(adata, label)
    own = purity(components(alone), alone.obs["cell_type"].astype(str).to_numpy(), label)
    largest = adata[adata.obs["batch"] == adata.obs["batch"].value_counts().index[0]].copy()
    largest.obs["batch"] = np.where(np.random.default_rng(0).random(largest.n_obs) < 0.5, "a", "b")
    bare = nearest(components(largest))
    for translate, name in ((False, "first stage"), (True, "both stages")):
        after = purity(fit(kept, translate).embed(), kept.obs["cell_type"].astype(str).to_numpy(), label)
        records.append(record(
            "imap", "check", f"{name}, {label} in one of three batches", NAME, digest, "purity of the type", after,
            reference="PCs of its batch", reference_value=own, tolerance=LOST, passed=after >= own - LOST,
        ))  # fmt: skip
        first, twin = (nearest(fit(largest, translate, seed=seed).embed()) for seed in (0, 1))
        spread, kept_near = metrics.neighbor_overlap(first, twin), metrics.neighbor_overlap(first, bare)
        records.append(record(
            "imap", "check", f"{name}, one batch divided at random", NAME, digest,
            "share of the neighbours by PCs that are kept", kept_near, reference="between two seeds",
            reference_value=spread, tolerance=NULL, passed=kept_near >= spread - NULL,
        ))  # fmt: skip
        write(records)


if __name__ == "__main__":
    main()
