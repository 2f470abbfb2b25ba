"""Comparisons: every method in its own process, failures as rows, results on disk, resume, ranking."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict

import numpy as np
import pandas as pd
import psutil
import pytest

import tenfold as tf
from tenfold import report
from tenfold.compare import session
from tenfold.compare.worker import Job, serve
from tenfold.errors import DataError, FileFormatError, KeyMissingError, ParameterError, RoleError
from tenfold.integrate._ranking import LEFT_OUT
from tenfold.integrate._task import TASK
from tenfold.task import Assessment, Control


def two_batches(n_cells: int = 240, seed: int = 0):
    return tf.data.simulate(n_cells=n_cells, n_genes=150, n_types=3, n_batches=2, batch_strength=0.4, seed=seed)


ROLES = {"batch": "batch", "labels": "cell_type"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole comparison of quick methods, with controls."""
    out = tmp_path_factory.mktemp("compare") / "trial"
    adata = two_batches()
    before = adata.copy()
    result = tf.compare("integrate", adata, methods=["harmony", "combat"], out=out, seeds=2, **ROLES)
    assert (adata.X != before.X).nnz == 0 and set(adata.obs) == set(before.obs) and set(adata.uns) == set(before.uns)
    return result


def test_everything_promised_is_on_disk(finished):
    scores = pd.read_csv(finished.directory / "scores.csv")
    assert list(scores.columns) == ["task", "method", "seed", "group", "metric", "value"]
    assert set(scores["method"]) == {"pca", "harmony", "combat"}
    names = {path.stem for path in (finished.directory / "runs").glob("*.json")}
    assert {"harmony-0", "harmony-1", "combat-0", "pca-0"} <= names
    assert finished.report.stat().st_size > 10_000
    assert not (finished.directory / ".work").exists()
    for metric in ("recovered_neighbors", "null_batch_loss", "seconds", "peak_memory_mb", "ilisi"):
        assert scores.loc[scores["metric"] == metric, "value"].notna().all(), metric
    assert (scores["group"].str.startswith("label:")).any() and (scores["group"].str.startswith("batch:")).any()


def test_runs_tell_what_was_done(finished):
    run = json.loads((finished.directory / "runs" / "harmony-0.json").read_text())
    assert run["status"] == "ok" and run["seconds"] > 0 and run["peak_memory_mb"] > 50
    assert run["parameters"]["theta"] == 2.0 and run["parameters"]["seed"] == 0
    assert {control["name"] for control in run["controls"]} == {
        "planted_effect", "null_batch", "within_batch", "removed_type", "no_common_type", "unequal_proportions",
    }  # fmt: skip
    assert all(control["verdict"] in ("pass", "warn", "fail", "info", "not run") for control in run["controls"])
    assert all(control["rule"] and control["sentence"].endswith((".", "?")) for control in run["controls"])
    other = json.loads((finished.directory / "runs" / "harmony-1.json").read_text())
    assert other["controls"] == [], "controls belong to the first seed"


def test_summary_recommends_with_reasons(finished):
    assert finished.summary["assessment"]["verdict"] == "integrate"
    assert finished.recommendation.endswith(".") and finished.summary["recommendation"]["reasons"]
    assert {entry["method"] for entry in finished.summary["ranking"]} == {"pca", "harmony", "combat"}
    table = finished.table()
    assert table.index[0] == finished.summary["ranking"][0]["method"]
    assert finished.summary["metrics"]["recovered_neighbors"]["headline"]


def test_resume_runs_only_what_is_missing(finished):
    runs = finished.directory / "runs"
    before = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    (runs / "combat-0.json").unlink()
    with pytest.raises(ParameterError, match="resume"):
        tf.compare("integrate", two_batches(), methods=["harmony", "combat"], out=finished.directory, seeds=2, **ROLES)
    again = tf.compare(
        "integrate", two_batches(), methods=["harmony", "combat"], out=finished.directory, seeds=2, resume=True, **ROLES
    )
    after = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == ["combat-0.json"]
    pd.testing.assert_frame_equal(
        again.scores[again.scores["group"] != "resources"], finished.scores[finished.scores["group"] != "resources"]
    )


def test_other_data_cannot_be_resumed(finished):
    with pytest.raises(DataError, match="other data"):
        tf.compare("integrate", two_batches(seed=5), methods=["harmony"], out=finished.directory, resume=True, **ROLES)


def test_a_failing_method_and_an_assessment_that_breaks_are_not_the_end(tmp_path, monkeypatch):
    def broken(*args: object) -> Assessment:
        raise ValueError("no such luck")

    monkeypatch.setattr(type(TASK), "assess", broken)
    result = tf.compare(
        "integrate", two_batches(), methods=["harmony"], out=tmp_path / "t", seeds=1, controls=False,
        params={"harmony": {"n_clusters": 100_000}}, **ROLES,
    )  # fmt: skip
    run = json.loads((result.directory / "runs" / "harmony-0.json").read_text())
    assert run["status"] == "error" and "n_clusters" in run["message"]
    assert set(result.scores["method"]) == {"pca"}
    assert "harmony" in result.table().index
    assert "n_clusters" in result.report.read_text()
    assert result.summary["assessment"]["verdict"] == "not run"
    assert "no such luck" in result.summary["assessment"]["sentence"]


def test_limits_of_time_and_memory_are_rows(tmp_path):
    late = tf.compare(
        "integrate", two_batches(), methods=["pca"], out=tmp_path / "late", seeds=1, timeout=0.2, **ROLES
    )  # fmt: skip
    assert late.runs[0]["status"] == "timeout" and "time limit" in late.runs[0]["message"]
    large = tf.compare(
        "integrate", two_batches(), methods=["pca"], out=tmp_path / "large", seeds=1, memory_gb=0.02, **ROLES
    )
    assert large.runs[0]["status"] == "out of memory" and "MiB" in large.runs[0]["message"]
    assert large.summary["recommendation"]["method"] is None


def _worker() -> psutil.Process | None:
    """Return the process of a run, which a server has started."""
    for server in psutil.Process().children():
        if "tenfold.compare.worker" in " ".join(server.cmdline()):
            return next(iter(server.children()), None)
    return None


def test_a_killed_run_is_a_row_and_resume_repeats_it(tmp_path):
    def kill_first() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            worker = _worker()
            if worker is not None:
                worker.kill()
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_first)
    killer.start()
    options = {"methods": ["combat"], "out": tmp_path / "t", "seeds": 1, "controls": False, **ROLES}
    result = tf.compare("integrate", two_batches(), **options)
    killer.join()
    assert sorted(run["status"] for run in result.runs) == ["ok", "out of memory"]
    result = tf.compare("integrate", two_batches(), resume=True, **options)
    assert [run["status"] for run in result.runs] == ["ok", "ok"]


def test_where_processes_cannot_be_forked_each_run_starts_anew(tmp_path, monkeypatch, capfd):
    result, log = tmp_path / "pca-0.json", tmp_path / "log"
    job = Job("integrate", "pca", 0, {}, ROLES, str(tmp_path / "absent.h5ad"), "", str(result), "", False)
    (tmp_path / "job").write_text(json.dumps(asdict(job)))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps([str(tmp_path / "job"), str(log)]) + "\n"))
    before = signal.getsignal(signal.SIGINT)
    try:
        serve()
    finally:
        signal.signal(signal.SIGINT, before)
    told = capfd.readouterr().out
    assert "pid: " in told and f"pid: {os.getpid()}" not in told and told.strip().endswith("ended: 0")
    assert json.loads(result.read_text())["status"] == "error"  # there are no data


def test_interrupt_keeps_finished_runs_and_leaves_no_process(tmp_path):
    def interrupt() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if (tmp_path / "t" / "runs" / "pca-0.json").exists() and _worker() is not None:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        tf.compare(
            "integrate", two_batches(), methods=["harmony"], out=tmp_path / "t", seeds=3, controls=False, **ROLES
        )
    thread.join()
    assert _worker() is None
    assert json.loads((tmp_path / "t" / "runs" / "pca-0.json").read_text())["status"] == "ok"
    assert not (tmp_path / "t" / ".work").exists()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"methods": ["harmoni"]}, ParameterError, "Did you mean 'harmony'"),
        ({"batch": "bach"}, DataError, "Did you mean 'batch'"),
        ({"batch": None}, RoleError, "needs batch"),
        ({"label": "cell_type"}, RoleError, "Did you mean 'labels'"),
        ({"params": {"harmonie": {}}}, ParameterError, "Did you mean 'harmony'"),
        ({"params": {"harmony": {"thetas": 1}}}, ParameterError, "Did you mean 'theta'"),
        ({"seeds": 0}, ParameterError, "seeds"),
        ({"controls": "every"}, ParameterError, "controls is True"),
    ],
)
def test_wrong_calls_end_before_any_run(tmp_path, given, error, words):
    call = {"methods": ["harmony"], "out": tmp_path / "t", "batch": "batch", **given}
    with pytest.raises(error, match=words):
        tf.compare("integrate", two_batches(), **call)
    assert not (tmp_path / "t").exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine.txt").write_text("keep")
    with pytest.raises(ParameterError, match="not tenfold's"):
        tf.compare("integrate", two_batches(), methods=["pca"], out=tmp_path, **ROLES)
    assert (tmp_path / "runs" / "mine.txt").read_text() == "keep"


def test_a_task_that_cannot_be_judged_says_so(tmp_path):
    with pytest.raises(ParameterError, match="cannot be compared yet"):
        tf.compare("denoise", two_batches(), out=tmp_path / "t")


def test_a_damaged_record_is_named(finished, tmp_path):
    from tenfold.compare.results import read_runs

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pca-0.json").write_text('{"task": "integ')
    with pytest.raises(FileFormatError, match="damaged"):
        read_runs(tmp_path)


def odd_batches():
    """Two batches: one has no counts of a gene that the other has in most cells; and a third one of a single cell."""
    adata = two_batches()
    counts = adata.X.tolil()
    first = np.flatnonzero(adata.obs["batch"].cat.codes == 0)
    common = int(np.asarray((adata.X > 0).mean(axis=0)).argmax())
    counts[first, common] = 0
    adata.X = counts.tocsr().astype(np.float32)
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    adata.obs.loc[adata.obs_names[first[0]], "batch"] = "single"
    return adata, str(adata.var_names[common])


def test_a_batch_of_one_cell_and_absent_genes_are_named_and_end_nothing(tmp_path):
    adata, gene = odd_batches()
    with pytest.warns(UserWarning, match=f"no count at all of 1 gene that the other batches .* {gene}"):
        tf.integrate.Harmony().fit(adata, batch="batch", progress=False)
    result = tf.compare("integrate", adata, methods=["fastmnn"], out=tmp_path / "t", seeds=1, **ROLES)
    small, absent = result.summary["warnings"]
    assert "'single' (1)" in small and gene in absent
    assert {run["method"]: run["status"] for run in result.runs} == {"pca": "ok", "fastmnn": "error"}
    assert result.summary["assessment"]["verdict"] in ("integrate", "not advised")
    assert all(control["verdict"] != "not run" for control in result.runs[-1]["controls"]), "PCA is judged all the same"
    assert gene in result.report.read_text()


def test_ordinary_batches_give_no_warning(finished):
    assert finished.summary["warnings"] == []


def test_a_reference_pseudotime_is_scored_and_shown_to_no_method(tmp_path):
    adata = two_batches()
    adata.obs["time"] = np.linspace(0, 1, adata.n_obs)
    result = tf.compare(
        "integrate", adata, methods=["combat"], out=tmp_path / "t", seeds=1, controls=False, pseudotime="time", **ROLES
    )
    assert set(result.scores.loc[result.scores["metric"] == "trajectory", "method"]) == {"combat", "pca"}
    with pytest.raises(KeyMissingError, match="Did you mean 'time'"):
        tf.compare("integrate", adata, methods=["combat"], out=tmp_path / "u", pseudotime="tim", **ROLES)


# ---- ranking ---------------------------------------------------------------------------------------------------------


def _scores(values: dict[str, tuple[float, float, float]]) -> pd.DataFrame:
    rows = []
    for method, (recovered, bio, batch) in values.items():
        for group, metric, value in (
            ("control", "recovered_neighbors", recovered),
            ("bio", "clisi", bio),
            ("batch", "cilisi", batch),
        ):
            rows.append(("integrate", method, 0, group, metric, value))
    return pd.DataFrame(rows, columns=["task", "method", "seed", "group", "metric", "value"])


YES = Assessment("integrate", "There is an effect.", "rule")
FAILED = Control("null_batch", "Null batch", "fail", "It alters.", "rule")


def test_the_best_method_is_recommended():
    ranking, advice = TASK.rank(_scores({"pca": (0.2, 0.9, 0.1), "harmony": (0.6, 0.9, 0.7)}), {}, YES, set())
    assert [entry["method"] for entry in ranking] == ["harmony", "pca"] and advice.method == "harmony"
    assert ranking[0]["overall"] == pytest.approx(np.mean([0.6, 0.9, 0.7]))


def test_a_failed_control_puts_a_method_last_whatever_its_scores():
    scores = _scores({"pca": (0.2, 0.9, 0.1), "harmony": (0.6, 0.9, 0.7), "wild": (0.9, 0.9, 0.9)})
    ranking, advice = TASK.rank(scores, {"wild": [FAILED]}, YES, set())
    assert ranking[-1]["method"] == "wild" and advice.method == "harmony"
    assert any("failed" in reason for reason in ranking[-1]["reasons"])


def test_no_effect_means_no_integration():
    no = Assessment("not advised", "No substantial batch effect.", "rule")
    _, advice = TASK.rank(_scores({"pca": (0.2, 0.9, 0.1), "harmony": (0.6, 0.9, 0.7)}), {}, no, set())
    assert advice.method == "pca" and "not advised" in advice.sentence


def test_confounded_batches_get_no_recommendation():
    no = Assessment("confounded", "Cannot be told apart.", "rule")
    _, advice = TASK.rank(_scores({"pca": (0.2, 0.9, 0.1), "harmony": (0.6, 0.9, 0.7)}), {}, no, set())
    assert advice.method is None


def test_methods_that_see_labels_are_ranked_apart():
    scores = _scores({"pca": (0.2, 0.9, 0.1), "harmony": (0.6, 0.9, 0.7), "teacher": (0.9, 1.0, 0.9)})
    ranking, advice = TASK.rank(scores, {}, YES, {"teacher"})
    assert [entry["method"] for entry in ranking] == ["harmony", "pca", "teacher"] and advice.method == "harmony"


def test_baseline_wins_when_nothing_does_better():
    _, advice = TASK.rank(_scores({"pca": (0.6, 0.9, 0.6), "harmony": (0.3, 0.8, 0.7)}), {}, YES, set())
    assert advice.method == "pca" and "stay with it" in advice.sentence


def test_plan_runs_methods_without_randomness_once():
    plan = session._plan(TASK, ["combat", "harmony"], 3, {})
    assert plan["combat"] == [0] and plan["harmony"] == [0, 1, 2] and list(plan)[0] == "pca"


def test_report_can_be_rebuilt(finished):
    finished.report.unlink()
    assert report.build(finished.directory) == finished.report and finished.report.stat().st_size > 10_000


def test_higher_scores_with_a_failed_control_are_named():
    scores = _scores({"pca": (0.4, 0.9, 0.1), "harmony": (0.6, 0.9, 0.7)})
    _, advice = TASK.rank(scores, {"harmony": [FAILED]}, YES, set())
    assert advice.method == "pca" and "Harmony (null batch)" in advice.sentence


def test_a_control_that_some_methods_were_spared_counts_for_none():
    scores = _scores({"pca": (0.2, 0.9, 0.1), "harmony": (0.6, 0.9, 0.7), "scvi": (0.5, 0.9, 0.6)})
    failed = Control("unequal_proportions", "Unequal proportions", "fail", "Merged.", "rule")
    spared = Control("unequal_proportions", "Unequal proportions", "not run", "Left out.", "rule", LEFT_OUT)
    assert TASK.rank(scores, {"harmony": [failed], "scvi": [spared]}, YES, set())[1].method == "harmony"
    assert TASK.rank(scores, {"harmony": [failed]}, YES, set())[1].method == "scvi"
    expression = Control("expression_kept", "Corrected expression", "fail", "Lost.", "rule")
    assert TASK.rank(scores, {"harmony": [expression]}, YES, set())[1].method == "harmony"


def test_methods_that_see_labels_are_never_named_as_what_scored_higher():
    scores = _scores({"pca": (0.4, 0.9, 0.5), "teacher": (0.9, 1.0, 0.9)})
    _, advice = TASK.rank(scores, {}, YES, {"teacher"})
    assert advice.method == "pca" and "No method did better" in advice.sentence
    assert "given the labels" in advice.reasons[-1] and "teacher" in advice.reasons[-1]
    assert TASK.rank(scores[scores["method"] == "teacher"], {}, YES, {"teacher"})[1].method is None
