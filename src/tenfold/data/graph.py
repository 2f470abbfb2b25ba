"""Neighbour graphs of cells: UMAP's fuzzy weights on exact neighbour lists, and a layout in two dimensions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from tenfold.data.check import check_neighbors
from tenfold.errors import DataError
from tenfold.kernels.fuzzy import fuzzy_graph


class NeighborGraph(NamedTuple):
    """Graph of nearest neighbours.

    Attributes
    ----------
    distances
        Distance to each neighbour, the cell itself left out: CSR, float32, (n_cells, n_cells), not symmetric.
        A neighbour on the same spot is a stored zero.
    connectivities
        Weights of the fuzzy union, in (0, 1]: CSR, float32, (n_cells, n_cells), symmetric, empty diagonal.
    """

    distances: sparse.csr_matrix
    connectivities: sparse.csr_matrix


def neighbor_graph(
    embedding: np.ndarray, n_neighbors: int = 15, metric: str = "euclidean", seed: int = 0
) -> NeighborGraph:
    """Connect every cell with its nearest neighbours.

    Parameters
    ----------
    embedding
        Shape (n_cells, n_dimensions).
    n_neighbors
        Neighbours of a cell, itself counted as the first: the meaning that Scanpy and UMAP give it.
    metric
        ``"euclidean"`` or ``"cosine"``.
    seed
        Of the approximate search that is used above 100,000 cells.

    Returns
    -------
    Distances and UMAP's fuzzy weights. They equal those of ``scanpy.pp.neighbors`` where that searches exactly (up to
    4,096 cells), but for rounding.

    Raises
    ------
    DataError
        Fewer cells than neighbours; NaN or infinite coordinates.

    References
    ----------
    McInnes, Healy, Melville (2018), doi 10.48550/arXiv.1802.03426.
    """
    from tenfold.kernels.knn import knn

    check_neighbors(len(embedding), n_neighbors)
    return graph_from_lists(*knn(embedding, k=n_neighbors, metric=metric, seed=seed))  # type: ignore[arg-type]


def graph_from_lists(indices: np.ndarray, distances: np.ndarray) -> NeighborGraph:
    """Make the graph from given lists of neighbours, such as those of a search within each batch.

    Parameters
    ----------
    indices
        Neighbours of every cell, shape (n_cells, k), integers. The cell itself stands first.
    distances
        Their distances, shape (n_cells, k); 0 in the first column. The other columns may stand in any order.

    Returns
    -------
    Distances and fuzzy weights (local connectivity 1, fuzzy union).

    Raises
    ------
    DataError
        The first neighbour of a cell is not the cell itself, or there is no other.
    """
    n_cells, k = indices.shape
    if k < 2 or not np.array_equal(indices[:, 0], np.arange(n_cells)):
        raise DataError("A list of neighbours must name the cell itself first and at least one other cell.")
    order = np.argsort(indices[:, 1:], axis=1)
    others = np.take_along_axis(indices[:, 1:], order, axis=1)
    lengths = np.take_along_axis(distances[:, 1:], order, axis=1).astype(np.float32)
    pointers = np.arange(0, n_cells * (k - 1) + 1, k - 1)
    matrix = sparse.csr_matrix((lengths.ravel(), others.ravel(), pointers), shape=(n_cells, n_cells))
    connectivities = fuzzy_graph(indices, distances)
    connectivities.eliminate_zeros()
    connectivities.sort_indices()
    return NeighborGraph(matrix, connectivities)


def layout(
    connectivities: sparse.csr_matrix, points: np.ndarray | None = None, seed: int = 0, n_epochs: int | None = None
) -> np.ndarray:
    """Lay cells out in the plane so that connected ones lie close: UMAP's objective by stochastic gradients.

    Parameters
    ----------
    connectivities
        Symmetric weights, shape (n_cells, n_cells); any number of components.
    points
        Coordinates whose two leading principal components start the layout, shape (n_cells, d). ``None``: start from
        the leading eigenvectors of the graph.
    seed
        Of the sampling; the same seed gives the same layout.
    n_epochs
        Passes over the edges; default 500 up to 10,000 cells, 200 beyond.

    Returns
    -------
    Shape (n_cells, 2), float32, centred.

    Notes
    -----
    Closeness in the plane is 1 / (1 + a d²): UMAP's curve for ``min_dist=0.2``, whose exponent is one, which
    spares a power at every step. Distances between far clusters and the sizes of clusters mean little.

    References
    ----------
    McInnes, Healy, Melville (2018), doi 10.48550/arXiv.1802.03426; start from components: Kobak & Linderman (2021),
    doi 10.1038/s41587-020-00809-z.
    """
    from tenfold.kernels.layout import spread_out

    n_cells = connectivities.shape[0]
    n_epochs = n_epochs or (500 if n_cells <= 10_000 else 200)
    rng = np.random.default_rng(seed)
    start = _graph_start(connectivities, rng) if points is None else _component_start(points)
    start = 10 * start / max(float(np.abs(start).max()), 1e-12)
    start = (start + rng.normal(scale=1e-4, size=start.shape)).astype(np.float32)
    edges = sparse.coo_matrix(connectivities)
    frequency = edges.data / max(float(edges.data.max(initial=0)), 1e-12)
    often = (frequency * n_epochs >= 1) & (edges.row != edges.col)
    result = spread_out(
        start,
        edges.row[often].astype(np.int32),
        edges.col[often].astype(np.int32),
        frequency[often].astype(np.float32),
        n_epochs,
        seed,
    )
    return result - result.mean(axis=0)


def _component_start(points: np.ndarray) -> np.ndarray:
    centred = np.asarray(points, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    leading = vectors[:, ::-1][:, :2]
    leading = leading * np.where(leading[np.abs(leading).argmax(axis=0), np.arange(leading.shape[1])] < 0, -1.0, 1.0)
    return _two_columns(centred @ leading)


def _graph_start(connectivities: sparse.csr_matrix, rng: np.random.Generator) -> np.ndarray:
    """Eigenvectors of the normalised adjacency after the first; components of the graph are joined by a weak link."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    n_cells = connectivities.shape[0]
    degree = np.asarray(connectivities.sum(axis=1, dtype=np.float64)).ravel()
    link = 1e-3 * degree.mean() / n_cells
    scale = 1 / np.sqrt(degree + max(link * n_cells, 1e-12))

    def times(vector: np.ndarray) -> np.ndarray:
        scaled = scale * vector.ravel()
        return scale * (connectivities @ scaled + link * scaled.sum())

    if n_cells < 8:
        return rng.normal(size=(n_cells, 2))
    try:
        operator = LinearOperator((n_cells, n_cells), matvec=times, dtype=np.float64)
        values, vectors = eigsh(operator, k=3, v0=rng.normal(size=n_cells), maxiter=300, tol=1e-4)
    except ArpackError:
        return rng.normal(size=(n_cells, 2))
    return vectors[:, np.argsort(values)[::-1][1:]] * scale[:, None]


def _two_columns(array: np.ndarray) -> np.ndarray:
    return array if array.shape[1] == 2 else np.column_stack([array, np.zeros(len(array))])
