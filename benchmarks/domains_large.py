"""Memory of graph networks on 100,000 spots × 3,000 genes: two epochs of each, without clustering.

The bar is 8 GB. Run ``python benchmarks/domains_large.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evidence"))
from recording import record, run_apart, write

N_SPOTS, N_GENES, SHARE = 100_000, 3_000, 0.1
EPOCHS = 2
BAR = 8_000.0

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


def main() -> None:
    given = {"n": N_SPOTS, "n_genes": N_GENES, "share": SHARE, "epochs": EPOCHS}
    records = []
    for name in ("graphst", "stagate"):
        run = run_apart(CODE, {**given, "name": name}, SETUP, python=sys.executable)
        shared = {"dataset": f"random, {N_SPOTS:,} x {N_GENES:,}, {SHARE:.0%} non-zero", "digest": run["digest"]}
        claim = f"defaults but {EPOCHS} epochs, one thread, without clustering"
        records += [
            record(name, "benchmark", claim, metric="peak memory, MB", value=run["_peak_mb"], tolerance=BAR,
                   passed=run["_peak_mb"] <= BAR, **shared),
            record(name, "benchmark", claim, metric="CPU seconds", value=run["_seconds"], passed=True, **shared),
        ]  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
