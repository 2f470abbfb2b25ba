"""Scores of a method label by label and batch by batch, worst first, and its controls over seeds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from tenfold.report.stored import Run, Score, mapping, number
from tenfold.report.summary import Column, columns

VERDICTS = ("fail", "warn", "pass", "info", "not run")


@dataclass(frozen=True)
class Part:
    """One label or batch of one method: its name, number of cells if known, and mean value per metric."""

    name: str
    size: int | None
    values: dict[str, float]


@dataclass(frozen=True)
class Breakdown:
    """Scores of one method by label or by batch, worst part first."""

    columns: list[Column]
    parts: list[Part]


@dataclass
class Control:
    """One control of one method: the worst verdict over seeds, and how many seeds gave which."""

    name: str
    title: str
    verdict: str
    sentence: str
    rule: str
    numbers: dict[str, Any]
    seed: str
    verdicts: dict[str, str] = field(default_factory=dict)


def breakdown(
    scores: list[Score], method: str, kind: str, level: dict[str, Any], described: dict[str, Any]
) -> Breakdown:
    """Scores of one method by level of a column.

    Parameters
    ----------
    scores
        All scores of the comparison.
    method
        Catalog name.
    kind
        ``"label"`` or ``"batch"``: the prefix of the groups to take.
    level
        ``compare.json["labels"]`` or ``["batch"]``, for the numbers of cells.
    described
        ``compare.json["metrics"]``.
    """
    prefix, sizes = f"{kind}:", _sizes(level)
    own = [score for score in scores if score.method == method and score.group.startswith(prefix)]
    shown = columns([score._replace(group="other") for score in own if score.value is not None], described)
    values: dict[str, dict[str, list[float]]] = {}
    for score in own:
        entry = values.setdefault(score.group[len(prefix) :], {})
        if score.value is not None:
            entry.setdefault(score.metric, []).append(score.value)
    parts = [
        Part(name, sizes.get(name), {metric: statistics.fmean(found) for metric, found in entry.items()})
        for name, entry in values.items()
    ]
    places = [_places(parts, column) for column in shown]
    # Metrics differ in scale, so a part's standing is its mean place over them, not a mean of values.
    standing = {part.name: statistics.fmean([place[part.name] for place in places] or [0]) for part in parts}
    return Breakdown(shown, sorted(parts, key=lambda part: standing[part.name]))


def _places(parts: list[Part], column: Column) -> dict[str, float]:
    """Place of each part by one metric, 0 for the worst; a part without a value stands in the middle."""
    sign = -1 if column.better == "low" else 1
    known = [part for part in parts if column.metric in part.values]
    known.sort(key=lambda part: sign * part.values[column.metric])
    return {part.name: len(parts) / 2 for part in parts} | {part.name: place for place, part in enumerate(known)}


def _sizes(level: dict[str, Any]) -> dict[str, int]:
    """Cells per level, whether stored as a list beside the names or as a mapping from names."""
    sizes = level.get("sizes")
    pairs = sizes.items() if isinstance(sizes, dict) else zip(level.get("names") or [], sizes or [], strict=False)
    return {str(name): int(size) for name, size in pairs if number(size) is not None}


def controls(runs: list[Run]) -> list[Control]:
    """Controls of one method, each with its worst verdict over seeds.

    Parameters
    ----------
    runs
        All runs of the method.
    """
    found: dict[str, Control] = {}
    for run in runs:
        for stored in run.controls:
            control = _control(stored, run.seed)
            known = found.setdefault(control.name, control)
            if VERDICTS.index(control.verdict) < VERDICTS.index(known.verdict):
                control.verdicts = known.verdicts
                found[control.name] = known = control
            known.verdicts[run.seed] = control.verdict
    return list(found.values())


def _control(stored: dict[str, Any], seed: str) -> Control:
    verdict = str(stored.get("verdict") or "not run")
    name = str(stored.get("name") or stored.get("title") or "control")
    return Control(
        name=name,
        title=str(stored.get("title") or name),
        verdict=verdict if verdict in VERDICTS else "info",
        sentence=str(stored.get("sentence") or ""),
        rule=str(stored.get("rule") or ""),
        numbers=mapping(stored.get("numbers")),
        seed=seed,
    )


def tally(found: list[Control]) -> dict[str, int]:
    """Number of controls by verdict, worst first, without empty entries."""
    counts = {verdict: sum(control.verdict == verdict for control in found) for verdict in VERDICTS}
    return {verdict: count for verdict, count in counts.items() if count}
