"""trVAE: its penalty, its sampling, and that batches come together."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.embed import SCVI
from tenfold.engine import Minibatches
from tenfold.errors import ParameterError
from tenfold.integrate.trvae import MOST_PAIRS, TRVAE
from tenfold.metrics.separability import separability_auc
from tenfold.nn.discrepancy import SCALES, mmd, mmd_of_groups, rbf_mixture

SMALL = {"n_latent": 5, "n_hidden": (32, 16), "n_top_genes": None, "epochs": 4, "kl_warmup_epochs": 2}


def fit(adata: ad.AnnData, **params: Any) -> TRVAE:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TRVAE(**{**SMALL, **params}).fit(adata, progress=False, batch="batch")


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Two batches, 300 and 60 cells."""
    adata = tf.data.simulate(
        600, 80, n_types=3, n_batches=2, batch_strength=0.4, type_strength=2.0, depth=500.0, seed=1
    )
    second = np.flatnonzero(adata.obs["batch"] == "batch_2")
    return adata[np.setdiff1d(np.arange(600), second[60:])].copy()


def test_discrepancy_by_its_definition():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4), torch.randn(20, 4) + 0.5
    kernel = lambda a, b: sum(np.exp(-(((a - b) ** 2).sum()) / (2 * s)) for s in (0.5, 3.0))  # noqa: E731
    within = [np.mean([[kernel(a, b) for a in p] for b in p]) for p in (x.numpy(), y.numpy())]
    across = np.mean([[kernel(a, b) for a in x.numpy()] for b in y.numpy()])
    assert float(mmd(x, y, (0.5, 3.0))) == pytest.approx(sum(within) - 2 * across, rel=1e-4)
    assert float(mmd(x, x, (0.5, 3.0))) == pytest.approx(0, abs=1e-6)


def test_all_pairs_at_once_are_the_pairs_one_by_one():
    torch.manual_seed(0)
    z, group = torch.randn(60, 3, requires_grad=True), torch.arange(60) % 4
    group[group == 2] = 4  # group 2 is empty
    found = mmd_of_groups(z, group, 5, SCALES)
    for a in range(5):
        for b in range(5):
            pair = z[group == a], z[group == b]
            expected = mmd(*pair, SCALES) if min(map(len, pair)) else torch.tensor(0.0)
            assert float(found[a, b]) == pytest.approx(float(expected), abs=1e-5)
    found.sum().backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().max() > 0


def test_kernels_that_were_left_out_have_no_gradient():
    torch.manual_seed(0)
    x = torch.randn(100, 10)
    y = (torch.randn(100, 10) + 0.5).requires_grad_()

    def largest(*scales: float) -> float:
        return float(torch.autograd.grad(mmd(x, y, scales), y)[0].abs().max())

    assert max(largest(a) for a in (1e-6, 1e-5, 1e-4, 1e-3, 1e4, 1e5, 1e6)) < 0.01 * largest(*SCALES)
    assert rbf_mixture(x, x, SCALES).diagonal().equal(torch.full((100,), float(len(SCALES))))


@pytest.mark.parametrize("mmd_on", ["z", "decoder"])
def test_the_loss_by_hand(cells, mmd_on):
    model = fit(cells, mmd_weight=3.0, mmd_on=mmd_on)
    batch = next(iter(Minibatches(model._cells(cells), None, shuffle=False)))
    net, level = model.net_.eval(), torch.as_tensor(model.fitted_["levels"][:, 0])
    with torch.no_grad():
        torch.manual_seed(0)
        found = model._terms(net, batch, 0.5)
        torch.manual_seed(0)
        z = net.encode(batch).z.sample()
        seen = z if mmd_on == "z" else net.decoder.hidden.layers[0](z, net.covariates(batch))
        expected = 3 * mmd(seen[level == 0], seen[level == 1], SCALES)
    assert float(found["alignment"]) == pytest.approx(float(expected), rel=1e-3)
    total = found["nll"] + 0.5 * found["kl"] + found["alignment"]
    assert float(found["loss"]) == pytest.approx(float(total), rel=1e-6)


def test_many_batches_weigh_as_much_as_ten(cells):
    adata = cells.copy()
    adata.obs["batch"] = [f"b{i % 20}" for i in range(adata.n_obs)]
    model = fit(adata)
    batch = next(iter(Minibatches(model._cells(adata), None, shuffle=False)))
    with torch.no_grad():
        torch.manual_seed(0)
        found = model._terms(model.net_.eval(), batch, 1.0)["alignment"]
        torch.manual_seed(0)
        z = model.net_.encode(batch).z.sample()
    pairs = mmd_of_groups(z, batch["levels"][:, 0], 20, SCALES).sum() / 2
    assert float(found) == pytest.approx(float(pairs) * MOST_PAIRS / 190, rel=1e-4)


def test_batches_are_equally_frequent(cells):
    model = TRVAE(**SMALL)
    arrays = model._take(Inputs(cells, {"batch": "batch"}), None)
    weights = model._sampling_weights(arrays)
    levels = arrays["levels"][:, 0]
    assert weights[levels == 0].sum() == pytest.approx(weights[levels == 1].sum())
    assert TRVAE(balance_batches=False)._sampling_weights(arrays) is None


def test_batches_come_together_and_types_stay_apart(cells):
    params = {"epochs": 60, "kl_warmup_epochs": 20, "learning_rate": 3e-3, "batch_size": 32}
    batch, labels = cells.obs["batch"].to_numpy(), cells.obs["cell_type"].to_numpy()
    blind = SCVI(n_latent=5, n_hidden=32, n_top_genes=None, **params).fit(cells, progress=False).embed()
    z = fit(cells, **params, early_stopping=False).embed()
    assert separability_auc(blind, batch) > 0.9
    assert separability_auc(z, batch) < 0.7
    assert separability_auc(z, labels) > 0.95


def test_decoded_in_another_batch(cells):
    model = fit(cells, epochs=40, learning_rate=3e-3, early_stopping=False)
    first = (cells.obs["batch"] == "batch_1").to_numpy()
    there = model.denoise(transform_batch="batch_2")[first].mean(axis=0)
    shares = cells.X.toarray() / cells.X.toarray().sum(axis=1, keepdims=True) * 1e4
    target, own = shares[~first].mean(axis=0), shares[first].mean(axis=0)
    assert np.abs(there - target).sum() < 0.7 * np.abs(own - target).sum()


OPTIONS = [
    {"likelihood": "zinb"}, {"likelihood": "mse"}, {"dispersion": "gene"}, {"n_hidden": 16, "n_layers": 2},
    {"mmd_weight": 0.0}, {"precision": "bf16-mixed"},
    {"batch_norm": "both", "layer_norm": "none", "library": "latent"},
]  # fmt: skip


@pytest.mark.parametrize("params", OPTIONS, ids=str)
def test_options_run_and_survive_a_file(cells, tmp_path, params):
    model = fit(cells, **params)
    model.save(tmp_path / "model")
    loaded = tf.load(tmp_path / "model")
    assert loaded.parameters == model.parameters
    np.testing.assert_array_equal(loaded.embed(cells), model.embed(cells))


def test_a_query_is_mapped_by_tables_and_dispersions_only(cells):
    known = cells[cells.obs["batch"] == "batch_1"].copy()
    known.obs["batch"] = np.where(np.arange(known.n_obs) % 2, "a", "b")
    model = fit(known)
    mapped = model.map_query(cells[cells.obs["batch"] == "batch_2"].copy(), epochs=3, progress=False)
    before, after = model.net_.state_dict(), mapped.net_.state_dict()
    longer = {name for name, value in after.items() if value.shape != before[name].shape}
    assert longer == {
        "encoder.hidden.layers.0.tables.0", "decoder.hidden.layers.0.tables.0", "decoder.log_theta"
    }  # fmt: skip
    assert all(torch.equal(after[name][: len(value)], value) for name, value in before.items())
    np.testing.assert_array_equal(mapped.embed(known), model.embed(known))


def test_squared_error_of_log_expression(cells):
    model = fit(cells, likelihood="mse", epochs=60, learning_rate=3e-3, early_stopping=False)
    counts = cells.X.toarray()
    observed = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    values = np.log1p(model.denoise())
    assert (values >= 0).all()
    assert ((values - observed) ** 2).sum() < 0.96 * ((observed - observed.mean(axis=0)) ** 2).sum()
    batch = (cells.obs["batch"] == "batch_1").to_numpy()
    assert separability_auc(model.embed(), batch) < 0.75
    for asked in (lambda: model.sample(3), lambda: model.elbo(cells), lambda: model.reconstruction_error(cells)):
        with pytest.raises(ParameterError, match='likelihood="nb"'):
            asked()


def test_squared_error_maps_a_query(cells, tmp_path):
    known, query = (cells[(cells.obs["batch"] == name).to_numpy()].copy() for name in ("batch_1", "batch_2"))
    known.obs["batch"] = np.where(np.arange(known.n_obs) % 2, "a", "b")
    model = fit(known, likelihood="mse")
    model.save(tmp_path / "model")
    mapped = tf.load(tmp_path / "model").map_query(query, epochs=2, progress=False)
    np.testing.assert_array_equal(mapped.embed(known), model.embed(known))
    assert mapped.denoise(transform_batch="batch_2").shape == query.shape


def test_more_cells_are_trained_on_for_fewer_epochs():
    assert [TRVAE().epochs_for(n) for n in (500, 20_000)] == [400, 200]
    assert TRVAE(epochs=7).epochs_for(20_000) == 7
