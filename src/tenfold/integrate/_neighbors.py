"""What integration methods give, an embedding or a graph, read as neighbour lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from tenfold.data import cluster, graph
from tenfold.kernels.knn import knn
from tenfold.method import Embedder, Grapher, Method
from tenfold.metrics import Neighbors, graph_neighbors, neighbors

K = 15


@dataclass(frozen=True)
class Representation:
    """Result of an integration: coordinates of cells, or only a graph of them.

    Attributes
    ----------
    embedding
        Shape (n_cells, d), or None where the method gives only a graph.
    connectivities
        Sparse (n_cells, n_cells), or None.
    """

    embedding: np.ndarray | None
    connectivities: sparse.csr_matrix | None = None

    @classmethod
    def of(cls, method: Method) -> Representation:
        """Read the representation off a fitted method."""
        if isinstance(method, Embedder):
            return cls(np.asarray(method.embed()))
        if isinstance(method, Grapher):
            return cls(None, method.graph()[1])
        raise TypeError(f"{method.info.title} gives neither an embedding nor a graph.")

    def neighbors(self, k: int = K) -> np.ndarray:
        """Return the k nearest neighbours of every cell, itself left out, shape (n_cells, k), int."""
        if self.embedding is not None:
            return nearest(self.embedding, k)
        return graph_neighbors(self.connectivities, k)[0]

    def lists(self, k: int) -> Neighbors:
        """Return neighbours with distances as the metrics take them, at most `k` a cell."""
        k = min(k, self.n_cells - 1)
        return neighbors(self.embedding, k) if self.embedding is not None else graph_neighbors(self.connectivities, k)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return (self.connectivities if self.embedding is None else self.embedding).shape[0]


def leiden(result: Representation, seed: int = 0) -> np.ndarray:
    """Cluster by Leiden at resolution 1, shape (n_cells,)."""
    if result.connectivities is not None:
        return cluster.leiden(result.connectivities, seed=seed)
    return cluster.leiden(graph.neighbor_graph(result.embedding, K).connectivities, seed=seed)


def nearest(embedding: np.ndarray, k: int = K) -> np.ndarray:
    """Return the k nearest neighbours of every row, itself left out, shape (n, min(k, n - 1))."""
    return knn(embedding, k=min(k + 1, len(embedding)))[0][:, 1:]
