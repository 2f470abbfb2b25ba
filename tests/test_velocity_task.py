"""How velocity is judged: null models, verdicts, consensus, comparison."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.data.velocity_nulls import permuted
from tenfold.errors import DataError, ParameterError
from tenfold.types import Codes
from tenfold.velocity import _controls, _stability
from tenfold.velocity._nulls import Measured, NullModels, null_models, pairs_of
from tenfold.velocity._task import TASK
from tenfold.velocity.scvelo_stochastic import ScVeloStochastic


@pytest.fixture(scope="module")
def branching():
    # With seed 0 an outlier between both ends holds the walk, and time begins in the middle: one in some 90 seeds.
    return tf.data.simulate_branching(n_cells=300, n_genes=120, seed=1)


@pytest.fixture(scope="module")
def roles(branching):
    return {"labels": "cell_type", "transitions": branching.uns["transitions"], "pseudotime": "true_time"}


# ---- permuted counts -------------------------------------------------------------------------------------------------


def test_permuted_counts_are_the_same_counts_elsewhere():
    x = sparse.random(60, 9, 0.3, format="csr", random_state=0)
    groups = Codes(np.arange(60, dtype=np.int32) % 3, ["a", "b", "c"])
    for kind in ("cells", "groups"):
        mixed = permuted(x, kind, groups, seed=1)
        assert (mixed != x).nnz > 0
        np.testing.assert_allclose(np.sort(mixed.toarray(), axis=0), np.sort(x.toarray(), axis=0))
    within = permuted(x, "groups", groups, seed=1).toarray()
    for code in range(3):
        own = groups.values == code
        np.testing.assert_allclose(np.sort(within[own], axis=0), np.sort(x.toarray()[own], axis=0))
    exchanged = permuted(x, "genes", seed=1).toarray()
    assert not any(np.array_equal(exchanged[:, g], x.toarray()[:, g]) for g in range(9))
    np.testing.assert_allclose(np.sort(exchanged.sum(axis=0)), np.sort(x.toarray().sum(axis=0)))
    with pytest.raises(ParameterError, match="no groups"):
        permuted(x, "groups")


def test_transitions_are_read():
    assert pairs_of("A > B, B>C D") == [("A", "B"), ("B", "C D")] and pairs_of(None) == []
    with pytest.raises(ParameterError, match="A > B"):
        pairs_of("A, B")


# ---- verdicts --------------------------------------------------------------------------------------------------------


def models(real, null, known=(np.nan, np.nan)):
    return NullModels(
        Measured(real, 100, known[0]), {kind: [Measured(null, 5, known[1])] * 3 for kind in ("cells", "genes")}
    )


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (models(0.9, 0.88), "fail", "As confident without velocity"),
        (models(0.9, 0.5), "pass", "More coherent"),
        (models(0.9, 0.5, (0.1, 0.2)), "fail", "Not in the known direction"),
        (models(0.9, 0.88, (0.5, 0.2)), "warn", "confident of permuted counts, too"),
        (models(0.9, 0.5, (0.5, 0.2)), "pass", "More coherent"),
    ],
)
def test_verdicts(found, verdict, words):
    told, sentence = _controls.judged(found)
    assert told == verdict and words in sentence
    assert found.evidence == (verdict != "fail")


def test_exact_kinetics_are_evidence_and_permuted_ones_are_none(branching, roles):
    assert TASK.assess(branching, roles, 0).verdict == "evidence of velocity"
    nothing = branching.copy()
    nothing.layers["unspliced"] = permuted(branching.layers["unspliced"], "cells", seed=5)
    found = TASK.assess(nothing, roles, 0)
    assert found.verdict == "no evidence of velocity" and found.sentence.startswith("No evidence of velocity")


def test_null_models_keep_the_genes_of_the_real_fit(branching, roles):
    found = null_models(lambda _: ScVeloStochastic(n_neighbors=15), branching, roles, 0, 1)
    assert set(found.nulls) == {"cells", "genes", "groups"} and found.most_genes < found.real.genes / 2
    assert found.real.direction > found.directions.max()


def test_random_velocities_have_no_excess(branching, roles):
    control, scores = _controls.null_control(
        lambda seed: tf.velocity.RandomVelocity(n_neighbors=15, seed=seed), branching, roles, 0, 1
    )
    assert control.verdict == "fail"
    assert abs({score.metric: score.value for score in scores}["excess_coherence"]) < 0.05


def test_scores_and_controls_of_a_method(branching, roles):
    fitted = tf.velocity.ScVeloDeterministic().fit(branching)
    values = {score.metric: score.value for score in TASK.evaluate(fitted, branching, roles, 0)}
    assert values["time_order"] > 0.5 and values["agreement"] > 0.3 and values["cbdir"] > 0.3
    assert set(values) | {"boundary_cells"} <= {*TASK.metrics(), "boundary_cells"}
    controls = TASK.controls(lambda seed: tf.velocity.ScVeloDeterministic(), fitted, branching, roles, 0)
    assert [control.name for control, _ in controls] == ["null_models", "fewer_counts"]
    assert all(control.verdict != "not run" for control, _ in controls)


def test_stability_under_changes_comes_with_all_controls(branching, roles, monkeypatch):
    monkeypatch.setattr(_stability, "DRAWS", 2)
    control, scores = _stability.changes(lambda seed: tf.velocity.ScVeloDeterministic(), branching, roles, 0)
    assert {words: len(values) for words, values in control.numbers.items()} == {
        "80% of the cells": 2, "50% of the cells": 2, "50% of the counts": 1, "25% of the counts": 1,
        "70% of the genes": 2, "half of the neighbours": 1, "twice the neighbours": 1,
    }  # fmt: skip
    means = {words: np.mean(values) for words, values in control.numbers.items()}
    assert means["80% of the cells"] > means["50% of the cells"] > 0.5
    assert 1 > means["50% of the counts"] > means["25% of the counts"] > 0
    assert scores[0].value == min(means.values()) and "50% of the cells" in control.sentence


def test_ranking_recommends_nothing_without_evidence():
    import pandas as pd

    from tenfold.task import Assessment

    rows = [("a", "excess_coherence", 0.3), ("random_velocity", "excess_coherence", 0.0)]
    scores = pd.DataFrame([{"method": m, "metric": k, "group": "control", "value": v} for m, k, v in rows])
    ranking, told = TASK.rank(scores, {}, Assessment("no evidence of velocity", "None.", ""), set())
    assert told.method is None and "No evidence of velocity" in told.sentence and ranking[0]["method"] == "a"
    assert TASK.rank(scores, {}, Assessment("evidence of velocity", "Some.", ""), set())[1].method == "a"


# ---- consensus -------------------------------------------------------------------------------------------------------


def test_consensus_is_firm_where_methods_agree(branching):
    one, two = (tf.method("velocity", name).fit(branching) for name in ("scvelo_deterministic", "scvelo_stochastic"))
    found = tf.velocity.consensus([one, two])
    assert found.disagreement.mean() < 0.2 and found.agreed.mean() > 0.9 and found.agreement[0, 1] > 0.8
    noisy = tf.velocity.consensus([one, tf.velocity.RandomVelocity().fit(branching)])
    assert noisy.disagreement.mean() > found.disagreement.mean() + 0.1 and noisy.agreed.mean() < 0.2
    with pytest.raises(DataError, match="two or more"):
        tf.velocity.consensus([one])


@pytest.mark.slow
def test_compare_leads_with_the_evidence(branching, roles, tmp_path):
    found = tf.compare(
        "velocity", branching, methods=["scvelo_deterministic"], out=tmp_path / "trial", seeds=1, **roles
    )
    assert set(found.scores["method"]) == {"scvelo_deterministic", "random_velocity", "pseudotime_velocity"}
    assert found.recommendation.startswith("Use scVelo")
    assert "Is there evidence of velocity?" in (tmp_path / "trial" / "report.html").read_text()


@pytest.mark.slow
def test_the_real_set_has_no_evidence_of_direction(shared_data):
    """scVelo's stochastic model on the pancreas set: genes have dynamics, directions are inside the nulls' range."""
    adata = ad.read_h5ad(shared_data("pancreas_velocity.h5ad"))
    order = "Ductal > Ngn3 low EP, Ngn3 low EP > Ngn3 high EP, Ngn3 high EP > Pre-endocrine"
    found = TASK.assess(adata, {"labels": "cell_type", "transitions": order}, 0)
    assert found.numbers["trusted genes"] > 3 * max(found.numbers["trusted genes, permuted over genes"])
    assert found.numbers["excess coherence"] < 0.1


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_are_the_projection_and_that_of_permuted_counts(branching):
    from tenfold.data.velocity_graph import project

    make = lambda seed: tf.velocity.ScVeloDeterministic(n_neighbors=15)  # noqa: E731
    fitted = make(0).fit(branching, progress=False)
    shown = np.arange(0, branching.n_obs, 2)
    layout = np.random.default_rng(0).normal(size=(len(shown), 2)).astype(np.float32)
    found = TASK.pictures(fitted, branching, {}, shown, layout, 0)["arrows"]
    np.testing.assert_array_equal(found, project(fitted.cosines_[shown][:, shown].tocsr(), layout))
    before = branching.layers["unspliced"].copy()
    null = TASK.control_pictures(make, fitted, branching, {}, shown, layout, 0)["null_arrows"]
    assert null.shape == found.shape and np.isfinite(null).all()
    assert (before != branching.layers["unspliced"]).nnz == 0
    cosine = (null * found).sum(axis=1) / np.maximum(np.linalg.norm(null, axis=1) * np.linalg.norm(found, axis=1), 1e-9)
    assert abs(np.mean(cosine)) < 0.35


def test_null_arrows_of_many_cells_are_those_of_some(branching, monkeypatch):
    monkeypatch.setattr("tenfold.velocity._pictures.MOST_CELLS", 100)
    make = lambda seed: tf.velocity.ScVeloDeterministic(n_neighbors=15)  # noqa: E731
    fitted, shown = make(0).fit(branching, progress=False), np.arange(branching.n_obs)
    layout = np.random.default_rng(0).normal(size=(len(shown), 2)).astype(np.float32)
    null = TASK.control_pictures(make, fitted, branching, {}, shown, layout, 0)["null_arrows"]
    assert np.isfinite(null).all(axis=1).sum() == 100


def test_a_method_that_breaks_on_permuted_counts_has_no_null_arrows(branching):
    def broken(seed):
        raise RuntimeError("no")

    fitted = tf.velocity.ScVeloDeterministic(n_neighbors=15).fit(branching, progress=False)
    shown = np.arange(branching.n_obs)
    assert TASK.control_pictures(broken, fitted, branching, {}, shown, np.zeros((len(shown), 2)), 0) == {}
