"""scANVI as an annotator: labels from a reference, of cells that come later, and how sure it is of them."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pytest

import tenfold as tf
from tenfold.annotators.calibration import Calibration
from tenfold.errors import DataError, KeyMissingError
from tenfold.integrate.scanvi import SCANVI

SMALL = {"n_latent": 5, "n_hidden": 32, "n_top_genes": None, "kl_warmup_epochs": 10, "learning_rate": 5e-3}


def fit(adata: ad.AnnData, reference: ad.AnnData | None, params: dict[str, Any] | None = None, **roles: Any) -> SCANVI:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Training ended")
        method = SCANVI(**{**SMALL, "epochs": 40, "joint_epochs": 20, **(params or {})})
        return method.fit(adata, reference=reference, labels="cell_type", progress=False, **roles)


@pytest.fixture(scope="module")
def parts() -> tuple[ad.AnnData, ad.AnnData, np.ndarray]:
    """A reference of two batches, a query of a third one without labels and with other genes too, and its truth."""
    adata = tf.data.simulate(900, 120, n_types=4, n_batches=3, batch_strength=0.3, type_strength=1.2, seed=2)
    adata.obs["age"] = np.arange(900.0)
    last = (adata.obs["batch"] == "batch_3").to_numpy()
    query = adata[last].copy()[:, ::-1].copy()
    truth = query.obs["cell_type"].astype(str).to_numpy()
    query.obs = query.obs.drop(columns="cell_type")
    return adata[~last, 10:].copy(), query, truth


@pytest.fixture(scope="module")
def model(parts) -> SCANVI:
    reference, query, _ = parts
    return fit(query, reference, batch="batch")


def test_labels_from_a_reference_reach_a_batch_of_its_own(parts, model):
    reference, query, truth = parts
    assert (model.predict() == truth).mean() > 0.9
    assert model.embed().shape == (query.n_obs, 5)
    assert len(model.reference_["mean"]) == reference.n_obs
    assert model.design_["batch"] == ["batch_1", "batch_2", "batch_3"]
    expression = model.denoise()
    assert expression.shape == query.shape  # in the genes of the query, of which the reference lacks ten
    assert np.isnan(expression[:, -10:]).all() and np.isfinite(expression[:, :-10]).all()


def test_cells_of_an_unknown_batch_with_missing_genes(parts, model):
    _, query, truth = parts
    later = query[:80, 20:].copy()
    later.obs["batch"] = "elsewhere"
    assert (model.predict(later) == truth[:80]).mean() > 0.8
    later.obs = later.obs[[]]
    model.write(later, "annotate")
    assert later.obs["scanvi_label"].notna().all()


def test_batches_where_no_column_names_them(parts):
    reference, query, _ = parts
    quick = {"epochs": 2, "joint_epochs": 2}
    assert fit(query, reference, quick).design_["batch"] == ["all", "reference"]
    bare = query.copy()
    bare.obs = bare.obs.drop(columns="batch")
    assert fit(bare, reference, quick, batch="batch").design_["batch"] == ["batch_1", "batch_2", "query"]
    bare.obs = bare.obs.drop(columns="age")
    with pytest.raises(KeyMissingError, match="'age'"):
        fit(bare, reference, quick, batch="batch", continuous_covariates="age")


def test_probabilities_are_tempered_by_held_out_cells(parts, model):
    reference, query, _ = parts
    calibration = Calibration(**model.calibration_)
    assert 60 <= len(calibration.codes) <= reference.n_obs // 5  # a tenth is held out, of reference and query together
    np.testing.assert_allclose(model.probabilities(), calibration.tempered(model._scores(model.fitted_["mean"])))
    assert Calibration(**fit(query, reference, {"epochs": 1, "train_fraction": 1.0}).calibration_).temperature == 1


def test_other_cells_of_the_same_names_are_not_the_fitted_ones(parts, model):
    _, query, _ = parts
    assert model._knows(query)
    other = query.copy()
    other.X = query.X[::-1].copy()
    assert not model._knows(other)


def test_an_encoder_that_is_told_the_batch_refuses_others(parts):
    reference, query, _ = parts
    told = fit(query, reference, {"epochs": 2, "encode_covariates": True}, batch="batch")
    assert len(told.predict(query)) == query.n_obs
    other = query.copy()
    other.obs["batch"] = "elsewhere"
    with pytest.raises(DataError, match="elsewhere"):
        told.predict(other)


def test_permuted_labels_teach_nothing(parts):
    reference, query, truth = parts
    shuffled = reference.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(shuffled.obs["cell_type"].astype(str))
    accuracy = (fit(query, shuffled, batch="batch").predict() == truth).mean()
    # Cells of a type share a fate, so that chance varies as if there were few cells.
    assert accuracy < 0.6


def test_sets_and_novelty_from_the_cells_that_training_held_out(parts, model):
    _, query, truth = parts
    sets = model.predict_sets(query, alpha=0.1)
    codes = [sets.contains.columns.get_loc(name) for name in truth]
    assert sets.contains.to_numpy()[np.arange(len(truth)), codes].mean() > 0.8
    assert sets.sizes.mean() < 2 and sets.n_calibration.sum() == len(model.calibration_["codes"])
    strange = query.copy()
    shuffled = query.X.toarray()[:, ::-1]  # cells of a kind that the reference has not
    strange.X = type(query.X)(shuffled)
    assert model.novelty(strange)["score"].mean() > model.novelty(query)["score"].mean() + 0.1
