"""Graph connectivity: whether each label hangs together in the neighbour graph."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.errors import DataError
from tenfold.metrics._checks import groups
from tenfold.metrics.neighborhoods import Neighbors


def graph_connectivity(graph: Neighbors | sparse.spmatrix, labels: np.ndarray) -> float:
    """Graph connectivity: share of each label's cells that are in its largest connected component, mean over labels.

    From near 0 to 1; high is good. scIB counts it as batch removal, since a batch effect tears labels apart. It
    saturates: one edge between two halves is enough, so nearly every method scores above 0.9.

    Parameters
    ----------
    graph
        Neighbour lists, read as directed edges of which both directions of a path are needed (as scib-metrics does,
        with 15 neighbours, the cell itself counted); or the connectivities of a graph, sparse, shape (n, n), whose
        edges are taken as undirected.
    labels
        Label of every cell, shape (n,).

    Raises
    ------
    DataError
        Lengths differ, or labels are missing.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8.
    """
    return float(np.mean(list(graph_connectivity_per_label(graph, labels).values())))


def graph_connectivity_per_label(graph: Neighbors | sparse.spmatrix, labels: np.ndarray) -> dict:
    """Return the share of cells in the largest component by label; see `graph_connectivity`.

    Parameters
    ----------
    graph
        Neighbour lists, or connectivities, shape (n, n).
    labels
        Label of every cell, shape (n,).
    """
    from scipy.sparse.csgraph import connected_components

    edges = _edges(graph)
    label = groups(labels, "labels", edges.shape[0])
    inside = label.codes[edges.row] == label.codes[edges.col]
    kept = sparse.csr_matrix(
        (np.ones(int(inside.sum()), np.float32), (edges.row[inside], edges.col[inside])), shape=edges.shape
    )
    kind = "strong" if isinstance(graph, Neighbors) else "weak"
    # Edges between labels are gone, so one pass finds the components of all labels.
    component = connected_components(kept, directed=True, connection=kind)[1]
    sizes = np.bincount(component)
    largest = np.zeros(len(label.levels), dtype=np.int64)
    np.maximum.at(largest, label.codes, sizes[component])
    return dict(zip(label.levels, (largest / label.sizes).tolist(), strict=True))


def _edges(graph: Neighbors | sparse.spmatrix) -> sparse.coo_matrix:
    if isinstance(graph, Neighbors):
        n, k = graph.indices.shape
        rows, columns = np.repeat(np.arange(n), k), graph.indices.ravel()
        there = columns >= 0
        return sparse.coo_matrix((np.ones(int(there.sum())), (rows[there], columns[there])), shape=(n, n))
    if not sparse.issparse(graph) or graph.shape[0] != graph.shape[1]:
        raise DataError("`graph` must be neighbour lists or a sparse matrix with one row and one column per cell.")
    found = sparse.coo_matrix(graph)
    there = found.data != 0
    return sparse.coo_matrix((found.data[there], (found.row[there], found.col[there])), shape=found.shape)
