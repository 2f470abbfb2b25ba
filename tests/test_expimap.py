"""expiMap: masks that hold, penalties that silence, a query that changes nothing, labels and enrichment."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

import tenfold as tf
from tenfold.annotate.expimap import ExpiMap
from tenfold.count_models.programs import bayes_factors, directions
from tenfold.errors import DataError, ParameterError, RoleError
from tenfold.nn.discrepancy import hsic
from tenfold.nn.proximal import ProximalAdam, shrink_entries, shrink_rows

QUICK: dict[str, Any] = {"n_hidden": 16, "kl_warmup_epochs": 2, "min_set_size": 5, "early_stopping": False}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return tf.data.simulate(n_cells=300, n_genes=90, n_types=3, n_batches=2, batch_strength=0.3, seed=0)


@pytest.fixture(scope="module")
def sets(adata) -> dict[str, Any]:
    genes = adata.var_names.tolist()
    return {"A": genes[:30], "B": genes[20:60], "C": genes[40:80]}


@pytest.fixture(scope="module")
def model(adata, sets) -> ExpiMap:
    return ExpiMap(epochs=8, **QUICK).fit(adata, batch="batch", labels="cell_type", pathways=sets, progress=False)


# ---- penalties -------------------------------------------------------------------------------------------------------


def test_proximal_operators_minimise_what_they_are_defined_by():
    torch.manual_seed(0)
    v = torch.randn(6, 4, dtype=torch.float64)
    t = torch.linspace(0, 4, 6, dtype=torch.float64)
    rows, entries = v.clone(), v.clone()
    shrink_rows(rows, t)
    shrink_entries(entries, t[:, None])
    assert (rows[-1] == 0).all() and (entries == 0).any() and torch.equal(rows[0], v[0])

    def of_rows(w):
        return 0.5 * (w - v).square().sum(1) + t * w.norm(dim=1)

    def of_entries(w):
        return 0.5 * (w - v).square() + t[:, None] * w.abs()

    for _ in range(50):  # both functions are convex: no step in any direction lowers them
        step = 0.01 * torch.randn_like(v)
        assert (of_rows(rows + step) >= of_rows(rows) - 1e-12).all()
        assert (of_entries(entries + step) >= of_entries(entries) - 1e-12).all()


def test_shrinking_follows_the_learning_rate():
    weight, seen = torch.nn.Parameter(torch.ones(2, 2)), []
    optimizer = ProximalAdam([weight], seen.append, lr=0.5)
    for rate in (0.5, 0.05):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert seen == [0.5, 0.05]


def test_hsic_is_its_definition_and_small_for_independent_variables():
    torch.manual_seed(0)
    x, y = torch.randn(60, 1), torch.randn(60, 3)

    def kernel(part):
        length = np.sqrt(2) * np.mean(
            np.linalg.norm(np.random.default_rng(0).normal(size=(200_000, part.shape[1])), axis=1)
        )
        return np.exp(-(np.square(part[:, None] - part[None]).sum(2)) / (2 * length**2))

    centred = np.eye(60) - 1 / 60
    k, m = kernel(x.numpy()), kernel(y.numpy())
    expected = np.sqrt(np.trace(centred @ k @ centred @ m) / 60**2)
    assert float(hsic(x, y)) == pytest.approx(expected, rel=0.01)
    assert float(hsic(x, y)) < 0.3 * float(hsic(x, torch.cat([x, x.square(), y[:, :1]], 1)))


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_weights_outside_a_hard_mask_are_exactly_zero_after_training(model):
    weight = model.net_.decoder.linear.weight.detach().numpy()
    assert weight.shape == model.mask_.shape and not model.mask_.all()
    assert (weight[~model.mask_] == 0).all() and (weight[model.mask_] != 0).any(axis=None)
    assert (model._weights()[~model.mask_] == 0).all()
    assert set(model.genes_) == {gene for genes in ("A", "B", "C") for gene in model.genes_of(genes)["gene"]}


def test_a_soft_mask_lets_genes_in_against_a_penalty(adata, sets):
    weak, strong = (
        ExpiMap(epochs=8, soft_mask=True, mask_l1=penalty, group_lasso=0.0, **QUICK)
        .fit(adata, pathways=sets, progress=False)
        for penalty in (0.0, 40.0)
    )  # fmt: skip
    outside = ~weak.mask_
    assert (weak._weights()[outside] != 0).mean() > 0.9
    assert (strong._weights()[outside] == 0).mean() > 0.9 and (strong._weights()[~outside] != 0).mean() > 0.9
    assert weak.genes_of("A")["in_set"].any() and not weak.genes_of("A")["in_set"].all()


def test_the_group_lasso_silences_whole_pathways(adata, sets):
    found = ExpiMap(epochs=8, group_lasso=1.0, penalty_weights={"B": 1000.0}, **QUICK)
    found.fit(adata, pathways=sets, progress=False)
    assert found.active_.tolist() == [True, False, True]
    assert found.embed().shape == (300, 2) and found.scores().columns.tolist() == ["A", "C"]
    assert (found._weights()[1] == 0).all()
    with pytest.raises(DataError, match="Lower group_lasso"):
        ExpiMap(epochs=8, group_lasso=1000.0, **QUICK).fit(adata, pathways=sets, progress=False)


# ---- a query ---------------------------------------------------------------------------------------------------------


def test_a_query_with_new_programmes_leaves_the_reference_as_it_is(adata, sets, model):
    query = tf.data.simulate(n_cells=120, n_genes=90, n_types=3, n_batches=1, seed=4)
    query.obs["batch"] = "new"
    extra = {"D": adata.var_names[60:80].tolist(), "free": None}
    mapped = model.map_query(query, epochs=4, pathways=extra, progress=False)
    assert mapped.programs_.tolist() == ["A", "B", "C", "D", "free"] and mapped.embed().shape[1] == 5
    before, after = model.posterior(adata), mapped.posterior(adata)
    assert np.array_equal(before["mean"], after["mean"][:, :3]) and np.array_equal(
        model._weights(), mapped._weights()[:3]
    )
    assert (mapped._weights()[3][~mapped.mask_[3]] == 0).all() and mapped.mask_[4].all()
    assert np.array_equal(mapped.net_.decoder.log_theta[:2].detach(), model.net_.decoder.log_theta.detach())
    assert set(mapped.history["term"]) >= {"dependence", "unweighted"}
    assert len(mapped.transfer_labels()) == 120 and (mapped.predict() == mapped.predict(query)).all()
    again = mapped.map_query(query, epochs=2, pathways={"more": None}, progress=False)
    assert again.programs_[-1] == "more" and np.array_equal(again._weights()[:5], mapped._weights())
    with pytest.raises(ParameterError, match="already"):
        model.map_query(query, epochs=2, pathways={"A": None}, progress=False)


def test_cells_of_an_unknown_batch_are_encoded_as_of_an_average_one(adata, model):
    net, told, _ = model._encoder_of(adata[:5])
    assert (told["levels"] < 2).all()
    strange = adata[:5].copy()
    strange.obs["batch"] = "elsewhere"
    assert (model._encoder_of(strange)[1]["levels"] == 2).all()
    table = net.encoder.hidden.layers[0].tables[0]
    torch.testing.assert_close(table[2], table[:2].mean(dim=0))
    assert len(model.predict(strange)) == 5
    with pytest.raises(DataError, match="elsewhere"):
        model.embed(strange)


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_bayes_factors_are_those_of_draws_from_the_posterior():
    rng = np.random.default_rng(0)
    mean, variance = (
        rng.normal(size=(40, 3)) + np.array([0, 2, 0]) * (np.arange(40) < 20)[:, None],
        np.full((40, 3), 0.5),
    )
    first = np.arange(40) < 20
    found = bayes_factors(mean, variance, first, ~first, 40_000, 0)
    draws = mean + rng.normal(size=(4000, 40, 3)) * np.sqrt(0.5)
    one, other = draws[:, :20].reshape(-1, 3), rng.permutation(draws[:, 20:].reshape(-1, 3))
    np.testing.assert_allclose(found["probability"], (one > other).mean(axis=0), atol=0.015)
    assert found["bayes_factor"].idxmax() == 1 and found["bayes_factor"][1] > 2
    weights = np.array([[3.0, -1.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.5, 0.0]])
    assert directions(weights).tolist() == [1, 0, -1] and directions(weights, "counts").tolist() == [-1, 0, 0]


def test_a_raised_pathway_comes_first(sets):
    rng = np.random.default_rng(0)
    raised = rng.random(400) < 0.5
    rate = np.ones((400, 90))
    rate[np.ix_(raised, np.arange(0, 20))] = 4.0
    cells = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    cells.obs["state"] = np.where(raised, "up", "down")
    names = cells.var_names
    found = ExpiMap(epochs=60, group_lasso=0.0, learning_rate=0.01, **QUICK)
    found.fit(cells, pathways={f"p{i}": names[10 * i : 10 * i + 20].tolist() for i in range(0, 8, 2)}, progress=False)
    table = found.enrichment(cells, "state", "up")
    assert table["program"][0] == "p0" and table["bayes_factor"][0] > 1
    assert found.enrichment(cells, "state", "up", "down")["probability"][0] == pytest.approx(
        table["probability"][0], abs=0.02
    )
    assert set(found.enrichment(cells, "state")["group"]) == {"up", "down"}
    with pytest.raises(ParameterError, match="Did you mean 'up'"):
        found.enrichment(cells, "state", "upp")


def test_labels_of_neighbours_and_permuted_labels_teach_nothing(adata):
    train, test = adata[:200].copy(), adata[200:].copy()
    truth = test.obs["cell_type"].astype(str).to_numpy()
    fitted = ExpiMap(epochs=60, learning_rate=0.01, **QUICK).fit(train, labels="cell_type", progress=False)
    assert (fitted.predict(test) == truth).mean() > 0.8
    assert fitted.predict_sets(test).contains.shape == (100, 3) and len(fitted.novelty(test)) == 100
    train.obs["cell_type"] = np.random.default_rng(0).permutation(train.obs["cell_type"].to_numpy())
    blind = ExpiMap(epochs=60, learning_rate=0.01, **QUICK).fit(train, labels="cell_type", progress=False)
    assert (blind.predict(test) == truth).mean() < 0.33 + 3 * np.sqrt(0.22 / 100)


def test_words_for_what_is_missing(adata, sets):
    silent = ExpiMap(epochs=1, **QUICK).fit(adata, pathways=sets, progress=False)
    with pytest.raises(RoleError, match="without labels"):
        silent.predict(adata)
    silent.write(adata.copy(), "integrate")
    with pytest.raises(ParameterError, match="Did you mean 'A'"):
        ExpiMap(epochs=1, penalty_weights={"a": 2.0}, **QUICK).fit(adata, pathways=sets, progress=False)
    with pytest.raises(DataError, match="organism"):
        ExpiMap(epochs=1, **QUICK).fit(adata, pathways={"X": ["Abc"] * 9}, progress=False)
    with pytest.raises(ParameterError, match="no programme"):
        silent.genes_of("Z")
