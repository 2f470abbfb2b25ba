"""Cells of types that the reference lacks: p-values, false discovery rate, and what confidence misses."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

import tenfold as tf
from tenfold.annotators.novelty import Detector, benjamini_hochberg, one_class_pvalues
from tenfold.errors import DataError


def test_pvalues_count_the_calibration():
    found = one_class_pvalues(np.array([0.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, [1.0, 0.75, 0.25])


def test_benjamini_hochberg_is_scipys():
    p = np.random.default_rng(0).random(200) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))


@pytest.fixture(scope="module")
def cells():
    return tf.data.simulate(2400, 200, n_types=5, n_batches=1, type_strength=1.2, depth=600, seed=1)


def parted(cells, seed):
    """Reference without type 5, and known and new cells to judge."""
    types = cells.obs["cell_type"].astype(str).to_numpy()
    known = np.random.default_rng(seed).permutation(np.flatnonzero(types != "type_5"))
    new = np.flatnonzero(types == "type_5")
    asked = np.concatenate([known[1000:], new])
    return cells[np.sort(known[:1000])].copy(), cells[asked].copy(), types[asked] == "type_5"


@pytest.fixture(scope="module")
def fitted(cells):
    reference, asked, new = parted(cells, 0)
    return tf.annotate.SVM(probability="margin").fit(reference, labels="cell_type", progress=False), asked, new


def test_a_new_type_is_found_and_known_cells_are_not(fitted):
    model, asked, new = fitted
    found = model.novelty(asked)
    assert roc_auc_score(new, found["score"]) > 0.95
    assert found["novel"][new].mean() > 0.9
    assert found["novel"][~new].sum() / found["novel"].sum() < 0.2


def test_the_false_discovery_rate_holds_on_average(cells):
    rates = []
    for seed in range(12):
        reference, asked, new = parted(cells, seed)
        codes = np.unique(reference.obs["cell_type"].astype(str), return_inverse=True)[1]
        data = tf.data.inputs.Inputs(reference, {})
        held = np.random.default_rng(seed).permutation(np.arange(1000) < 300)
        detector = Detector.of(data, codes, held)
        calls = detector.novelty(detector.embed(tf.data.inputs.Inputs(asked, {})), 0.1)["novel"].to_numpy()
        rates.append((calls & ~new).sum() / max(calls.sum(), 1))
    assert 0.02 < np.mean(rates) < 0.12


def test_known_cells_have_uniform_pvalues(fitted):
    model, asked, new = fitted
    pvalues = model.novelty(asked[np.flatnonzero(~new)].copy())
    for name in ("pvalue", "pvalue_distance", "pvalue_energy"):
        assert stats.kstest(pvalues[name], "uniform").statistic < 0.12


def test_a_saved_annotator_knows_what_is_new(fitted, tmp_path):
    model, asked, _ = fitted
    again = tf.load(model.save(tmp_path / "model"))
    assert again.novelty(asked).equals(model.novelty(asked))
    shuffled = asked[:, np.random.default_rng(0).permutation(asked.n_vars)].copy()
    np.testing.assert_allclose(again.novelty(shuffled)["distance"], model.novelty(asked)["distance"], rtol=1e-4)


def test_rare_labels_keep_their_cells(monkeypatch):
    from tenfold.annotators import novelty

    monkeypatch.setattr(novelty, "MOST_CELLS", 100)
    codes = np.repeat([0, 1], [990, 10])
    rows = novelty._sampled(np.arange(1000), codes, 0)
    assert len(rows) == 100 and (codes[rows] == 1).sum() == 10 and (np.diff(rows) > 0).all()


def test_two_labels_and_one(cells):
    few = cells[cells.obs["cell_type"].isin(["type_1", "type_2"])].copy()
    for codes in (few.obs["cell_type"].astype(str).eq("type_1").to_numpy().astype(int), np.zeros(few.n_obs, int)):
        data = tf.data.inputs.Inputs(few, {})
        detector = Detector.of(data, codes, np.arange(few.n_obs) % 4 == 0)
        assert np.isfinite(detector.novelty(detector.embed(data)).to_numpy(dtype=float)).all()


def test_without_held_out_cells_nothing_is_said(cells):
    model = tf.annotate.SVM(probability="margin", calibration=0.0).fit(cells, labels="cell_type", progress=False)
    with pytest.raises(DataError, match="conformalize"):
        model.novelty(cells)
