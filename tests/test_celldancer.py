"""cellDancer: all genes at once as one by one, neighbours in the plane, where training starts, and rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

import tenfold as tf
from tenfold.errors import ParameterError
from tenfold.kernels.phase_plane import most_ahead
from tenfold.nn.gene_networks import CosineTraining, GeneNetworks, plane_of
from tenfold.velocity.celldancer import factors_of, pretrained, simulated


def on_off(n_cells=400, n_genes=30):
    """Genes that go on and off, known exactly, and their place in time to find neighbours by."""
    adata = tf.data.simulate_splicing(n_cells=n_cells, n_genes=n_genes, noise=0.5, seed=0)
    adata.obsm["X_true"] = np.stack([adata.obs["true_time"], np.zeros(n_cells)], axis=1).astype(np.float32)
    return adata


@pytest.fixture(scope="module")
def fitted():
    model = tf.velocity.CellDancer(n_top_genes=None, normalize=False, epochs=20, n_hidden=32)
    return model.fit(on_off(), use_rep="X_true")


@pytest.fixture(scope="module")
def plane():
    rng = np.random.default_rng(0)
    u, s = (rng.gamma(2, 1, (90, 5)).astype(np.float32) for _ in range(2))
    u[:, 2], s[:, 2] = np.rint(u[:, 2]), np.rint(s[:, 2] / 3)  # few distinct places
    return plane_of(u, s), u, s


def by_loop(net, points, gene, factors, highest, k):
    """The loss of one gene: networks, velocities and neighbours in plain terms."""
    x = points
    for at in range(3):
        x = x @ net.get_parameter(f"weight_{at}")[gene] + net.get_parameter(f"bias_{at}")[gene]
        x = F.leaky_relu(x) if at < 2 else x.sigmoid()
    (beta, gamma, alpha), (u, s) = x.T, points.T
    velocity = torch.stack([factors[0] * alpha - beta * u, factors[1] * beta * u - factors[2] * gamma * s], dim=1)
    raw = points.numpy() * highest
    near = NearestNeighbors(n_neighbors=min(k, len(raw))).fit(raw).kneighbors(raw)[1][:, 1:]
    steps = points[near] - points[:, None]
    cosine = F.cosine_similarity(steps, velocity[:, None], dim=2, eps=1e-12)
    return 1 - cosine.max(dim=1).values.mean()


def test_all_genes_at_once_are_a_loop_over_genes(plane):
    torch.manual_seed(0)
    own, net, factors = plane[0], GeneNetworks(5, 12), factors_of(plane[0])
    training = CosineTraining(net, own, factors, 1.0, 30)
    found = training.losses(torch.from_numpy(own.points), torch.from_numpy(own.counts), torch.arange(5))
    wanted = [
        by_loop(net, torch.from_numpy(own.points[g, :n]), g, factors[g], own.highest[g], 30)
        for g, n in enumerate(own.counts)
    ]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for loss in (found[3], wanted[3])]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)
        assert not first[[0, 1, 2, 4]].any()


def test_places_are_distinct_and_rounded(plane):
    own, u, s = plane
    for gene in range(5):
        both = np.stack([u[:, gene] / u[:, gene].max(), s[:, gene] / s[:, gene].max()], axis=1)
        wanted = np.unique(np.rint(100 * both), axis=0) / 100
        np.testing.assert_allclose(own.points[gene, : own.counts[gene]], wanted, atol=1e-6)
    assert own.counts[2] < 40 < own.counts[0]


def test_few_places_do_not_shrink_the_neighbours_of_other_genes(plane):
    own = plane[0]
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(own.points.shape, generator=rng)
    args = [torch.from_numpy(part) for part in (own.points, own.highest, own.counts)]
    together = most_ahead(*args, directions, 29)
    for gene in range(5):
        part = slice(gene, gene + 1)
        alone = most_ahead(*(arg[part] for arg in args), directions[part], 29)
        torch.testing.assert_close(together[part], alone)


def test_genes_are_done_one_by_one(plane):
    own = plane[0]
    torch.manual_seed(0)
    training = CosineTraining(GeneNetworks(5, 8), own, factors_of(own), 0.5, 30)
    for epoch in range(10):
        training.terms(epoch)
    training.lowest[1], training.waited[1] = -1.0, 2  # looked twice in vain
    before = training.rates.weight_1.detach().clone()
    for epoch in range(10, 20):
        training.terms(epoch)
    assert training.done.tolist() == [False, True, False, False, False]
    with torch.no_grad():
        training.rates.weight_1 += 1
    net = training.finished()
    torch.testing.assert_close(net.weight_1[1], before[1])
    torch.testing.assert_close(net.weight_1[0], before[0] + 1)


@pytest.mark.parametrize(("kind", "falls"), [("circle", True), ("branch", False)])
def test_starts_fix_which_way_is_forward(kind, falls):
    """Above the diagonal spliced counts rise; below, they fall where genes go off, and rise where lineages differ."""
    torch.manual_seed(0)
    points, shares = simulated(kind, np.random.default_rng(0))
    assert points.max() <= 1 and 0 < shares.min() < shares.max() < 1
    net = pretrained(points, shares, 50)
    beta, gamma, _ = net.everywhere(np.array([[0.8], [0.3]], np.float32), np.array([[0.3], [0.8]], np.float32))
    change = beta[:, 0] * [0.8, 0.3] - gamma[:, 0] * [0.3, 0.8]
    assert change[0] > 0.05 and (change[1] < -0.05) == falls


def test_signs_on_genes_that_go_on_and_off(fitted):
    adata = on_off()
    genes = fitted.trusted_
    truth = adata.layers["true_velocity"][:, fitted.columns_[genes]]
    assert tf.metrics.direction_accuracy(fitted.velocity_[:, genes], truth) > 0.8
    assert fitted.rates()["loss"].dropna().between(0, 2).all()


def test_velocity_is_that_of_the_rates_which_conserve_what_is_spliced(fitted):
    rates = fitted.cell_rates()
    u, s = (x[:, fitted.fitted_] for x in (fitted.unspliced_, fitted.spliced_))
    np.testing.assert_allclose(
        fitted.velocity_[:, fitted.fitted_], rates["beta"] * u - rates["gamma"] * s, rtol=1e-4, atol=1e-5
    )
    assert rates["beta"].min() >= 0 and rates["beta"].max() <= 1
    assert (rates["alpha"] <= 2 * u.max(axis=0) * 1.0001).all()
    assert (rates["gamma"] <= u.max(axis=0) / s.max(axis=0) * 1.0001).all()


def test_unknown_starts_are_named():
    with pytest.raises(ParameterError, match="Did you mean 'circle'"):
        tf.velocity.CellDancer(start="circl")
