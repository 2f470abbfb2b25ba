"""scArches on blood cells of three chemistries: the reference does not move, the query lands among its types.

Each chemistry in turn is the query. Label accuracy of its cells by their 15 nearest neighbours in the reference is
compared with that after training on all cells at once. With a type left out of the reference, the uncertainty of
transferred labels must tell its cells from the others. Run ``python evidence/scarches_acceptance.py
[batch or type ...]``; other records are kept.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import anndata as ad
import numpy as np
from recording import DATA, ROOT, record, sha256, write
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import tenfold as tf
from tenfold.integrate.scarches import PRESET, WARMUP

NAME = "pbmc_3chem"
EPOCHS: dict[str, Any] = {"epochs": 200, "n_top_genes": None}
#: Types left out of the reference, one at a time.
NEW = ("B", "NK", "Mono_CD14")
ACCURACY_LOSS, LEAST_AUROC = 0.03, 0.8


def held_out(adata: ad.AnnData, batch: str) -> dict[str, float]:
    """Map one batch onto the others, and train on all for comparison."""
    query, labels = (adata.obs["batch"] == batch).to_numpy(), adata.obs["cell_type"].to_numpy().astype(str)
    others = sorted(set(adata.obs["batch"]) - {batch})
    method = tf.integrate.ScArches(reference_batches=others, query_epochs=200, **EPOCHS)
    method.fit(adata, batch="batch", labels="cell_type", progress=False)
    moved = np.abs(method.model.embed(adata[~query].copy()) - method.embed()[~query]).max()
    params: dict[str, Any] = {"n_layers": 2, "dropout": 0.2, **PRESET, **EPOCHS}
    params["kl_warmup_epochs"] = round(WARMUP * EPOCHS["epochs"])
    whole = tf.embed.SCVI(**params).fit(adata, batch="batch", progress=False).embed()

    def accuracy(z: np.ndarray) -> float:
        return KNeighborsClassifier(15).fit(z[~query], labels[~query]).score(z[query], labels[query])

    found = method.transfer_labels()["label"].to_numpy() == labels[query]
    row = {
        "moved": moved, "mapped": accuracy(method.embed()), "retrained": accuracy(whole), "transfer": found.mean()
    }  # fmt: skip
    print(batch, row, flush=True)
    return row


def new_type(adata: ad.AnnData, batch: str, label: str) -> dict[str, float]:
    """Map a batch onto a reference without one type, and ask how well uncertainty tells that type from the others."""
    query, is_new = (adata.obs["batch"] == batch).to_numpy(), (adata.obs["cell_type"] == label).to_numpy()
    part = adata[query | ~is_new].copy()
    others = sorted(set(adata.obs["batch"]) - {batch})
    method = tf.integrate.ScArches(reference_batches=others, query_epochs=200, **EPOCHS)
    table = method.fit(part, batch="batch", labels="cell_type", progress=False).transfer_labels()
    truth = (part.obs["cell_type"] == label).to_numpy()[table.index]
    row = {name: roc_auc_score(truth, table[name]) for name in ("uncertainty", "disagreement")}
    row |= {"found": table["unknown"][truth].mean(), "false": table["unknown"][~truth].mean()}
    print(label, row, flush=True)
    return row


def records_of(name: str, adata: ad.AnnData, digest: str, batches: list[str]) -> list[dict[str, Any]]:
    """Return the records of one batch as the query, or of one type that only the query has."""
    if name in NEW:
        row = new_type(adata, batches[-1], name)
        return [record(
            "scarches", "check", f"{name} is in the query ({batches[-1]}) only", NAME, digest,
            "AUROC of uncertainty, new type against known", row["uncertainty"], reference="disagreement alone",
            reference_value=row["disagreement"], tolerance=LEAST_AUROC, passed=row["uncertainty"] >= LEAST_AUROC,
        )]  # fmt: skip
    row, claim = held_out(adata, name), f"{name} is the query"
    least = row["retrained"] - ACCURACY_LOSS
    shared: dict[str, Any] = {
        "reference": "training on all cells, kNN", "reference_value": row["retrained"], "tolerance": ACCURACY_LOSS,
    }  # fmt: skip
    return [
        record("scarches", "check", claim, NAME, digest, "largest change of a coordinate of the reference",
               row["moved"], tolerance=0.0, passed=row["moved"] == 0),
        record("scarches", "check", claim, NAME, digest, "kNN label accuracy of the query", row["mapped"],
               passed=row["mapped"] >= least, **shared),
        record("scarches", "check", claim, NAME, digest, "accuracy of transfer_labels", row["transfer"],
               passed=row["transfer"] >= least, **shared),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    path, stored = DATA / f"{NAME}.h5ad", ROOT / "evidence" / "results" / "scarches_acceptance.json"
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    batches = sorted(adata.obs["batch"].unique())
    kept = json.loads(stored.read_text()) if stored.exists() else []
    for name in sys.argv[1:] or [*batches, *NEW]:
        fresh = records_of(name, adata, sha256(path), batches)
        kept = [row for row in kept if row["claim"] != fresh[0]["claim"]] + fresh
        write(kept)


if __name__ == "__main__":
    main()
