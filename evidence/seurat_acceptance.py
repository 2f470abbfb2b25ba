"""Seurat's anchors: within types, shared types mixed and unique ones pure, and null batches moved less by RPCA."""

from __future__ import annotations

import warnings

import numpy as np
from anchor_data import acceptance, displacement, kept, null_pbmc, overlapping
from recording import record, sha256, write

import tenfold as tf
from tenfold.integrate.seurat_cca import SeuratCCA
from tenfold.integrate.seurat_rpca import SeuratRPCA


def within_types() -> list[dict]:
    rows = []
    alike = tf.data.simulate(2000, 1000, n_types=4, n_batches=2, batch_strength=0.3, seed=0)
    sets = [("simulated, 4 shared types", alike, (), sha256(alike.X.toarray())), *overlapping()]
    for name, adata, _, digest in sets:
        types = adata.obs["cell_type"].astype(str).to_numpy()
        for cls in (SeuratCCA, SeuratRPCA):
            merge = cls().fit(adata, batch="batch", progress=False).merges_[0]
            same = types[merge["left_rows"]] == types[merge["right_rows"]]
            for metric, value in (
                ("share of anchors within a type", same.mean()),
                ("share of the anchors' score within a type", merge["score"][same].sum() / merge["score"].sum()),
            ):
                rows.append(
                    record(cls.name(), "check", "anchors join cells of one type", name, digest, metric, value,
                           tolerance=0.95, passed=value > 0.95)
                )  # fmt: skip
    return rows


def null_batches() -> list[dict]:
    moved: dict[type, list[float]] = {SeuratCCA: [], SeuratRPCA: []}
    shares: dict[type, list[float]] = {SeuratCCA: [], SeuratRPCA: []}
    for seed in range(3):
        adata = null_pbmc(seed)
        for cls in moved:
            run = cls().fit(adata, batch="batch", progress=False)
            moved[cls].append(displacement(run.start_, run.embed()))
            shares[cls].append(kept(run.start_, run.embed()))
    digest, rows = sha256(tf.data.pbmc().X.toarray()), []
    rpca, cca = (float(np.mean(moved[cls])) for cls in (SeuratRPCA, SeuratCCA))
    rows.append(
        record("seurat_rpca", "check", "RPCA moves null batches less than CCA", "pbmc68k_reduced, split at random",
               digest, "displacement, mean of 3 splits", rpca, reference="our CCA", reference_value=cca,
               passed=rpca < cca)
    )  # fmt: skip
    for cls, values in shares.items():
        share = float(np.mean(values))
        rows.append(
            record(cls.name(), "check", "null batches keep their neighbours", "pbmc68k_reduced, split at random",
                   digest, "15 nearest neighbours kept, mean of 3 splits", share, tolerance=0.9, passed=share > 0.9)
        )  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    write([*within_types(), *acceptance(SeuratCCA), *acceptance(SeuratRPCA), *null_batches()])


if __name__ == "__main__":
    main()
