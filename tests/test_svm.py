"""The linear support vector machine: scikit-learn's numbers, rejection, scarce labels, cells on disk."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import LinearSVC

import tenfold as tf
from tenfold.annotate.svm import SVM
from tenfold.data import streamed
from tenfold.data.dropout_genes import dropout_genes
from tenfold.data.preprocess import normalize_log1p


def fit(adata: ad.AnnData, **params) -> SVM:
    return SVM(**params).fit(adata, labels="cell_type", progress=False)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return tf.data.simulate(300, 120, n_types=4, type_strength=0.6, seed=2)


def test_probabilities_are_those_of_scikit_learn(cells):
    x, y = normalize_log1p(cells.X), cells.obs["cell_type"].astype(str)
    expected = CalibratedClassifierCV(LinearSVC(random_state=0)).fit(x, y).predict_proba(x)
    model = fit(cells, calibration=0.0)
    np.testing.assert_allclose(model.probabilities(), expected, atol=1e-5)
    assert list(model.probabilities().columns) == sorted(set(y))


@pytest.mark.parametrize("types", [2, 4])
def test_distances_are_those_of_scikit_learn(types):
    cells = tf.data.simulate(200, 80, n_types=types, seed=3)
    x, y = normalize_log1p(cells.X), cells.obs["cell_type"].astype(str)
    expected = LinearSVC(random_state=0).fit(x, y).decision_function(x)
    found = fit(cells, calibration=0.0, probability="margin").distances(x)[:, 0]
    expected = np.stack([-expected, expected], axis=1) if types == 2 else expected
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_benchmark_reads_raw_counts(cells):
    x, y = cells.X.copy(), cells.obs["cell_type"].astype(str)
    x.data = np.log1p(x.data)
    expected = CalibratedClassifierCV(LinearSVC(random_state=0)).fit(x, y).predict_proba(x)
    model = fit(cells, normalization="raw", rejection=0.7, calibration=0.0)
    np.testing.assert_allclose(model.probabilities(), expected, atol=1e-5)
    assert ((model.predict() == "Unknown") == (expected.max(axis=1) < 0.7)).all()


def test_new_types_are_rejected_more_than_known_ones():
    cells = tf.data.simulate(300, 200, n_types=4, type_strength=1.0, seed=2)
    new = (cells.obs["cell_type"].astype(str) == "type_1").to_numpy()
    train = ~new & (np.arange(300) % 3 > 0)
    model = fit(cells[train].copy(), rejection=0.7)
    unknown = model.predict(cells) == "Unknown"
    assert unknown[new].mean() > 3 * max(unknown[~new & ~train].mean(), 0.01)


def test_a_scarce_label_costs_the_others_nothing(cells):
    some = cells[(np.arange(300) % 2 == 0) | (cells.obs["cell_type"] != "type_4").to_numpy()].copy()
    names = some.obs["cell_type"].astype(str).to_numpy()
    rare = np.flatnonzero(names == "type_4")
    few = some[np.setdiff1d(np.arange(some.n_obs), rare[3:])].copy()
    model = fit(few)
    assert model.sigmoids_.shape == (5, 4, 2)
    np.testing.assert_allclose(model.sigmoids_[:, 3], model.sigmoids_[:, :3].mean(axis=1))
    found = model.predict(cells)
    truth = cells.obs["cell_type"].astype(str).to_numpy()
    assert (found == truth)[truth != "type_4"].mean() > 0.9
    alone = fit(few, probability="margin").predict(cells)  # the same planes without sigmoids
    mine = truth == "type_4"
    assert (found[mine] == "type_4").mean() > (alone[mine] == "type_4").mean() - 0.1


def test_genes_of_the_benchmark_are_those_missing_more_often_than_their_mean_explains(cells):
    dense = cells.X.toarray()
    logged = np.log2(1 + dense)
    mean, absent = logged.mean(axis=0), 100 * (dense == 0).mean(axis=0)
    usable = (absent > 0) & (absent < 100)
    line = np.polyfit(mean[usable], np.log2(absent[usable]), 1)
    residual = np.full(120, -np.inf)
    residual[usable] = np.log2(absent[usable]) - np.polyval(line, mean[usable])
    expected = np.sort(np.argsort(-residual, kind="stable")[:30])
    np.testing.assert_array_equal(dropout_genes(cells.X, 30, normalize=False), expected)
    model = fit(cells, normalization="raw", selection="dropout", n_top_genes=30)
    assert list(model.genes_) == list(cells.var_names[expected])


def test_cells_on_disk_get_the_same_labels(cells, tmp_path, monkeypatch):
    model = fit(cells)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(streamed, "LARGEST_LOADED", 0)
    monkeypatch.setattr(streamed, "AT_ONCE", 1000)
    stored = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    np.testing.assert_allclose(model.probabilities(stored), model.probabilities(cells), atol=1e-6)


def test_permuted_labels_teach_nothing(cells):
    shuffled = cells[:200].copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(shuffled.obs["cell_type"].astype(str))
    truth = cells.obs["cell_type"].astype(str).to_numpy()[200:]
    found = fit(shuffled).predict(cells[200:].copy())
    most = max((truth == name).mean() for name in set(truth))
    assert (found == truth).mean() < most + 0.12


def test_margins_are_as_sharp_as_those_that_were_calibrated():
    from tenfold.annotators.calibration import held_out

    adata = tf.data.simulate(400, 150, 4, 1, type_strength=0.5, batch_strength=0.0, seed=0)
    model = tf.annotate.SVM(probability="margin").fit(adata, labels="cell_type", progress=False)
    codes = np.unique(adata.obs["cell_type"].astype(str), return_inverse=True)[1]
    held = held_out(codes, None, 0.2, 0)
    part = tf.annotate.SVM(probability="margin", calibration=0.0)
    part.fit(adata[~held].copy(), labels="cell_type", progress=False)
    lengths = [float(np.linalg.norm(each.planes_)) for each in (part, model)]
    assert lengths[1] > 1.2 * lengths[0]
    assert part.sharpness_ == 1 and model.sharpness_ == pytest.approx(lengths[0] / lengths[1], rel=1e-3)
