"""sysVI against trVAE on blood cells of two chemistries: removed types and unequal proportions.

Run ``python evidence/sysvi_acceptance.py``.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
from deep_checks import frequent_types, other_batch, purity, unequal, without_type, worst
from recording import DATA, record, sha256, write

import tenfold as tf

EPOCHS = 80
NAME = "pbmc_3chem"


def fit(method: str, adata: ad.AnnData) -> Any:
    return tf.method("integrate", method, epochs=EPOCHS).fit(adata, batch="batch", progress=False)


def judged(method: str, adata: ad.AnnData) -> dict[str, float]:
    """Return purity of removed types, and of types whose proportions differ tenfold between batches, the worse each."""
    types = frequent_types(adata, 2)
    removed = {}
    for label in types:
        kept, _ = without_type(adata, label)
        removed[label] = purity(fit(method, kept).embed(), kept.obs["cell_type"].astype(str).to_numpy(), label)
    thinned = unequal(adata, *types)
    z, labels = fit(method, thinned).embed(), thinned.obs["cell_type"].astype(str).to_numpy()
    batch = thinned.obs["batch"].astype(str).to_numpy()
    return {
        "purity of a removed type, worse of two": worst(removed),
        "purity of a type in proportions of 10:1, worse of two": worst({t: purity(z, labels, t) for t in types}),
        # Purity alone is easy to keep: batches that are not mixed at all have it.
        "share of neighbours in the other batch, proportions of 10:1": other_batch(z, batch),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    path = DATA / f"{NAME}.h5ad"
    adata = ad.read_h5ad(path)
    names = adata.obs["batch"].value_counts().index[:2]
    adata = adata[adata.obs["batch"].isin(names).to_numpy()].copy()
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    found, peer = judged("sysvi", adata), judged("trvae", adata)
    records = [
        record("sysvi", "check", "removed types and unequal proportions", f"{NAME}, two batches", sha256(path),
               metric, value, reference="tenfold trVAE", reference_value=peer[metric], passed=value >= peer[metric])
        for metric, value in found.items()
    ]  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
