"""Modularity of our Leiden and Louvain against igraph's, on real and on 20,000 simulated cells.

The weights of the graph are checked on the way: they are compared with umap-learn's fuzzy set on the same neighbours.
"""

from __future__ import annotations

import numpy as np
import recording
from scipy import sparse

import tenfold as tf
from tenfold.data import cluster, graph
from tenfold.data.inputs import Inputs
from tenfold.kernels.communities import modularity
from tenfold.kernels.knn import knn

SEEDS = 5
TOLERANCE = 0.01

IGRAPH = """
graph = igraph.Graph(n=int(given["n"]), edges=np.c_[given["row"], given["col"]])
weights = given["weight"].astype(float)
found = {"leiden": [], "louvain": []}
for seed in range(int(given["seeds"])):
    random.seed(seed)
    parts = {
        "leiden": graph.community_leiden("modularity", weights=weights, n_iterations=-1),
        "louvain": graph.community_multilevel(weights=weights),
    }
    for name, part in parts.items():
        found[name].append(graph.modularity(part.membership, weights=weights))
result = {name: np.array(values) for name, values in found.items()}
"""

UMAP = """
weights = fuzzy_simplicial_set(
    np.zeros((len(given["indices"]), 1)), given["indices"].shape[1], None, "precomputed",
    knn_indices=given["indices"], knn_dists=given["distances"],
)[0].tocoo()
result = {"row": weights.row, "col": weights.col, "weight": weights.data}
"""


def points() -> dict[str, np.ndarray]:
    simulated = tf.data.simulate(20_000, 1000, n_types=15, n_batches=4, type_strength=0.6, depth=800, seed=0)
    return {
        "tf.data.pbmc()": Inputs(tf.data.pbmc(), {}).pca(50, None).embedding,
        "tf.data.simulate(20000, 1000, n_types=15)": Inputs(simulated, {}).pca(50, None).embedding,
    }


def weights_record(name: str, embedding: np.ndarray) -> dict:
    indices, distances = knn(embedding, k=15)
    made = recording.run_apart(
        UMAP, {"indices": indices, "distances": distances}, "from umap.umap_ import fuzzy_simplicial_set"
    )
    n = len(embedding)
    reference = sparse.csr_matrix((made["weight"], (made["row"], made["col"])), shape=(n, n))
    difference = float(abs(graph.graph_from_lists(indices, distances).connectivities - reference).max())
    return recording.record(
        "pca", "parity", "connectivities equal UMAP's fuzzy set", name, recording.sha256(embedding),
        "largest difference of a weight", difference, reference=recording.version("umap-learn"), reference_value=0.0,
        tolerance=1e-4, passed=difference <= 1e-4,
    )  # fmt: skip


def modularity_records(name: str, embedding: np.ndarray) -> list[dict]:
    made = graph.neighbor_graph(embedding, 15).connectivities
    upper = sparse.triu(made, 1).tocoo()
    given = {"n": len(embedding), "row": upper.row, "col": upper.col, "weight": upper.data, "seeds": SEEDS}
    theirs = recording.run_apart(IGRAPH, given, "import igraph, random")
    records = []
    for algorithm in ("leiden", "louvain"):
        detect = getattr(cluster, algorithm)
        ours = np.array([modularity(made, detect(made, seed=seed)) for seed in range(SEEDS)])
        reference = theirs[algorithm]
        records.append(
            recording.record(
                "pca",
                "parity",
                f"{algorithm} reaches igraph's modularity",
                name,
                recording.sha256(embedding),
                f"{algorithm} modularity, mean of {SEEDS} seeds",
                ours.mean(),
                reference=recording.version("igraph"),
                reference_value=reference.mean(),
                tolerance=TOLERANCE,
                passed=ours.min() >= reference.mean() - TOLERANCE,
            )
        )
    return records


def main() -> None:
    records = []
    for name, embedding in points().items():
        records += [weights_record(name, embedding), *modularity_records(name, embedding)]
    recording.write(records)


if __name__ == "__main__":
    main()
