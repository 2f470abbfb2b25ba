"""SCALEX on blood cells of three chemistries: null batch, removed types, projection, in its three ways to place cells.

Run ``python evidence/scalex_acceptance.py``.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
from deep_checks import frequent_types, purity, without_type, worst
from recording import DATA, record, sha256, write
from sklearn.neighbors import KNeighborsClassifier

from tenfold import metrics
from tenfold.integrate._neighbors import nearest
from tenfold.integrate._trial import components
from tenfold.integrate.scalex import SCALEX

EPOCHS = 80
MODES = ("eval", "domain", "reference")
NAME = "pbmc_3chem"


def placed(model: SCALEX, adata: ad.AnnData, mode: Any) -> np.ndarray:
    """Place cells in one of the three ways; training is the same for all."""
    model.inference = mode
    return model.embed(adata)


def fit(adata: ad.AnnData, batch: str | None = "batch", seed: int = 0) -> SCALEX:
    return SCALEX(epochs=EPOCHS, seed=seed, early_stopping=False).fit(adata, progress=False, batch=batch)


def null_batch(adata: ad.AnnData) -> dict[str, float]:
    """Return neighbours lost to a batch that does not exist, beyond what two seeds differ by."""
    largest = adata.obs["batch"].value_counts().index[0]
    alone = adata[adata.obs["batch"] == largest].copy()
    alone.obs["fake"] = np.where(np.random.default_rng(0).random(alone.n_obs) < 0.5, "a", "b")
    first, twin, split = fit(alone, None, 1), fit(alone, None, 0), fit(alone, "fake", 0)
    own = nearest(placed(first, alone, "eval"))
    between = metrics.neighbor_overlap(own, nearest(placed(twin, alone, "eval")))
    return {mode: between - metrics.neighbor_overlap(own, nearest(placed(split, alone, mode))) for mode in MODES}


def removed_types(adata: ad.AnnData) -> dict[str, dict[str, float]]:
    """Return, for each way and type, the purity of a type that one batch alone has, less that in its batch's PCs."""
    losses: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
    for label in frequent_types(adata, 2):
        kept, alone = without_type(adata, label)
        before = purity(components(alone), alone.obs["cell_type"].astype(str).to_numpy(), label)
        model = fit(kept)
        for mode in MODES:
            after = purity(placed(model, kept, mode), kept.obs["cell_type"].astype(str).to_numpy(), label)
            losses[mode][label] = after - before
    return losses


def projection(adata: ad.AnnData) -> dict[str, tuple[float, float]]:
    """Return the accuracy of labels by neighbours of a batch that was projected, and of one that was fitted."""
    held_out = adata.obs["batch"].value_counts().index[-1]
    new = (adata.obs["batch"] == held_out).to_numpy()
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    known, joint = fit(adata[~new].copy()), fit(adata)
    found = {}
    for mode in MODES:
        both = []
        for model in (known, joint):
            reference = placed(model, adata[~new].copy(), mode)
            query = placed(model, adata[new].copy(), mode)
            both.append(float(KNeighborsClassifier(15).fit(reference, labels[~new]).score(query, labels[new])))
        found[mode] = (both[0], both[1])
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    path = DATA / f"{NAME}.h5ad"
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    shared = {"dataset": NAME, "digest": sha256(path)}
    records = []
    for mode, loss in null_batch(adata).items():
        records.append(record("scalex", "check", f"null batch, inference={mode}",
                              metric="neighbours lost beyond two seeds", value=loss, tolerance=0.05,
                              passed=loss <= 0.05, **shared))  # fmt: skip
    for mode, values in removed_types(adata).items():
        records.append(record("scalex", "check", f"removed type, inference={mode}",
                              metric="purity less that in the batch alone, worse of two types", value=worst(values),
                              tolerance=-0.05, passed=worst(values) >= -0.05, **shared))  # fmt: skip
    for mode, (projected, joint) in projection(adata).items():
        records.append(record("scalex", "check", f"projection of a batch left out, inference={mode}",
                              metric="accuracy of labels by 15 neighbours", value=projected, reference="joint training",
                              reference_value=joint, tolerance=0.03, passed=projected >= joint - 0.03,
                              **shared))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
