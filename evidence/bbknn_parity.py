"""BBKNN: the lists of the reference's exact search, and its weights.

UMAP ends the bisection for a cell's bandwidth when its weights sum to within 1e-5 of the target, so single weights of
the reference are off by some 1e-5 themselves.
"""

from __future__ import annotations

import os
import warnings

import anndata as ad
import numpy as np
from harmony_simulation import simulate
from recording import DATA, REFERENCE_PYTHON, record, run_apart, sha256, version, write
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.linear import ridge_batches
from tenfold.embed.pca import PCA
from tenfold.integrate.bbknn import BBKNN

#: bbknn needs a compiler, so it may live in an environment of its own.
PYTHON = os.environ.get("TENFOLD_BBKNN_PYTHON", REFERENCE_PYTHON)
SETUP = "from bbknn.matrix import bbknn"
CODE = """
distances, weights, _ = bbknn(given["x"], given["batch"], computation="cKDTree", trim=int(given["trim"]) or None)
result = {}
for name, matrix in (("d", distances), ("w", weights)):
    matrix = matrix.tocsr(); matrix.sort_indices()
    result |= {name: matrix.data, name + "i": matrix.indices, name + "p": matrix.indptr}
"""


def cases():
    for n_batches in (2, 10):
        x, batch, _ = simulate(5000, n_batches, 0.1)
        yield f"simulated cells, {n_batches} batches", x, batch.astype(str), sha256(x)
    for name in ("pbmc_3chem", "starmap_mpfc"):
        adata = ad.read_h5ad(DATA / f"{name}.h5ad")
        x = PCA().fit(adata, batch="batch", progress=False).embed()
        yield name, x, adata.obs["batch"].astype(str).to_numpy(), sha256(DATA / f"{name}.h5ad")


RIDGE_SETUP = """
import types
import anndata as ad, bbknn, pandas as pd
from sklearn.linear_model import Ridge
bbknn.Ridge, bbknn.pd = Ridge, pd  # version 1.6.0 forgets to import what its function uses
bbknn.logg = types.SimpleNamespace(info=lambda *words, **more: None)
obs = pd.DataFrame({"batch": given["batch"], "type": given["type"]}).astype("category")
obs.index = obs.index.astype(str)
adata = ad.AnnData(given["x"], obs=obs)
"""
RIDGE = "bbknn.ridge_regression(adata, 'batch', ['type']); result = {'x': np.asarray(adata.X)}"


def ridge(reference: str) -> list[dict]:
    """Regress standardised genes on batches and types; compare what is left of them."""
    rows = []
    for name, key in (("pbmc_3chem", "cell_type_broad"), ("cellline_3x2", "cell_type")):
        adata = ad.read_h5ad(DATA / f"{name}.h5ad")[:, :800]
        adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
        data = Inputs(adata, {"batch": "batch", "categorical_covariates": key})
        kept = [codes.values for codes in data.categorical("categorical_covariates")]
        slope, shift = ridge_batches(data.lognorm, data.batch.values, kept, 1.0)
        x = data.lognorm.toarray().astype(np.float64)
        ours = slope[data.batch.values] * x + shift[data.batch.values]
        deviation = x.std(axis=0, ddof=1)
        scaled = (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
        names = {"batch": adata.obs["batch"], "type": adata.obs[key]}
        given = {"x": scaled, **{n: c.astype(str).to_numpy().astype("U") for n, c in names.items()}}
        off = float(np.abs(ours - run_apart(RIDGE, given, RIDGE_SETUP, PYTHON)["x"]).max())
        rows.append(
            record("bbknn", "parity", "the same residuals of the ridge regression", name,
                   sha256(DATA / f"{name}.h5ad"), "largest difference", off, reference=reference,
                   reference_value=0.0, tolerance=1e-6, passed=off < 1e-6)
        )  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    reference = version("bbknn", PYTHON)
    rows = ridge(reference)
    for name, x, batch, digest in cases():
        adata = ad.AnnData(np.ones((len(x), 3), dtype=np.float32))
        adata.obsm["X"], adata.obs["batch"] = x, batch
        for trim in (0, 20):
            ours = BBKNN(trim=trim or None).fit(adata, batch="batch", use_rep="X", progress=False)
            given = {"x": x.astype(np.float64), "batch": batch.astype("U"), "trim": trim}
            theirs = run_apart(CODE, given, SETUP, PYTHON)
            shape = (len(x), len(x))
            lists = sparse.csr_matrix((np.ones_like(theirs["d"]), theirs["di"], theirs["dp"]), shape=shape)
            weights = sparse.csr_matrix((theirs["w"], theirs["wi"], theirs["wp"]), shape=shape)
            if not trim:
                mine = ours.distances_.copy()
                mine.data[:] = 1
                share = float(mine.multiply(lists).sum() / lists.nnz)
                rows.append(
                    record("bbknn", "parity", "the same neighbours as an exact search", name, digest,
                           "share of the reference's neighbours", share, reference=f"{reference}, cKDTree",
                           reference_value=1.0, tolerance=1e-4, passed=share > 1 - 1e-4)
                )  # fmt: skip
            off = abs(ours.connectivities_ - weights)
            largest = float(off.max())
            rows.append(
                record("bbknn", "parity", "the same connectivities", name, digest,
                       f"largest difference, trim {trim or 'default'}", largest, reference=f"{reference}, cKDTree",
                       reference_value=0.0, tolerance=1e-4, passed=largest < 1e-4)
            )  # fmt: skip
            mean = float(off.sum() / weights.nnz)
            rows.append(
                record("bbknn", "parity", "the same connectivities", name, digest,
                       f"mean difference, trim {trim or 'default'}", mean, reference=f"{reference}, cKDTree",
                       reference_value=0.0, tolerance=1e-5, passed=mean < 1e-5)
            )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
