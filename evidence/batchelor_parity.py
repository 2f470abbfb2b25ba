"""fastMNN and MNN against the authors' R package: the same pairs of cells, coordinates and expression.

Needs R with batchelor (Bioconductor), see ``r_reference``. Run ``python evidence/batchelor_parity.py``.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
from r_reference import r_version, run_in_r
from recording import DATA, record, sha256, write

import tenfold as tf
from tenfold.data import anchors as shared

TOLERANCE, LARGEST = 0.01, 1e-4

SETUP = """
counts <- as(given$counts, "CsparseMatrix")
rownames(counts) <- words("genes"); colnames(counts) <- words("cells")
batch <- factor(words("batch"), levels=unique(words("order")))
"""
CODE = """
sce <- SingleCellExperiment(list(counts=counts))
normed <- multiBatchNorm(sce, batch=batch, normalize.all=TRUE)
x <- logcounts(normed)
fast <- fastMNN(x, batch=batch, k=20, d=DIMENSIONS, BSPARAM=BiocSingular::ExactParam())
pairs <- metadata(fast)$merge.info$pairs
slow <- mnnCorrect(x, batch=batch, k=20)
slow_pairs <- metadata(slow)$merge.info$pairs
table <- function(pairs)
  do.call(rbind, lapply(seq_along(pairs), function(i) cbind(i, pairs[[i]]$left, pairs[[i]]$right)))
result <- list(
  normed=t(as.matrix(cosineNorm(x))), reconstructed=t(as.matrix(assay(fast, "reconstructed"))),
  pairs=table(pairs), lost=metadata(fast)$merge.info$lost.var,
  corrected=t(as.matrix(assay(slow, "corrected"))), slow_pairs=table(slow_pairs)
)
"""


def pair_sets(table: np.ndarray) -> list[set[tuple[int, int]]]:
    """Return the pairs of each merge as rows of the data; theirs count from 1."""
    merges = [table[table[:, 0] == merge, 1:].astype(int) - 1 for merge in np.unique(table[:, 0])]
    return [set(map(tuple, np.sort(pairs, axis=1))) for pairs in merges]


def alike(ours: list[set], theirs: list[set]) -> float:
    """Return the Jaccard index of all pairs."""
    both = sum(len(one & two) for one, two in zip(ours, theirs, strict=True))
    either = sum(len(one | two) for one, two in zip(ours, theirs, strict=True))
    return both / either


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the share of cells that differ: by more than 1e-4 of the average length of a cell.

    Two neighbours whose distances are the same to the digits of float32 may change places, which moves a cell.
    """
    difference = np.linalg.norm(ours - theirs, axis=1)
    return float((difference > LARGEST * np.linalg.norm(theirs, axis=1).mean()).mean())


def compared(adata: ad.AnnData, dataset: str, digest: str, version: str) -> list[dict[str, Any]]:
    n_components = 30
    batch = adata.obs["batch"].astype(str)
    names = sorted(batch.unique())
    given = {
        "counts": adata.X.T, "genes": list(adata.var_names), "cells": list(adata.obs_names), "batch": list(batch),
        "order": names,
    }  # fmt: skip
    libraries = ("batchelor", "SingleCellExperiment")
    theirs = run_in_r(CODE.replace("DIMENSIONS", str(n_components)), given, libraries, SETUP)
    codes = np.array([names.index(name) for name in batch])
    every = np.arange(adata.n_vars)
    normed = shared.cosine_normalised(shared.depth_matched(adata.X.tocsr(), codes), every).toarray()

    fast = tf.integrate.FastMNN(n_components=n_components, n_top_genes=4000).fit(adata, batch="batch", progress=False)
    slow = tf.integrate.MNN(n_top_genes=4000).fit(adata, batch="batch", progress=False)
    pairs_of_slow = [
        set(map(tuple, np.sort(np.stack([merge["left_rows"], merge["right_rows"]], axis=1), axis=1)))
        for merge in slow.merges_
    ]
    found = {
        "fastmnn": (apart(fast.correct() - fast.centre_, theirs["reconstructed"]), fast.merges_),
        "mnn": (apart(slow.correct(), theirs["corrected"]), slow.merges_),
    }
    options = {"reference": version, "dataset": dataset, "digest": digest}
    start = apart(normed, theirs["normed"])
    rows, share = [], f"share of cells that differ by {LARGEST:g} of their length"
    for method, (difference, merges) in found.items():
        counts = [len(pairs) for pairs in pair_sets(theirs["pairs" if method == "fastmnn" else "slow_pairs"])]
        more = max(abs(merge["pairs"] - n) / n for merge, n in zip(merges, counts, strict=True))
        for claim, metric, value in (
            ("depth-matched, cosine-normalised expression", share, start),
            ("pairs of the merges", "largest difference of their number, relative", more),
            ("corrected expression", share, difference),
        ):
            rows.append(
                record(method, "parity", claim, metric=metric, value=value, reference_value=0.0, tolerance=TOLERANCE,
                       passed=value <= TOLERANCE, **options)
            )  # fmt: skip
    jaccard = alike(pairs_of_slow, pair_sets(theirs["slow_pairs"]))
    rows.append(
        record("mnn", "parity", "pairs of the merges", metric="Jaccard index of the pairs", value=jaccard,
               reference_value=1.0, tolerance=0.01, passed=jaccard >= 0.99, **options)
    )  # fmt: skip
    lost = float(np.abs(fast.lost_variance_ - theirs["lost"]).max())
    rows.append(
        record("fastmnn", "parity", "variance lost by the merges", metric="largest difference", value=lost,
               reference_value=0.0, tolerance=LARGEST, passed=lost <= LARGEST, **options)
    )  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    version = r_version("batchelor")
    simulated = tf.data.simulate(900, 500, n_types=4, n_batches=3, batch_strength=0.3, seed=0)
    rows = compared(simulated, "simulated, 900 cells × 500 genes, 3 batches", sha256(simulated.X.toarray()), version)
    path = DATA / "pbmc_3chem.h5ad"
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    write(rows + compared(adata, "pbmc_3chem", sha256(path), version))


if __name__ == "__main__":
    main()
