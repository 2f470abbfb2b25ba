"""``tenfold demo``: the main job on real cells that come with the installation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli.options import Overwrite

_WHAT_IT_IS = (
    "Real cells: 700 peripheral blood mononuclear cells of 10 labelled types, which come with Scanpy. "
    "The batch effect is [bold]planted[/]: half of the cells, drawn at random, had their counts rescaled gene by gene, "
    "thinned and mixed with ambient RNA, so the truth is known. A good method brings the halves together and keeps the "
    "types apart. The scores are no verdict on the methods in general: run [bold]tenfold compare[/] on your own data."
)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for the results.")] = Path(
        "tenfold-demo"
    ),
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="With commas between, or 'recommended', or 'all'.")
    ] = "recommended",
    seeds: Annotated[int, typer.Option(metavar="N", help="Runs of each stochastic method.", min=1)] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Compare integration methods on real cells with a planted batch effect, in about two minutes.

    Needs no file and no network. A demo that was stopped goes on where it was.

    Example: [bold]tenfold demo -o my-demo --methods harmony,combat --seeds 3[/]
    """
    from tenfold.cli.output import console, errors, show_comparison, stoppable, this_command
    from tenfold.compare import compare
    from tenfold.data import pbmc

    # Networks this small train slower on several threads than on one, and many times slower on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with stoppable(f"Stopped. Runs that were done are kept in {out}; go on with: {this_command()}"):
        console().print(_WHAT_IT_IS + "\n")
        result = compare(
            "integrate", pbmc(planted_batch=True), methods,
            batch="batch", labels="cell_type", out=out, seeds=seeds, resume=not overwrite, overwrite=overwrite,
            name="demo: 700 PBMC with a planted batch effect", console=errors(),
        )  # fmt: skip
    show_comparison(result)
