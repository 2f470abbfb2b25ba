"""Prediction sets: the promise they make, where it holds and where it does not, on arrays and through annotators."""

import math

import anndata as ad
import numpy as np
import pytest

import tenfold as tf
from tenfold.annotators import conformal
from tenfold.annotators.sets import EMPTY
from tenfold.errors import DataError, ParameterError

LABELS = 5


def drawn(n, rng, noise=1.0):
    """Probabilities of an annotator that is right on average, and true labels."""
    codes = rng.integers(0, LABELS, n)
    logits = 2.0 * np.eye(LABELS)[codes] + noise * rng.standard_normal((n, LABELS))
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True), codes


def of_truth(scores, codes):
    return scores[np.arange(len(codes)), codes]


def coverage(method, alpha, repeats=200, n=300):
    """Mean coverage over repeats, and mean coverage of the worst label."""
    hits, sizes = [], []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        (p, codes), (q, truth) = drawn(n, rng), drawn(200, rng)
        kind = method if method in ("aps", "raps") else "lac"
        known = of_truth(conformal.nonconformity(p, kind, rng.random(n)), codes)
        asked = conformal.nonconformity(q, kind, rng.random(200))
        if method == "mondrian":
            limit = conformal.class_thresholds(known, codes, LABELS, alpha)
        elif method == "weighted":
            limit = conformal.weighted_thresholds(known, np.ones(n), np.ones(200), alpha)[:, None]
        else:
            limit = conformal.threshold(known, alpha)
        sets = asked <= limit
        hits.append(of_truth(sets, truth).mean())
        sizes.append(sets.sum(axis=1).mean())
    return np.mean(hits), np.mean(sizes)


@pytest.mark.parametrize("method", ["lac", "aps", "weighted"])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_coverage_is_nominal_over_200_repeats(method, alpha):
    assert coverage(method, alpha)[0] == pytest.approx(1 - alpha, abs=0.015)


@pytest.mark.parametrize("method", ["raps", "mondrian"])
def test_coverage_is_at_least_nominal(method):
    found, _ = coverage(method, 0.1)
    assert 0.885 <= found <= 0.93  # of classes of 60 cells, ceil(61 * 0.9) / 61 = 0.902 is promised


def test_sets_shrink_with_alpha():
    rng = np.random.default_rng(0)
    p, codes = drawn(500, rng)
    q, _ = drawn(300, rng)
    for kind in ("lac", "aps", "raps"):
        known = of_truth(conformal.nonconformity(p, kind, rng.random(500)), codes)
        asked = conformal.nonconformity(q, kind, rng.random(300))
        before = np.ones_like(asked, dtype=bool)
        for alpha in (0.02, 0.05, 0.1, 0.3):
            now = asked <= conformal.threshold(known, alpha)
            assert not (now & ~before).any() and now.sum() < before.sum()
            before = now


def test_threshold_is_the_right_order_statistic():
    scores = np.random.default_rng(0).permutation(np.arange(1, 10)) / 10
    assert conformal.threshold(scores, 0.1) == 0.9  # 9 = ceil(10 * 0.9)-th of 9
    assert conformal.threshold(scores, 0.5) == 0.5
    assert conformal.threshold(scores[:8], 0.1) == math.inf
    with pytest.raises(ParameterError, match="between 0 and 1"):
        conformal.threshold(scores, 1.0)


def test_aps_adds_what_lies_above():
    p = np.array([[0.5, 0.2, 0.3]])
    np.testing.assert_allclose(conformal.nonconformity(p, "aps", np.array([0.5])), [[0.25, 0.9, 0.65]])
    raps = conformal.nonconformity(p, "raps", np.array([0.5]))
    np.testing.assert_allclose(raps, [[0.25, 0.9 + conformal.PENALTY, 0.65]])


def test_labels_of_equal_probability_are_treated_alike():
    p = np.array([[0.25, 0.25, 0.25, 0.25]])
    assert len(np.unique(conformal.nonconformity(p, "aps", np.array([0.3])))) == 1


def test_ties_are_broken_at_random():
    """An annotator that always says the same would otherwise give all labels or none."""
    p = np.full((400, 4), 0.25)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 400)
    known = of_truth(conformal.nonconformity(p, "aps", rng.random(400)), codes)
    asked = conformal.nonconformity(p, "aps", rng.random(400)) <= conformal.threshold(known, 0.1)
    assert of_truth(asked, codes).mean() == pytest.approx(0.9, abs=0.04)


def test_a_label_without_cells_is_in_every_set():
    rng = np.random.default_rng(0)
    p, codes = drawn(300, rng)
    codes = np.where(codes == 3, 2, codes)
    limits = conformal.class_thresholds(of_truth(1 - p, codes), codes, LABELS, 0.1)
    assert np.isinf(limits[3]) and np.isfinite(limits[[0, 1, 2, 4]]).all()


def test_mondrian_mends_the_label_that_lac_misses():
    rng = np.random.default_rng(1)

    def cells(n):
        p, codes = drawn(n, rng)
        hard = codes == 0
        p[hard] = p[hard][:, [1, 0, 2, 3, 4]]  # an annotator that hardly ever sees label 0
        return p, codes

    (p, codes), (q, truth) = cells(2000), cells(4000)
    known = of_truth(1 - p, codes)
    rare = truth == 0
    lac = of_truth(1 - q <= conformal.threshold(known, 0.2), truth)[rare].mean()
    mondrian = of_truth(1 - q <= conformal.class_thresholds(known, codes, LABELS, 0.2), truth)[rare].mean()
    assert lac < 0.5 and mondrian == pytest.approx(0.8, abs=0.04)


def test_labels_that_are_alike_share_a_threshold():
    rng = np.random.default_rng(0)
    n_labels, easy = 12, 6
    codes = np.repeat(np.arange(n_labels), 400)
    scores = np.where(codes < easy, rng.beta(1, 9, len(codes)), rng.beta(9, 1, len(codes)))
    limits, grouping = conformal.clustered_thresholds(scores, codes, n_labels, 0.1)
    assert len(np.unique(grouping)) > 1 and not set(grouping[:easy]) & set(grouping[easy:])
    assert limits[:easy].max() < 0.5 < limits[easy:].min()
    few, alone = conformal.clustered_thresholds(scores[::100], codes[::100], n_labels, 0.1)
    assert (alone == -1).all() and len(np.unique(few)) == 1


def test_a_new_group_is_covered_where_groups_differ():
    """Scores shift between donors: the marginal threshold misses, that of groups holds on average over donors."""
    marginal, grouped = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shifts = rng.normal(0, 2, 31)
        groups = np.repeat(np.arange(30), np.where(np.arange(30) < 3, 300, 20))
        scores = shifts[groups] + rng.standard_normal(len(groups))
        fresh = shifts[30] + rng.standard_normal(200)
        value, promised = conformal.group_threshold(scores, groups, 0.1)
        assert promised
        grouped.append((fresh <= value).mean())
        marginal.append((fresh <= conformal.threshold(scores, 0.1)).mean())
    assert np.mean(grouped) >= 0.88 > np.mean(marginal) - 0.02


def test_few_groups_promise_nothing():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], 50)
    scores = rng.random(150) + groups
    value, promised = conformal.group_threshold(scores, groups, 0.1)
    assert not promised and value == conformal.threshold(scores[groups == 2], 0.1)


def test_weights_restore_coverage_when_hard_cells_are_more_frequent():
    plain, weighted, sizes = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        known, asked = rng.normal(0, 1, (800, 2)), rng.normal([1.0, 0.0], 1, (800, 2))
        scores, truth = (np.abs(rng.standard_normal(800)) * np.exp(x[:, 0]) for x in (known, asked))
        weights, own = conformal.density_ratio(known, asked)
        plain.append((truth <= conformal.threshold(scores, 0.1)).mean())
        weighted.append((truth <= conformal.weighted_thresholds(scores, weights, own, 0.1)).mean())
        sizes.append(conformal.effective_size(weights))
    assert np.mean(plain) < 0.8 and np.mean(weighted) == pytest.approx(0.9, abs=0.03)
    assert 100 < np.mean(sizes) < 700


def test_shift_is_seen_only_where_there_is_some():
    same = [conformal.shift(*np.random.default_rng(s).standard_normal((2, 300)))[1] for s in range(200)]
    assert np.mean(np.array(same) < 0.05) < 0.1
    rng = np.random.default_rng(0)
    assert conformal.shift(rng.standard_normal(300), rng.standard_normal(300) + 0.5)[1] < 1e-4


def test_sets_of_clusters_are_what_nearly_all_cells_say():
    contains = np.array([[1, 0], [1, 0], [1, 1], [0, 1], [1, 1]], dtype=bool)
    found = conformal.cluster_sets(contains, np.array([0, 0, 0, 1, 1]), 3, beta=0.4)
    np.testing.assert_array_equal(found, [[True, False], [False, True], [False, False]])


# ---- through annotators ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells():
    """Cells that hardly differ between types, in four batches without an effect."""
    return tf.data.simulate(1600, 150, n_types=4, n_batches=4, type_strength=0.5, batch_strength=0.0, seed=3)


@pytest.fixture(scope="module")
def parts(cells):
    order = np.random.default_rng(0).permutation(1600)
    return [cells[np.sort(rows)].copy() for rows in np.array_split(order, 4)]


@pytest.fixture(scope="module")
def model(parts):
    return tf.annotate.SVM().fit(parts[0], labels="cell_type", progress=False)


def covered(sets, adata):
    places = sets.contains.columns.get_indexer(adata.obs["cell_type"].astype(str))
    return sets.contains.to_numpy()[np.arange(adata.n_obs), places].mean()


@pytest.mark.parametrize("method", ["lac", "aps", "raps", "mondrian", "clustered", "weighted"])
def test_sets_of_an_annotator_hold_the_truth(parts, model, method):
    sets = model.predict_sets(parts[1], alpha=0.1, method=method)
    assert covered(sets, parts[1]) >= 0.82 and sets.sizes.mean() < 4
    assert sets.n_calibration.sum() == len(model.calibration_["codes"]) and sets.shift[1] > 0.001


def test_conformalize_keeps_its_promise(parts, model):
    both = ad.concat(parts[2:])
    sure = tf.annotate.conformalize(model, parts[1], labels="cell_type", alpha=0.2)
    assert covered(sure.predict_sets(both), both) == pytest.approx(0.8, abs=0.06)
    assert sure.coverage == pytest.approx(0.8, abs=0.08)
    assert covered(sure.predict_sets(both, alpha=0.05), both) > 0.9


def test_cells_get_the_same_set_in_any_order(parts, model):
    sets = model.predict_sets(parts[1], method="aps")
    turned = model.predict_sets(parts[1][::-1].copy(), method="aps")
    assert list(sets.labels) == list(turned.labels[::-1])
    other = model.predict_sets(parts[1], method="aps", seed=1)
    assert list(sets.labels) != list(other.labels)


def test_any_annotator_can_be_made_conformal(parts, tmp_path):
    """One that is no AnnotatorMethod and has nothing but probabilities."""
    model = tf.integrate.SCANVI(epochs=3, joint_epochs=2, n_hidden=16, kl_warmup_epochs=2)
    model.fit(parts[0], labels="cell_type", progress=False)
    sure = tf.annotate.conformalize(model, parts[1], labels="cell_type", method="aps")
    assert covered(sure.predict_sets(parts[2]), parts[2]) > 0.8
    assert sure.novelty(parts[2])["pvalue"].between(0, 1).all()
    again = tf.annotate.Conformal.load(sure.save(tmp_path / "sure"))
    assert list(again.predict_sets(parts[2]).labels) == list(sure.predict_sets(parts[2]).labels)
    assert again.coverage == sure.coverage


def test_what_is_written(parts, model):
    asked = parts[1].copy()
    tf.annotate.conformalize(model, parts[2], labels="cell_type", method="mondrian").write(asked)
    assert {"svm_set", "svm_set_size", "svm_pvalue_novel"} <= set(asked.obs)
    about = asked.uns["svm_conformal"]
    assert about["n_calibration"].sum() == 400 and about["coverage"] > 0.8 and len(about["thresholds"]) == 4
    one = asked.obs["svm_set_size"] == 1
    assert not asked.obs.loc[one, "svm_set"].str.contains("|", regex=False).any()
    untouched = parts[1].copy()
    model.predict_sets(untouched)
    assert "svm_set" not in untouched.obs
    model.predict_sets(untouched, key_added="x")
    assert {"x_set", "x_set_size"} <= set(untouched.obs)


def test_whole_batches_for_a_new_batch(cells):
    model = tf.annotate.SVM(probability="margin", calibration=0.5)
    model.fit(cells, labels="cell_type", batch="batch", progress=False)
    sets = model.predict_sets(cells[:100].copy(), method="group")
    assert "fewer than the 9" in sets.notes[0]
    many = cells.copy()
    many.obs["donor"] = [f"d{i % 12}" for i in range(1600)]
    sure = tf.annotate.conformalize(model, many, labels="cell_type", method="group", group="donor")
    assert sure.predict_sets(cells[:100].copy()).notes == []


def test_a_shift_is_said(parts, model):
    from scipy import sparse

    moved = parts[1].copy()
    rng = np.random.default_rng(0)
    moved.X = sparse.csr_matrix(rng.poisson(moved.X.toarray() * np.exp(rng.normal(0, 1, 150))) + 1.0)
    with pytest.warns(UserWarning, match="not like the calibration cells"):
        sets = model.predict_sets(moved)
    assert sets.shift[1] < 0.01 and len(sets.notes) == 1


def test_an_empty_set_is_shown_as_one(model, parts):
    sets = model.predict_sets(parts[1], alpha=0.9)
    assert (sets.labels[sets.sizes == 0] == EMPTY).all() and (sets.sizes == 0).any()
    found = sets.by_cluster(np.arange(400) % 2)
    assert list(found.index) == ["0", "1"]


def test_sets_are_rolled_up_an_ontology(parts, model):
    from tenfold.annotators.ontology import Ontology

    parents = {"cell": (), "left": ("cell",), "type_1": ("left",), "type_2": ("left",), "type_3": ("cell",)}
    sets = model.predict_sets(parts[1], alpha=0.05)
    found = dict(zip(sets.labels, sets.rolled_up(Ontology(parents, {})), strict=True))
    assert found["type_1"] == "type_1" and found["type_1|type_2"] == "left {type_1, type_2}"
    assert found["type_1|type_3"] == "cell {type_1, type_3}" and found["type_1|type_4"] == "type_1|type_4"


def test_named_errors(parts, model):
    with pytest.raises(ParameterError, match="Did you mean 'mondrian'"):
        model.predict_sets(parts[1], method="mondrain")
    with pytest.raises(DataError, match="give the cells"):
        model.predict_sets(method="weighted")
    with pytest.raises(DataError, match="several batches or donors"):
        model.predict_sets(parts[1], method="group")
    plain = tf.annotate.SVM(probability="margin", calibration=0.0).fit(parts[0], labels="cell_type", progress=False)
    with pytest.raises(DataError, match="not trained on"):
        plain.predict_sets(parts[1])
    with pytest.raises(DataError, match="takes an annotator"):
        tf.annotate.conformalize(tf.integrate.Harmony(), parts[1], labels="cell_type")
    with pytest.raises(DataError, match="knows none of the labels"):
        tf.annotate.conformalize(model, parts[1], labels="batch")
    strange = parts[1].copy()
    strange.obs["cell_type"] = strange.obs["cell_type"].astype(str).replace("type_1", "other")
    with pytest.warns(UserWarning, match="does not know other"):
        tf.annotate.conformalize(model, strange, labels="cell_type")
