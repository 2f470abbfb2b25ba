"""Parts that networks are made of: covariates without one-hot inputs, Gaussians, decoders."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from tenfold.kernels.hidden_layers import random_words
from tenfold.kernels.rows import all_rows
from tenfold.nn.autoencoder import ConditionalVAE
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.mlp import MLP, Covariates, Layer
from tenfold.nn.plain_vae import is_plain
from tenfold.nn.priors import Gaussian, standard_log_density
from tenfold.nn.surgery import graft, heal


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def covariates(n: int = 30, levels: tuple[int, ...] = (3, 2), n_continuous: int = 2) -> Covariates:
    columns = [torch.randint(n_levels, (n,)) for n_levels in levels]
    return Covariates(torch.stack(columns, dim=1), torch.randn(n, n_continuous))


def test_a_layer_adds_what_one_hot_inputs_would():
    layer = Layer(7, 5, categories=(3, 1, 2), n_continuous=2, batch_norm=False)
    told = covariates(levels=(3, 1, 2))
    x = torch.randn(30, 7)
    one_hot = [F.one_hot(told.levels[:, column], n) for column, n in ((0, 3), (2, 2))]
    inputs = torch.cat([x, told.continuous, *one_hot], dim=1)
    weight = torch.cat([layer.weight, layer.slopes, *layer.tables])
    torch.testing.assert_close(layer(x, told), F.relu(inputs @ weight + layer.bias))
    assert len(layer.tables) == 2  # one level says nothing


def test_initial_weights_are_as_wide_as_those_of_a_linear_layer_with_the_covariates_as_inputs():
    layer = Layer(95, 400, categories=(3, 1), n_continuous=2, batch_norm=False)
    for part in (layer.weight, layer.slopes, layer.tables[0], layer.bias):
        assert part.abs().max() <= 0.1
        assert part.abs().max() > 0.095


def test_sparse_and_dense_input_give_the_same_value_and_gradient():
    x = sparse.random(20, 40, density=0.2, random_state=0, format="csr", dtype=np.float32)
    block = MLP(40, 8, 2)
    gradients = []
    for given in (all_rows(x), torch.from_numpy(x.toarray())):
        block.zero_grad()
        value = block(given)
        value.square().sum().backward()
        gradients.append((value.detach(), block.layers[0].weight.grad.clone()))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_covariates_reach_every_layer_only_where_asked_for():
    told = {"categories": (3,), "n_continuous": 1}
    deep, shallow = MLP(4, 6, 3, **told), MLP(4, 6, 3, deep_covariates=False, **told)
    assert [len(layer.tables) for layer in deep.layers] == [1, 1, 1]
    assert [len(layer.tables) for layer in shallow.layers] == [1, 0, 0]
    assert [layer.slopes is not None for layer in deep.layers] == [True, False, False]


def test_norms_and_dropout():
    x = 5 + 3 * torch.randn(200, 4)
    both = Layer(4, 6, batch_norm=True, layer_norm=True)
    expected = F.relu(F.layer_norm(F.batch_norm(x @ both.weight, None, None, training=True, eps=1e-3), (6,)))
    torch.testing.assert_close(both(x, Covariates()), expected, atol=1e-5, rtol=1e-5)
    dropping = Layer(4, 50, dropout=0.5)
    assert (dropping(x, Covariates()) == 0).float().mean() > 0.65  # half of the units by ReLU, half of the rest
    dropping.eval()
    torch.testing.assert_close(dropping(x, Covariates()), dropping(x, Covariates()))


def test_activations_and_the_settings_of_batch_norm():
    x = torch.randn(50, 4)
    leaky = MLP(4, 6, 2, activation="leaky_relu", slope=0.2, batch_norm=False)
    expected = x
    for layer in leaky.layers:
        expected = F.leaky_relu(expected @ layer.weight + layer.bias, 0.2)
    torch.testing.assert_close(leaky(x), expected)
    mish = Layer(4, 6, activation="mish", norm={"momentum": 0.5, "eps": 1e-5})
    found, h = mish(x, Covariates()), x @ mish.weight
    torch.testing.assert_close(found, F.mish((h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()))
    torch.testing.assert_close(mish.batch_norm.running_mean, 0.5 * h.mean(0))


def test_gaussians_agree_with_torch():
    one = Gaussian(torch.randn(9, 4), torch.rand(9, 4) + 0.1)
    two = Gaussian(torch.randn(9, 4), torch.rand(9, 4) + 0.1)
    first, second = (Normal(each.mean, each.variance.sqrt()) for each in (one, two))
    torch.testing.assert_close(one.kl_from(two), kl_divergence(first, second).sum(1))
    torch.testing.assert_close(one.kl_from_standard(), kl_divergence(first, Normal(0.0, 1.0)).sum(1))
    z = torch.randn(9, 4)
    torch.testing.assert_close(one.log_density(z), first.log_prob(z).sum(1))
    torch.testing.assert_close(standard_log_density(z), Normal(0.0, 1.0).log_prob(z).sum(1))
    many = Gaussian(torch.full((20000, 1), 2.0), torch.full((20000, 1), 9.0)).sample()
    assert abs(many.mean() - 2) < 0.1
    assert abs(many.std() - 3) < 0.1


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_draws_of_a_decoder_have_the_moments_of_its_likelihood(likelihood):
    decoder = CountDecoder(2, 6, 8, likelihood=likelihood).eval()
    z = torch.randn(1, 2).expand(40000, 2)
    with torch.no_grad():
        model = decoder.model(z, torch.full((40000,), 3.0))
        drawn = model.sample().double()
    kept = 1 if model.dropout_logits is None else torch.sigmoid(-model.dropout_logits[0]).double()
    mean = model.rate[0].double()
    second = mean + mean**2 * (1 if model.theta is None else 1 + 1 / model.theta.expand(6).double())
    expected_variance = kept * second - (kept * mean) ** 2
    assert torch.all((drawn.mean(0) - kept * mean).abs() < 5 * (expected_variance / 40000).sqrt())
    torch.testing.assert_close(drawn.var(0), expected_variance, rtol=0.15, atol=0.02)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_the_likelihood_of_a_decoder_is_that_of_its_draws(dispersion):
    decoder = CountDecoder(2, 6, 8, dispersion=dispersion, n_levels=3).eval()
    z, log_size, level = torch.randn(50, 2), torch.full((50,), 3.0), torch.arange(50) % 3
    with torch.no_grad():
        model = decoder.model(z, log_size, level=level)
        drawn = model.sample()
        nll = decoder.nll(all_rows(sparse.csr_matrix(drawn.numpy())), z, log_size, level=level)
    theta = model.theta.expand(50, 6)
    expected = torch.distributions.NegativeBinomial(theta, logits=(model.rate / theta).log()).log_prob(drawn)
    torch.testing.assert_close(nll, -expected.sum(1), rtol=1e-4, atol=1e-3)


def test_importance_weights_average_to_the_evidence_of_a_model_without_latent_variables():
    decoder = CountDecoder(2, 6, 8).eval()
    with torch.no_grad():
        decoder.hidden.layers[0].weight.zero_()  # counts do not depend on z: log p(x) is known
    net = ConditionalVAE(GaussianEncoder(6, 2, 8), decoder).eval()
    counts = all_rows(sparse.csr_matrix(np.random.default_rng(0).poisson(2, (20, 6)).astype(np.float32)))
    batch = {"counts": counts, "log_size": counts.sum().log()}
    with torch.no_grad():
        posterior = net.encode(batch)
        weights = torch.stack([net.log_weight(batch, posterior) for _ in range(3000)])
        evidence = -net.nll_at_mean(batch)
    torch.testing.assert_close(weights.logsumexp(0) - np.log(3000), evidence, rtol=0, atol=0.15)
    assert (weights.mean(0) < evidence).all()


PLAIN = [
    ({"likelihood": "nb"}, {}, {}),
    ({"likelihood": "zinb", "dispersion": "gene-batch", "n_levels": 3}, {}, {}),
    ({"likelihood": "poisson", "link": "softplus", "dropout": 0.3}, {"dropout": 0.0}, {"log_input": False}),
    ({"likelihood": "nb", "categories": (3, 2), "n_continuous": 2}, {"categories": (3, 2), "n_continuous": 2},
     {"encode_covariates": True}),
]  # fmt: skip


def kept(h: torch.Tensor, share: float) -> torch.Tensor:
    """Which units the written-out dropout leaves, from the same random numbers."""
    return torch.from_numpy(random_words(*h.shape) >= np.int64(round(share * 2**16)))


def test_random_words_are_uniform_and_repeat_with_the_seed():
    words = random_words(400, 101)
    assert words.shape == (400, 101)
    assert np.abs(np.bincount((words // 4096).ravel(), minlength=16) / words.size - 1 / 16).max() < 0.006
    assert abs(np.corrcoef(words.ravel()[:-1], words.ravel()[1:])[0, 1]) < 0.02
    torch.manual_seed(0)
    assert (random_words(400, 101) == words).all()
    assert (random_words(400, 101) != words).mean() > 0.99


@pytest.mark.parametrize(("of_decoder", "of_encoder", "of_net"), PLAIN)
def test_the_written_out_gradient_of_a_plain_model_is_that_of_autograd(of_decoder, of_encoder, of_net, monkeypatch):
    monkeypatch.setattr(F, "dropout", lambda h, share: h * kept(h, share) / (1 - share))
    encoder = GaussianEncoder(40, 4, 16, **{"dropout": 0.2, **of_encoder})
    net = ConditionalVAE(encoder, CountDecoder(4, 40, 16, **of_decoder), **of_net)
    other = copy.deepcopy(net)
    told = covariates(50)
    counts = all_rows(sparse.csr_matrix(np.random.default_rng(0).poisson(0.5, (50, 40)).astype(np.float32)))
    batch = {"counts": counts, "log_size": counts.sum().log(), "levels": told.levels, "continuous": told.continuous}
    results = []
    for each in (net, other):
        assert is_plain(each)
        torch.manual_seed(1)
        terms = each.terms(batch, 0.7)
        (2 * terms["loss"]).backward()
        results.append([*terms.values(), *(p.grad for p in each.parameters()), *each.buffers()])
        monkeypatch.setattr("tenfold.nn.autoencoder.is_plain", lambda net: False)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_large_products_in_bfloat16_change_gradients_little(likelihood, monkeypatch):
    monkeypatch.setattr("tenfold.nn.plain_vae.multiplies_bfloat16", lambda: True)
    net = ConditionalVAE(GaussianEncoder(200, 4, 32), CountDecoder(4, 200, 32, likelihood=likelihood))
    counts = all_rows(sparse.csr_matrix(np.random.default_rng(0).poisson(0.5, (64, 200)).astype(np.float32)))
    batch = {"counts": counts, "log_size": counts.sum().log()}
    results = []
    for half in (False, True):
        net.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            terms = net.terms(batch)
        terms["loss"].backward()
        results.append((terms["loss"].item(), [p.grad.flatten() for p in net.parameters()]))
        assert all(grad.dtype == torch.float32 for grad in results[-1][1])
    (exact, exact_grads), (rounded, rounded_grads) = results
    assert exact != rounded == pytest.approx(exact, rel=2e-3)
    for one, other in zip(exact_grads, rounded_grads, strict=True):
        assert F.cosine_similarity(one, other, dim=0) > 0.995


def test_a_plain_loss_adds_to_other_losses_and_spares_frozen_weights():
    net = ConditionalVAE(GaussianEncoder(9, 2, 8), CountDecoder(2, 9, 8))
    counts = all_rows(sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (20, 9)).astype(np.float32)))
    batch = {"counts": counts, "log_size": counts.sum().log()}

    def grads(more: float, times: int = 1) -> list[torch.Tensor | None]:
        net.zero_grad()
        for _ in range(times):
            torch.manual_seed(0)
            penalty = sum(p.square().sum() for p in net.parameters() if p.requires_grad)
            (net.terms(batch)["loss"] + more * penalty).backward()
        return [p.grad for p in net.parameters()]

    alone, both, twice = grads(0.0), grads(0.5), grads(0.0, times=2)
    for weight, one, other, double in zip(net.parameters(), alone, both, twice, strict=True):
        torch.testing.assert_close(one + weight, other)
        torch.testing.assert_close(2 * one, double)
    net.encoder.requires_grad_(False)
    after = grads(0.0)
    assert all(p.grad is None for p in net.encoder.parameters())
    for one, other in zip(alone[-4:], after[-4:], strict=True):
        torch.testing.assert_close(one, other)


def small_net_and_batches() -> tuple[ConditionalVAE, list[dict]]:
    net = ConditionalVAE(GaussianEncoder(9, 2, 8), CountDecoder(2, 9, 8, dispersion="gene-batch", n_levels=3))
    batches = []
    for n in (20, 13):
        counts = all_rows(sparse.csr_matrix(np.random.default_rng(n).poisson(1.0, (n, 9)).astype(np.float32)))
        batches.append({"counts": counts, "log_size": counts.sum().log(), "levels": torch.arange(n)[:, None] % 3})
    return net, batches


def gradients(net: torch.nn.Module, batches: list[dict]) -> list[torch.Tensor]:
    net.zero_grad()
    torch.manual_seed(0)
    sum(net.terms(batch)["loss"] for batch in batches).backward()
    return [parameter.grad for parameter in net.parameters()]


def test_plain_losses_of_several_minibatches_keep_their_gradients_until_the_way_back(monkeypatch):
    net, batches = small_net_and_batches()
    found = gradients(net, batches)
    monkeypatch.setattr("tenfold.nn.autoencoder.is_plain", lambda net: False)
    for one, other in zip(found, gradients(net, batches), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


def test_weights_that_are_replaced_or_move_are_found_again(monkeypatch):
    net, batches = small_net_and_batches()
    assert is_plain(net)
    net.encoder.heads.weight.data = net.encoder.heads.weight.data.clone() * 2
    net.decoder.mean_head.bias = torch.nn.Parameter(torch.randn(9))
    assert is_plain(net)
    found = gradients(net, batches)
    assert net.decoder.mean_head.bias.grad is not None
    monkeypatch.setattr("tenfold.nn.autoencoder.is_plain", lambda net: False)
    for one, other in zip(found, gradients(net, batches), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


def test_a_dispersion_some_of_whose_levels_are_fixed_is_trained_by_autograd():
    known, batches = small_net_and_batches()
    larger = ConditionalVAE(GaussianEncoder(9, 2, 8), CountDecoder(2, 9, 8, dispersion="gene-batch", n_levels=4))
    assert graft(known, larger)
    larger.train()
    assert not is_plain(larger)
    batches[0]["levels"][:] = 3
    larger.terms(batches[0])["loss"].backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in larger.parameters())
    heal(larger)
    assert is_plain(larger)


def test_what_is_not_plain_is_left_to_autograd(monkeypatch):
    def net(of_encoder: dict = {}, of_decoder: dict = {}, **options) -> ConditionalVAE:  # noqa: B006
        return ConditionalVAE(GaussianEncoder(9, 2, 8, **of_encoder), CountDecoder(2, 9, 8, **of_decoder), **options)

    assert is_plain(net())
    assert not is_plain(net().eval())
    assert not is_plain(net().double())
    for each in (
        net({"n_layers": 2}), net({}, {"n_layers": 2}), net({"batch_norm": False}), net({}, {"layer_norm": True}),
        net({}, {"dispersion": "gene-cell"}), net(latent="ln"), net(library=GaussianEncoder(9, 1, 8)),
        net({"activation": "leaky_relu"}), net({"link": "softplus"}),
    ):  # fmt: skip
        assert not is_plain(each)
    for fast in (False, True):
        monkeypatch.setattr("tenfold.nn.plain_vae.multiplies_bfloat16", lambda fast=fast: fast)
        with torch.autocast("cpu", torch.bfloat16):
            assert is_plain(net()) == fast
    with torch.no_grad():
        assert not is_plain(net())
