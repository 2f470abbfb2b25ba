"""PCA + Leiden against Scanpy's, on annotated slices with the number of domains known: as near to the annotation.

Scanpy (with leidenalg) runs in the reference environment from the same variable genes; the resolution is searched there
by bisection. Run ``python evidence/pca_leiden_parity.py`` with TENFOLD_REFERENCE_PYTHON set.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
from domain_slices import SLACK, digest, load, n_domains, truth
from recording import record, run_apart, version, write
from scipy import sparse

from tenfold import metrics
from tenfold.data.preprocess import highly_variable_genes

SLICES = ("starmap_mpfc BZ5", "starmap_mpfc BZ9", "starmap_mpfc BZ14", "dlpfc_151510")
SEEDS = 5

CELLS = """
import warnings
warnings.simplefilter("ignore")
import anndata as ad
from scipy import sparse
a = ad.AnnData(sparse.csr_matrix((given["data"], given["indices"], given["indptr"]), shape=given["shape"]))
a.obsm["spatial"] = given["spatial"]
seeds, n = int(given["seeds"]), int(given["n"])
"""
THEIRS = """
import scanpy as sc
sc.pp.normalize_total(a, target_sum=1e4)
sc.pp.log1p(a)
a = a[:, given["genes"]].copy()
sc.pp.pca(a, n_comps=20)
sc.pp.neighbors(a, n_neighbors=15)
def clusters(resolution, seed):
    sc.tl.leiden(a, resolution=resolution, random_state=seed, flavor="leidenalg")
    return a.obs["leiden"].cat.codes.to_numpy()
labels = []
for seed in range(seeds):
    low, high = 0.01, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        found = clusters(middle, seed)
        if len(np.unique(found)) == n:
            break
        low, high = (middle, high) if len(np.unique(found)) < n else (low, middle)
    labels.append(found)
result = {"labels": np.stack(labels)}
"""
OURS_SETUP = """
import torch
torch.set_num_threads(1)
import tenfold as tf
tf.domains.PCALeiden(n_clusters=3).fit(a[:200].copy(), progress=False)
"""
OURS = """
labels = [tf.domains.PCALeiden(n_clusters=n, seed=seed).fit(a, progress=False).cluster() for seed in range(seeds)]
result = {"labels": np.stack(labels)}
"""


def compared(name: str) -> list[dict[str, Any]]:
    adata = load(name)
    counts = sparse.csr_matrix(adata.X, dtype=np.float32)
    chosen = highly_variable_genes(counts, 3000, None) if adata.n_vars > 3000 else np.arange(adata.n_vars)
    given = {part: getattr(counts, part) for part in ("data", "indices", "indptr", "shape")}
    given |= {"genes": chosen, "spatial": adata.obsm["spatial"], "n": n_domains(adata), "seeds": SEEDS}
    runs = [run_apart(THEIRS, given, CELLS), run_apart(OURS, given, CELLS + OURS_SETUP, python=sys.executable)]
    domain, told = truth(adata)
    theirs, ours = (float(np.median([metrics.ari(one[told], domain[told]) for one in run["labels"]])) for run in runs)
    shared = {"dataset": name, "digest": digest(name), "reference": version("scanpy")}
    claim = f"number of domains known, median of {SEEDS} seeds"
    return [
        record("pca_leiden", "parity", claim, metric="ARI with the annotation", value=ours, reference_value=theirs,
               tolerance=SLACK, passed=abs(ours - theirs) <= SLACK, **shared),
        record("pca_leiden", "benchmark", f"{claim}, all of them, one thread", metric="CPU seconds",
               value=runs[1]["_seconds"], reference_value=runs[0]["_seconds"],
               passed=runs[1]["_seconds"] < runs[0]["_seconds"], **shared),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    write([row for name in SLICES for row in compared(name)])


if __name__ == "__main__":
    main()
