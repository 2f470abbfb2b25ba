"""BERMUDA: clusters of single batches, their similarity, pairs, the loss of pairs, and what it keeps apart."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.stats import rankdata, spearmanr
from torch.nn.functional import mse_loss

import tenfold as tf
from tenfold.data.cluster_similarity import BatchClusters, _drawn, batch_clusters, neighbour_votes, similar_pairs
from tenfold.data.preprocess import normalize_log1p
from tenfold.engine import Minibatches, Progress
from tenfold.integrate.bermuda import BERMUDA, rise
from tenfold.nn.discrepancy import mmd, mmd_of_pairs


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Three types, of which the second batch lacks one."""
    return tf.data.simulate(
        500, 150, n_types=3, n_batches=2, batch_strength=0.4, type_strength=1.5, depth=600.0,
        proportions=[[1, 1, 1], [1, 1, 0]], seed=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted(cells) -> BERMUDA:
    return BERMUDA(epochs=120, learning_rate=3e-3, n_top_genes=None).fit(cells, batch="batch", progress=False)


def test_clusters_lie_within_a_batch(cells):
    batch = cells.obs["batch"].cat.codes.to_numpy()
    found = batch_clusters(normalize_log1p(cells.X), batch)
    np.testing.assert_array_equal(found.home[found.cluster], batch)
    np.testing.assert_array_equal(found.home, [0, 0, 0, 1, 1])
    few = np.r_[np.zeros(495, dtype=int), np.ones(5, dtype=int)]
    assert (batch_clusters(normalize_log1p(cells.X), few).home == 1).sum() == 1


def test_votes_are_those_of_the_matrix_of_all_cells():
    rng = np.random.default_rng(0)
    x = rng.poisson(1.0, (60, 25)).astype(np.float32)
    x[7] = 0  # a cell without a correlation
    home = np.array([0, 0, 1, 1, 2])
    cluster = np.r_[np.arange(5), rng.integers(0, 5, 55)]
    found = neighbour_votes(sparse.csr_matrix(x), BatchClusters(cluster, home))
    kept = np.arange(60) != 7
    network = rankdata(spearmanr(x[kept], axis=1).statistic.round(9)).reshape(59, 59)
    cluster = cluster[kept]
    votes = network @ np.eye(5)[cluster] / network.sum(axis=0)[:, None]
    area = np.full((5, 5), np.nan)
    for target in range(4):  # the last batch has one cluster, and no cells that are not of it
        rows = home[cluster] == home[target]
        rank, inside = rankdata(votes[rows], axis=0), cluster[rows] == target
        area[target] = (rank[inside].mean(axis=0) - (inside.sum() + 1) / 2) / (~inside).sum()
    area[home[:, None] == home] = np.nan
    expected = np.where(np.isfinite(area.T), (area + np.where(np.isfinite(area), area.T, area)) / 2, area)
    expected = np.where(np.isfinite(area), expected, area.T)
    np.testing.assert_allclose(found, expected, atol=0.01)  # ties between pairs of cells are broken
    assert np.isfinite(found[4, :4]).all()


def test_at_most_3000_cells_vote():
    cluster = np.repeat([0, 1, 2, -1], [6_000, 3_000, 30, 100])
    sizes = np.bincount(cluster[_drawn(cluster, 0)])
    np.testing.assert_array_equal(sizes, [1993, 997, 20])


def test_pairs_are_best_matches_in_one_direction_at_least():
    home = np.array([0, 0, 1, 1, 2])
    similarity = np.full((5, 5), np.nan)
    for first, second, value in [(0, 2, 0.95), (0, 3, 0.905), (1, 2, 0.4), (1, 3, 0.91), (0, 4, 0.97), (1, 4, 0.96),
                                 (2, 4, 0.5), (3, 4, 0.6)]:  # fmt: skip
        similarity[first, second] = similarity[second, first] = value
    # 0-3 is the best match of neither; 1-4 is the best of 1.
    assert similar_pairs(similarity, home, 0.9).tolist() == [[0, 2], [0, 4], [1, 3], [1, 4]]
    assert similar_pairs(similarity, home, 0.96).tolist() == [[0, 4], [1, 4]]
    assert len(similar_pairs(np.full((5, 5), np.nan), home, 0.0)) == 0


def test_discrepancies_of_pairs_are_those_of_two_samples():
    torch.manual_seed(0)
    x, group = torch.randn(40, 3, requires_grad=True), torch.randint(0, 4, (40,))
    pairs, scales = torch.tensor([[0, 2], [1, 3], [0, 4]]), (1.0, 4.0)
    found = mmd_of_pairs(x, group, pairs, 6, scales)
    expected = torch.stack([mmd(x[group == i], x[group == j], scales) for i, j in pairs[:2].tolist()])
    torch.testing.assert_close(found[:2], expected)
    assert found[2] == 0  # nobody is in group 4
    grads = [torch.autograd.grad(value.sum(), x, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*grads)


def test_the_loss(cells, fitted):
    data = {"expression": sparse.random(30, 150, 0.3, "csr", random_state=0), "cluster": np.arange(30) % 5}
    batch = next(iter(Minibatches(data, None, shuffle=False)))
    found = fitted._loss(fitted.net_, batch, Progress("train", 10, 4))
    with torch.no_grad():
        x = torch.from_numpy(data["expression"].toarray()).float()
        z, of = fitted.net_.encode(x), data["cluster"]
        decoded = fitted.net_.decode(z)
        error = sum(mse_loss(decoded[of == code], x[of == code]) for code in range(5))
        apart = sum(mmd(z[of == i], z[of == j], (1.0, 4.0, 16.0, 64.0, 256.0)) for i, j in fitted.matched_)
    torch.testing.assert_close(found["reconstruction"], error)
    torch.testing.assert_close(found["mmd"], apart)
    torch.testing.assert_close(found["loss"], error + (2 / (1 + np.exp(-5)) - 1) * apart)
    assert rise(Progress("train", 10, 9)) > 0.999


def test_a_type_of_one_batch_has_no_partner_and_stays(cells, fitted):
    labels, batch = (cells.obs[name].to_numpy().astype(str) for name in ("cell_type", "batch"))
    pairs = fitted.pairs_
    assert len(pairs) == 2 and (pairs["similarity"] >= 0.9).all()
    for row in pairs.itertuples():
        types = {frozenset(labels[fitted.clusters_ == code]) for code in (row.first, row.second)}
        assert len(types) == 1 and row.first_cells == (fitted.clusters_ == row.first).sum()
    z = fitted.embed()
    near = tf.kernels.knn.knn(z, k=16)[0][:, 1:]
    assert (labels[near] == labels[:, None]).mean() > 0.95
    shared = labels != "type_3"
    assert (batch[near] != batch[:, None])[shared].mean() > 0.25
    np.testing.assert_allclose(fitted.embed(cells), z, atol=1e-5)


def test_batches_without_a_pair_are_named(cells):
    with pytest.warns(UserWarning, match="No cluster of batch_1, batch_2 resembles"):
        method = BERMUDA(epochs=1, similarity=1.0, n_top_genes=20).fit(cells[::5].copy(), batch="batch", progress=False)
    assert len(method.pairs_) == 0 and "mmd" not in set(method.history["term"])
