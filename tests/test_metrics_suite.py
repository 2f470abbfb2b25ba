"""The suite of integration metrics, neighbours along a graph, and communities."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from scipy import sparse

from tenfold import metrics
from tenfold.errors import DataError, ParameterError
from tenfold.kernels.communities import leiden, louvain, modularity
from tenfold.kernels.fuzzy import fuzzy_graph


def cells_of(n: int = 500, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    labels, batch = rng.integers(4, size=n), rng.integers(3, size=n)
    batch[labels == 3] %= 2
    cells = 8 * np.eye(10)[labels] + rng.normal(size=(n, 10)) + shift * np.eye(10)[9 - batch]
    return cells.astype(np.float32), labels, batch


def graph_of(cells: np.ndarray) -> sparse.csr_matrix:
    return fuzzy_graph(*metrics.neighbors(cells, 15))


def by_name(scores: list) -> dict:
    return {score.metric: score for score in scores}


def test_suite_gives_what_the_single_functions_give() -> None:
    cells, labels, batch = cells_of()
    before = cells_of(shift=4.0)[0]
    found = by_name(metrics.integration_metrics(embedding=cells, labels=labels, batch=batch, before=before))
    assert list(found) == [n for n in metrics.METRICS if n not in ("trajectory", "cell_cycle", "hvg_overlap")]
    near = metrics.neighbors(cells, 90)
    for name, value in {
        "ilisi": metrics.ilisi(near, batch), "clisi": metrics.clisi(near, labels),
        "cilisi": metrics.cilisi(cells, labels, batch), "kbet": metrics.kbet(cells, labels, batch),
        "bras": metrics.bras(cells, labels, batch), "pcr_comparison": metrics.pcr_comparison(before, cells, batch),
        "graph_connectivity": metrics.graph_connectivity(near.first(15), labels),
        "asw_label": metrics.asw_label(cells, labels), "asw_batch": metrics.asw_batch(cells, labels, batch),
        "isolated_asw": metrics.isolated_labels(cells, labels, batch),
        "nmi_leiden": metrics.nmi_ari_leiden(graph_of(cells), labels).nmi,
        "ari_kmeans": metrics.nmi_ari_kmeans(cells, labels).ari,
    }.items():  # fmt: skip
        assert found[name].value == pytest.approx(value, abs=1e-6), name
        assert found[name].group == metrics.METRICS[name].group
    assert found["kbet"].per_label == metrics.kbet_per_label(cells, labels, batch)
    assert found["cilisi"].per_label == metrics.cilisi_per_label(cells, labels, batch)
    assert found["clisi"].per_label == metrics.clisi_per_label(near, labels)
    assert found["ilisi"].per_label == metrics.ilisi_per_label(near, labels, batch)
    assert list(found["isolated_f1"].per_label) == [3]
    assert list(found["bras"].per_label) == [0, 1, 2, 3]


def test_same_seed_same_scores() -> None:
    cells, labels, batch = cells_of(300)
    arguments = {"embedding": cells, "labels": labels, "batch": batch}
    assert metrics.integration_metrics(**arguments) == metrics.integration_metrics(**arguments)


def test_suite_on_a_graph_agrees_with_its_embedding() -> None:
    cells, labels, batch = cells_of()
    graph = by_name(metrics.integration_metrics(graph=graph_of(cells), labels=labels, batch=batch, before=cells))
    full = by_name(metrics.integration_metrics(embedding=cells, labels=labels, batch=batch))
    assert set(graph) == {
        "nmi_leiden", "ari_leiden", "clisi", "isolated_f1", "cilisi", "kbet", "graph_connectivity", "ilisi",
        "scib_overall",
    }  # fmt: skip
    for name, tolerance in (("ilisi", 0.1), ("cilisi", 0.1), ("clisi", 0.02), ("kbet", 0.2), ("nmi_leiden", 1e-9)):
        assert graph[name].value == pytest.approx(full[name].value, abs=tolerance), name


def test_suite_without_labels_one_batch_one_label() -> None:
    cells, labels, batch = cells_of(200)
    assert set(by_name(metrics.integration_metrics(embedding=cells, batch=batch, before=cells))) == {
        "ilisi", "pcr_comparison",
    }  # fmt: skip
    one = np.zeros(200, dtype=int)
    single = by_name(metrics.integration_metrics(embedding=cells, batch=one, labels=labels, before=cells))
    assert {"clisi", "nmi_leiden", "asw_label"} <= set(single)
    assert not {"ilisi", "cilisi", "bras", "pcr_comparison", "isolated_f1"} & set(single)
    alone = by_name(metrics.integration_metrics(embedding=cells, batch=batch, labels=one))
    assert {"ilisi", "cilisi", "bras", "kbet"} <= set(alone) and "clisi" not in alone


def test_suite_with_tiny_labels_and_few_cells() -> None:
    cells, labels, batch = cells_of(200)
    labels[:2] = 7
    found = by_name(metrics.integration_metrics(embedding=cells, labels=labels, batch=batch, before=cells))
    assert 7 not in found["kbet"].per_label and 7 in found["graph_connectivity"].per_label
    assert all(np.isfinite(score.value) for score in found.values())
    few = metrics.integration_metrics(embedding=cells[:12], labels=labels[:12], batch=batch[:12], before=cells[:12])
    assert all(np.isfinite(score.value) for score in few)


def test_suite_names_bad_input() -> None:
    cells, labels, batch = cells_of(50)
    with pytest.raises(DataError, match="embedding or a graph"):
        metrics.integration_metrics(batch=batch)
    with pytest.raises(DataError, match="`before` has 40"):
        metrics.integration_metrics(embedding=cells, batch=batch, before=cells[:40])
    with pytest.raises(DataError, match="`labels`"):
        metrics.integration_metrics(embedding=cells, batch=batch, labels=labels[:40])
    with pytest.raises(DataError, match="at least 3"):
        metrics.integration_metrics(embedding=cells[:2], batch=batch[:2])
    with pytest.raises(DataError, match="embedding"):
        metrics.integration_metrics(embedding=cells * np.nan, batch=batch)


def test_every_metric_is_described() -> None:
    for name, info in metrics.METRICS.items():
        described = asdict(info)
        assert described["group"] in ("bio", "batch", "literature") and described["good"] in ("high", "low"), name
        assert described["warning"] and described["formula"] and described["title"]
        assert info.range[0] < info.range[1]
    assert {info.group for info in metrics.METRICS.values() if info.headline} == {"bio", "batch"}


def test_every_public_name_loads_and_is_a_function_or_class() -> None:
    for name in metrics.__all__:
        value = getattr(metrics, name)
        assert callable(value) or name == "METRICS"
        assert value.__doc__


def test_graph_neighbors_by_hand() -> None:
    """A path 0 - 1 - 2 - 3 with weights 4, 2, 1, and cell 4 on its own."""
    graph = sparse.coo_matrix(([4.0, 2, 1], ([0, 1, 2], [1, 2, 3])), shape=(5, 5))
    graph = (graph + graph.T).tolil()
    graph.setdiag(9)
    indices, distances = metrics.graph_neighbors(graph.tocsr(), 3)
    assert indices.tolist() == [[1, 2, 3], [0, 2, 3], [1, 3, 0], [2, 1, 0], [-1, -1, -1]]
    assert distances[0, 0] == 0 and distances[1, 1] == pytest.approx(np.log(2))
    assert (np.diff(distances[:4], axis=1) >= 0).all() and np.isinf(distances[4]).all()
    assert metrics.graph_neighbors(graph.tocsr(), 1)[0].tolist() == [[1], [0], [1], [2], [-1]]


def test_missing_neighbors_never_count() -> None:
    pair = sparse.csr_matrix((np.ones(4), ([0, 1, 2, 3], [1, 0, 3, 2])), shape=(5, 5))
    near = metrics.graph_neighbors(pair, 4)
    assert (near.indices >= 0).sum(axis=1).tolist() == [1, 1, 1, 1, 0]
    labels = np.array([0, 0, 1, 1, 1])
    assert metrics.neighbor_purity(near.indices, labels) == 1
    assert metrics.neighbor_overlap(near.indices, near.indices) == 1
    values = metrics.lisi(near, labels)
    assert values[:4].tolist() == [1, 1, 1, 1] and np.isnan(values[4])


def test_graph_errors() -> None:
    with pytest.raises(DataError, match="as many rows"):
        metrics.graph_neighbors(sparse.csr_matrix((3, 4)), 2)
    with pytest.raises(DataError, match="negative"):
        metrics.graph_neighbors(sparse.csr_matrix(-np.eye(3)), 2)
    with pytest.raises(ParameterError, match="at least 1"):
        metrics.graph_neighbors(sparse.csr_matrix((3, 3)), 0)
    with pytest.raises(DataError, match="no edges"):
        leiden(sparse.csr_matrix((4, 4)))
    with pytest.raises(ParameterError, match="positive"):
        leiden(sparse.csr_matrix(np.ones((3, 3))), resolution=0)


@pytest.mark.parametrize("cluster", [leiden, louvain])
def test_communities_are_found_numbered_by_size_and_repeatable(cluster) -> None:  # type: ignore[no-untyped-def]
    labels = cells_of(800)[1]
    labels = np.where(labels == 0, 1, labels)
    graph = graph_of(8 * np.eye(4)[labels] + np.random.default_rng(0).normal(size=(800, 4)))
    found = cluster(graph, 0.2, seed=3)
    assert metrics.ari(found, labels) == 1
    assert (np.diff(np.bincount(found)) <= 0).all() and found.dtype == np.int32
    noisy = graph_of(np.random.default_rng(0).normal(size=(800, 8)))
    np.testing.assert_array_equal(cluster(noisy, seed=3), cluster(noisy, seed=3))
    assert (cluster(noisy, seed=3) != cluster(noisy, seed=4)).any()


def test_two_cliques_joined_by_an_edge() -> None:
    """Six of seven edges lie inside, and each half has half of all degrees: 6/7 - 1/2."""
    block = np.ones((3, 3)) - np.eye(3)
    graph = np.block([[block, np.zeros((3, 3))], [np.zeros((3, 3)), block]])
    graph[2, 3] = graph[3, 2] = 1
    graph = sparse.csr_matrix(graph)
    found = leiden(graph)
    assert found.tolist() == [0, 0, 0, 1, 1, 1]
    assert modularity(graph, found) == pytest.approx(6 / 7 - 1 / 2)
    assert len(np.unique(leiden(graph, resolution=50))) == 6


def test_leiden_clusters_hang_together() -> None:
    from scipy.sparse.csgraph import connected_components

    graph = graph_of(np.random.default_rng(3).normal(size=(1000, 6)))
    found = leiden(graph, 1.5)
    for cluster in range(found.max() + 1):
        inside = np.flatnonzero(found == cluster)
        assert connected_components(graph[inside][:, inside])[0] == 1
    assert modularity(graph, found, 1.5) >= modularity(graph, louvain(graph, 1.5), 1.5) - 0.01


def test_a_cell_without_edges_is_a_cluster_of_its_own() -> None:
    graph = sparse.lil_matrix((5, 5))
    graph[0, 1] = graph[1, 0] = graph[1, 2] = graph[2, 1] = 1
    assert leiden(graph.tocsr()).tolist() == [0, 0, 0, 1, 2]


@pytest.mark.slow  # UMAP compiles for half a minute
def test_connectivities_equal_umap() -> None:
    umap = pytest.importorskip("umap.umap_")
    cells = np.vstack([cells_of(300)[0], np.zeros((20, 10), np.float32)])  # twenty cells on one spot
    near = metrics.neighbors(cells, 15)
    empty = sparse.coo_matrix((len(cells), 1))
    expected = umap.fuzzy_simplicial_set(
        empty, 15, None, None, knn_indices=near.indices, knn_dists=near.distances
    )[0].tocsr()  # fmt: skip
    assert abs(fuzzy_graph(*near) - expected).max() < 1e-4


def test_errors_over_cells():
    from tenfold.metrics.agreement import errors_over_cells

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4000)
    assert errors_over_cells(labels, labels) == (0, 0)
    noisy = np.where(rng.random(4000) < 0.3, rng.integers(0, 4, 4000), labels)
    few, many = errors_over_cells(noisy[:1000], labels[:1000]), errors_over_cells(noisy, labels)
    samples = [rng.choice(4000, 4000) for _ in range(100)]
    expected = [np.std([score(noisy[s], labels[s]) for s in samples]) for score in (metrics.nmi, metrics.ari)]
    np.testing.assert_allclose(many, expected, rtol=0.3)
    assert all(1.4 < a / b < 2.8 for a, b in zip(few, many, strict=True))  # a fourth of the cells: twice the error


def test_the_suite_says_how_sure_it_is_of_single_runs():
    cells, labels, batch = cells_of()
    cells = cells + 3 * np.random.default_rng(0).normal(size=cells.shape).astype(np.float32)
    found = {score.metric: score for score in metrics.integration_metrics(embedding=cells, labels=labels, batch=batch)}
    for name in ("nmi_leiden", "ari_leiden", "nmi_kmeans", "ari_kmeans", "cilisi"):
        assert 0 < found[name].error < 0.2
    assert found["ilisi"].error is None
