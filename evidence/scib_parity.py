"""Cell cycle, HVG overlap, trajectory and isolated-label F1 agree with scib on the same expression and graph.

These are the metrics that scib-metrics lacks. Install scib in the reference environment by
``pip install --no-deps git+https://github.com/theislab/scib@v1.2.1``; that tag calls itself 1.1.7. Isolated-label F1
has a wider tolerance, since its clusterings are igraph's there.
"""

from __future__ import annotations

import numpy as np
from recording import DATA, record, run_apart, sha256, version, write
from scipy import sparse

from tenfold import metrics
from tenfold.data.cell_cycle import phase_scores
from tenfold.kernels.fuzzy import fuzzy_graph
from tenfold.metrics import leiden_clusterings

EXACT, RANDOM = 1e-3, 0.03
SCIB_SETUP = """
import logging
logging.disable(logging.CRITICAL)
import anndata as ad, pandas as pd, scib
from scipy import sparse
"""
SCIB_CODE = """
n = len(given["batch"])
def cells(values):
    made = ad.AnnData(sparse.csr_matrix(values))
    made.var_names, made.obs_names = given["genes"], [f"cell{i}" for i in range(n)]
    for key in ("batch", "labels"):
        made.obs[key] = pd.Categorical(given[key].astype(str))
    return made
pre, post = cells(given["before"]), cells(given["after"])
post.obsm["X_emb"], pre.obs["time"] = given["embedding"], given["time"]
graph = sparse.csr_matrix((given["data"], given["indices"], given["indptr"]), shape=(n, n))
post.obsp["connectivities"] = post.obsp["distances"] = graph
post.uns["neighbors"] = {
    "connectivities_key": "connectivities", "distances_key": "distances", "params": {"n_neighbors": 15}
}
result = {
    "cell_cycle": scib.me.cell_cycle(pre, post, "batch", embed="X_emb", organism="human", recompute_cc=True),
    "hvg_overlap": scib.me.hvg_overlap(pre, post, "batch"),
    "trajectory": scib.me.trajectory_conservation(pre.copy(), post.copy(), "labels", pseudotime_key="time"),
    "isolated_f1": scib.me.isolated_labels_f1(post, "labels", "batch", embed=None, verbose=False),
}
"""


def sorted_blood() -> dict[str, np.ndarray]:
    """Return sorted blood cells in two batches, one with a planted effect and one type left out, before and after."""
    import anndata

    import tenfold as tf
    from tenfold.data.cell_cycle import G2M_GENES, S_GENES
    from tenfold.data.inputs import Inputs

    adata = anndata.read_h5ad(DATA / "pbmc_sorted.h5ad")
    half = np.random.default_rng(0).integers(2, size=adata.n_obs)
    rare = adata.obs["cell_type"].value_counts().index[-1]
    half[(adata.obs["cell_type"] == rare).to_numpy()] = 0
    adata.X = tf.data.plant_batch(Inputs(adata, {}).counts, half.astype(np.int32), seed=0)[0]
    adata.obs["batch"] = half.astype(str)
    data = Inputs(adata, {"batch": "batch"})
    names = data.gene_names.astype(str)
    chosen = np.union1d(data.variable_genes(2000), np.flatnonzero(np.isin(names, [*S_GENES, *G2M_GENES])))
    combat = tf.integrate.ComBat().fit(adata, batch="batch")
    graph = fuzzy_graph(*metrics.neighbors(combat.embed(), 15))
    return {
        "before": data.lognorm[:, chosen].toarray(), "after": combat.correct(names[chosen].tolist()),
        "embedding": combat.embed(), "genes": names[chosen], "batch": half,
        "labels": adata.obs["cell_type"].astype(str).to_numpy(dtype=str), "time": data.pca(10, 2000).embedding[:, 0],
        "data": graph.data, "indices": graph.indices, "indptr": graph.indptr,
    }  # fmt: skip


def compare_with_scib() -> list[dict]:
    given = sorted_blood()
    theirs = run_apart(SCIB_CODE, given, SCIB_SETUP)
    before, batch, labels = sparse.csr_matrix(given["before"]), given["batch"], given["labels"]
    graph = sparse.csr_matrix((given["data"], given["indices"], given["indptr"]), shape=(len(batch), len(batch)))
    mine = {
        "cell_cycle": metrics.cell_cycle(
            before, given["embedding"], phase_scores(before, given["genes"], batch), batch
        ),
        "hvg_overlap": metrics.hvg_overlap(before, given["after"], batch),
        "trajectory": metrics.trajectory(graph, given["time"], labels),
        "isolated_f1": np.mean(list(metrics.isolated_labels_f1(leiden_clusterings(graph), labels, batch).values())),
    }
    digest, scib, rows = sha256(given["before"]), version("scib"), []
    for metric, value in mine.items():
        tolerance = RANDOM if metric == "isolated_f1" else EXACT
        rows.append(record("metrics", "parity", "same values as scib", "pbmc_sorted, planted batch", digest, metric,
                           value, passed=abs(value - theirs[metric]) <= tolerance, reference=scib,
                           reference_value=theirs[metric], tolerance=tolerance))  # fmt: skip
    return rows


if __name__ == "__main__":
    write(compare_with_scib())
