"""Means over seeds, columns, and the order of rows: what both the page and the terminal table show."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tenfold.report.stored import Comparison, Run, Score, listing, mapping, number

GROUPS = {
    "headline": "Headline",
    "layers": "Annotated layers, number given",
    "unknown": "Number of domains not given",
    "heads": "By each head",
    "sections": "Several slices",
    "unannotated": "Without annotation",
    "transfer": "Batches left out",
    "novel": "Types left out",
    "confidence": "Confidence",
    "velocity": "Velocities",
    "bio": "Biology kept",
    "batch": "Batches mixed",
    "control": "Controls",
    "other": "Other",
    "optimistic": "Within batches (optimistic)",
    "literature": "As in other papers",
    "resources": "Cost",
}
#: What each group of columns asks, in words that need no glossary.
QUESTIONS = {
    "headline": "Look here first.",
    "layers": "Are annotated layers found, by a method that is told how many there are?",
    "unknown": "And where the number of domains is chosen from the data?",
    "heads": "What does each clustering find in the same embedding? The head is no merit of the method.",
    "sections": "Does a domain stand for the same tissue in every slice?",
    "unannotated": "Are domains contiguous? Such scores prove nothing by themselves; read the cautions.",
    "transfer": "Are cells of a new batch labelled rightly, by a method fitted on the others?",
    "novel": "Are cells of a type that the reference lacks told from known ones?",
    "confidence": "Does the method know when it is wrong?",
    "velocity": "What velocities look like. Nothing here is evidence without the permuted counts beside it.",
    "bio": "Do cells of one type stay together, and apart from other types?",
    "batch": "Do cells of one type lie together whatever batch they come from?",
    "control": "What happens where the right answer is known?",
    "optimistic": "Optimistic: cells of one sample are fitted and judged. Never quote these for new samples.",
    "literature": "Scores that published benchmarks report. They are shown for comparison and count for nothing here.",
    "resources": "What does one run cost?",
}
_RESOURCES = {"seconds": "Seconds", "peak_memory_mb": "Peak memory (MB)"}
_FIRST = ("recovered_neighbors", "null_batch_loss", "null_loss")


@dataclass(frozen=True)
class Column:
    """One metric as a column of the score table.

    Attributes
    ----------
    better
        ``"high"``, ``"low"``, or ``""`` where nothing says which is good.
    low, high
        Range of the metric, None where it has no bound.
    """

    metric: str
    title: str
    group: str
    better: str = ""
    low: float | None = None
    high: float | None = None
    range: str = ""
    good: str = ""
    formula: str = ""
    warning: str = ""

    @property
    def section(self) -> str:
        """Heading under which the column stands."""
        return GROUPS.get(self.group, self.group)

    @property
    def question(self) -> str:
        """What the column's group asks."""
        return QUESTIONS.get(self.group, "")

    @property
    def explanation(self) -> str:
        """Range, what is good, and criticism, in plain sentences."""
        good = {"high": "higher is better", "low": "lower is better"}.get(self.better, self.good)
        parts = [
            f"Good: {good}" if good else "",
            f"Range: {self.range}" if self.range else "",
            f"Formula: {self.formula}" if self.formula else "",
            f"Caution: {self.warning}" if self.warning else "",
        ]
        return "\n".join(part for part in parts if part) or "This metric is not described in compare.json."


@dataclass(frozen=True)
class Cell:
    """A metric of one method: one value a seed; `reason` says why there is none.

    `error` is the standard error over cells, where one is stored.
    """

    values: dict[str, float]
    reason: str = ""
    error: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; of a single value its error over cells, None where there is none."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else self.error


class Failure(NamedTuple):
    """What went wrong, and with which seeds."""

    status: str
    message: str
    seeds: list[str]


@dataclass
class Row:
    """A method as a row: section is ``ranked``, ``labels`` (it was given the labels) or ``failed``."""

    method: str
    title: str
    section: str
    rank: int | None
    cells: dict[str, Cell]
    runs: list[Run] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[Run]:
        """Runs that did not end well."""
        return [run for run in self.runs if not run.ok]

    @property
    def causes(self) -> list[Failure]:
        """Failures, each cause once; no seeds are named where every run failed alike."""
        seeds: dict[tuple[str, str], list[str]] = {}
        for run in self.failures:
            seeds.setdefault((run.status, run.message), []).append(run.seed)
        alike = len(seeds) == 1 and len(self.failures) == len(self.runs)
        return [Failure(*cause, [] if alike else found) for cause, found in seeds.items()]


def columns(scores: Iterable[Score], described: dict[str, Any]) -> list[Column]:
    """Columns of the score table: headline first, then biology, batches, controls, unknown ones, cost.

    Parameters
    ----------
    scores
        All scores; those per label or per batch are left out here.
    described
        ``compare.json["metrics"]``.
    """
    groups: dict[str, str] = {}
    for score in scores:
        if ":" not in score.group:
            groups.setdefault(score.metric, score.group)
    found = [_column(metric, group, mapping(described.get(metric))) for metric, group in groups.items()]
    order, described_order = list(GROUPS), list(described)

    def key(column: Column) -> tuple[int, int, int]:
        first = _FIRST.index(column.metric) if column.metric in _FIRST else len(_FIRST)
        place = described_order.index(column.metric) if column.metric in described else len(described_order)
        return (order.index(column.group), first, place)

    return sorted(found, key=key)


def _column(metric: str, group: str, about: dict[str, Any]) -> Column:
    group = str(about.get("group") or group)
    if metric in _RESOURCES:
        group = "resources"
    if about.get("headline") or metric == _FIRST[0]:
        group = "headline"
    low, high, text = _range(about.get("range"))
    good = str(about.get("good") or "")
    return Column(
        metric=metric,
        title=str(about.get("title") or _RESOURCES.get(metric) or metric),
        group=group if group in GROUPS else "other",
        better="low" if group == "resources" and not good else _better(good),
        low=low,
        high=high,
        range=text,
        good=good,
        formula=str(about.get("formula") or ""),
        warning=str(about.get("warning") or ""),
    )


def _range(given: object) -> tuple[float | None, float | None, str]:
    """Read a range written as [low, high] or as text such as "0 to 1"; None stands for no bound."""
    if isinstance(given, (list, tuple)) and len(given) == 2:
        low, high = number(given[0]), number(given[1])
        ends = ("no lower bound" if low is None else f"{low:g}", "no upper bound" if high is None else f"{high:g}")
        return low, high, " to ".join(ends)
    text = str(given or "")
    bounds = re.findall(r"(?<![\w.])[-−]?\d+(?:\.\d+)?", text)
    if len(bounds) == 2:
        low, high = (number(bound.replace("−", "-")) for bound in bounds)
        return low, high, text
    return None, None, text


def _better(good: str) -> str:
    """Direction of a metric from the words that say what is good."""
    word = re.search(r"\b(high|large|more|up|max|low|small|less|down|min|near 0|close to 0)", good.lower())
    if word is None:
        return {"1": "high", "0": "low"}.get(good.strip(), "")
    return "high" if word[1] in ("high", "large", "more", "up", "max") else "low"


def rows(comparison: Comparison, shown: list[Column]) -> list[Row]:
    """Rows of the score table: ranked methods, then those that were given the labels, then failed ones.

    Parameters
    ----------
    comparison
        What :func:`tenfold.report.stored.read` returns.
    shown
        What :func:`columns` returns.
    """
    ranking = [entry for entry in listing(comparison.meta.get("ranking")) if isinstance(entry, dict)]
    ranked = {str(entry.get("method")): entry for entry in ranking}
    values: dict[tuple[str, str], dict[str, float]] = {}
    errors: dict[tuple[str, str], float] = {}
    for score in comparison.scores:
        if ":" not in score.group and score.value is not None:
            values.setdefault((score.method, score.metric), {})[score.seed] = score.value
        elif score.group == "spread:cells" and score.value is not None:
            errors[score.method, score.metric] = score.value
    result = []
    for method in comparison.methods:
        own, entry = comparison.runs_of(method), mapping(ranked.get(method))
        cells = {
            column.metric: _cell(values.get((method, column.metric), {}), column, own, comparison) for column in shown
        }
        cells = {name: replace(cell, error=errors.get((method, name))) for name, cell in cells.items()}
        section = "labels" if entry.get("uses_labels") else "ranked"
        section = section if any(run.ok for run in own) else "failed"
        reasons = [str(reason) for reason in listing(entry.get("reasons"))]
        result.append(Row(method, own[0].title, section, None, cells, own, reasons))
    return _ranked(result, list(ranked), shown)


def _ranked(found: list[Row], ranking: list[str], shown: list[Column]) -> list[Row]:
    """Order rows by section and by the stored ranking (by the first headline metric where none is stored)."""
    first = next((column for column in shown if column.group == "headline"), None)

    def key(row: Row) -> tuple[int, int, float]:
        mean = row.cells[first.metric].mean if first else None
        sign = 1 if first and first.better == "low" else -1
        place = ranking.index(row.method) if row.method in ranking else len(ranking)
        return (("ranked", "labels", "failed").index(row.section), place, math.inf if mean is None else sign * mean)

    found.sort(key=key)
    for section in ("ranked", "labels"):
        members = [row for row in found if row.section == section]
        for place, row in enumerate(members, start=1):
            row.rank = place
    return found


def _cell(values: dict[str, float], column: Column, runs: list[Run], comparison: Comparison) -> Cell:
    if values:
        return Cell(values)
    if column.metric in ("seconds", "peak_memory_mb"):
        measured = {run.seed: getattr(run, column.metric) for run in runs}
        values = {seed: value for seed, value in measured.items() if value is not None}
        return Cell(values, "" if values else "Not measured.")
    failed = [run for run in runs if not run.ok]
    if len(failed) == len(runs):
        return Cell({}, f"No value: {failed[0].status}. {failed[0].message}".strip())
    if not comparison.meta.get("labels") and column.group == "bio":
        return Cell({}, "No value: this metric needs cell labels, and none were given.")
    return Cell({}, "Not computed for this method: what it returns does not allow this metric, or it was switched off.")


def best(found: list[Row], column: Column) -> float | None:
    """Best mean of a column among the ranked methods, or None where no direction is good."""
    means = [row.cells[column.metric].mean for row in found if row.section == "ranked"]
    known = [mean for mean in means if mean is not None]
    if len(known) < 2 or not column.better:
        return None
    return max(known) if column.better == "high" else min(known)
