"""Comparing annotators: batches and types left out, no number for new samples without them, leaks found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tenfold as tf
from tenfold import report
from tenfold.annotate import _controls, _ranking
from tenfold.annotate._task import TASK
from tenfold.annotate._trial import Trial, again, sample_cells
from tenfold.task import Assessment, Control
from test_report_browser import browser, opened  # noqa: F401  (a fixture)

ROLES = {"batch": "batch", "labels": "cell_type"}


@pytest.fixture(scope="module")
def cells():
    shares = [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    return tf.data.simulate(360, 80, 4, 3, batch_strength=0.5, type_strength=1.5, proportions=shares, seed=0)


@pytest.fixture(scope="module")
def fitted(cells):
    return tf.annotate.SVM(probability="margin").fit(cells, progress=False, **ROLES)


@pytest.fixture(scope="module")
def finished(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("annotate") / "trial"
    fast = {"svm": {"probability": "margin"}}
    return tf.compare("annotate", cells, ["svm"], out=out, seeds=1, params=fast, **ROLES)


def values(scores, group=None):
    return {score.metric: score.value for score in scores if group in (None, score.group) and ":" not in score.group}


def test_what_the_data_can_tell(cells):
    told = TASK.assess(cells, ROLES, 0)
    assert told.verdict == "can be judged on new batches" and "type_4" in told.sentence
    silent = TASK.assess(cells, {"labels": "cell_type"}, 0)
    assert silent.verdict == "optimistic numbers only" and "nothing can be said" in silent.sentence


def test_batches_left_out_are_scored_batch_by_batch(cells, fitted):
    scores = TASK.evaluate(fitted, cells, ROLES, 0)
    assert values(scores, "transfer")["transfer_accuracy"] > 0.8
    assert {score.group for score in scores if score.metric == "transfer_accuracy"} == {
        "transfer", "batch:batch_1", "batch:batch_2", "batch:batch_3",
    }  # fmt: skip
    assert "label:type_4" not in {score.group for score in scores}, "no method can know it"
    assert set(values(scores)) <= set(TASK.metrics())


def test_without_batches_no_number_speaks_of_new_samples(cells, fitted):
    scores = TASK.evaluate(fitted, cells, {"labels": "cell_type"}, 0)
    assert not values(scores, "transfer")
    described = TASK.metrics()
    for name in values(scores, "optimistic"):
        assert "optimistic" in described[name]["title"] and not described[name]["headline"]
    ranking, choice = TASK.rank(
        frame({"svm": scores}), {}, Assessment("optimistic numbers only", "No batch.", ""), set()
    )
    assert ranking[0]["method"] == "svm" and "for new samples nothing can be recommended" in choice.sentence


def test_a_batch_effect_shows_only_where_a_batch_is_left_out(fitted):
    """Sheet 4.1: the gap between random folds and batches left out grows with the batch effect."""
    gaps = []
    for strength in (0.0, 1.2):
        cells = tf.data.simulate(600, 120, 4, 4, batch_strength=strength, type_strength=0.7, seed=2)
        scores = values(TASK.evaluate(fitted, cells, ROLES, 0))
        gaps.append(scores["within_macro_f1"] - scores["transfer_macro_f1"])
    assert abs(gaps[0]) < 0.04 and gaps[1] > 0.06


TRUTH: dict[str, str] = {}


class Cheat(tf.annotate.SVM):
    """Looks labels up by the names of the cells."""

    def _annotated(self, adata):
        found, told = super()._annotated(adata)
        return found, told if adata is None else np.array([TRUTH[name] for name in adata.obs_names])


def test_a_leak_is_found(cells, fitted):
    honest = Trial(again(fitted, 0), "cell_type", "batch")
    control, scores = _controls.permuted_labels(honest, cells, 0)
    assert control.verdict == "pass" and abs(scores[0].value) < 0.25
    TRUTH.update(zip(cells.obs_names, cells.obs["cell_type"].astype(str), strict=True))
    control, _ = _controls.permuted_labels(Trial(lambda: Cheat(probability="margin"), "cell_type", "batch"), cells, 0)
    assert control.verdict == "fail" and "was not given" in control.sentence


def test_luck_is_no_leak(cells, fitted, monkeypatch):
    """A deal that gives a cluster its own label is followed by another; a leak would be there again."""
    found = iter([(0.3, 0.03), (0.01, 0.03)])
    monkeypatch.setattr(_controls, "_agreement_with_permuted", lambda *_: next(found))
    control, scores = _controls.permuted_labels(Trial(again(fitted, 0), "cell_type", "batch"), cells, 0)
    assert control.verdict == "pass" and control.numbers["kappa"] == [0.3, 0.01] and scores[0].value == 0.01


def test_labels_of_test_cells_are_not_shown(cells, fitted):
    trial = Trial(again(fitted, 0), "cell_type", "batch")
    fold = _controls.held_out(trial, cells, 0)
    assert list(trial.asked(cells, fold).obs) == ["batch"]
    assert list(Trial(trial.make, "cell_type").asked(cells, fold).obs) == []


def test_a_new_type_and_fewer_counts(cells, fitted):
    trial = Trial(again(fitted, 0), "cell_type")
    control, scores = _controls.novel_type(trial, cells, 0)
    assert {"novel_auroc", "novel_by_confidence", "novel_fpr95", "novel_rejected"} == set(values(scores))
    assert control.verdict in ("pass", "warn") and "left out" in control.sentence
    control, scores = _controls.fewer_counts(trial, cells, 0)
    assert control.numbers["accuracy"] > control.numbers["accuracy_at_0.1"] and scores[0].value >= 0


def test_rare_labels_are_kept_when_cells_are_drawn(cells):
    few = cells.copy()
    types = few.obs["cell_type"].astype(str)
    types.iloc[:5] = "rare"
    few.obs["cell_type"] = types
    drawn = sample_cells(few, "cell_type", 100, 0)
    assert drawn.n_obs == 100 and (drawn.obs["cell_type"] == "rare").sum() == 5
    assert sample_cells(few, "cell_type", 1000, 0) is few


def frame(by_method):
    rows = [("annotate", m, 0, s.group, s.metric, s.value) for m, scores in by_method.items() for s in scores]
    return pd.DataFrame(rows, columns=["task", "method", "seed", "group", "metric", "value"])


def table(**methods):
    """Accuracy on new batches, its half-width 0.02, and AUROC of new types."""
    rows = []
    for name, (accuracy, novel) in methods.items():
        for metric, value in (
            ("transfer_macro_f1", accuracy), ("transfer_accuracy", accuracy), ("transfer_half_width", 0.02),
            ("novel_by_confidence", novel),
        ):  # fmt: skip
            rows.append(("annotate", name, 0, "transfer", metric, value))
    return pd.DataFrame(rows, columns=["task", "method", "seed", "group", "metric", "value"])


def test_what_does_not_beat_logistic_regression_is_told_so():
    ranking = _ranking.ranked(table(svm=(0.91, 0.8), logistic=(0.90, 0.8), majority=(0.3, 0.5)), {})
    assert [entry["method"] for entry in ranking] == ["svm", "logistic", "majority"]
    assert any("no evidence of benefit" in reason for reason in ranking[0]["reasons"])
    choice = _ranking.recommended(ranking, {}, Assessment("can be judged on new batches", "", ""))
    assert "Logistic regression does as well" in choice.sentence
    better = _ranking.ranked(table(svm=(0.95, 0.8), logistic=(0.90, 0.8)), {})
    assert not any("no evidence" in reason for reason in better[0]["reasons"])
    assert _ranking.recommended(better, {}, Assessment("x", "", "")).sentence == "Use SVM on cells like these."


def test_a_method_that_leaks_is_never_recommended():
    leak = {"svm": [Control("permuted_labels", "Permuted labels", "fail", "", "")]}
    ranking = _ranking.ranked(table(svm=(0.99, 0.9), logistic=(0.9, 0.8)), leak)
    assert [entry["method"] for entry in ranking] == ["logistic", "svm"]
    assert _ranking.recommended(ranking, leak, Assessment("x", "", "")).method == "logistic"


def test_baselines_are_in_every_table(finished):
    assert set(finished.summary["methods"]) == {TASK.baseline, *TASK.companions, "svm"}
    assert all(run["status"] == "ok" for run in finished.runs), [run["message"] for run in finished.runs]
    assert not any(entry["uses_labels"] for entry in finished.summary["ranking"])
    assert finished.summary["ranking"][-1]["method"] == "majority"
    for run in finished.runs:
        assert {c["name"] for c in run["controls"]} == {"novel_type", "permuted_labels", "fewer_counts"}
        assert all(c["verdict"] != "not run" for c in run["controls"]), run["controls"]


def test_the_page_says_what_is_optimistic(finished):
    page = finished.report.read_text()
    assert "Within batches (optimistic)" in page and "Can these data say what to expect of new samples?" in page
    assert page.index("Macro F1, new batch") < page.index("Macro F1 within batches (optimistic)")
    assert "Optimistic: cells of one sample" in page


def test_the_page_renders(browser, finished):  # noqa: F811
    with opened(browser, report.build(finished.directory)) as tab:
        heads = tab.locator("#score-table thead th").all_inner_texts()
        assert any("new batch" in head for head in heads)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1300
