"""SCALEX: domain-specific batch norm, three ways to place cells, projection of new batches."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from torch import nn

import tenfold as tf
from tenfold.integrate.scalex import SCALEX
from tenfold.nn.domain_norm import DomainDecoder, DomainNorm
from tenfold.nn.mlp import NOTHING, Covariates

QUICK = {"epochs": 12, "batch_size": 30, "n_hidden": 64, "learning_rate": 3e-3, "n_top_genes": 50, "n_latent": 5}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return tf.data.simulate(300, 60, n_types=3, n_batches=3, type_strength=2.0, batch_strength=0.5, depth=300, seed=0)


@pytest.fixture(scope="module")
def model(cells) -> SCALEX:
    return SCALEX(**QUICK).fit(cells, batch="batch", progress=False)


def test_the_norm_of_all_domains_is_that_of_each():
    torch.manual_seed(0)
    norm, each = DomainNorm(6, 3), [nn.BatchNorm1d(6) for _ in range(3)]
    nn.init.normal_(norm.slope)
    nn.init.normal_(norm.offset)
    for number, alone in enumerate(each):
        alone.weight.data.copy_(norm.slope[number])
        alone.bias.data.copy_(norm.offset[number])
    h, domain = torch.randn(40, 6) * 3 + 5, torch.randint(3, (40,))
    weight = torch.randn(40, 6)  # of the loss
    gradients = []
    for function in (lambda x: norm(x, domain), lambda x: torch.cat([each[d](x[domain == d]) for d in range(3)])):
        x = h.clone().requires_grad_()
        order = torch.arange(40) if not gradients else torch.cat([torch.nonzero(domain == d)[:, 0] for d in range(3)])
        value = function(x)
        (value * weight[order]).sum().backward()
        gradients.append((value.detach()[order.argsort()], x.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
    for number, alone in enumerate(each):
        torch.testing.assert_close(norm.mean[number], alone.running_mean)
        torch.testing.assert_close(norm.variance[number], alone.running_var)
        torch.testing.assert_close(norm.slope.grad[number], alone.weight.grad, rtol=1e-4, atol=1e-4)
    norm.eval()
    torch.testing.assert_close(norm(h, domain)[domain == 1], each[1].eval()(h[domain == 1]), rtol=1e-4, atol=1e-4)


def test_a_cell_alone_of_its_domain_is_standardised_by_what_was_seen_before():
    norm = DomainNorm(4, 2)
    norm.mean[1], norm.variance[1] = 3.0, 4.0
    before = norm.mean[1].clone()
    h = torch.randn(6, 4)
    found = norm(h, torch.tensor([0, 0, 0, 0, 0, 1]))
    torch.testing.assert_close(found[5], (h[5] - 3) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.mean[1], before)


def test_a_decoder_without_batches_has_one_domain():
    decoder = DomainDecoder(3, 7, 1)
    z = torch.randn(9, 3)
    torch.testing.assert_close(
        decoder.scale(z, NOTHING), decoder.scale(z, Covariates(torch.zeros(9, 1, dtype=torch.int64)))
    )


def test_places_depend_on_the_cell_alone_or_on_its_batch(cells, model):
    some = cells[:40].copy()
    np.testing.assert_allclose(model.embed(some), model.embed()[:40], atol=1e-5)
    domain = SCALEX(**QUICK, inference="domain").fit(cells, batch="batch", progress=False)
    np.testing.assert_allclose(domain.embed(cells), domain.embed(), atol=1e-5)
    assert not np.allclose(domain.embed(some), domain.embed()[:40], atol=0.01)
    layer, codes = domain.net_.encoder.hidden.layers[0], cells.obs["batch"].cat.codes.to_numpy()
    cells_read = domain._cells(cells)
    x = torch.from_numpy(cells_read["expression"][codes == 1].toarray())
    layer.train()
    with torch.no_grad():
        expected = domain.net_.encoder.of_hidden(layer(x, NOTHING)).mean.numpy()
    layer.eval()
    np.testing.assert_allclose(domain.embed()[codes == 1], expected, atol=1e-3)


def test_places_by_minibatches_change_with_the_seed_only(cells):
    first, same, other = (
        SCALEX(**QUICK, inference="reference").fit(cells, batch="batch", progress=False) for _ in range(3)
    )
    running = first.net_.encoder.hidden.layers[0].batch_norm.running_mean.clone()
    np.testing.assert_array_equal(first.embed(cells), same.embed(cells))
    torch.testing.assert_close(running, first.net_.encoder.hidden.layers[0].batch_norm.running_mean)
    other.seed = 5
    assert not np.allclose(first.embed(cells), other.embed(cells), atol=1e-3)
    lone = cells[:1].copy()
    assert np.isfinite(first.embed(lone)).all()


@pytest.mark.parametrize("scaling", ["all", "batch"])
def test_a_batch_that_was_not_fitted_is_projected(scaling, cells):
    names = cells.obs["batch"].astype(str)
    fitted, new = cells[names != "batch_3"].copy(), cells[names == "batch_3"].copy()
    model = SCALEX(**QUICK, scaling=scaling).fit(fitted, batch="batch", progress=False)
    z, types = model.embed(new), new.obs["cell_type"].to_numpy()
    from sklearn.neighbors import KNeighborsClassifier

    nearest = KNeighborsClassifier(15).fit(model.embed(), fitted.obs["cell_type"].to_numpy())
    assert nearest.score(z, types) > 0.9
    assert np.nanmax(model.expression(new, transform_batch="batch_1")) > 1  # log-expression, not its share


def test_losses_and_early_stopping(model):
    loss = model.history[model.history["term"] == "loss"]["train"].to_numpy()
    assert loss[-1] < loss[0]
    assert set(model.history["term"]) == {"loss", "nll", "kl"}
