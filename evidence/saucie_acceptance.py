"""SAUCIE beside principal components: mixing and purity of types in its two dimensions, and in twenty.

Run ``python evidence/saucie_acceptance.py``.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
from deep_checks import other_batch
from recording import DATA, record, sha256, write

import tenfold as tf
from tenfold.integrate._neighbors import nearest
from tenfold.integrate._trial import components
from tenfold.integrate.saucie import SAUCIE

LOSS, NAME = 0.05, "pbmc_3chem"


def purity(z: np.ndarray, labels: np.ndarray) -> float:
    return float((labels[nearest(z)] == labels[:, None]).mean())


def compared(adata: ad.AnnData, dataset: str, digest: str) -> list[dict[str, Any]]:
    """Return mixing and purity of 15 neighbours, with two and with twenty dimensions."""
    labels, batch = (adata.obs[name].to_numpy().astype(str) for name in ("cell_type", "batch"))
    before, records = components(adata), []
    for n_latent in (2, 20):
        method = SAUCIE(n_top_genes=None, n_latent=n_latent, epochs=150).fit(adata, batch="batch", progress=False)
        z, claim = method.embed(), f"n_latent={n_latent}, 150 epochs"
        mixed, pure = other_batch(z, batch), purity(z, labels)
        own = (other_batch(before, batch), purity(before, labels))
        shared: dict[str, Any] = {"dataset": dataset, "digest": digest, "reference": "PCs without correction"}
        records += [
            record("saucie", "check", claim, metric="share of neighbours in another batch", value=mixed,
                   reference_value=own[0], passed=mixed > own[0], **shared),
            record("saucie", "check", claim, metric="share of neighbours of the same type", value=pure,
                   reference_value=own[1], tolerance=LOSS, passed=pure >= own[1] - LOSS, **shared),
        ]  # fmt: skip
    return records


def main() -> None:
    warnings.simplefilter("ignore")
    simulated = tf.data.simulate(600, 200, n_types=4, n_batches=2, batch_strength=0.4, type_strength=1.5, seed=0)
    records = compared(simulated, "tenfold.data.simulate", sha256(simulated.X.toarray()))
    write(records)
    path = DATA / f"{NAME}.h5ad"
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    write(records + compared(adata, NAME, sha256(path)))


if __name__ == "__main__":
    main()
