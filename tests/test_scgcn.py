"""scGCN: the graph of anchors, convolution by the dense formula, genes by F statistic, what new cells get."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.feature_selection import f_classif

import tenfold as tf
from tenfold.annotate.scgcn import ScGCN, f_statistics
from tenfold.annotators.hybrid_graph import HybridGraph, hybrid_graph
from tenfold.data.preprocess import normalize_log1p
from tenfold.errors import DataError
from tenfold.kernels.anchors import Pairs
from tenfold.nn.graph_layers import Fixed
from tenfold.nn.hybrid_graph import GraphNet, normalised

CELLS = tf.data.simulate(300, 100, n_types=3, n_batches=2, type_strength=1.2, batch_strength=0.4, seed=1)
REFERENCE = CELLS[CELLS.obs["batch"] == "batch_1"].copy()
QUERY = CELLS[CELLS.obs["batch"] == "batch_2"].copy()
TRUTH = QUERY.obs["cell_type"].astype(str).to_numpy()


def fit(reference=REFERENCE, query=QUERY, **params) -> ScGCN:
    bare = query.copy()
    bare.obs = bare.obs[[]]
    return ScGCN(**{"n_components": 5, **params}).fit(bare, reference=reference, labels="cell_type", progress=False)


def test_convolution_is_the_dense_formula():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 30, 60), rng.integers(0, 30, 60)
    graph = normalised(rows, columns, 30)
    dense = np.zeros((30, 30))
    dense[rows, columns] = dense[columns, rows] = 1
    np.fill_diagonal(dense, 1)
    root = np.diag(dense.sum(axis=1) ** -0.5)
    np.testing.assert_allclose(graph.toarray(), root @ dense @ root, atol=1e-6)
    x = rng.random((30, 12)).astype(np.float32)
    net = GraphNet(12, 5, 3)
    first, second = net.first.detach().numpy(), net.second.detach().numpy()
    expected = root @ dense @ root @ np.maximum(root @ dense @ root @ x @ first, 0) @ second
    spread = Fixed(sparse.csr_matrix(graph @ x))
    logits = net(spread, Fixed(graph))
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-5)
    logits.sum().backward()
    slopes = torch.autograd.functional.jacobian(
        lambda w: (torch.from_numpy(graph.toarray())
                   @ (torch.relu(torch.from_numpy(graph.toarray() @ x) @ w) @ net.second.detach())).sum(),
        net.first.detach(),
    )  # fmt: skip
    torch.testing.assert_close(net.first.grad, slopes, atol=1e-4, rtol=1e-4)


def test_edges_run_as_told_and_none_between_labelled_cells():
    x, y = normalize_log1p(REFERENCE.X), normalize_log1p(QUERY.X)
    graph = hybrid_graph(x, y, 5, 5)
    a = graph.propagation()
    n = x.shape[0]
    own = a[:n, :n].tocoo()
    assert (own.row == own.col).all()
    assert a.nnz == sum(graph.sizes) + 2 * (len(graph.inter.left) + len(graph.intra.left))  # linear in edges
    assert (abs(a - a.T) > 1e-7).nnz == 0
    labels = [adata.obs["cell_type"].astype(str).to_numpy() for adata in (REFERENCE, QUERY)]
    right = labels[0][graph.inter.left] == labels[1][graph.inter.right]
    assert right.mean() > 0.8
    assert np.bincount(graph.inter.left).max() <= 5 and np.bincount(graph.inter.right).max() <= 5
    assert (graph.intra.left < graph.intra.right).all()


def test_labels_travel_along_anchors_and_not_from_permuted_ones():
    model = fit()
    assert (model.predict() == TRUTH).mean() > 0.9
    shuffled = REFERENCE.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(REFERENCE.obs["cell_type"].astype(str))
    assert (fit(shuffled).predict() == TRUTH).mean() < 0.55


def test_cells_that_come_later_get_a_graph_of_their_own_without_training():
    model = fit()
    weights = [p.detach().clone() for p in model.net_.parameters()]
    later = tf.data.simulate(300, 100, n_types=3, n_batches=2, type_strength=1.2, batch_strength=0.4, seed=1)[150:][::2]
    later = later.copy()
    later.obs_names = [f"new {name}" for name in later.obs_names]
    assert (model.predict(later) == later.obs["cell_type"].astype(str)).mean() > 0.85
    for before, after in zip(weights, model.net_.parameters(), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_without_others_labelled_cells_are_linked_among_themselves():
    model = ScGCN(n_components=5).fit(REFERENCE, labels="cell_type", batch="batch", progress=False)
    assert (model.predict(QUERY) == TRUTH).mean() > 0.8


def test_genes_by_f_statistic():
    codes = np.unique(REFERENCE.obs["cell_type"], return_inverse=True)[1]
    counts = REFERENCE.X.tolil()
    counts[:, 3] = 2
    expected = f_classif(counts.toarray().astype(np.float64), codes)[0]
    found = f_statistics(counts.tocsr(), codes)
    kept = np.arange(100) != 3
    np.testing.assert_allclose(found[kept], np.nan_to_num(expected)[kept], rtol=1e-6, atol=1e-9)
    assert found[3] == 0
    model = fit(n_top_genes=12)
    assert set(model.genes_) == set(CELLS.var_names[np.argsort(-np.nan_to_num(
        f_classif(REFERENCE.X.toarray().astype(np.float64), codes)[0]), kind="stable")[:12]])  # fmt: skip


def test_features_are_shares_of_counts():
    model = fit(n_top_genes=20)
    np.testing.assert_allclose(model.cells_x_.sum(axis=1), 1, atol=1e-5)


def test_mixing_by_hand():
    graph = HybridGraph(Pairs(np.array([0, 1, 2, 0]), np.array([0, 0, 1, 2])), Pairs(*[np.zeros(0, int)] * 2), (4, 4))
    codes, clusters = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    found = graph.mixing(codes, 2, clusters, 3)
    assert found["anchors"].tolist() == [3, 1, 0]
    np.testing.assert_allclose(found["enrichment"], [2 / 3, 1, 0])
    np.testing.assert_allclose(found["entropy"], [-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)), 0, np.log(2)])


def test_mixing_of_named_clusters():
    query = QUERY.copy()
    query.obs["group"] = TRUTH
    table = fit().mixing(query, "group")
    assert list(table.index) == ["type_1", "type_2", "type_3"] and (table["entropy"] < 0.7).all()


def test_a_single_cell_or_nothing_in_common_is_refused():
    with pytest.raises(DataError, match="at least 3 of each"):
        fit().predict(QUERY[:1].copy())
