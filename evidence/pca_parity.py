"""PCA equals Scanpy's steps (variable genes, depth normalisation, log1p, PCA) on the same counts, up to sign.

Genes whose ranks tie at the edge of the list may differ; the components are compared on the same genes.
"""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
from recording import DATA, record, run_apart, sha256, version, write

from tenfold.embed.pca import PCA

SETUP = "import anndata as ad, pandas as pd, scanpy as sc"
CODE = """
adata = ad.AnnData(given["x"])
adata.obs["batch"] = pd.Categorical(given["batch"].astype(str))
sc.pp.highly_variable_genes(adata, n_top_genes=int(given["n"]), flavor="seurat_v3_paper", batch_key="batch")
sc.pp.normalize_total(adata, target_sum=1e4)
sc.pp.log1p(adata)
adata.var["chosen"] = given["genes"]
sc.pp.pca(adata, n_comps=30, mask_var="chosen", svd_solver="arpack")
result = {"z": adata.obsm["X_pca"], "genes": np.flatnonzero(adata.var["highly_variable"])}
"""


def main() -> None:
    warnings.simplefilter("ignore")
    rows, reference = [], version("scanpy")
    for name, n_top_genes in (
        ("mouse_bladder_2k", 1000),
        ("cellline_3x2", 2000),
        ("pbmc_frozen_a", 2000),
        ("pbmc_sorted", 2000),
    ):
        path = DATA / f"{name}.h5ad"
        adata = ad.read_h5ad(path)
        if "batch" not in adata.obs:
            adata.obs["batch"] = pd.Categorical(["one"] * adata.n_obs)
        fitted = PCA(n_components=30, n_top_genes=n_top_genes).fit(adata, batch="batch", progress=False)
        given = {"x": adata.X.toarray().astype(np.float32), "n": n_top_genes,
                 "genes": adata.var_names.isin(fitted.genes_),
                 "batch": adata.obs["batch"].cat.codes.to_numpy()}  # fmt: skip
        theirs = run_apart(CODE, given, SETUP)
        genes = set(adata.var_names[theirs["genes"]])
        shared = len(genes & set(fitted.genes_)) / len(genes)
        rows.append(
            record("pca", "parity", "the same variable genes as Scanpy", name, sha256(path),
                   "share of Scanpy's variable genes", shared, reference=reference, reference_value=1.0,
                   tolerance=0.01, passed=shared >= 0.99)
        )  # fmt: skip
        # Column by column, components with nearly equal variance may turn into each other; distances do not.
        z, other = fitted.embed(), theirs["z"]
        cells = np.random.default_rng(0).choice(len(z), 400, replace=False)
        ours, scanpys = (np.linalg.norm(e[cells, None] - e[None, cells], axis=2) for e in (z, other))
        off = float(np.abs(ours - scanpys).max() / scanpys.max())
        rows.append(
            record("pca", "parity", "the same components as Scanpy on the same genes", name, sha256(path),
                   "largest difference of a distance between cells, relative to the largest distance", off,
                   reference=reference, reference_value=0.0, tolerance=1e-3, passed=off < 1e-3)
        )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
