"""DeepVelo: convolutions, what velocities are held against, rates, and scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, ParameterError
from tenfold.nn.deepvelo_net import DeepVeloNet, DirectionWeights
from tenfold.velocity.deepvelo import spliced_weight


@pytest.fixture(scope="module")
def branching():
    return tf.data.simulate_branching(n_cells=200, n_genes=60, seed=1)


@pytest.fixture(scope="module")
def fitted(branching):
    return tf.velocity.DeepVelo(n_neighbors=15, epochs=30, min_r2=-10.0).fit(branching)


def small(with_unspliced=False, n=40, g=7, seed=0):
    rng = np.random.default_rng(seed)
    s, u = (rng.gamma(2, 1, (n, g)).astype(np.float32) * (rng.random((n, g)) > 0.2) for _ in range(2))
    near = np.stack([rng.choice(np.delete(np.arange(n), i), 6, replace=False) for i in range(n)])
    edges = sparse.csr_matrix((np.ones(n * 6, np.float32), near.ravel(), np.arange(0, n * 6 + 1, 6)), shape=(n, n))
    graph = sparse.csr_matrix(sparse.identity(n) + edges + edges.T, dtype=np.float32)
    torch.manual_seed(seed)
    net = DeepVeloNet(s, u, graph, edges, 5, 2, 0.0, with_unspliced, DirectionWeights(1.0, 0.75, 18.0))
    return net, s, u, graph, near


def by_loop(velocity, states, near, g):
    """The ways ahead and behind, cell by cell."""
    ahead, behind = np.zeros_like(states), np.zeros_like(states)
    for i, cells in enumerate(near):
        steps = states[cells] - states[i]
        along = steps[:, :g] @ velocity[i, :g]
        for out, side in ((ahead, along > 0), (behind, along < 0)):
            if side.any():
                out[i] = steps[side].mean(axis=0)
    return ahead, behind


@pytest.mark.parametrize("with_unspliced", [False, True])
def test_loss_is_that_of_a_plain_loop(with_unspliced):
    net, s, u, _, near = small(with_unspliced)
    velocity = net.velocities().detach().numpy().astype(np.float64)
    states = np.concatenate([s, u], axis=1).astype(np.float64) if with_unspliced else s.astype(np.float64)
    ahead, behind = by_loop(velocity, states, near, 7)
    for found, wanted in zip(net.displacements(torch.from_numpy(velocity).float()), (ahead, behind), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    continuity = (((velocity - ahead) ** 2).mean() + ((velocity + behind) ** 2).mean()) / 2 * np.sqrt(7)
    both = []
    for gene in range(7):

        def correlation(counts, own=velocity[:, gene], gene=gene):
            seen = counts[:, gene] > 0
            return np.corrcoef(own[seen], counts[seen, gene])[0, 1]

        both.append((correlation(u) - 0.75 * correlation(s)) / 1.75)
    direction = 1 - np.mean(both)
    weight = 18 * np.sqrt(velocity.shape[1]) / min(0.5, max(0.01, 1 - direction))
    terms = {name: term.detach() for name, term in net.terms().items()}
    assert float(terms["continuity"]) == pytest.approx(continuity, rel=1e-5)
    assert float(terms["direction"]) == pytest.approx(direction, rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(continuity + weight * direction, rel=1e-5)


def test_rates_are_dense_convolutions():
    net, s, u, graph, _ = small(with_unspliced=True)
    x, dense = torch.from_numpy(np.concatenate([u, s], axis=1)), torch.from_numpy(graph.toarray())
    for at in range(3):
        x = dense @ x @ net.get_parameter(f"weight_{at}") + net.get_parameter(f"bias_{at}")
        x = F.relu(x) if at < 2 else x
    for found, wanted in zip(net.rates(), x.split(7, dim=1), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_way_back_enters_with_its_sign_turned():
    """The original's confidence takes the way to cells behind for the velocity itself."""
    net, *_ = small()
    velocity, apart, _ = net.summary()
    ahead, behind = net.displacements(velocity)
    torch.testing.assert_close(apart**2, (velocity - ahead) ** 2 + (velocity + behind) ** 2)


def test_graph_counts_edges_both_ways_and_cells_twice(fitted):
    near = fitted.near_[:, : fitted.graph_neighbors]
    n = len(near)
    assert (near[:, 0] == np.arange(n)).all()
    plain = np.zeros((n, n))
    for i, cells in enumerate(near):
        for j in cells:
            plain[i, j] += 1
            plain[j, i] += 1
    degree = plain.sum(axis=1)
    wanted = plain / np.sqrt(degree[:, None] * degree)
    found = fitted.net_.graph(torch.eye(n))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_velocity_is_that_of_the_rates_in_units_of_the_averages(fitted):
    rates = fitted.cell_rates()
    s, u = (fitted._scaled(x[:, fitted.fitted_]) for x in (fitted.spliced_, fitted.unspliced_))
    assert s.mean() == pytest.approx(0.4, rel=1e-4) and u.mean() == pytest.approx(0.4, rel=1e-4)
    scale = (
        np.minimum(
            fitted.spliced_[:, fitted.fitted_],
            np.percentile(fitted.spliced_[:, fitted.fitted_][fitted.spliced_[:, fitted.fitted_] > 0], 99.5),
        ).mean()
        / 0.4
    )
    wanted = (rates["beta"] * u + rates["gamma"] * s) * scale
    np.testing.assert_allclose(fitted.velocity_[:, fitted.fitted_], wanted, rtol=1e-3, atol=1e-4)
    assert fitted.continuity().shape == (200,) and 0 <= fitted.continuity().min() <= fitted.continuity().max() <= 1


def test_unspliced_velocity_uses_one_beta(branching):
    model = tf.velocity.DeepVelo(n_neighbors=15, epochs=2, with_unspliced=True, clip_and_norm=False).fit(branching)
    rates = model.cell_rates()
    u, s = (x[:, model.fitted_] for x in (model.unspliced_, model.spliced_))
    wanted = rates["beta"] * u - rates["gamma"] * s
    np.testing.assert_allclose(model.velocity_[:, model.fitted_], wanted, rtol=1e-3, atol=1e-4)
    du = model.net_.velocities().detach().numpy()[:, model.fitted_.sum() :]
    np.testing.assert_allclose(du, rates["alpha"] - rates["beta"] * u, rtol=1e-3, atol=1e-4)


def test_velocity_goes_up_with_unspliced_and_finds_the_direction(branching, fitted):
    moving = (branching.var["kind"] == "dynamic").to_numpy()[fitted.columns_] & fitted.trusted_
    truth = branching.layers["true_velocity"][:, fitted.columns_[moving]]
    assert tf.metrics.direction_accuracy(fitted.velocity_[:, moving], truth) > 0.65
    told = fitted.history.query("term == 'direction'")["train"]
    assert told.iloc[-1] < told.iloc[0] - 0.1


@pytest.mark.parametrize(("share", "weight"), [(0.6, 0.5), (0.8, 0.75), (0.9, 1.0)])
def test_weight_of_spliced_counts_follows_their_share(branching, share, weight):
    rng = np.random.default_rng(0)
    adata = branching.copy()
    total = rng.poisson(5, adata.shape)
    spliced = rng.binomial(total, share)
    adata.layers["spliced"], adata.layers["unspliced"] = (
        sparse.csr_matrix(x, dtype=np.float32) for x in (spliced, total - spliced)
    )
    assert spliced_weight(Inputs(adata, {})) == weight


def test_unusable_settings_are_named(branching):
    with pytest.raises(DataError, match="cells"):
        tf.velocity.DeepVelo(target_neighbors=250).fit(branching)
    with pytest.raises(ParameterError, match="coeff_s"):
        tf.velocity.DeepVelo(coeff_s=-1.0)
    with pytest.raises(ParameterError, match="batch_size"):
        tf.velocity.DeepVelo(batch_size=64)
