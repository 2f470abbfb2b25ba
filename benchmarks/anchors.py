"""The anchor methods at 10,000, 30,000 and 100,000 cells in 4 batches: CPU seconds on one thread, and peak memory.

``python benchmarks/anchors.py``; MNN and Scanorama are quadratic, and run at the smallest size only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))

from recording import record, run_apart, sha256, write  # noqa: E402

import tenfold as tf  # noqa: E402

SIZES = (10_000, 30_000, 100_000)
METHODS = {"fastmnn": SIZES, "seurat_rpca": SIZES, "seurat_cca": SIZES, "scanorama": SIZES[:1], "mnn": SIZES[:1]}
LARGEST_MB = 3000
STEEPEST = 1.3  # exponent of the time in the number of cells

SETUP = """
import torch; torch.set_num_threads(1)
import anndata as ad
from scipy import sparse
import tenfold as tf
counts = sparse.csr_matrix((given["data"], given["indices"], given["indptr"]), shape=(len(given["indptr"]) - 1, 1000))
adata = ad.AnnData(counts)
adata.obs_names = adata.obs_names.astype(str)
adata.obs["batch"] = given["batch"].astype(str)
del given
method = tf.method("integrate", "NAME")
"""
CODE = """
method.fit(adata, batch="batch", progress=False)
result = {"z": method.embed()[:10]}
"""


def main() -> None:
    rows = []
    used: dict[str, list[float]] = {name: [] for name in METHODS}
    for n in SIZES:
        adata = tf.data.simulate(n, 1000, n_types=8, n_batches=4, batch_strength=0.3, seed=0)
        x, words, digest = adata.X, f"{n:,} simulated cells × 1,000 genes, 4 batches", sha256(adata.X.data)
        given = {
            "data": x.data, "indices": x.indices, "indptr": x.indptr,
            "batch": adata.obs["batch"].cat.codes.to_numpy().astype(int),
        }  # fmt: skip
        del adata
        for name, sizes in METHODS.items():
            if n not in sizes:
                continue
            run = run_apart(CODE, given, SETUP.replace("NAME", name), sys.executable)
            used[name].append(run["_seconds"])
            rows.append(
                record(name, "benchmark", "cost of the fit, one thread", words, digest, "CPU seconds",
                       run["_seconds"], passed=True)
            )  # fmt: skip
            rows.append(
                record(name, "benchmark", "under 3 GB", words, digest, "peak memory of the process, MB",
                       run["_peak_mb"], tolerance=LARGEST_MB, passed=run["_peak_mb"] < LARGEST_MB)
            )  # fmt: skip
    for name, sizes in METHODS.items():
        if len(sizes) > 1:
            slope = float(np.polyfit(np.log(sizes), np.log(used[name]), 1)[0])
            rows.append(
                record(name, "benchmark", "near-linear in cells", f"{sizes[0]:,} to {sizes[-1]:,} simulated cells",
                       digest, "exponent of the time in the number of cells", slope, tolerance=STEEPEST,
                       passed=slope < STEEPEST)
            )  # fmt: skip
    write(rows)
    print("\n" + "method".ljust(14) + "".join(f"{n:>16,}" for n in SIZES))
    for name in METHODS:
        print(name.ljust(14) + "".join(f"{seconds:>14.1f} s" for seconds in used[name]))


if __name__ == "__main__":
    main()
