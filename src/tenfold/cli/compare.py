"""``tenfold compare`` and ``tenfold report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold.cli.options import NO_VALUE, Data, Modality, Overwrite, with_roles


@with_roles
def compare(
    task: Annotated[str, typer.Argument(help="Task, e.g. integrate.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="For scores.csv, runs/, report.html.")],
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES", help="With commas between, or 'recommended', or 'all'; the baseline always runs."
        ),
    ] = "recommended",
    seeds: Annotated[int, typer.Option(metavar="N", help="Runs of each stochastic method.", min=1)] = 3,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Limit of one run.", min=1)] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="Memory that one run may take (default: 80 % of what is free).", min=0.1),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Run on the workers of a Dask cluster; the folder must be shared by them."
        ),
    ] = None,
    modality: Modality = "rna",
    resume: Annotated[
        bool, typer.Option("--resume", metavar=NO_VALUE, help="Go on in the folder; runs that are done are kept.")
    ] = False,
    overwrite: Overwrite = False,
    no_controls: Annotated[
        bool,
        typer.Option(
            "--no-controls", metavar=NO_VALUE, help="Leave out the controls, which refit every method several times."
        ),
    ] = False,
    all_controls: Annotated[
        bool,
        typer.Option(
            "--all-controls", metavar=NO_VALUE, help="Also those that train a deep model many times: minutes a model."
        ),
    ] = False,
    **roles: Any,
) -> None:
    """Run many methods on your data, score them, test them with controls, and say which to trust.

    Each run has a process of its own: a crash or a time-out is a row of the table, never the end.

    Example: [bold]tenfold compare integrate cells.h5ad -o trial --batch donor --labels cell_type[/]
    """
    from tenfold.cli.output import errors, show_comparison, stoppable, this_command
    from tenfold.compare import compare as compare_methods
    from tenfold.data import read

    if all_controls and no_controls:
        raise typer.BadParameter("Give --no-controls or --all-controls, not both.")
    kept = f"Stopped. Runs that were done are kept in {out}; go on with: {_resuming(this_command('--resume'))}"
    with stoppable(kept):
        result = compare_methods(
            task, read(data, modality), methods,
            out=out, seeds=seeds, timeout=timeout, memory_gb=memory_gb,
            controls="all" if all_controls else not no_controls, resume=resume,
            overwrite=overwrite, scheduler=scheduler, name=data.name, console=errors(), **roles,
        )  # fmt: skip
    show_comparison(result)


def _resuming(command: str) -> str:
    return command.replace(" --overwrite", "")


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
) -> None:
    """Rebuild report.html and the table from the stored results of a comparison.

    Example: [bold]tenfold report trial[/]
    """
    from rich.markup import escape

    from tenfold import report
    from tenfold.cli.output import console

    page = report.build(folder)
    console().print(report.terminal_table(folder))
    console().print(f"Report: [bold]{escape(str(page.resolve()))}[/]", soft_wrap=True)
