"""BBKNN: a neighbour graph in which every cell has neighbours from every batch."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.linear import affine_components, ridge_batches
from tenfold.errors import DataError, ParameterError
from tenfold.kernels.fuzzy import fuzzy_graph
from tenfold.kernels.knn import knn
from tenfold.method import Grapher, Method, MethodInfo, param
from tenfold.types import Codes

_LONG = 1.5  # times the usual length of an edge into a batch
_MANY_LONG = 0.05  # share of cells


class BBKNN(Method, Grapher):
    """Batch-balanced nearest neighbours: a fixed number from each batch, weighted like UMAP's graph.

    Every cell is joined to its nearest cells in every batch, itself included in its own. The lists are merged, turned
    into UMAP's fuzzy weights and trimmed. The search is exact up to 100,000 cells in a batch. There is no embedding:
    cluster, lay out or order the cells on the graph.

    **Use it** for a quick graph of many cells from few batches that share their cell types, when UMAP, clusters or
    trajectories are all that is needed.

    **Do not use it** where a cell type is missing in a batch: its cells are joined to the nearest other type there,
    and only trimming cuts these edges. ``long_edges_`` counts them. With many batches the neighbours within a cell's
    own batch are few, and fine structure is lost. It gives no coordinates and no corrected expression.

    **Cost**: a minute of processor time for 100,000 cells × 50 components in 10 batches; quadratic in cells up
    to 100,000 a batch.

    **Writes** ``obsp["bbknn_distances"]``, ``obsp["bbknn_connectivities"]``, and the entry by which Scanpy finds them:
    ``sc.tl.umap(adata, neighbors_key="bbknn")``.

    Parameters
    ----------
    neighbors_within_batch
        Neighbours of a cell in each batch, itself counted in its own.
    trim
        Keep only the `trim` strongest connections of a cell, seen from both ends; ``None`` for ten times the
        neighbours of a cell, 0 for no trimming. Lower it to part cell types that should not connect.
    metric
        ``"euclidean"`` or ``"cosine"``.
    set_op_mix_ratio
        How the two directions of an edge combine: 1 for their fuzzy union, 0 for the intersection.
    local_connectivity
        Number of nearest neighbours that are connected in full.
    ridge
        Strength of a ridge regression of the standardised genes on batches and ``categorical_covariates``, 1 in the
        publication; the part of the batches is subtracted before the PCA, that of the covariates stays. ``None`` for
        no regression.
    n_components, n_top_genes
        Of the PCA to start from; with ``use_rep``, the first `n_components` columns are used.
    seed
        Of the approximate search in batches of more than 100,000 cells; the exact one has no randomness.

    Attributes
    ----------
    distances_
        Distances to the neighbours, the cell itself left out; CSR, float32, not symmetric.
    connectivities_
        Weights after trimming; CSR, float32, symmetric.
    long_edges_
        For each batch, the share of the cells of other batches whose nearest neighbour in it is over 1.5 times as far
        as is usual between the two batches, measured in the cell's distance to its own batch. Cells of types that
        the batch lacks show up here, unless they resemble another type.

    Raises
    ------
    DataError
        A batch has fewer cells than `neighbors_within_batch`.
    ParameterError
        ``categorical_covariates`` without `ridge`, or ``use_rep`` with it.

    Warns
    -----
    UserWarning
        More than a twentieth of the cells have only long edges into some batch.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> tf.integrate.BBKNN().fit(adata, batch="batch").write(adata)
    >>> adata.obsp["bbknn_connectivities"].shape
    (700, 700)

    References
    ----------
    Polański et al. (2020), doi 10.1093/bioinformatics/btz625; McInnes, Healy, Melville (2018),
    doi 10.48550/arXiv.1802.03426 (weights); Park et al. (2020), doi 10.1126/science.aay3224 (ridge regression).
    """

    info = MethodInfo(
        title="BBKNN",
        tasks=("integrate",),
        family="classical",
        year=2020,
        doi="10.1093/bioinformatics/btz625",
        needs=("batch",),
        accepts=("use_rep", "categorical_covariates"),
        gives=("graph",),
        stochastic=False,
        readiness="usable",
        advice="A fast graph for UMAP and clusters when all batches share their cell types; gives no coordinates.",
    )

    neighbors_within_batch: int = param(3, low=2)
    trim: int | None = param(None, low=0)
    metric: Literal["euclidean", "cosine"] = "euclidean"
    set_op_mix_ratio: float = param(1.0, low=0.0, high=1.0)
    local_connectivity: float = param(1.0, low=1.0)
    ridge: float | None = param(None, low=0.0)
    n_components: int = param(50, low=2)
    n_top_genes: int | None = param(2000, low=10)
    seed: int = 0

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        self._check_sizes(data.batch)
        points = self._points(data, data.batch)
        indices, distances = self._search(points, data.batch.values)
        self.long_edges_ = long_edges(np.sqrt(distances) if self.metric == "cosine" else distances, data.batch.values)
        _warn_of_long_edges(self.long_edges_, data.batch.names)
        indices, distances = merge(indices, distances)
        n_cells, k = indices.shape
        starts = np.arange(0, n_cells * (k - 1) + 1, k - 1)
        shape = (n_cells, n_cells)
        self.distances_ = sparse.csr_matrix((distances[:, 1:].ravel(), indices[:, 1:].ravel(), starts), shape=shape)
        graph = fuzzy_graph(indices, distances, self.local_connectivity, self.set_op_mix_ratio)
        self.connectivities_ = trimmed(graph, 10 * k if self.trim is None else self.trim)

    def _points(self, data: Inputs, batch: Codes) -> np.ndarray:
        """Return the coordinates to search in; with `ridge` those of what a regression leaves of the genes."""
        covariates = data.categorical("categorical_covariates")
        if self.ridge is None:
            if covariates:
                raise ParameterError(
                    "BBKNN keeps categorical_covariates in a ridge regression only, and ridge is None. Set ridge=1.0, "
                    "or leave categorical_covariates= out."
                )
            return data.embedding(self.n_components, self.n_top_genes, self.seed)[:, : self.n_components]
        if "use_rep" in data.roles:
            raise ParameterError("BBKNN: ridge regresses genes, and use_rep starts from an embedding. Use one of them.")
        genes = data.lognorm[:, data.variable_genes(self.n_top_genes)]
        slope, shift = ridge_batches(genes, batch.values, [codes.values for codes in covariates], self.ridge)
        alone = np.zeros((data.n_cells, 0))
        return affine_components(genes, batch.values, alone, slope, shift[:, None], self.n_components)[0]

    def _check_sizes(self, batch: Codes) -> None:
        sizes = np.bincount(batch.values)
        small = [f"{batch.names[b]} ({sizes[b]})" for b in np.flatnonzero(sizes < self.neighbors_within_batch)]
        if small:
            raise DataError(
                f"BBKNN takes {self.neighbors_within_batch} neighbours of every cell from each batch, and these have "
                f"fewer cells: {', '.join(small)}. Leave them out, merge them with a similar batch, or lower "
                "neighbors_within_batch."
            )
        most = self.neighbors_within_batch * len(sizes) - 1
        if self.local_connectivity > most:
            raise ParameterError(
                f"BBKNN: local_connectivity={self.local_connectivity:g} is more than the {most} neighbours of a cell."
            )

    def _search(self, points: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return neighbours of every cell in every batch, (n_cells, n_batches, k); in the cell's own, itself first."""
        k = self.neighbors_within_batch
        shape = (len(points), int(batch.max()) + 1, k)
        indices, distances = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float32)
        for b in range(shape[1]):
            own, others = np.flatnonzero(batch == b), np.flatnonzero(batch != b)
            for cells, ref in ((own, None), (others, points[own])):
                found, away = knn(points[cells], ref, k, self.metric, seed=self.seed)
                indices[cells, b], distances[cells, b] = own[found], away
        return indices, distances

    def graph(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Return distances and connectivities, each CSR, (n_cells, n_cells), float32."""
        self._check_fitted()
        return self.distances_, self.connectivities_


def merge(indices: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the neighbours of all batches by distance, the cell itself first; (n, batches, k) to (n, batches × k)."""
    n_cells = len(indices)
    indices, distances = indices.reshape(n_cells, -1), distances.reshape(n_cells, -1)
    key = np.where(indices == np.arange(n_cells)[:, None], np.float32(-1), distances)  # other cells may lie on the spot
    order = np.argsort(key, axis=1, kind="stable")
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)


def trimmed(graph: sparse.csr_matrix, most: int) -> sparse.csr_matrix:
    """Keep an edge of a symmetric graph if it is among the `most` strongest at both of its ends; 0 keeps all."""
    degree = np.diff(graph.indptr)
    weakest = np.zeros(len(degree), dtype=graph.dtype)
    for cell in np.flatnonzero(degree > most) if most else ():
        weights = graph.data[graph.indptr[cell] : graph.indptr[cell + 1]]
        weakest[cell] = np.partition(weights, -most)[-most]
    kept = graph.copy()
    kept.data[graph.data < np.maximum(np.repeat(weakest, degree), weakest[graph.indices])] = 0
    kept.eliminate_zeros()
    kept.sort_indices()
    return kept


def long_edges(distances: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return the share of cells whose nearest neighbour in another batch is unusually far, (n_batches,).

    Distances are measured in those of the cell to its own batch, because dense and sparse types differ.
    """
    n_cells, n_batches, _ = distances.shape
    within = np.maximum(distances[np.arange(n_cells), batch, -1], 1e-12)
    ratio = distances[:, :, 0] / within[:, None]
    shares = np.zeros(n_batches)
    for b in range(n_batches):
        for own in set(range(n_batches)) - {b}:
            cells = ratio[batch == own, b]
            shares[b] += (cells > _LONG * np.median(cells)).sum() / (batch != b).sum()
    return shares


def _warn_of_long_edges(shares: np.ndarray, names: list[str]) -> None:
    far = [f"{names[b]} ({shares[b]:.0%})" for b in np.flatnonzero(shares > _MANY_LONG)]
    if far:
        warnings.warn(
            f"Many cells have no close neighbour in some batches: {', '.join(far)}. These batches probably lack cell "
            "types, and BBKNN joins the cells to other types there. Lower trim (e.g. trim=30) to cut such edges, or "
            "use a method that need not match every cell (harmony).",
            stacklevel=2,
        )
