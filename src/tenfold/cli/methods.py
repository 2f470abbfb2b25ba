"""``tenfold methods``: the catalog."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tenfold.cli.options import NO_VALUE

_SHOWN = ("task", "name", "title", "family", "year", "needs", "gives", "readiness", "evidence")


def methods(
    task: Annotated[str | None, typer.Argument(help="Only methods for this task, e.g. integrate.")] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar=NO_VALUE, help="Print JSON, with DOIs.")] = False,
) -> None:
    """List the methods: what each needs and gives, how ready it is, and what evidence there is.

    Example: [bold]tenfold methods integrate[/]
    """
    from tenfold import catalog

    rows = catalog.methods(task).to_dict("records")
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    from tenfold.cli.output import console

    table = Table(title=f"{len({row['name'] for row in rows})} methods", title_justify="left")
    for column in _SHOWN:
        table.add_column(column, overflow="fold", no_wrap=column in ("task", "name"))
    for row in rows:
        table.add_row(*(str(row[column]) for column in _SHOWN))
    console().print(table)
    console().print(
        "readiness: recommended, usable, caution, research (the review's verdict or our own measurement)\n"
        "evidence: parity (agrees with the reference implementation), published (reproduces a published figure), "
        "check (passes its own check), none"
    )
