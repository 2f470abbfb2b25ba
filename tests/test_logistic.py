"""Logistic regression: the minimum that scikit-learn finds, the vote of clusters, models of CellTypist."""

from __future__ import annotations

import os
import pickle
import sys
import types
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

import tenfold as tf
from tenfold.annotate.logistic import Logistic
from tenfold.annotators.one_vs_rest import Scaled, fit_one_vs_rest
from tenfold.annotators.voting import HETEROGENEOUS, fine_clusters, majority
from tenfold.data.cluster import leiden
from tenfold.data.graph import neighbor_graph
from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import normalize_log1p
from tenfold.errors import DataError, FileFormatError


def fit(adata: ad.AnnData, **params) -> Logistic:
    return Logistic(**params).fit(adata, labels="cell_type", progress=False)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return tf.data.simulate(300, 120, n_types=4, type_strength=0.8, seed=2)


def labels_of(adata: ad.AnnData) -> np.ndarray:
    return adata.obs["cell_type"].astype(str).to_numpy()


def scaled(adata: ad.AnnData) -> tuple[np.ndarray, StandardScaler]:
    dense = normalize_log1p(adata.X).toarray().astype(np.float64)
    scaler = StandardScaler().fit(dense)
    return np.minimum(scaler.transform(dense), 10), scaler


@pytest.mark.parametrize("types", [2, 4])
@pytest.mark.parametrize("density", ["sparse", "dense"])
def test_decisions_are_those_of_scikit_learn(types, density, monkeypatch):
    monkeypatch.setattr("tenfold.annotators.one_vs_rest.DENSE", 1.1 if density == "sparse" else 0.0)
    cells = tf.data.simulate(250, 90, n_types=types, type_strength=0.5, seed=1)
    z, y = scaled(cells)[0], labels_of(cells)
    model = fit(cells, calibration=0.0, tol=1e-7)
    found = model.decisions(normalize_log1p(cells.X))
    for column, name in enumerate(sorted(set(y))):
        expected = LogisticRegression(tol=1e-10, max_iter=10_000).fit(z, y == name).decision_function(z)
        np.testing.assert_allclose(found[:, column], expected, atol=2e-3)


def test_values_are_capped_above(cells):
    few = cells.copy()
    dense = few.X.toarray()
    dense[:, 0], dense[7, 0] = 0, 50  # one cell, so that it is 17 standard deviations above the mean
    few.X = sparse.csr_matrix(dense)
    z = scaled(few)[0]
    assert z[7, 0] == 10
    name = labels_of(few)[7]
    expected = LogisticRegression(tol=1e-10, max_iter=10_000).fit(z, labels_of(few) == name).decision_function(z)
    found = fit(few, calibration=0.0, tol=1e-7).decisions(normalize_log1p(few.X))
    np.testing.assert_allclose(found[:, int(name[-1]) - 1], expected, atol=2e-3)


def test_columns_that_end_early_are_not_touched_by_the_others(cells):
    x = normalize_log1p(cells.X)
    given = Scaled(x, np.zeros(x.shape[1]))
    targets = labels_of(cells)[:, None] == np.unique(labels_of(cells))
    together = fit_one_vs_rest(given, targets, 1.0, 1e-7, 500)
    alone = np.vstack([fit_one_vs_rest(given, targets[:, [k]], 1.0, 1e-7, 500) for k in range(targets.shape[1])])
    np.testing.assert_allclose(together, alone, atol=5e-3)


def test_a_second_fit_reads_the_genes_with_the_largest_weights(cells):
    model = fit(cells, genes_per_label=10)
    used = (model.weights_ != 0).any(axis=0)
    assert 10 <= used.sum() <= 40
    assert (model.predict() == labels_of(cells)).mean() > 0.9


def test_missing_genes_count_as_mean(cells):
    model = fit(cells)
    some = cells[:, 10:].copy()
    x = normalize_log1p(some.X)
    wide = sparse.hstack([sparse.csr_matrix(np.tile(model.means_[:10], (300, 1))), x], format="csr")
    expected = model.decisions(wide)
    probabilities = model.sigmoid_probabilities(some)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-expected)), atol=1e-4)


def test_every_label_that_is_probable(cells):
    model = fit(cells, mode="all", calibration=0.0)
    alone = model.sigmoid_probabilities(cells).to_numpy()
    told = model.predict(cells)
    for row in range(0, 300, 7):
        expected = "|".join(np.array(sorted(set(labels_of(cells))))[alone[row] > 0.5]) or "Unassigned"
        assert told[row] == expected
    strict = fit(cells, mode="all", threshold=1.0)
    assert set(strict.predict(cells)) == {"Unassigned"}


# ---- the vote --------------------------------------------------------------------------------------------------------


def test_majority_of_a_hand_made_table():
    labels = np.array(["a", "a", "b", "b", "c", "a", "c", "d"])
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    expected = ["a", "a", "a", "b", "b", "a", "a", "a"]  # ties go to the first by name
    assert list(majority(labels, clusters)) == expected
    strict = majority(labels, clusters, min_share=0.5)
    assert list(strict) == [*expected[:5], HETEROGENEOUS, HETEROGENEOUS, HETEROGENEOUS]


def test_vote_in_given_clusters(cells):
    voting = cells.copy()
    voting.obs["mine"] = pd.Categorical(np.where(np.arange(300) < 20, "x", labels_of(cells)))
    model = Logistic(seed=1)
    with pytest.warns(UserWarning, match="changed the label of"):
        model.fit(voting, labels="cell_type", clusters="mine", progress=False)
    table = model.votes(voting)
    assert table["voted"][:20].nunique() == 1
    changed = (table["voted"] != table["alone"]).to_numpy()
    assert changed.any() and not changed[20:].all()
    with pytest.warns(UserWarning, match="changed"):
        np.testing.assert_array_equal(model.predict(voting), table["voted"])
    np.testing.assert_array_equal(model.predict(), table["voted"])


def test_small_data_do_not_vote_and_large_do(cells):
    model = fit(cells[:200].copy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(cells)
    many = tf.data.simulate(2100, 120, n_types=4, type_strength=0.3, seed=2)
    with pytest.warns(UserWarning, match="changed the label"):
        voted = model.predict(many)
    model.voting = "off"
    alone = model.predict(many)
    model.voting = "auto"
    np.testing.assert_array_equal(voted, majority(alone, fine_clusters(Inputs(many, {}), 0)))


def test_clusters_of_scaled_genes_are_those_of_z_scores(cells):
    """What CellTypist clusters: z-scores, cut at 10, of genes that five cells express."""
    data = Inputs(cells, {})
    dense = data.lognorm.toarray()
    dense = dense[:, (dense > 0).sum(axis=0) >= 5]
    z = np.minimum((dense - dense.mean(axis=0)) / np.maximum(dense.std(axis=0), 1e-6), 10)
    points = PCA(50, svd_solver="full").fit_transform(z)
    expected = leiden(neighbor_graph(points.astype(np.float32), 10, seed=0).connectivities, 5.0, 0)
    found = fine_clusters(data, 0, scaled=True)
    assert adjusted_rand_score(expected, found) > 0.95
    assert adjusted_rand_score(fine_clusters(data, 0), found) < 0.95

    model = Logistic(voting="on", scale_clusters=True)
    with pytest.warns(UserWarning, match="changed the label"):
        model.fit(cells, labels="cell_type", progress=False)
    np.testing.assert_array_equal(model.votes(cells)["cluster"], found)


# ---- models of CellTypist --------------------------------------------------------------------------------------------


def official(adata: ad.AnnData, types: int = 4) -> dict:
    z, scaler = scaled(adata)
    y = labels_of(adata)
    model = LogisticRegression(max_iter=1000).fit(z, y)
    if types > 2:  # what multi_class="ovr" gave
        each = [LogisticRegression(max_iter=1000).fit(z, y == name) for name in model.classes_]
        model.coef_ = np.vstack([one.coef_ for one in each])
        model.intercept_ = np.concatenate([one.intercept_ for one in each])
    model.features = np.asarray(adata.var_names, dtype=object)
    return {"Model": model, "Scaler_": scaler, "description": {"date": "today", "number_celltypes": types}}


@pytest.mark.parametrize("types", [2, 4])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_model_of_celltypist(types, protocol, tmp_path):
    cells = tf.data.simulate(300, 120, n_types=types, type_strength=0.8, seed=2)
    holder = official(cells, types)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(holder, protocol=protocol))
    model = Logistic.from_celltypist(tmp_path / "model.pkl", voting="off")
    z = scaled(cells)[0]
    decisions = z @ holder["Model"].coef_.T + holder["Model"].intercept_
    decisions = np.hstack([-decisions, decisions]) if types == 2 else decisions
    np.testing.assert_allclose(model.decisions(normalize_log1p(cells.X)), decisions, atol=1e-3)
    np.testing.assert_array_equal(model.predict(cells), holder["Model"].classes_[decisions.argmax(axis=1)])
    model.save(tmp_path / "ours")
    np.testing.assert_array_equal(tf.load(tmp_path / "ours").predict(cells), model.predict(cells))
    model.write(cells)
    assert "logistic_label" in cells.obs
    with pytest.raises(DataError, match="another tool trained"):
        model.novelty(cells)
    with pytest.raises(DataError, match="another tool trained"):
        model.predict_sets(cells)


class _Malicious:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call", [(os.system, ("touch {}",)), (eval, ("open('{}', 'w')",)), (exec, ("open('{}', 'w')",))]
)
def test_a_pickle_that_would_run_something_is_refused(call, tmp_path):
    ran = tmp_path / "ran"
    poison = _Malicious(call[0], (call[1][0].format(ran),))
    for content in (poison, {"Model": poison, "Scaler_": None}):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(FileFormatError, match="run programs"):
            Logistic.from_celltypist(tmp_path / "model.pkl")
        assert not ran.exists()


def test_a_class_that_calls_itself_scikit_learns_is_not_loaded(tmp_path, monkeypatch):
    ran = []
    module = types.ModuleType("sklearn.made_up")

    class Trap:
        def __setstate__(self, state):
            ran.append(state)

        def __getstate__(self):
            return {"coef_": 1}

    Trap.__module__, Trap.__qualname__ = "sklearn.made_up", "Trap"
    module.Trap = Trap
    monkeypatch.setitem(sys.modules, "sklearn.made_up", module)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"Model": Trap(), "Scaler_": Trap()}))
    with pytest.raises(FileFormatError, match="no CellTypist model"):
        Logistic.from_celltypist(tmp_path / "model.pkl")
    assert not ran


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "other", "sizes"])
def test_other_files_are_named(cells, damage, tmp_path):
    path, holder = tmp_path / "model.pkl", official(cells)
    if damage == "sizes":
        holder["Model"].features = holder["Model"].features[:-1]
    content = {"text": b"a,b\n1,2\n", "other": pickle.dumps([1, 2]), "cut": pickle.dumps(holder)[:-200]}
    if damage != "missing":
        path.write_bytes(content.get(damage, pickle.dumps(holder)))
    with pytest.raises(FileFormatError, match=r"model\.pkl"):
        Logistic.from_celltypist(path)


def test_permuted_labels_teach_nothing(cells):
    shuffled = cells[:200].copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(labels_of(shuffled))
    truth = labels_of(cells)[200:]
    found = fit(shuffled).predict(cells[200:].copy())
    assert (found == truth).mean() < max((truth == name).mean() for name in set(truth)) + 0.12
