"""SCEMENT on the genes that all batches have equals scanpy.pp.combat on these, and leaves the others alone.

The package of its authors is ComBat's model on sparse matrices too, but for the variance of the prior, which it divides
by the number of genes rather than by one less. Run ``python evidence/scement_parity.py``.
"""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
from recording import DATA, record, run_apart, sha256, version, write

from tenfold.integrate.scement import SCEMENT

SETUP = "import anndata as ad, pandas as pd, scanpy as sc"
CODE = """
obs = pd.DataFrame({"batch": pd.Categorical(given["batch"])})
obs.index = obs.index.astype(str)
result = {"y": sc.pp.combat(ad.AnnData(given["x"], obs=obs), key="batch", inplace=False)}
"""
TOLERANCE = 1e-6


def main() -> None:
    warnings.simplefilter("ignore")
    rows, reference = [], version("scanpy")
    for name in ("pbmc_3chem", "cellline_3x2"):
        path = DATA / f"{name}.h5ad"
        adata = ad.read_h5ad(path)
        fitted = SCEMENT().fit(adata, batch="batch", progress=False)
        x, found, included = fitted.expression_.toarray().astype(np.float64), fitted.correct(), fitted.included_
        given = {"x": x[:, included], "batch": adata.obs["batch"].astype(str).to_numpy().astype("U")}
        theirs = run_apart(CODE, given, SETUP)["y"]
        shared = {"dataset": name, "digest": sha256(path), "reference": reference, "reference_value": 0.0,
                  "tolerance": TOLERANCE}  # fmt: skip
        for metric, value in (
            (f"largest difference in the {included.sum():,} genes of all batches",
             np.abs(found[:, included] - theirs).max()),
            (f"largest change of the {(~included).sum():,} others", np.abs(found - x)[:, ~included].max(initial=0.0)),
        ):  # fmt: skip
            rows.append(
                record("scement", "parity", "ComBat on the genes of all batches", metric=metric, value=value,
                       passed=bool(value <= TOLERANCE), **shared)
            )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
