"""sysVI: the VampPrior, cycle consistency, and what the encoder is told."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import tenfold as tf
from tenfold.errors import DataError, KeyMissingError
from tenfold.integrate.sysvi import SysVI
from tenfold.nn.cycle_vae import CycleVAE
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.expression_decoders import NormalDecoder
from tenfold.nn.mlp import Covariates
from tenfold.nn.priors import Gaussian
from tenfold.nn.vamp import VampPrior

QUICK = {"epochs": 15, "batch_size": 30, "n_hidden": 32, "n_layers": 1, "n_top_genes": 50, "n_latent": 5}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    adata = tf.data.simulate(300, 60, n_types=3, n_batches=3, type_strength=2.0, batch_strength=0.5, depth=300, seed=0)
    adata.obs["site"] = np.where(np.arange(300) % 3 == 0, "x", "y")
    return adata


def network(as_reference: bool = False, n_batches: int = 3) -> CycleVAE:
    torch.manual_seed(0)
    told = {"categories": (n_batches,)}
    encoder = GaussianEncoder(9, 4, 8, link="softplus", least_variance=0.0, **told)
    levels = torch.tensor([[0], [2], [1]])
    prior = VampPrior(torch.randn(3, 9), Covariates(levels), as_reference)
    torch.nn.init.normal_(prior.weight_logits)
    return CycleVAE(encoder, NormalDecoder(4, 9, 8, **told), prior, n_batches, as_reference)


def test_the_prior_is_a_mixture_of_posteriors_of_pseudo_cells():
    net, z = network(), torch.randn(20, 4)
    net.train()
    found = net.prior.log_density(z, net.encoder)
    assert net.encoder.training
    net.eval()
    mean, variance = net.encoder(net.prior.expression, Covariates(net.prior.levels))
    parts = Independent(Normal(mean, variance.sqrt()), 1)
    expected = MixtureSameFamily(Categorical(logits=net.prior.weight_logits), parts).log_prob(z)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert net.prior.expression.grad.abs().sum() > 0 and net.prior.weight_logits.grad.abs().sum() > 0


def test_the_prior_of_the_reference_is_taken_dimension_by_dimension():
    net, z = network(as_reference=True).eval(), torch.randn(20, 4)
    mean, variance = net.prior.components(net.encoder)
    each = Normal(mean[:, None], variance.sqrt().sqrt()[:, None]).log_prob(z[None])
    expected = (each + net.prior.weight_logits.log_softmax(0)[:, None, None]).logsumexp(0).sum(1)
    torch.testing.assert_close(net.prior.log_density(z, net.encoder), expected)


def test_another_batch_is_never_the_own_and_any_other():
    net = network()
    levels = torch.stack([torch.arange(300) % 3, torch.arange(300) % 2], dim=1)
    other = net.other_batch(levels)
    assert (other[:, 0] != levels[:, 0]).all() and (other[:, 1] == levels[:, 1]).all()
    assert {tuple(pair) for pair in torch.stack([levels[:, 0], other[:, 0]], 1).tolist()} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }


@pytest.mark.parametrize("as_reference", [False, True])
def test_the_cycle_translates_and_comes_back(as_reference):
    net = network(as_reference, n_batches=2).eval()
    batch = {"expression": torch.randn(20, 9), "levels": torch.arange(20)[:, None] % 2}
    posterior = net.encode(batch).z
    own, other = (Covariates(levels) for levels in (batch["levels"], 1 - batch["levels"]))
    z = posterior.mean
    mean = net.decoder.scale(z, own)
    again = net.encoder(mean if as_reference else net.decoder.scale(z, other), other).mean
    both = torch.cat([posterior.mean, again])
    expected = (((posterior.mean - again) / both.std(0)) ** 2).sum(1)
    torch.testing.assert_close(net.cycle(batch, posterior, z, mean), expected)
    scaled = Gaussian(posterior.mean / 100, posterior.variance)  # shrinking alone does not help
    assert net.cycle(batch, scaled, z, mean).mean() > 0.5 * expected.mean()


def test_the_loss_is_the_weighted_sum_of_its_terms():
    net = network()
    batch = {"expression": torch.randn(20, 9), "levels": torch.arange(20)[:, None] % 3}
    terms = net.cycle_terms(batch, 0.5, 3.0)
    torch.testing.assert_close(terms["loss"], terms["nll"] + 0.5 * terms["kl"] + 3 * terms["cycle"])
    assert "cycle" not in net.cycle_terms(batch, 0.5, 0.0)


def test_systems_are_mixed_and_types_stay_apart(cells):
    model = SysVI(**{**QUICK, "epochs": 40, "learning_rate": 5e-3}).fit(cells, batch="batch", progress=False)
    z = model.embed()
    types, batches = (cells.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    near = np.argsort(((z[:, None] - z[None]) ** 2).sum(-1), axis=1)[:, 1:16]
    assert (types[near] == types[:, None]).mean() > 0.9
    assert (batches[near] != batches[:, None]).mean() > 0.3
    assert set(model.history["term"]) == {"loss", "nll", "kl", "cycle"}


def test_covariates_are_told_to_new_cells_too(cells):
    roles = {"batch": "batch", "categorical_covariates": ["site"], "progress": False}
    model = SysVI(**QUICK, prior="normal").fit(cells, **roles)
    np.testing.assert_allclose(model.embed(cells[10:30].copy()), model.embed()[10:30], atol=1e-5)
    np.testing.assert_allclose(model.expression(cells[10:30].copy()), model.correct()[10:30], atol=1e-5)
    other = cells[:5].copy()
    other.obs["batch"] = "mouse"
    with pytest.raises(DataError, match="'mouse', which the model was not fitted with"):
        model.embed(other)
    del other.obs["batch"]
    with pytest.raises(KeyMissingError, match="batch"):
        model.embed(other)


def test_fewer_cells_than_pseudo_cells(cells):
    model = SysVI(**QUICK, n_pseudo_cells=50).fit(cells[::10].copy(), batch="batch", progress=False)
    assert model.pseudo_["expression"].shape == (30, 50)
