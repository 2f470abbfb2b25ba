"""The score table of a comparison for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.report import details, stored, summary
from tenfold.report.format import DASH, value

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table
    from rich.text import Text

_SIGNS = {
    "pass": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "red"),
    "info": ("i", "blue"),
    "not run": (DASH, "dim"),
}
_WIDTH = 6  # columns of scores that fit a terminal of 120 characters beside method, cost and controls


def terminal_table(source: str | Path | pd.DataFrame) -> Table:
    """Scores as a Rich table: a row a method in order of ranking, headline columns, failures with their reason.

    Parameters
    ----------
    source
        Folder of a comparison, or scores alone: a DataFrame with the columns ``method``, ``seed``, ``group``,
        ``metric`` and ``value`` (a ``task`` column is not needed).

    Raises
    ------
    tenfold.errors.FileFormatError
        The folder holds no comparison.
    """
    from rich.table import Table
    from rich.text import Text

    comparison = stored.read(source) if isinstance(source, (str, Path)) else _from_scores(source)
    columns = summary.columns(comparison.scores, stored.mapping(comparison.meta.get("metrics")))
    rows = summary.rows(comparison, columns)
    shown = _fitting(columns)
    notes = any(row.failures for row in rows)
    table = Table(title=f"{comparison.task}: mean over seeds ± standard deviation", title_justify="left", expand=False)
    table.add_column("#", justify="right")
    table.add_column("Method", no_wrap=True)
    for column in shown:
        arrow = {"high": " ↑", "low": " ↓"}.get(column.better, "")
        table.add_column(Text(column.title + arrow), justify="right")
    checked = any(run.controls for run in comparison.runs)
    if checked:
        table.add_column("Controls", no_wrap=True)
    if notes:
        table.add_column("Note")
    for row in rows:
        cells = [Text(_rank(row)), Text(row.title, style="dim" if row.section == "failed" else "bold")]
        cells += [_score(row.cells[column.metric], column.metric) for column in shown]
        cells += [_verdicts(row)] if checked else []
        cells += [_note(row)] if notes else []
        table.add_row(*cells)
    if any(row.section == "labels" for row in rows):
        table.caption = "L: the method was given the labels, so it is ranked apart."
    return table


def _fitting(columns: list[summary.Column]) -> list[summary.Column]:
    """Headline columns, or the first scores where none is marked, and the cost."""
    cost = [column for column in columns if column.group == "resources"]
    headline = [column for column in columns if column.group == "headline"]
    return (headline or [column for column in columns if column.group != "resources"])[:_WIDTH] + cost


def _rank(row: summary.Row) -> str:
    if row.rank is None:
        return DASH
    return f"L{row.rank}" if row.section == "labels" else str(row.rank)


def _score(cell: summary.Cell, metric: str) -> Text:
    from rich.text import Text

    text = Text(value(cell.mean, metric))
    if cell.sd is not None:
        text.append(f" ± {value(cell.sd, metric)}", style="dim")
    return text


def _verdicts(row: summary.Row) -> Text:
    from rich.text import Text

    counts = reversed(details.tally(details.controls(row.runs)).items())
    parts = [Text(f"{count} {_SIGNS[verdict][0]}", style=_SIGNS[verdict][1]) for verdict, count in counts]
    return Text("  ").join(parts) if parts else Text(DASH, style="dim")


def _note(row: summary.Row) -> Text:
    from rich.text import Text

    notes: dict[str, list[str]] = {}
    for run in row.failures:
        notes.setdefault(f"{run.status}: {run.message}".strip(": "), []).append(run.seed)
    all_failed = len(row.failures) == len(row.runs)
    texts = [note if all_failed else f"seed {', '.join(seeds)}: {note}" for note, seeds in notes.items()]
    return Text("\n".join(texts), style="red")


def _from_scores(frame: pd.DataFrame) -> stored.Comparison:
    """A comparison that knows nothing but its scores."""
    records = frame.to_dict("records")
    scores = stored.scores_of(records)
    pairs = dict.fromkeys((score.method, score.seed) for score in scores)
    runs = [stored.Run(method, seed, method) for method, seed in pairs]
    task = str(records[0].get("task", "comparison")) if records else "comparison"
    return stored.Comparison(Path(), task, {}, runs, scores, [])
