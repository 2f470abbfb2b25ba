"""Neighbour graphs, their layout and their communities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.data import cluster, graph
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError
from tenfold.kernels.communities import modularity
from tenfold.kernels.knn import knn


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return Inputs(tf.data.pbmc(), {}).pca(30, None).embedding


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_graph_equals_scanpys(points, metric):
    import anndata as ad
    import scanpy as sc

    adata = ad.AnnData(np.zeros((len(points), 1), np.float32), obsm={"X_pca": points})
    sc.pp.neighbors(adata, n_neighbors=12, use_rep="X_pca", metric=metric)
    made = graph.neighbor_graph(points, 12, metric)
    for name, matrix in zip(made._fields, made, strict=True):
        assert matrix.format == "csr" and matrix.dtype == np.float32
        assert matrix.nnz == adata.obsp[name].nnz
        # UMAP ends its bisection within 1e-5 of the target; ours goes on.
        np.testing.assert_allclose(matrix.toarray(), adata.obsp[name].toarray(), atol=1e-4, err_msg=name)


def test_weights_are_umaps_by_definition(points):
    others = [
        knn(points[:200], points[200:400], 7),
        knn(points[200:400], points[400:600], 7),
        knn(points[400:600], points[:200], 7),
    ]
    own = np.arange(600)[:, None]
    indices = np.concatenate([found + offset for (found, _), offset in zip(others, (200, 400, 0), strict=True)])
    distances = np.concatenate([length for _, length in others])
    made = graph.graph_from_lists(np.hstack([own, indices]), np.hstack([0 * own, distances])).connectivities
    # No edge has an opposite here, so the weights are those of one direction: they sum to log2(8), the nearest has 1.
    assert (abs(made - made.T) > 1e-7).nnz == 0
    weights = np.take_along_axis(made.toarray(), indices, axis=1)
    np.testing.assert_allclose(weights.sum(axis=1), 3, atol=1e-4)
    np.testing.assert_allclose(weights[:, 0], 1)
    steepness = -np.log(weights[:, 1:]) / (distances[:, 1:] - distances[:, :1])
    np.testing.assert_allclose(steepness, np.broadcast_to(steepness[:, :1], steepness.shape), rtol=1e-2)


def test_cells_on_one_spot(points):
    double = np.concatenate([points[:40], points[:40], points[:40]])
    made = graph.neighbor_graph(double, 6)
    assert made.distances.nnz == 120 * 5 and (np.diff(made.distances.indptr) == 5).all()  # zeros are stored
    assert np.isfinite(made.connectivities.data).all() and made.connectivities.diagonal().sum() == 0
    assert made.connectivities[0, 40] == pytest.approx(1)


def test_graph_of_given_lists(points):
    indices, distances = knn(points, k=10)
    made = graph.graph_from_lists(indices, distances)
    reference = graph.neighbor_graph(points, 10)
    assert (made.connectivities != reference.connectivities).nnz == 0
    shuffled = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(9)])
    again = graph.graph_from_lists(indices[:, shuffled], distances[:, shuffled])
    assert abs(again.connectivities - reference.connectivities).max() < 1e-5
    assert (again.distances != reference.distances).nnz == 0
    with pytest.raises(DataError, match="itself first"):
        graph.graph_from_lists(indices[:, 1:], distances[:, 1:])


def test_too_few_cells_say_what_to_set():
    with pytest.raises(DataError, match="at most 9"):
        graph.neighbor_graph(np.random.default_rng(0).normal(size=(10, 4)), 15)


def _kept(layout: np.ndarray, points: np.ndarray, k: int = 15) -> float:
    before, after = (knn(array, k=k + 1)[0][:, 1:] for array in (points, layout))
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(before, after, strict=True)]))


@pytest.mark.parametrize("from_points", [True, False])
def test_layout_keeps_neighbours(points, from_points):
    made = graph.neighbor_graph(points, 15).connectivities
    layout = graph.layout(made, points if from_points else None, seed=0)
    assert layout.shape == (700, 2) and layout.dtype == np.float32 and np.isfinite(layout).all()
    # umap-learn 0.5.12 keeps 0.43 of them on this graph (min_dist 0.2), two principal components 0.24.
    assert _kept(layout, points) > 0.4
    np.testing.assert_array_equal(layout, graph.layout(made, points if from_points else None, seed=0))
    assert not np.array_equal(layout, graph.layout(made, points if from_points else None, seed=1))


@pytest.mark.parametrize("from_points", [True, False])
@pytest.mark.parametrize("sizes", [(15,), (60, 40, 20), (2,), (1,), (5, 3)])
def test_layout_of_small_and_disconnected_graphs(sizes, from_points):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(100 * i, size=(n, 3)) for i, n in enumerate(sizes)]).astype(np.float32)
    part = [graph.neighbor_graph(rng.normal(size=(n, 3)), min(5, n - 1)).connectivities if n > 3 else
            sparse.csr_matrix((n, n)) for n in sizes]  # fmt: skip
    layout = graph.layout(sparse.block_diag(part, format="csr"), points if from_points else None)
    assert layout.shape == (sum(sizes), 2) and np.isfinite(layout).all()
    if sum(sizes) > 10:
        assert layout.std(axis=0).min() > 0.1


def test_layout_of_one_dimension():
    points = np.linspace(0, 1, 30, dtype=np.float32)[:, None]
    assert graph.layout(graph.neighbor_graph(points, 5).connectivities, points).shape == (30, 2)


@pytest.mark.parametrize("detect", [cluster.leiden, cluster.louvain])
def test_clusters(points, detect):
    made = graph.neighbor_graph(points, 15).connectivities
    labels = detect(made)
    sizes = np.bincount(labels)
    assert (np.diff(sizes) <= 0).all() and labels.dtype == np.int32 and 5 < len(sizes) < 15
    np.testing.assert_array_equal(labels, detect(made, seed=0))
    assert len(np.unique(detect(made, resolution=3.0))) > len(sizes) > len(np.unique(detect(made, resolution=0.2)))


@pytest.mark.parametrize("name", ["leiden", "louvain"])
def test_modularity_reaches_igraphs(points, name):
    igraph = pytest.importorskip("igraph")
    made = graph.neighbor_graph(points, 15).connectivities
    upper = sparse.triu(made, 1).tocoo()
    reference = igraph.Graph(n=700, edges=np.c_[upper.row, upper.col])
    weights = upper.data.astype(float)
    found = (
        reference.community_leiden("modularity", weights=weights, n_iterations=-1)
        if name == "leiden"
        else reference.community_multilevel(weights=weights)
    )
    ours = modularity(made, getattr(cluster, name)(made))
    assert ours == pytest.approx(reference.modularity(getattr(cluster, name)(made).tolist(), weights=weights), abs=1e-6)
    assert ours > reference.modularity(found.membership, weights=weights) - 0.01
