"""Memory of graph networks on 100,000 spots × 3,000 genes, and how it grows: two epochs of each, without clustering.

The bar is 8 GB, and memory that grows linearly with cells and edges: what the second half of the cells adds is at most
1.1 times what the second quarter of them adds, twice. Run ``python benchmarks/domains_large.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evidence"))
from recording import record, run_apart, write

SIZES, N_GENES, SHARE = (25_000, 50_000, 100_000), 3_000, 0.1
EPOCHS = 2
BAR = 8_000.0
#: What memory may grow by beyond linear.
SLACK = 1.1

SETUP = """
import hashlib, torch
import anndata as ad
from scipy import sparse
torch.set_num_threads(1)
import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import positions_of
rng = np.random.default_rng(0)
n, n_genes, each = int(given["n"]), int(given["n_genes"]), int(given["n_genes"] * given["share"])
indices = rng.integers(0, n_genes, (n, each), dtype=np.int32).ravel()
counts = sparse.csr_matrix((np.ones(n * each, np.float32), indices, np.arange(n + 1) * each), shape=(n, n_genes))
counts.sum_duplicates()
adata = ad.AnnData(counts)
adata.obsm["spatial"] = rng.uniform(size=(n, 2))
model = tf.method("domains", str(given["name"]), epochs=int(given["epochs"]), n_top_genes=None)
data = Inputs(adata, {}, tf.types.RunOptions(progress=False))
where = positions_of(data)
"""
CODE = """
embedding = model._embed(data, where)
assert np.isfinite(embedding).all()
result = {"digest": hashlib.sha256(counts.indices.tobytes()).hexdigest()}
"""


def measured(name: str) -> list[dict[str, Any]]:
    """Return the records of one method."""
    peaks, records = [], []
    for n in SIZES:
        given = {"n": n, "n_genes": N_GENES, "share": SHARE, "epochs": EPOCHS, "name": name}
        run = run_apart(CODE, given, SETUP, python=sys.executable)
        shared = {"dataset": f"random, {n:,} x {N_GENES:,}, {SHARE:.0%} non-zero", "digest": run["digest"]}
        claim = f"defaults but {EPOCHS} epochs, one thread, without clustering"
        peaks.append(run["_peak_mb"])
        records += [
            record(name, "benchmark", claim, metric="peak memory, MB", value=peaks[-1], tolerance=BAR,
                   passed=peaks[-1] <= BAR, **shared),
            record(name, "benchmark", claim, metric="CPU seconds", value=run["_seconds"], passed=True, **shared),
        ]  # fmt: skip
    growth = (peaks[2] - peaks[1]) / (2 * (peaks[1] - peaks[0]))
    records.append(record(name, "benchmark", "memory is linear in cells and edges", tolerance=SLACK,
                          metric="growth of peak memory from half to all cells, over linear", value=growth,
                          passed=growth <= SLACK, **shared))  # fmt: skip
    return records


def main() -> None:
    write([row for name in ("graphst", "stagate") for row in measured(name)])


if __name__ == "__main__":
    main()
