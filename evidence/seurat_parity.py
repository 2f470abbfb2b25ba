"""Seurat's anchors against the R package: the same pairs of cells and scores, and coordinates corrected by them.

Log-expression and joint components are given to both. Needs R with Seurat 4, see ``r_reference``. Run
``python evidence/seurat_parity.py``.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
from r_reference import r_version, run_in_r
from recording import DATA, record, sha256, write

import tenfold as tf
from tenfold.integrate.seurat_cca import SeuratCCA
from tenfold.integrate.seurat_rpca import SeuratRPCA

TOLERANCE, LARGEST = 0.01, 1e-3

SETUP = """
x <- as(given$lognorm, "CsparseMatrix"); joint <- as.matrix(given$joint)
rownames(x) <- words("genes"); colnames(x) <- words("cells"); rownames(joint) <- words("cells")
colnames(joint) <- paste0("PC_", seq_len(ncol(joint)))
batch <- factor(words("batch"), levels=words("order"))
part <- function(name) {
  cells <- colnames(x)[batch == name]
  object <- CreateSeuratObject(x[, cells])
  object <- SetAssayData(object, "data", x[, cells])
  VariableFeatures(object) <- rownames(x)
  if ("KIND" == "rpca") {
    object <- ScaleData(object, verbose=FALSE)
    object <- RunPCA(object, npcs=30, verbose=FALSE)
  }
  object
}
parts <- lapply(levels(batch), part)
"""
CODE = """
set <- FindIntegrationAnchors(parts, anchor.features=rownames(x), reduction="KIND", dims=1:30, nn.method="rann",
                              verbose=FALSE)
anchors <- set@anchors
place <- lapply(levels(batch), function(name) which(batch == name))
row <- function(cell, dataset) mapply(function(i, d) place[[d]][i], cell, dataset)
reduced <- CreateDimReducObject(embeddings=joint[unlist(lapply(parts, colnames)), ], key="PC_", assay="RNA")
moved <- IntegrateEmbeddings(set, reductions=reduced, new.reduction.name="moved", k.weight=100, verbose=FALSE)
result <- list(
  anchors=cbind(row(anchors$cell1, anchors$dataset1), row(anchors$cell2, anchors$dataset2), anchors$score),
  moved=Embeddings(moved, "moved")[colnames(x), ]
)
"""


def compared(cls: type, adata: ad.AnnData, dataset: str, digest: str, version: str) -> list[dict[str, Any]]:
    method, kind = cls.name(), cls.name().removeprefix("seurat_")
    ours = cls(n_top_genes=4000).fit(adata, batch="batch", progress=False)
    batch = adata.obs["batch"].astype(str)
    given = {
        "lognorm": ours.expression_.T, "joint": ours.start_, "genes": [f"g{i}" for i in range(adata.n_vars)],
        "cells": [f"c{i}" for i in range(adata.n_obs)], "batch": list(batch), "order": sorted(batch.unique()),
    }  # fmt: skip
    theirs = run_in_r(CODE.replace("KIND", kind), given, ("Seurat",), SETUP.replace("KIND", kind))
    score = {}
    for one, two, value in theirs["anchors"]:
        score[tuple(sorted((int(one) - 1, int(two) - 1)))] = value
    own = {}
    for merge in ours.merges_:
        for one, two, value in zip(merge["left_rows"], merge["right_rows"], merge["score"], strict=True):
            own[tuple(sorted((int(one), int(two))))] = value
    both = sorted(own.keys() & score.keys())
    differ = np.mean([abs(own[pair] - score[pair]) > LARGEST for pair in both])
    jaccard = len(both) / len(own.keys() | score.keys())
    length = np.linalg.norm(theirs["moved"] - theirs["moved"].mean(axis=0), axis=1).mean()
    moved = float(np.median(np.linalg.norm(ours.embed() - theirs["moved"], axis=1)) / length)
    options = {"reference": version, "dataset": dataset, "digest": digest}
    return [
        record(method, "parity", "anchors", metric="Jaccard index of the pairs", value=jaccard, reference_value=1.0,
               tolerance=TOLERANCE, passed=jaccard >= 1 - TOLERANCE, **options),
        record(method, "parity", "anchors", metric=f"share of common pairs whose scores differ by {LARGEST:g}",
               value=differ, reference_value=0.0, tolerance=TOLERANCE, passed=differ <= TOLERANCE, **options),
        record(method, "parity", "corrected joint components", metric="median difference of a cell, over its length",
               value=moved, reference_value=0.0, tolerance=TOLERANCE, passed=moved <= TOLERANCE, **options),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    version, rows = r_version("Seurat"), []
    simulated = tf.data.simulate(900, 500, n_types=4, n_batches=2, batch_strength=0.3, seed=0)
    path = DATA / "pbmc_3chem.h5ad"
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    for cls in (SeuratCCA, SeuratRPCA):
        digest = sha256(simulated.X.toarray())
        rows += compared(cls, simulated, "simulated, 900 cells × 500 genes, 2 batches", digest, version)
        rows += compared(cls, adata, "pbmc_3chem", sha256(path), version)
    write(rows)


if __name__ == "__main__":
    main()
