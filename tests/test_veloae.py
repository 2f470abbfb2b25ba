"""VeloAE: attention and decoder by their definitions, the regression's closed form, and what velocities mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.engine import seeded
from tenfold.errors import ParameterError
from tenfold.nn.velo_autoencoder import VeloAutoencoder, Widths


@pytest.fixture(scope="module")
def branching():
    return tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)


@pytest.fixture(scope="module")
def fitted(branching):
    options = {
        "n_neighbors": 15,
        "n_latent": 20,
        "n_hidden": 64,
        "n_keys": 16,
        "learning_rate": 3e-4,
        "n_gene_components": 20,
    }
    return tf.velocity.VeloAE(epochs=80, **options).fit(branching, progress=False)


def network(n=25, genes=14):
    rng = np.random.default_rng(0)
    graph = sparse.csr_matrix((rng.random((n, n)) < 0.2) | np.eye(n, dtype=bool), dtype=np.float32)
    s, u = (rng.gamma(2.0, 1.0, (n, genes)).astype(np.float32) for _ in range(2))
    with seeded(1):
        net = VeloAutoencoder(s, u, graph, rng.normal(size=(genes, 3)), Widths(9, 5, 4), 80.0, 0.7)
        for attention in net.attentions:
            torch.nn.init.normal_(attention.bias)
    return net, graph


def test_attention_is_a_softmax_over_the_cells_around():
    net, graph = network()
    layer, x = net.attentions[0], torch.randn(25, 9)
    two = torch.cat([x, x])
    found = layer(two, net.around).detach()
    h = layer.linear(x)
    logits = F.leaky_relu((h @ layer.target)[:, None] + (h @ layer.source)[None], 0.2)
    weights = logits.masked_fill(torch.from_numpy(graph.toarray() == 0), -torch.inf).softmax(1)
    wanted = (weights @ h + layer.bias).detach()
    np.testing.assert_allclose(found[:25], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[25:], found[:25], atol=1e-6)


def test_layers_do_not_see_each_other_in_the_encoder():
    net, _ = network()
    before = net.encode()[1].detach().clone()
    net.x[25:] += 1
    after = net.encode()[1].detach()
    np.testing.assert_allclose(after[:25], before[:25], atol=1e-6)
    assert not np.allclose(after[25:], before[25:])


def test_the_loss_is_the_sum_of_its_errors():
    net, _ = network()
    torch.manual_seed(5)
    found = net.terms()
    torch.manual_seed(5)
    plain, codes = net.encode()
    loss = 0.0
    for part in (slice(0, 25), slice(25, 50)):
        key = net.key(plain[part].T)
        scores = net.query(net.genes) @ key.T / np.sqrt(4)
        loss = loss + F.mse_loss(codes[part] @ F.gumbel_softmax(scores, tau=1.0, dim=1).T, net.x[part])
    s, u = (part.detach().double().numpy() for part in codes.chunk(2))
    both = s / np.maximum(np.ptp(s, axis=0), 1e-3) + u / np.maximum(np.ptp(u, axis=0), 1e-3)
    for k in range(5):
        top = both[:, k] >= np.quantile(both[:, k], 0.8)
        gamma, error, *_ = np.linalg.lstsq(s[top, k, None], u[top, k], rcond=None)
        np.testing.assert_allclose(net.regression(*codes.chunk(2))[0][k], gamma[0], rtol=1e-3)
        loss = loss + 0.7 * error[0] / top.sum()
    np.testing.assert_allclose(float(found["loss"].detach()), float(loss.detach()), rtol=1e-4)


def test_no_gradient_is_lost_where_gamma_is_held():
    net, _ = network()
    s, u = (part.detach().requires_grad_() for part in net.encode()[1].chunk(2))
    held = torch.autograd.grad(net.regression(s, u)[1].sum(), (s, u))
    both = sum(z / (z.amax(0) - z.amin(0)).clamp_min(1e-3) for z in (s, u))
    top = (both >= torch.quantile(both, 0.8, dim=0)).float().detach()
    gamma = (top * s * u).sum(0) / (top * s * s).sum(0)
    free = torch.autograd.grad(((top * (u - gamma * s) ** 2).sum(0) / top.sum(0)).sum(), (s, u))
    for a, b in zip(held, free, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_gene_velocity_is_the_decoder_times_the_latent_velocity(fitted):
    found = fitted.net_.outputs()
    codes, slopes = fitted.latent()
    np.testing.assert_allclose(found["codes"], codes, atol=1e-4)
    weights = found["weights"]
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(fitted.velocity_, slopes @ weights.T, rtol=1e-3, atol=1e-4)
    step = 1e-2  # moved along their velocities, codes decode to averages that move along theirs
    moved = ((codes + step * slopes) @ weights.T - codes @ weights.T) / step
    np.testing.assert_allclose(moved, fitted.velocity_, rtol=1e-2, atol=2e-2)


def test_averages_are_reconstructed_and_the_graph_is_latent(fitted):
    error = fitted.history.pivot(index="epoch", columns="term", values="train")["error"]
    assert error.iloc[-1] < 0.9 * error.iloc[0]
    assert (fitted.rates()["r2"][fitted.trusted_] > 0).all()
    cell, other = 3, fitted.cosines_[3].indices[0]
    codes, slopes = fitted.latent()
    wanted = np.corrcoef(codes[other] - codes[cell], slopes[cell])[0, 1]
    np.testing.assert_allclose(fitted.cosines_[cell, other], wanted, atol=1e-4)


def test_minibatches_are_not_offered():
    with pytest.raises(ParameterError, match="batch_size"):
        tf.velocity.VeloAE(batch_size=10)
