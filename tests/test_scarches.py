"""scArches: what is reference, what is query, and what comes of each (the surgery itself: test_surgery)."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pytest

import tenfold as tf
from tenfold.embed import SCVI
from tenfold.errors import DataError, ParameterError, RoleError
from tenfold.integrate._trial import BATCH, Trial
from tenfold.integrate.scarches import PRESET, ScArches

SMALL = {"n_latent": 5, "n_hidden": 32, "n_top_genes": None, "epochs": 4}
ROLES = {"batch": "batch", "labels": "cell_type"}


def fit(adata: ad.AnnData, roles: dict[str, str] = ROLES, **params: Any) -> ScArches:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ScArches(**{**SMALL, **params}).fit(adata, progress=False, **roles)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Batches of 300, 200 and 100 cells."""
    adata = tf.data.simulate(
        900, 80, n_types=3, n_batches=3, batch_strength=0.3, type_strength=2.0, depth=500.0, seed=1
    )
    rows = [np.flatnonzero(adata.obs["batch"] == f"batch_{i}")[: 300 - 100 * (i - 1)] for i in (1, 2, 3)]
    return adata[np.sort(np.concatenate(rows))].copy()


def test_it_is_the_base_model_with_the_query_mapped(cells):
    method = fit(cells, query_epochs=3)
    query = (cells.obs["batch"] != "batch_1").to_numpy()  # half of the cells are in batch_1
    np.testing.assert_array_equal(method.query_, np.flatnonzero(query))
    assert method.model.design_["batch"] == ["batch_1", "batch_2", "batch_3"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SCVI(**SMALL, n_layers=2, dropout=0.2, kl_warmup_epochs=2, learning_rate=1e-3, **PRESET)
        model.fit(cells[~query].copy(), progress=False, **ROLES)
    np.testing.assert_array_equal(method.embed()[~query], model.embed())
    mapped = model.map_query(cells[query].copy(), epochs=3, progress=False)
    np.testing.assert_array_equal(method.embed()[query], mapped.embed())
    np.testing.assert_allclose(method.embed(cells), method.embed(), atol=1e-5)
    assert method.model.denoise().shape == (query.sum(), 80)


def test_the_kl_weight_has_risen_at_half_of_the_epochs(cells):
    assert fit(cells, epochs=4).model.parameters["kl_warmup_epochs"] == 2
    many = ScArches(base="trvae")._untrained(500)
    assert (many.epochs_for(500), many.kl_warmup_epochs) == (400, 100)
    model = ScArches()._untrained(100_000)
    assert (model.epochs, model.kl_warmup_epochs) == (80, 40)


def test_which_batches_are_the_reference(cells):
    assert fit(cells, reference_batches=["batch_3", "batch_2"]).model.design_["batch"][2] == "batch_1"
    few = cells[cells.obs["batch"] != "batch_1"].copy()
    assert fit(few).model.design_["batch"] == ["batch_2", "batch_3"]
    with pytest.raises(ParameterError, match="Did you mean 'batch_3'"):
        fit(cells, reference_batches=["batch_33"])
    with pytest.raises(ParameterError, match="not all and not none"):
        fit(cells, reference_batches=["batch_1", "batch_2", "batch_3"])
    with pytest.raises(RoleError, match="needs batch="):
        fit(cells, {})
    with pytest.raises(RoleError, match="base='scanvi' needs labels"):
        fit(cells, {"batch": "batch"}, base="scanvi")
    one = cells[cells.obs["batch"] == "batch_1"].copy()
    with pytest.raises(DataError, match="single level"):
        fit(one)


def test_onto_a_saved_reference(cells, tmp_path):
    first, second = (cells[(cells.obs["batch"] == name).to_numpy()].copy() for name in ("batch_1", "batch_2"))
    model = fit(cells[cells.obs["batch"] != "batch_3"].copy(), query_epochs=3)
    model.save(tmp_path / "mapped")
    third = cells[cells.obs["batch"] == "batch_3"].copy()
    onto = fit(third, {"batch": "batch"}, reference=str(tmp_path / "mapped"), query_epochs=3)
    assert onto.embed().shape == (100, 5)
    assert onto.model.design_["batch"] == ["batch_1", "batch_2", "batch_3"]
    for part in (first, second):
        np.testing.assert_array_equal(onto.embed(part), model.embed(part))
    assert len(onto.transfer_labels()) == 100  # labels of the first reference, which is not here
    known = fit(second, {"batch": "batch"}, reference=str(tmp_path / "mapped"))
    np.testing.assert_array_equal(known.embed(), model.embed(second))
    tf.integrate.Harmony().fit(cells, batch="batch", progress=False).save(tmp_path / "harmony")
    with pytest.raises(ParameterError, match="Harmony, which has no batches to add"):
        fit(third, reference=str(tmp_path / "harmony"))


@pytest.mark.parametrize("base", ["scanvi", "trvae"])
def test_other_bases(cells, tmp_path, base):
    method = fit(cells, base=base, query_epochs=2)
    method.save(tmp_path / "model")
    loaded = tf.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.embed(), method.embed())
    np.testing.assert_array_equal(loaded.embed(cells), method.embed(cells))
    query = cells[method.query_].copy()
    np.testing.assert_array_equal(loaded.model.denoise(query), method.model.denoise(query))
    assert loaded.model.name() == base
    if base == "scanvi":
        assert (method.model.fitted_["label"] == -1).all()  # the query's labels are not seen


def test_labels_of_the_query(cells):
    method = fit(cells, epochs=60, query_epochs=20, learning_rate=5e-3)
    table = method.transfer_labels()
    truth = cells.obs["cell_type"].to_numpy()
    assert (table["label"].to_numpy() == truth[table.index]).mean() > 0.9
    reference = np.setdiff1d(np.arange(cells.n_obs), method.query_)
    again = fit(cells, {"batch": "batch"}, epochs=60, query_epochs=20, learning_rate=5e-3)
    assert again.transfer_labels(truth[reference]).equals(table)
    assert again.transfer_labels(truth[reference], error=0.3)["unknown"].sum() > table["unknown"].sum()


def test_a_reference_of_scanvi_is_given_the_labels_by_a_comparison(cells):
    adata = cells.copy()
    adata.obs[BATCH] = adata.obs["batch"]
    assert not ScArches().info.sees_labels and not ScArches.info.sees_labels
    trial = Trial(lambda seed: ScArches(base="scanvi", **SMALL, query_epochs=2, seed=seed), labels="cell_type")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = trial.fit(adata, batch=True, seed=0)
    assert method.info.sees_labels and method.roles_["labels"] == "cell_type"
    assert SCVI(dispersion="gene-label").info.sees_labels and not SCVI().info.sees_labels


def test_a_batch_of_one_cell_in_the_query_is_warned_of(cells):
    adata = cells.copy()
    names = adata.obs["batch"].astype(str).to_numpy().copy()
    names[-1] = "lone"
    adata.obs["batch"] = names
    with pytest.warns(UserWarning, match="'lone' has a single cell"):
        ScArches(**{**SMALL, "epochs": 1}, query_epochs=1).fit(adata, progress=False, batch="batch")
