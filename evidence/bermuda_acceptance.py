"""BERMUDA: a type of one batch stays apart and shared types mix, simulated and on blood cells; how many epochs.

Run ``python evidence/bermuda_acceptance.py``.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
from deep_checks import frequent_types, other_batch, purity, without_type
from recording import DATA, record, sha256, write

import tenfold as tf
from tenfold import metrics
from tenfold.integrate._trial import components
from tenfold.integrate.bermuda import BERMUDA

PURITY, MIXING, LOSS, WORSE = 0.95, 0.7, 0.05, 0.1
UNIQUE, NAME = "type_3", "pbmc_3chem"


def fit(adata: ad.AnnData, **params: Any) -> BERMUDA:
    return BERMUDA(n_top_genes=None, **params).fit(adata, batch="batch", progress=False)


def labels_of(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    return adata.obs["cell_type"].to_numpy().astype(str), adata.obs["batch"].to_numpy().astype(str)


def simulated() -> list[dict[str, Any]]:
    """Two batches, two shared types and one that the second batch lacks."""
    adata = tf.data.simulate(
        900, 300, n_types=3, n_batches=2, batch_strength=0.4, type_strength=1.5, depth=900.0,
        proportions=[[1, 1, 1], [1, 1, 0]], seed=0,
    )  # fmt: skip
    labels, batch = labels_of(adata)

    def mixing(z: np.ndarray) -> float:
        found = metrics.ilisi_per_label(metrics.neighbors(z, 90), labels, batch)
        return min(value for label, value in found.items() if label != UNIQUE)

    method, apart = fit(adata), fit(adata, mmd_weight=0.0, epochs=250)
    z, before = method.embed(), apart.embed()
    print(method.pairs_.to_string(), flush=True)
    shared: dict[str, Any] = {"dataset": "tenfold.data.simulate", "digest": sha256(adata.X.toarray())}
    claim, epochs = "two shared types and one of a single batch", len(method.history["epoch"].unique())
    mixed, alone = mixing(z), purity(z, labels, UNIQUE)
    records = [
        record("bermuda", "check", f"{claim}, {epochs} epochs (default)", metric="lowest iLISI of a shared type",
               value=mixed, reference="mmd_weight=0", reference_value=mixing(before), tolerance=MIXING,
               passed=mixed >= MIXING, **shared),
        record("bermuda", "check", f"{claim}, {epochs} epochs (default)", metric="purity of the type of one batch",
               value=alone, tolerance=PURITY, passed=alone >= PURITY, **shared),
    ]  # fmt: skip
    few, many = (final_loss(fit(adata, epochs=n)) for n in (250, 1_000))
    records.append(record(
        "bermuda", "check", "250 epochs reach the loss of 1,000", metric="loss of the last epoch", value=few,
        reference="1,000 epochs", reference_value=many, tolerance=LOSS, passed=few <= (1 + LOSS) * many, **shared,
    ))  # fmt: skip
    return records


def final_loss(method: BERMUDA) -> float:
    """Return the training loss at the end."""
    history = method.history
    return float(history.loc[history["term"] == "loss", "train"].iloc[-1])


def blood() -> list[dict[str, Any]]:
    """A type is taken out of all batches but one; and how the batches mix, beside what no correction does."""
    path, records = DATA / f"{NAME}.h5ad", []
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    shared: dict[str, Any] = {"dataset": NAME, "digest": sha256(path)}
    for label in frequent_types(adata, 2):
        kept, alone = without_type(adata, label)
        labels, batch = labels_of(kept)
        before = purity(components(alone), labels_of(alone)[0], label)
        method = fit(kept)
        z, uncorrected = method.embed(), components(kept)
        found, mixed = purity(z, labels, label), other_batch(z, batch)
        claim = f"{label} in one of three batches, {len(method.pairs_)} pairs of clusters"
        records += [
            record("bermuda", "check", claim, metric="purity of the type", value=found, reference="PCs of its batch",
                   reference_value=before, tolerance=WORSE, passed=found >= before - WORSE, **shared),
            record("bermuda", "check", claim, metric="share of neighbours in another batch", value=mixed,
                   reference="PCs without correction", reference_value=other_batch(uncorrected, batch),
                   passed=mixed > other_batch(uncorrected, batch), **shared),
        ]  # fmt: skip
    return records


def main() -> None:
    warnings.simplefilter("ignore")
    write(simulated() + blood())


if __name__ == "__main__":
    main()
