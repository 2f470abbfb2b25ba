"""scGen: shifts of cell types in latent space, predictions beside their baselines."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

import tenfold as tf
from tenfold.errors import DataError, ParameterError
from tenfold.integrate.scgen import SCGen

ROLES = {"batch": "batch", "labels": "cell_type", "progress": False}
QUICK = {"epochs": 20, "batch_size": 30, "n_hidden": 32, "n_latent": 8, "learning_rate": 5e-3, "n_top_genes": 50}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Three types, the third in the first batch only, of two batches of unequal proportions."""
    shares = [[2, 1, 1], [1, 2, 0]]
    return tf.data.simulate(300, 60, n_types=3, n_batches=2, batch_strength=0.6, proportions=shares, depth=300, seed=0)


@pytest.fixture(scope="module")
def model(cells) -> SCGen:
    return SCGen(**QUICK).fit(cells, **ROLES)


def test_each_type_is_moved_to_the_batch_with_most_of_it(cells, model):
    label, batch = (cells.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    z = model.fitted_["z"] - model.shift_[label, batch]
    for kind, name in enumerate(model._design.labels):
        inside = [np.flatnonzero((label == kind) & (batch == b)) for b in range(2)]
        most = int(np.argmax([len(rows) for rows in inside]))
        assert model.reference_[kind] == f"batch_{most + 1}"
        for b, rows in enumerate(inside):
            if not len(rows):
                continue
            expected = z[inside[most]].mean(0) - z[rows].mean(0) if len(inside[1 - b]) else 0
            np.testing.assert_allclose(model.shift_[kind, b], expected + np.zeros(8), atol=1e-5, err_msg=name)
    assert not model.shift_[2].any()  # a type of one batch stays


def test_the_embedding_is_that_of_the_corrected_expression(cells, model):
    corrected = torch.from_numpy(model.correct()[:, model.columns_])
    with torch.no_grad():
        expected = model.net_.encoder(corrected).mean.numpy()
    np.testing.assert_allclose(model.embed(), expected, atol=1e-5)


def test_batches_are_mixed_within_types(cells, model):
    batch = cells.obs["batch"].cat.codes.to_numpy()
    label = cells.obs["cell_type"].cat.codes.to_numpy()
    before = model.fitted_["z"] - model.shift_[label, batch]

    def gap(z: np.ndarray) -> float:
        inside = [z[(label == 0) & (batch == b)] for b in range(2)]
        return float(np.linalg.norm(inside[0].mean(0) - inside[1].mean(0)) / np.linalg.norm(z.std(0)))

    assert gap(model.embed()) < 0.4 * gap(before)


def test_new_cells_take_the_shifts_of_their_type_and_batch(cells, model):
    np.testing.assert_allclose(model.embed(cells[100:200].copy()), model.embed()[100:200], atol=1e-5)
    np.testing.assert_allclose(model.expression(cells[:9].copy()), model.correct()[:9], atol=1e-5)
    other = cells[:5].copy()
    other.obs["cell_type"], other.obs["batch"] = "type_3", "batch_2"
    with pytest.warns(UserWarning, match="5 cells are of a type that the model has not seen in their batch"):
        model.embed(other)
    other.obs["cell_type"] = "type_9"
    with pytest.raises(DataError, match="type_9"):
        model.embed(other)


def test_transform_batch_is_refused(model):
    with pytest.raises(ParameterError, match="leave transform_batch="):
        model.expression(transform_batch="batch_1")


def test_labels_that_no_two_batches_share_are_warned_of(cells):
    adata = cells.copy()
    adata.obs["cell_type"] = adata.obs["batch"].astype(str) + adata.obs["cell_type"].astype(str)
    with pytest.warns(UserWarning, match="nothing that scGen could match"):
        alone = SCGen(**{**QUICK, "epochs": 1}).fit(adata, **ROLES)
    assert not alone.shift_.any()


def test_a_prediction_is_the_decoded_shift_beside_its_baselines(cells, model):
    found = model.predict_perturbation("batch_1", "batch_2", "type_1")
    label, batch = (cells.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    z = model.fitted_["z"] - model.shift_[label, batch]
    expected = z[(label == 1) & (batch == 1)].mean(0) - z[(label == 1) & (batch == 0)].mean(0)
    np.testing.assert_allclose(found.delta, expected, atol=1e-5)  # of type 2 alone: 1 is the target, 3 has no response
    rows = np.flatnonzero((label == 0) & (batch == 0))
    np.testing.assert_array_equal(found.cells.obs["template"], rows)
    with torch.no_grad():
        decoded = model.net_.decoder.scale(torch.from_numpy(z[rows] + expected)).numpy()
    np.testing.assert_allclose(found.cells.X, decoded, atol=1e-4)
    lognorm = tf.data.inputs.Inputs(cells, {}).lognorm.toarray()[:, model.columns_]
    control = lognorm[rows].mean(0)
    shift = lognorm[(label == 1) & (batch == 1)].mean(0) - lognorm[(label == 1) & (batch == 0)].mean(0)
    np.testing.assert_allclose(found.means["control"], control, atol=1e-5)
    np.testing.assert_allclose(found.means["control_plus_shift"], control + shift, atol=1e-5)
    np.testing.assert_allclose(found.means["predicted"], decoded.mean(0), atol=1e-4)
    again = model.predict_perturbation("batch_1", "batch_2", adata=cells[rows].copy(), types=["type_2"])
    np.testing.assert_allclose(again.cells.X, found.cells.X, atol=1e-4)
    np.testing.assert_allclose(again.means, found.means, atol=1e-4)


def test_the_original_counts_types_of_one_condition_as_response(cells, model):
    found = model.predict_perturbation("batch_1", "batch_2", "type_3", as_reference=True)
    label, batch = (cells.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    z = model.fitted_["z"] - model.shift_[label, batch]
    means = {(t, b): z[(label == t) & (batch == b)].mean(0) for t, b in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1))}
    expected = (means[0, 1] + means[1, 1]) / 2 - (means[0, 0] + means[1, 0] + means[2, 0]) / 3
    np.testing.assert_allclose(found.delta, expected, atol=1e-5)


def test_what_cannot_be_predicted_is_named(cells, model):
    with pytest.raises(ParameterError, match="Did you mean 'batch_2'"):
        model.predict_perturbation("batch_1", "batch2", "type_1")
    with pytest.raises(ParameterError, match="There is no type 'typ_1'"):
        model.predict_perturbation("batch_1", "batch_2", "typ_1")
    with pytest.raises(ParameterError, match="either cell_type="):
        model.predict_perturbation("batch_1", "batch_2")
    with pytest.raises(DataError, match="no cells of 'type_3' in 'batch_2'"):
        model.predict_perturbation("batch_2", "batch_1", "type_3")
    with pytest.raises(DataError, match="No type that a response"):
        model.predict_perturbation("batch_1", "batch_2", "type_1", types=["type_3"])
