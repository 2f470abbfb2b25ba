"""Controls of integration: they tell a method that does its work from one that does nothing or too much."""

from __future__ import annotations

import numpy as np
import pytest

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.integrate import _controls
from tenfold.integrate._assess import assess
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
    assert verdict(_controls.null_batch(trial("pca"), one_batch, 0)) == "pass"
    assert verdict(_controls.null_batch(trial("collapse"), one_batch, 0)) == "fail"


def test_removed_type_fails_who_merges_types():
    adata = cells(0.1, types=2.0)
    for name, expected in (("pca", "pass"), ("collapse", "fail")):
        assert verdict(_controls.removed_type(trial(name), adata, "batch", "cell_type", 0)) == expected


def test_neighbours_within_batches_are_judged_against_no_correction():
    adata = cells()
    fitted = tf.integrate.PCA().fit(adata)
    assert verdict(_controls.within_batch(fitted, adata, "batch", 0)) == "pass"
    lost = Collapse().fit(adata, batch="batch")
    assert verdict(_controls.within_batch(lost, adata, "batch", 0)) == "fail"


def test_integration_is_advised_only_where_batches_differ():
    roles = {"batch": "batch", "labels": "cell_type"}
    assert assess(cells(0.5), roles, 0).verdict == "integrate"
    alike = cells(0.0)
    assert assess(alike, roles, 0).verdict == "not advised"
    assert assess(alike, {"batch": "batch"}, 0).verdict == "not advised"
    alike.obs["batch"] = np.where(alike.obs["cell_type"].cat.codes < 2, "a", "b")
    assert assess(alike, roles, 0).verdict == "confounded"


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
