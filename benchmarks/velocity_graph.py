"""The velocity graph against scVelo 0.3.4's: CPU seconds on one thread, and equal cosines.

Positions and velocities of simulated cells, with the neighbours of their first thirty principal components.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))

import numpy as np  # noqa: E402
from recording import record, run_apart, sha256, version, write  # noqa: E402

import tenfold as tf  # noqa: E402

SETUP_OURS = """
import torch; torch.set_num_threads(1)
from tenfold.kernels.velocity_graph import neighbor_cosines
few = given["neighbors"][:60] % 60
for root in (False, True):
    neighbor_cosines(given["x"][:60], given["v"][:60], few, root)  # compile
"""
OURS = """
graph = neighbor_cosines(given["x"], given["v"], given["neighbors"], bool(given["root"]))
result = {"data": graph.data, "indices": graph.indices, "indptr": graph.indptr}
"""
SETUP_THEIRS = """
import scvelo as scv
import anndata as ad
from scipy.sparse import csr_matrix
scv.settings.verbosity = 0
n, k = given["neighbors"].shape
a = ad.AnnData(np.zeros_like(given["x"]))
a.layers["Ms"], a.layers["velocity"] = given["x"], given["v"]
near = csr_matrix((given["lengths"].ravel(), given["neighbors"].ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
a.obsp["distances"], a.obsp["connectivities"] = near, near.maximum(near.T)
a.uns["neighbors"] = {"connectivities_key": "connectivities", "distances_key": "distances",
                      "params": {"n_neighbors": k + 1, "method": "umap"}}
"""
THEIRS = """
scv.tl.velocity_graph(a, sqrt_transform=bool(given["root"]), n_jobs=1, show_progress_bar=False, backend="threading")
graph = (a.uns["velocity_graph"] + a.uns["velocity_graph_neg"]).tocsr()
graph.sort_indices()
result = {"data": graph.data, "indices": graph.indices, "indptr": graph.indptr}
"""


def main() -> None:
    rows, peer = [], version("scvelo")
    for n in (1000, 3000):
        adata = tf.data.simulate_branching(n_cells=n, n_genes=600, seed=0)
        model = tf.velocity.ScVeloDeterministic(n_top_genes=None).fit(adata)
        lengths = model.distances_.data.reshape(n, -1)
        for root in (False, True):
            given = {
                "x": model.spliced_, "v": model.velocity_, "neighbors": model.neighbors_, "lengths": lengths,
                "root": root,
            }  # fmt: skip
            ours, theirs = run_apart(OURS, given, SETUP_OURS, sys.executable), run_apart(THEIRS, given, SETUP_THEIRS)
            same = np.array_equal(ours["indices"], theirs["indices"])
            gap = float(np.abs(ours["data"] - theirs["data"]).max()) if same else float("inf")
            what = f"{n:,} simulated cells × {model.velocity_.shape[1]} genes, {'square roots' if root else 'plain'}"
            for metric, value, other, passed in (
                ("CPU seconds, one thread", ours["_seconds"], theirs["_seconds"],
                 10 * ours["_seconds"] <= theirs["_seconds"]),
                ("peak memory of the process, MB", ours["_peak_mb"], theirs["_peak_mb"], True),
                ("largest difference of cosines", gap, 0.0, gap < 1e-4),
            ):  # fmt: skip
                rows.append(
                    record("scvelo_deterministic", "benchmark", "velocity graph with a tenth of scVelo's CPU time",
                           what, sha256(model.spliced_), metric, value, reference=peer, reference_value=other,
                           passed=passed)
                )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
