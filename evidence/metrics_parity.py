"""Metrics agree with scib-metrics, clusterings with igraph, connectivities with UMAP, on the same input.

Neighbour lists are computed once, exactly, and given to both sides, so that only definitions can differ. k-means,
Leiden and the diffusion form of kBET (approximate search there) have randomness of their own: their tolerance is wider.
"""

from __future__ import annotations

import numpy as np
from recording import DATA, record, run_apart, sha256, version, write

from tenfold import metrics
from tenfold.kernels.communities import leiden, modularity
from tenfold.kernels.fuzzy import fuzzy_graph

CLAIM = "same values as scib-metrics"
EXACT, RANDOM = 1e-4, 0.03
SETUP = """
import logging
import igraph, scib_metrics as sm
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
logging.disable(logging.CRITICAL)
"""
CODE = """
x, before, labels, batch = (given[name] for name in ("x", "before", "labels", "batch"))
near = NeighborsResults(indices=given["indices"], distances=given["distances"])
kmeans = sm.nmi_ari_cluster_labels_kmeans(x, labels)
best = sm.nmi_ari_cluster_labels_leiden(near.subset_neighbors(15), labels)
graph = near.subset_neighbors(15).knn_graph_connectivities.tocsr()
edges = graph.tocoo()
once = edges.row < edges.col
network = igraph.Graph(n=len(x), edges=list(zip(edges.row[once].tolist(), edges.col[once].tolist())))
weights = edges.data[once].tolist()
communities = network.community_leiden("modularity", weights=weights, resolution=1.0, n_iterations=-1)
result = {
    "ari": adjusted_rand_score(labels, given["clusters"]),
    "nmi": normalized_mutual_info_score(labels, given["clusters"]),
    "asw_label": sm.silhouette_label(x, labels), "asw_batch": sm.silhouette_batch(x, labels, batch),
    "bras": sm.bras(x, labels, batch), "isolated_labels": sm.isolated_labels(x, labels, batch),
    "ilisi": sm.ilisi_knn(near, batch), "clisi": sm.clisi_knn(near, labels),
    "graph_connectivity": sm.graph_connectivity(near.subset_neighbors(15), labels),
    "pcr_comparison": sm.pcr_comparison(before, x, batch, categorical=True),
    "kbet (diffusion)": sm.kbet_per_label(near.subset_neighbors(50), batch, labels),
    "nmi_kmeans": kmeans["nmi"], "ari_kmeans": kmeans["ari"], "nmi_leiden": best["nmi"], "ari_leiden": best["ari"],
    "modularity": network.modularity(communities.membership, weights=weights, resolution=1.0),
    "connectivities": graph.data, "columns": graph.indices,
}
"""


def simulated(n: int = 4000, d: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return an embedding, the one before integration, labels and batches: 6 uneven types, 4 batches, one type rare."""
    rng = np.random.default_rng(1)
    labels = rng.choice(6, n, p=[0.35, 0.25, 0.15, 0.1, 0.1, 0.05])
    batch = np.where(labels == 5, rng.integers(0, 2, n), rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]))
    types, shifts = rng.normal(size=(6, d)), rng.normal(size=(4, d))
    before = types[labels] + 0.8 * shifts[batch] + rng.normal(size=(n, d)) * 0.9
    after = before - 0.7 * shifts[batch]
    return after.astype(np.float32), before.astype(np.float32), labels, batch


def blood() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return PCs of blood cells in three chemistries, before and after each batch is centred, labels and batches."""
    import anndata

    from tenfold.data.inputs import Inputs

    adata = anndata.read_h5ad(DATA / "pbmc_3chem.h5ad")
    before = Inputs(adata, {}).pca(50, 2000).embedding.astype(np.float32)
    labels = np.unique(adata.obs["cell_type"].astype(str), return_inverse=True)[1]
    batch = np.unique(adata.obs["batch"].astype(str), return_inverse=True)[1]
    means = np.stack([before[batch == level].mean(axis=0) for level in range(batch.max() + 1)])
    return before - means[batch] + before.mean(axis=0), before, labels, batch


def ours(x, before, labels, batch, near, clusters) -> dict[str, float]:
    graph = fuzzy_graph(*near.first(15))
    kmeans, best = metrics.nmi_ari_kmeans(x, labels), metrics.nmi_ari_leiden(graph, labels)
    return {
        "ari": metrics.ari(labels, clusters), "nmi": metrics.nmi(labels, clusters),
        "asw_label": metrics.asw_label(x, labels), "asw_batch": metrics.asw_batch(x, labels, batch),
        "bras": metrics.bras(x, labels, batch), "isolated_labels": metrics.isolated_labels(x, labels, batch),
        "ilisi": metrics.ilisi(near, batch), "clisi": metrics.clisi(near, labels),
        "graph_connectivity": metrics.graph_connectivity(near.first(15), labels),
        "pcr_comparison": metrics.pcr_comparison(before, x, batch),
        "kbet (diffusion)": metrics.kbet(x, labels, batch, diffusion=True),
        "nmi_kmeans": kmeans.nmi, "ari_kmeans": kmeans.ari, "nmi_leiden": best.nmi, "ari_leiden": best.ari,
        "modularity": modularity(graph, leiden(graph)),
    }  # fmt: skip


def compare(name: str, x, before, labels, batch) -> list[dict]:
    near = metrics.neighbors(x, 90)
    clusters = leiden(fuzzy_graph(*near.first(15)))
    given = {"x": x, "before": before, "labels": labels, "batch": batch, "clusters": clusters}
    theirs = run_apart(CODE, {**given, "indices": near.indices, "distances": near.distances}, SETUP)
    mine = ours(x, before, labels, batch, near, clusters)
    scib, igraph, umap = version("scib-metrics"), version("igraph"), version("umap-learn")
    rows = []
    for metric, value in mine.items():
        random = metric in ("kbet (diffusion)", "nmi_kmeans", "ari_kmeans", "nmi_leiden", "ari_leiden")
        tolerance = 2e-3 if metric == "modularity" else RANDOM if random else EXACT
        passed = value >= theirs[metric] - tolerance
        if metric in ("ari", "nmi") or (metric != "modularity" and "means" not in metric and "leiden" not in metric):
            passed = abs(value - theirs[metric]) <= tolerance  # of a clustering, better is no failure
        rows.append(record("metrics", "parity", CLAIM, name, sha256(x), metric, value, passed=passed,
                           reference=igraph if metric == "modularity" else scib, reference_value=theirs[metric],
                           tolerance=tolerance))  # fmt: skip
    graph = fuzzy_graph(*near.first(15))
    same = np.array_equal(graph.indices, theirs["columns"])
    apart = float(np.abs(graph.data - theirs["connectivities"]).max()) if same else np.inf
    rows.append(record("metrics", "parity", CLAIM, name, sha256(x), "largest difference of connectivities", apart,
                       passed=apart <= EXACT, reference=umap, reference_value=0.0, tolerance=EXACT))  # fmt: skip
    return rows


if __name__ == "__main__":
    found = compare("simulated, 4000 cells", *simulated())
    if (DATA / "pbmc_3chem.h5ad").exists():
        found += compare("pbmc_3chem", *blood())
    write(found)
