"""The score table of a comparison for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.report import details, stored, summary
from tenfold.report.format import DASH, seconds, spread, value

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table
    from rich.text import Text

_SIGNS = {
    "fail": ("✗", "red"),
    "warn": ("!", "yellow"),
    "pass": ("✓", "green"),
}
_HEADINGS = {"seconds": "Time", "peak_memory_mb": "Memory"}
_WIDTH = 4  # columns of scores that fit a terminal of 100 characters beside method, cost and controls
_LONGEST_NAME = 16


def terminal_table(source: str | Path | pd.DataFrame) -> Table:
    """Scores as a Rich table: a row a method in order of ranking, headline columns, failures with their reason below.

    It fits 100 characters.

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
    from rich import box
    from rich.table import Table
    from rich.text import Text

    comparison = stored.read(source) if isinstance(source, (str, Path)) else _from_scores(source)
    columns = summary.columns(comparison.scores, stored.mapping(comparison.meta.get("metrics")))
    rows = summary.rows(comparison, columns)
    shown = _fitting(columns)
    checked = any(run.controls for run in comparison.runs)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=_caption(rows, checked))
    table.caption_justify = "left"
    table.add_column("#", justify="right")
    table.add_column("Method", max_width=_LONGEST_NAME, overflow="fold")
    for column in shown:
        arrow = {"high": " ↑", "low": " ↓"}.get(column.better, "")
        table.add_column(Text(_HEADINGS.get(column.metric, column.title) + arrow), justify="right")
    if checked:
        table.add_column("Controls", no_wrap=True)
    for row in rows:
        cells = [Text(_rank(row)), Text(row.title, style="dim" if row.section == "failed" else "bold")]
        cells += [_score(row.cells[column.metric], column) for column in shown]
        cells += [_verdicts(row)] if checked else []
        table.add_row(*cells)
    return table


def _fitting(columns: list[summary.Column]) -> list[summary.Column]:
    """Headline columns, or the first scores where none is marked, and the cost."""
    cost = [column for column in columns if column.metric in _HEADINGS]
    headline = [column for column in columns if column.group == "headline"]
    return (headline or [column for column in columns if column.group != "resources"])[:_WIDTH] + cost


def _rank(row: summary.Row) -> str:
    if row.rank is None:
        return DASH
    return f"L{row.rank}" if row.section == "labels" else str(row.rank)


def _score(cell: summary.Cell, column: summary.Column) -> Text:
    """Mean and spread of a score; of time and memory the mean is enough here."""
    from rich.text import Text

    if column.metric == "seconds":
        return Text(seconds(cell.mean))
    if column.metric == "peak_memory_mb":
        return Text(DASH if cell.mean is None else f"{cell.mean:,.0f} MB")
    text = Text(value(cell.mean))
    if cell.sd is not None:
        text.append(f" ±{spread(cell.sd).replace('0.', '.')}", style="dim")
    return text


def _verdicts(row: summary.Row) -> Text:
    from rich.text import Text

    counts = details.tally(details.controls(row.runs))
    parts = [
        Text(f"{count} {sign}", style=style)
        for verdict, (sign, style) in _SIGNS.items()
        if (count := counts.get(verdict))
    ]
    return Text("  ").join(parts) if parts else Text(DASH, style="dim")


def _caption(rows: list[summary.Row], checked: bool) -> Text:
    """How to read the table, and why a run has no scores: a line each, below, where there is room for sentences."""
    from rich.text import Text

    lines = []
    if any(len(row.runs) > 1 for row in rows):
        lines.append(Text("Mean over seeds ± standard deviation. ↑ more is better, ↓ less is better."))
    else:
        lines.append(Text("↑ more is better, ↓ less is better."))
    if any(cell.error is not None and len(cell.values) == 1 for row in rows for cell in row.cells.values()):
        lines.append(Text("± of a single value: its standard error over cells."))
    if checked:
        lines.append(Text("Controls: ✗ failed, ! warning, ✓ passed."))
    if any(row.section == "labels" for row in rows):
        lines.append(Text("L: the method was given the labels, so it is ranked apart."))
    for row in rows:
        for cause in row.causes:
            whose = f"{row.title}, seed {', '.join(cause.seeds)}" if cause.seeds else row.title
            lines.append(Text(f"{whose}: {cause.status}. {cause.message}".strip(), style="red"))
    return Text("\n").join(lines)


def _from_scores(frame: pd.DataFrame) -> stored.Comparison:
    """A comparison that knows nothing but its scores."""
    records = frame.to_dict("records")
    scores = stored.scores_of(records)
    pairs = dict.fromkeys((score.method, score.seed) for score in scores)
    runs = [stored.Run(method, seed, method) for method, seed in pairs]
    task = str(records[0].get("task", "comparison")) if records else "comparison"
    return stored.Comparison(Path(), task, {}, runs, scores, [])
