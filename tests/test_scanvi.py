"""scANVI: its bound, its labels, and what it must not invent."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.embed.scvi import SCVI
from tenfold.engine import Minibatches, split
from tenfold.errors import DataError
from tenfold.integrate.scanvi import SCANVI

SMALL = {"n_latent": 5, "n_hidden": 32, "n_top_genes": None, "kl_warmup_epochs": 20, "learning_rate": 5e-3}
ROLES = {"batch": "batch", "labels": "known"}


def fit(adata: ad.AnnData, roles: dict[str, Any] = ROLES, kind: type = SCANVI, **params: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training ended")
        return kind(**{**SMALL, **params}).fit(adata, progress=False, **roles)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Two batches of four types; labels are known in the first batch, and for three cells of four."""
    adata = tf.data.simulate(700, 100, n_types=4, n_batches=2, batch_strength=0.4, type_strength=1.2, seed=1)
    first = (adata.obs["batch"] == "batch_1").to_numpy()
    given = first & (np.arange(adata.n_obs) % 4 > 0)
    adata.obs["known"] = np.where(given, adata.obs["cell_type"].astype(str), "Unknown")
    adata.obs["first"] = first
    return adata


@pytest.fixture(scope="module")
def trained(cells) -> SCANVI:
    return fit(cells, epochs=60, joint_epochs=40)


def test_labels_reach_the_other_batch_as_well_as_neighbours_in_scvi_carry_them(cells, trained):
    given, other = (cells.obs["known"] != "Unknown").to_numpy(), ~cells.obs["first"].to_numpy()
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    z = fit(cells, {"batch": "batch"}, SCVI, epochs=60).embed()
    neighbours = KNeighborsClassifier(15).fit(z[given], truth[given]).predict(z[other])
    accuracy = (trained.predict()[other] == truth[other]).mean()
    assert accuracy >= (neighbours == truth[other]).mean() - 0.02
    assert accuracy > 0.9
    classification = trained.history.query("term == 'classification'").train.to_numpy()
    assert classification[4] < classification[0]


def test_training_begins_as_scvi(cells, trained):
    alone = fit(cells, {"batch": "batch"}, SCVI, epochs=60).history
    first = trained.history.query("phase == 'train'").reset_index(drop=True)
    np.testing.assert_allclose(first.train, alone.train, rtol=1e-5)
    assert trained.history.query("phase == 'joint'").epoch.max() == 39
    assert (trained.history.query("phase == 'joint' and term == 'kl_weight'").train == 1).all()


def test_probabilities(cells, trained):
    table = trained.probabilities()
    assert list(table.columns) == sorted(cells.obs["cell_type"].astype(str).unique())  # no column for Unknown
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(trained.probabilities(cells[5:40]), table[5:40], atol=1e-4)
    assert (trained.predict(cells[5:40]) == trained.predict()[5:40]).all()


def test_outputs_of_the_model_of_counts(cells, trained):
    np.testing.assert_allclose(trained.embed(cells[:30]), trained.embed()[:30], atol=1e-5)
    drawn = trained.sample(600, prior=True, label="type_2")
    means = {name: cells[cells.obs["cell_type"] == name].X.toarray().mean(axis=0) for name in ("type_1", "type_2")}
    distance = {name: np.abs(drawn.X.toarray().mean(axis=0) - mean).sum() for name, mean in means.items()}
    assert distance["type_2"] < 0.7 * distance["type_1"]  # the prior of z is told the label
    assert trained.sample(40, label="type_1").obs["label"].eq("type_1").all()
    assert -trained.marginal_likelihood(cells, 20) < -trained.elbo(cells)


def test_the_bound_by_hand(trained):
    """Expectation over labels, one at a time, of what the network computes for all at once."""
    net, n = trained.net_.eval(), 6
    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.manual_seed(3)
        density, kl = net.of_prior(z)
        torch.manual_seed(3)
        noise = torch.randn(4 * n, 5)
        share = torch.softmax(net.classifier(z), dim=1)
        by_density = by_kl = torch.zeros(n)
        for label in range(4):
            told = type(net.covariates({}))(torch.full((n, 1), label))
            below = net.label_encoder(z, told)
            q = torch.distributions.Normal(below.mean, below.variance.sqrt())
            mean, variance = net.label_decoder(q.loc + q.scale * noise[label * n : (label + 1) * n], told)
            log_p = torch.distributions.Normal(mean, variance.sqrt()).log_prob(z).sum(1)
            standard = torch.distributions.Normal(torch.zeros(n, 5), torch.ones(n, 5))
            by_density = by_density + share[:, label] * log_p
            by_kl = by_kl + share[:, label] * torch.distributions.kl_divergence(q, standard).sum(1)
        by_kl = by_kl + (share * (share.log() - np.log(0.25))).sum(1)
    np.testing.assert_allclose(density, by_density, rtol=1e-4)
    np.testing.assert_allclose(kl, by_kl, rtol=1e-4)


def test_weights_of_the_loss(cells, trained):
    net, batch = trained.net_.eval(), _batch(trained, cells)
    with torch.no_grad():
        torch.manual_seed(0)
        found = net.joint_terms(batch, None, 0.3, 7.0)
        expected = found["nll"] + found["gap"] + 0.3 * found["kl"] + 7 * found["classification"]
        logits = net.classifier(net.encode(batch).z.mean)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-6)
    known = batch["label"] >= 0
    direct = torch.nn.functional.cross_entropy(logits[known], batch["label"][known])
    assert float(found["classification"]) == pytest.approx(float(direct), rel=1e-5)
    with torch.no_grad():
        none = net.joint_terms({**batch, "label": torch.full_like(batch["label"], -1)}, None, 1.0, 7.0)
    assert float(none["classification"]) == 0


def _batch(model: SCANVI, adata: ad.AnnData) -> dict[str, Any]:
    label = torch.from_numpy(model.fitted_["label"])
    return {**next(iter(Minibatches(model._cells(adata), None, shuffle=False))), "label": label}


def test_labelled_minibatches_follow_the_step_alone(cells):
    model = SCANVI(**SMALL, balance_labels=True, batch_size=32)
    arrays = model._take(Inputs(cells, ROLES), None)
    cycle = model._labelled(arrays)
    straight = [cycle.at(step)["index"].numpy() for step in range(20)]
    resumed = model._labelled(arrays)
    for step in (13, 14, 15, 2):
        np.testing.assert_array_equal(resumed.at(step)["index"].numpy(), straight[step])
    drawn = arrays["label"][np.concatenate(straight)]
    assert drawn.min() == 0  # never a cell without a label
    rare = cells.copy()
    rare.obs["known"] = np.where(
        (rare.obs["known"] == "type_1") & (np.arange(rare.n_obs) > 60), "Unknown", rare.obs["known"]
    )
    arrays = model._take(Inputs(rare, ROLES), None)
    drawn = arrays["label"][np.concatenate([model._labelled(arrays).at(step)["index"].numpy() for step in range(40)])]
    assert np.bincount(drawn).min() / len(drawn) > 0.2


def test_a_label_whose_only_cell_is_held_out_is_learnt(cells):
    lone = cells.copy()
    held_out = split(cells.n_obs, 0.9, 0)[1]
    labels = cells.obs["known"].to_numpy().copy()
    labels[held_out[0]] = "odd"
    lone.obs["known"] = labels
    model = SCANVI(**SMALL)
    arrays = model._take(Inputs(lone, ROLES), None)
    rows = model._labelled(arrays).batches.index
    assert held_out[0] in rows
    assert not np.isin(held_out[1:], rows).any()


OPTIONS = [
    {"library": "latent", "likelihood": "zinb", "linear_classifier": True},
    {"dispersion": "gene-batch", "n_layers": 2},
    {"latent_distribution": "ln", "encode_covariates": True, "balance_labels": True, "precision": "bf16-mixed"},
]


@pytest.mark.parametrize("params", OPTIONS)
def test_options(cells, tmp_path, params):
    model = fit(cells, epochs=3, **params)
    model.save(tmp_path / "model")
    loaded = tf.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.probabilities().to_numpy(), model.probabilities().to_numpy())
    assert np.isfinite(model.probabilities().to_numpy()).all()
    assert np.isfinite(model.elbo(cells))


def test_labels_that_cannot_be_used(cells):
    adata = cells.copy()
    adata.obs["known"] = np.where(np.arange(adata.n_obs) % 2, "Unknown", "type_1")
    with pytest.raises(DataError, match="a single label beside 'Unknown'"):
        fit(adata, epochs=2)
    adata.obs["known"] = cells.obs["known"].replace("Unknown", "unknown")
    with pytest.warns(UserWarning, match="Did you mean 'unknown'"):
        fit(adata, epochs=2)


def test_labels_that_follow_from_the_batch_are_named():
    adata = tf.data.simulate(120, 60, n_types=2, n_batches=2, seed=0)
    adata.obs["mine"] = adata.obs["batch"].astype(str)
    with pytest.warns(UserWarning, match="No label is found in two batches"):
        tf.integrate.SCANVI(epochs=1).fit(adata, batch="batch", labels="mine", progress=False)
    adata.obs.loc[adata.obs["batch"] == adata.obs["batch"].iloc[0], "mine"] = "Unknown"  # a query without labels
    adata.obs.loc[adata.obs_names[adata.obs["mine"] != "Unknown"][:20], "mine"] = "other"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tf.integrate.SCANVI(epochs=1).fit(adata, batch="batch", labels="mine", progress=False)
    assert not any("No label is found" in str(each.message) for each in told)
