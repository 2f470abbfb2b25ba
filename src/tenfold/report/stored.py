"""Read the files of a comparison from disk, and say what is missing instead of failing."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tenfold.errors import FileFormatError


class Score(NamedTuple):
    """One line of ``scores.csv``; `value` is None where the file holds no finite number."""

    method: str
    seed: str
    group: str
    metric: str
    value: float | None


@dataclass
class Run:
    """One method with one seed, as ``runs/<method>-<seed>.json`` tells it."""

    method: str
    seed: str
    title: str
    task: str = ""
    status: str = "ok"
    message: str = ""
    seconds: float | None = None
    peak_memory_mb: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    doi: str = ""
    readiness: str = ""
    arrays: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether the method ran to its end."""
        return self.status == "ok"


@dataclass
class Comparison:
    """Everything that is stored of a comparison.

    Attributes
    ----------
    meta
        ``compare.json`` as written; an empty dict where it is missing.
    runs
        One entry a method and seed, in the order of ``compare.json``, including runs without a stored result.
    scores
        Lines of ``scores.csv``, or of the runs' own files where that is missing or behind.
    problems
        What could not be read, one sentence each.
    """

    directory: Path
    task: str
    meta: dict[str, Any]
    runs: list[Run]
    scores: list[Score]
    problems: list[str]

    def runs_of(self, method: str) -> list[Run]:
        """Runs of one method, by seed."""
        return [run for run in self.runs if run.method == method]

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order in which they were asked for."""
        return list(dict.fromkeys(run.method for run in self.runs))


def number(value: object) -> float | None:
    """Return `value` as a finite float, or None (for None, NaN, infinities and text that is no number)."""
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def mapping(value: object) -> dict[str, Any]:
    """Return `value` if it is a dict, and an empty dict otherwise (a field that is null or of another kind)."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list[Any]:
    """Return `value` if it is a list, and an empty list otherwise."""
    return value if isinstance(value, list) else []


def read(directory: str | Path) -> Comparison:
    """Read a comparison's folder.

    Parameters
    ----------
    directory
        Folder written by ``tenfold compare``.

    Raises
    ------
    FileFormatError
        The folder does not exist, or holds neither ``compare.json`` nor any stored run.
    """
    directory = Path(directory)
    problems: list[str] = []
    meta = mapping(_json(directory / "compare.json", problems)) if (directory / "compare.json").exists() else {}
    runs = _runs(directory, problems)
    if not meta and not runs:
        cause = f" {problems[0]}" if problems else ""
        raise FileFormatError(
            f"{directory} does not hold a comparison: neither compare.json nor any runs/*.json can be read.{cause} "
            f"Give the folder that `tenfold compare ... -o DIR` wrote."
        )
    if not meta:
        problems.append("compare.json is missing or damaged: no recommendation and no description of the data.")
    runs = _in_order(runs, meta)
    scores = _scores(directory / "scores.csv", problems)
    known = {(score.method, score.seed) for score in scores}
    scores += [score for run in runs if run.ok and (run.method, run.seed) not in known for score in run.scores]
    task = next((str(task) for task in [meta.get("task"), *(run.task for run in runs)] if task), "comparison")
    return Comparison(directory, task, meta, runs, scores, problems)


def _json(path: Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error}).")
        return None


def _runs(directory: Path, problems: list[str]) -> list[Run]:
    runs = []
    for path in sorted(directory.glob("runs/*.json")):
        stored = _json(path, problems)
        if isinstance(stored, dict) and stored.get("method"):
            runs.append(_run(stored, path))
        elif stored is not None:
            problems.append(f"{path.name} does not describe a run.")
    return runs


def _run(stored: dict[str, Any], path: Path) -> Run:
    method, seed = str(stored["method"]), _seed(stored.get("seed"))
    arrays = path.with_suffix(".safetensors")
    entries = [entry for entry in listing(stored.get("scores")) if isinstance(entry, dict)]
    return Run(
        method=method,
        seed=seed,
        title=str(stored.get("title") or method),
        task=str(stored.get("task") or ""),
        status=str(stored.get("status") or "ok"),
        message=str(stored.get("message") or ""),
        seconds=number(stored.get("seconds")),
        peak_memory_mb=number(stored.get("peak_memory_mb")),
        parameters=mapping(stored.get("parameters")),
        versions=mapping(stored.get("versions")),
        warnings=[str(warning) for warning in listing(stored.get("warnings"))],
        controls=[control for control in listing(stored.get("controls")) if isinstance(control, dict)],
        scores=[
            Score(method, seed, str(entry.get("group", "")), str(entry.get("metric", "")), number(entry.get("value")))
            for entry in entries
        ],
        doi=str(stored.get("doi") or ""),
        readiness=str(stored.get("readiness") or ""),
        arrays=arrays if arrays.exists() else None,
    )


def _in_order(runs: list[Run], meta: dict[str, Any]) -> list[Run]:
    """Order runs as `meta` lists methods and seeds, adding a row for each that left no result."""
    seeds, plan = listing(meta.get("seeds")), mapping(meta.get("plan"))
    found = {(run.method, run.seed): run for run in runs if not plan or run.method in plan}
    methods = [str(method) for method in listing(meta.get("methods"))]
    titles = {run.method: run.title for run in runs}
    ordered = []
    for method in dict.fromkeys([*methods, *(method for method, _ in found)]):
        own = sorted((seed for name, seed in found if name == method), key=_seed_order)
        # Without a plan: a method without random numbers may be run once although several seeds were asked for.
        planned = listing(plan.get(method)) or ([] if own else seeds)
        for seed in dict.fromkeys([*map(_seed, planned), *own]):
            absent = Run(method, seed, titles.get(method, method), status="not run", message="No result is stored.")
            ordered.append(found.get((method, seed), absent))
    return ordered


def _seed_order(seed: str) -> tuple[float, str]:
    value = number(seed)
    return (math.inf if value is None else value, seed)


def _scores(path: Path, problems: list[str]) -> list[Score]:
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"scores.csv cannot be read ({error}).")
        return []
    missing = {"method", "seed", "group", "metric", "value"} - set(lines[0] if lines else {})
    if lines and missing:
        problems.append(f"scores.csv lacks the columns {', '.join(sorted(missing))}; the runs' own files are used.")
        return []
    return scores_of(lines)


def scores_of(records: list[dict[str, Any]]) -> list[Score]:
    """Turn records with the columns of ``scores.csv`` into scores.

    Parameters
    ----------
    records
        Dictionaries with the keys ``method``, ``seed``, ``group``, ``metric`` and ``value``.
    """
    return [
        Score(str(line["method"]), _seed(line["seed"]), str(line["group"]), str(line["metric"]), number(line["value"]))
        for line in records
    ]


def _seed(value: object) -> str:
    """Write a seed the same way whether it came as 0, "0" or 0.0 (a column with gaps); empty where there is none."""
    whole = number(value)
    if whole is not None and whole == int(whole):
        return str(int(whole))
    return "" if value is None or whole is not None or value != value else str(value)
