"""Both versions of scMerge against the R package's code: the same corrected values from the same groups of replicates.

How replicates are found differs (see the notes of the two methods), so theirs is given ours: the group of each cell, or
the pseudo-bulks and their groups. Needs R with BiocSingular and DelayedArray, see ``r_reference``, and a checkout of
github.com/SydneyBioX/scMerge, named by TENFOLD_SCMERGE. Run ``python evidence/scmerge_parity.py``.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from r_reference import run_in_r
from recording import DATA, record, sha256, write

import tenfold as tf
from tenfold.data.unwanted import pooled_deviation
from tenfold.integrate.scmerge import ScMerge
from tenfold.integrate.scmerge_v1 import ScMergeV1

FACTORS, TOLERANCE = 20, 1e-4

#: Of the package ruv two functions are asked for, and here they have nothing to do: the matrix of replicates is given,
#: and no covariate of the genes is.
SETUP = """
replicate.matrix <- function(M) M
RUV1 <- function(Y, ...) Y
ruv <- list(replicate.matrix=replicate.matrix, RUV1=RUV1)
for (name in c("fastRUVIII.R", "scMerge2_utilis.R")) {
  source_code <- readLines(file.path("SOURCE", "R", name))
  eval(parse(text=gsub("ruv::", "", source_code, fixed=TRUE)), globalenv())
}
controls <- as.logical(as.vector(given$controls)); members <- as.matrix(given$members); y <- as.matrix(given$y)
"""
FIRST = "result <- list(y=as.matrix(fastRUVIII(y, members, controls, k=FACTORS)))"
SECOND = """
found <- pseudoRUVIII(y, as.matrix(given$bulks), members, controls, k=FACTORS, return.info=TRUE, byChunk=FALSE)
result <- list(y=as.matrix(found$newY))
"""


class Seen(ScMerge):
    """scMerge2 that keeps its pseudo-bulks."""

    def _given(self, bulks: Any, groups: np.ndarray, n_factors: int) -> np.ndarray:
        self.seen = bulks.profiles, groups[bulks.cluster]
        return super()._given(bulks, groups, n_factors)


def members_of(groups: np.ndarray) -> np.ndarray:
    return (groups[:, None] == np.unique(groups)).astype(float)


def theirs(code: str, given: dict[str, Any]) -> np.ndarray:
    setup = SETUP.replace("SOURCE", str(Path(os.environ["TENFOLD_SCMERGE"]).resolve()))
    return run_in_r(
        code.replace("FACTORS", str(FACTORS)), given, ("BiocParallel", "DelayedArray", "BiocSingular"), setup
    )["y"]


def compared(adata: ad.AnnData, dataset: str, digest: str) -> list[dict[str, Any]]:
    first = ScMergeV1(n_factors=FACTORS).fit(adata, batch="batch", progress=False)
    x = first.expression_.toarray().astype(np.float64)
    deviation, mean = pooled_deviation(first.expression_, adata.obs["batch"].cat.codes.to_numpy()), x.mean(axis=0)
    controls = np.zeros((adata.n_vars, 1))
    controls[first.controls_] = 1
    given = {"y": (x - mean) / deviation, "members": members_of(first.replicates_), "controls": controls}
    expected = {"scmerge_v1": theirs(FIRST, given) * deviation + mean}
    second = Seen(n_factors=FACTORS).fit(adata, batch="batch", progress=False)
    bulks, groups = second.seen
    given = {"y": second.expression_, "members": members_of(groups), "bulks": bulks.astype(np.float64)}
    expected["scmerge"] = theirs(SECOND, {**given, "controls": np.ones((adata.n_vars, 1))})
    rows = []
    for method, fitted in (("scmerge_v1", first), ("scmerge", second)):
        before = fitted.expression_.toarray()
        change = np.linalg.norm(expected[method] - before)
        value = float(np.linalg.norm(fitted.correct() - expected[method]) / change)
        rows.append(
            record(method, "parity", f"corrected values, {FACTORS} factors, the same replicates", dataset, digest,
                   "difference, relative to what is corrected", value, reference="scMerge (R), 2024-04",
                   reference_value=0.0, tolerance=TOLERANCE, passed=value <= TOLERANCE)
        )  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    simulated = tf.data.simulate(600, 400, n_types=4, n_batches=2, batch_strength=0.3, seed=0)
    rows = compared(simulated, "simulated, 600 cells × 400 genes, 2 batches", sha256(simulated.X.toarray()))
    path = DATA / "pbmc_3chem.h5ad"
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    write(rows + compared(adata, "pbmc_3chem", sha256(path)))


if __name__ == "__main__":
    main()
