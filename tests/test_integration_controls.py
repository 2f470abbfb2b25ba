"""Controls of integration: they tell a method that does its work from one that does nothing or too much."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.integrate import _controls, _expression, _null, _types
from tenfold.integrate._assess import assess
from tenfold.integrate._task import TASK
from tenfold.integrate._trial import BATCH, Trial, equivalent_noise, largest_batch
from tenfold.method import Embedder, Method, MethodInfo


class Collapse(Method, Embedder):
    """Puts all cells at random places: perfect mixing, nothing left."""

    info = MethodInfo(
        title="Collapse", tasks=("integrate",), family="classical", year=2000, doi="10.1/1", gives=("embedding",),
        readiness="research", advice="Never.", needs=("batch",),
    )  # fmt: skip
    seed: int = 0

    def _fit(self, data: Inputs) -> None:
        self.points_ = np.random.default_rng(self.seed).normal(size=(data.n_cells, 10)).astype(np.float32)

    def embed(self, adata=None):
        return self.points_


def cells(strength: float = 0.4, types: float = 1.0):
    return tf.data.simulate(600, 300, n_types=4, n_batches=2, batch_strength=strength, type_strength=types, seed=3)


def trial(name: str) -> Trial:
    return Trial(lambda seed: Collapse(seed=seed) if name == "collapse" else tf.method("integrate", name, seed=seed))


@pytest.fixture(scope="module")
def one_batch():
    return largest_batch(cells(), "batch", 0)


def verdict(outcome) -> str:
    control, scores = outcome
    assert control.rule and control.sentence.endswith(".")
    assert scores and all(np.isfinite(score.value) for score in scores)
    return control.verdict


def test_planted_effect_tells_correction_from_none_and_from_collapse(one_batch):
    assert verdict(_controls.planted_effect(trial("harmony"), one_batch, 0)) == "pass"
    assert verdict(_controls.planted_effect(trial("pca"), one_batch, 0)) != "pass"
    assert verdict(_controls.planted_effect(trial("collapse"), one_batch, 0)) == "fail"


def test_null_batch_passes_who_does_nothing_and_fails_who_invents(one_batch):
    assert verdict(_null.null_batch(trial("pca"), one_batch, 0)) == "pass"
    assert verdict(_null.null_batch(trial("collapse"), one_batch, 0)) == "fail"


def test_removed_type_fails_who_merges_types():
    adata = cells(0.1, types=2.0)
    for name, expected in (("pca", "pass"), ("collapse", "fail")):
        assert verdict(_types.removed_type(trial(name), adata, "batch", "cell_type", 0)) == expected


def test_neighbours_within_batches_are_judged_against_no_correction():
    adata = cells()
    fitted = tf.integrate.PCA().fit(adata)
    assert verdict(_controls.within_batch(trial("pca"), fitted, adata, "batch", 0)) == "pass"
    lost = Collapse().fit(adata, batch="batch")
    control, scores = _controls.within_batch(trial("collapse"), lost, adata, "batch", 0)
    assert verdict((control, scores)) == "fail"
    between = [entry["kept_between_seeds"] for entry in control.numbers.values()]
    assert max(between) < 0.2, "another seed of a method that draws at random shares nothing"


def test_integration_is_advised_only_where_batches_differ():
    roles = {"batch": "batch", "labels": "cell_type"}
    assert assess(cells(0.5), roles, 0).verdict == "integrate"
    alike = cells(0.0)
    assert assess(alike, roles, 0).verdict == "not advised"
    assert assess(alike, {"batch": "batch"}, 0).verdict == "not advised"
    alike.obs["batch"] = np.where(alike.obs["cell_type"].cat.codes < 2, "a", "b")
    assert assess(alike, roles, 0).verdict == "confounded"


def test_a_condition_that_follows_from_the_batch_is_confounded_or_named():
    adata, roles = cells(0.5), {"batch": "batch", "labels": "cell_type", "categorical_covariates": ["condition"]}
    adata.obs["condition"] = np.where(adata.obs["batch"].cat.codes == 0, "control", "treated")
    found = assess(adata, roles, 0)
    assert found.verdict == "confounded" and "'condition'" in found.sentence
    adata.obs["condition"] = np.where((adata.obs["batch"].cat.codes == 0) & (np.arange(600) % 2 == 0), "x", "y")
    found = assess(adata, roles, 0)
    assert found.verdict == "integrate" and "Of 'condition', x is found in one batch only" in found.sentence
    assert found.numbers["batch_ilisi"] < found.numbers["batch_ilisi_shuffled_mean"]


def test_noise_yardstick_grows_with_the_loss():
    points = np.random.default_rng(9).normal(size=(400, 10)).astype(np.float32)
    assert equivalent_noise(points, 0.95, 0) < equivalent_noise(points, 0.6, 0) < equivalent_noise(points, 0.2, 0)


def test_methods_that_see_labels_are_shown_them_in_controls(one_batch):
    seen = []

    class Teacher(Collapse):
        """Sees labels."""

        info = MethodInfo(**{**vars(Collapse.info), "needs": ("batch", "labels"), "sees_labels": True})

        def _fit(self, data: Inputs) -> None:
            seen.append(data.labels)
            super()._fit(data)

    split = one_batch.copy()
    split.obs[BATCH] = np.where(np.arange(split.n_obs) % 2, "a", "b")
    Trial(lambda seed: Teacher(), "cell_type").fit(split, batch=True, seed=0)
    assert seen and len(seen[0].names) == 4


def test_null_batch_reports_displacement_and_the_reading_of_the_fake_batch(one_batch):
    control, _ = _null.null_batch(Trial(lambda seed: tf.integrate.ComBat()), one_batch, 0)
    assert control.numbers["splits"] == 3 and 0 < control.numbers["displacement"] < 0.2
    assert control.numbers["fake_batch_auc"] < 0.45, "centring random halves makes them more alike than chance does"
    assert control.numbers["share_of_genes_p_below_0.05"] < 0.1


def test_displacement_ignores_rotation_and_scale_and_sees_noise():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 6))
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert _null.displacement(points, 3 * points @ turned + 5) == pytest.approx(0, abs=1e-6)
    assert _null.displacement(points, np.hstack([points, np.zeros((500, 2))])) == pytest.approx(0, abs=1e-6)
    noisy = points + 0.1 * rng.normal(size=points.shape)
    assert _null.displacement(points, noisy) == pytest.approx(0.1, abs=0.02)
    assert _null.displacement(points, rng.normal(size=points.shape)) > 0.9


def test_types_of_unequal_proportions_fail_who_merges_them():
    adata = cells(0.1, types=2.0)
    for name, expected in (("pca", "pass"), ("collapse", "pass")):
        control, scores = _types.unequal_proportions(trial(name), adata, "batch", "cell_type", 0)
        assert verdict((control, scores)) == expected  # collapse merges equal proportions alike: nothing gets worse
        assert {score.group for score in scores} == {"control", *(f"label:{name}" for name in control.numbers)}


class Aligned(Collapse):
    """Sorts each batch along its first component and gives equal ranks equal places, as adversaries are tempted to."""

    def _fit(self, data: Inputs) -> None:
        first = data.pca(10, None).embedding
        self.points_ = np.zeros((data.n_cells, 2), dtype=np.float32)
        for code in range(len(data.batch.names)):
            inside = np.flatnonzero(data.batch.values == code)
            order = np.argsort(np.argsort(first[inside, 0])) / len(inside)
            self.points_[inside, 0] = order


def test_a_method_that_equates_distributions_fails_at_unequal_proportions_only():
    adata = cells(0.0, types=2.0)
    aligned = Trial(lambda seed: Aligned(seed=seed))
    control, _ = _types.unequal_proportions(aligned, adata, "batch", "cell_type", 0)
    assert control.verdict == "fail", control.sentence
    assert verdict(_types.no_common_type(aligned, adata, "batch", "cell_type", 0)) == "fail"


def test_sub_samples_have_the_same_cells_a_type_and_ten_to_one():
    adata, table = _types._few_cells(cells(), "batch", "cell_type", 0)
    pair, table = _types._two_largest(table)
    parts = _types._sub_sampled(adata, "cell_type", pair, list(table.index), 0)
    for name, part in parts.items():
        counts = pd.crosstab(part.obs["cell_type"], part.obs[BATCH])
        ratio = (counts.max(axis=1) / counts.min(axis=1)).to_numpy()
        assert (ratio > 8).all() if name == "unequal" else (ratio == 1).all()
    sizes = [part.obs["cell_type"].value_counts().sort_index().to_numpy() for part in parts.values()]
    assert np.abs(sizes[0] - sizes[1]).max() <= 1


def test_two_batches_without_a_common_type_stay_apart_or_fail():
    adata = cells(0.1, types=2.0)
    assert verdict(_types.no_common_type(trial("pca"), adata, "batch", "cell_type", 0)) == "pass"
    assert verdict(_types.no_common_type(trial("collapse"), adata, "batch", "cell_type", 0)) == "fail"
    adata.obs["one"] = "same"
    assert _types.no_common_type(trial("pca"), adata, "batch", "one", 0)[0].verdict == "not run"


def test_corrected_expression_keeps_relations_between_genes_or_fails():
    adata = cells()
    combat = tf.integrate.ComBat().fit(adata, batch="batch")
    control, scores = _expression.expression_kept(combat, adata, "batch", "cell_type", 0)
    assert verdict((control, scores)) == "pass"
    assert min(control.numbers[batch]["correlations_kept"] for batch in adata.obs["batch"].unique()) > 0.999

    class Shuffled:
        genes_ = combat.genes_

        def correct(self, genes):
            return np.random.default_rng(0).permuted(combat.correct(genes), axis=0)

    assert verdict(_expression.expression_kept(Shuffled(), adata, "batch", "cell_type", 0)) == "fail"
    without = _expression.expression_kept(combat, adata, "batch", None, 0)[1]
    assert {score.metric for score in without} == {"correlations_kept"}


def test_signs_and_ranks_of_fold_changes():
    rng = np.random.default_rng(1)
    own = np.arange(200) < 80
    x = rng.normal(size=(200, 50)) + own[:, None] * np.linspace(1, 3, 50)
    assert _expression.fold_changes_kept(x, 0.3 * x + 2, own) == (1.0, pytest.approx(1))
    sign, rank = _expression.fold_changes_kept(x, -x, own)
    assert sign == 0 and rank == pytest.approx(-1)


def test_deep_models_are_spared_unless_all_controls_are_asked_for():
    class Slow(Collapse):
        """Trained."""

        info = MethodInfo(**{**vars(Collapse.info), "family": "deep"})

    adata, roles = cells(), {"batch": "batch", "labels": "cell_type"}
    fitted = Slow().fit(adata, batch="batch")
    default, everything = (
        {
            control.name: control
            for control, _ in TASK.controls(lambda s: Slow(seed=s), fitted, adata, roles, 0, thorough)
        }
        for thorough in (False, True)
    )
    assert set(default) == set(everything)
    for name in ("no_common_type", "unequal_proportions"):
        assert default[name].verdict == "not run" and "--all-controls" in default[name].sentence
        assert everything[name].verdict in ("pass", "warn", "fail")
    assert default["null_batch"].numbers["splits"] == 1 and everything["null_batch"].numbers["splits"] == 3
