"""Collecting the runs of a comparison into its tables, ranking and report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tenfold import report
from tenfold.compare.files import write_json, write_text
from tenfold.compare.tasks import compared_task
from tenfold.errors import FileFormatError
from tenfold.task import Assessment, Control

COLUMNS = ["task", "method", "seed", "group", "metric", "value"]


@dataclass(frozen=True)
class Comparison:
    """Outcome of `tenfold.compare`.

    Attributes
    ----------
    directory
        Where everything is stored.
    scores
        Long table: task, method, seed, group, metric, value.
    runs
        One record a run: status, seconds, peak memory, parameters, controls, ...
    summary
        Content of ``compare.json``: assessment, ranking, recommendation, metrics, versions.
    """

    directory: Path
    scores: pd.DataFrame
    runs: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.directory / "report.html"

    @property
    def recommendation(self) -> str:
        """What to run, in one sentence."""
        return self.summary["recommendation"]["sentence"]

    def table(self) -> pd.DataFrame:
        """Return one row a method (best first), one column a metric, mean over seeds."""
        main = self.scores[~self.scores["group"].str.contains(":")]
        wide = main.groupby(["method", "metric"])["value"].mean().unstack()
        order = [entry["method"] for entry in self.summary["ranking"]]
        return wide.reindex([*order, *(m for m in self.summary["methods"] if m not in order)])

    def __repr__(self) -> str:
        return f"Comparison of {', '.join(self.summary['methods'])}: {self.recommendation} Report: {self.report}"


def read_runs(directory: Path) -> list[dict[str, Any]]:
    """Return the records of all finished runs, sorted by file name.

    Raises
    ------
    FileFormatError
        If a record is damaged.
    """
    records = []
    for path in sorted((directory / "runs").glob("*.json")):
        try:
            records.append(json.loads(path.read_text()))
        except ValueError as error:
            raise FileFormatError(f"'{path}' is damaged ({error}); delete it and run again with resume.") from error
    return records


def score_table(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the long score table of the given runs, with seconds and peak memory as metrics."""
    rows = []
    for run in runs:
        head = (run["task"], run["method"], run["seed"])
        for score in run["scores"]:
            rows.append((*head, score["group"], score["metric"], score["value"]))
        for name in ("seconds", "peak_memory_mb"):
            if run[name] is not None:
                rows.append((*head, "resources", name, run[name]))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"value": float})


def collect(directory: Path, head: dict[str, Any], assessment: Assessment) -> Comparison:
    """Write ``scores.csv``, ``compare.json`` and ``report.html`` from the runs in `directory`."""
    wanted = {(name, seed) for name, seeds in head["plan"].items() for seed in seeds}
    runs = [run for run in read_runs(directory) if (run["method"], run["seed"]) in wanted]
    scores = score_table(runs)
    task = compared_task(head["task"])
    controls = {run["method"]: [Control(**c) for c in run["controls"]] for run in runs if run["controls"]}
    done = {run["method"] for run in runs if run["status"] == "ok"}
    sees_labels = {run["method"] for run in runs if run["sees_labels"]}
    ranking, recommendation = task.rank(scores[scores["method"].isin(done)], controls, assessment, sees_labels)
    summary = {
        **head,
        "assessment": vars(assessment),
        "ranking": ranking,
        "recommendation": vars(recommendation),
        "metrics": task.metrics(),
    }
    write_text(directory / "scores.csv", scores.to_csv(index=False))
    write_json(directory / "compare.json", summary)
    report.build(directory)
    return Comparison(directory, scores, runs, summary)
