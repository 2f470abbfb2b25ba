"""``tenfold demo``: the main job on real cells that come with the installation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.options import Overwrite

if TYPE_CHECKING:
    from anndata import AnnData

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

    console().print(_WHAT_IT_IS + "\n")
    with stoppable(f"Stopped. Runs that were done are kept in {out}; go on with: {this_command()}"):
        result = compare(
            "integrate", planted_batches(), methods,
            batch="batch", labels="cell_type", out=out, seeds=seeds, resume=not overwrite, overwrite=overwrite,
            name="demo: 700 PBMC with a planted batch effect", console=errors(),
        )  # fmt: skip
    show_comparison(result)


def planted_batches(seed: int = 0) -> AnnData:
    """Return `tenfold.data.pbmc` with ``obs["batch"]``: "as measured", and "planted" with a known batch effect."""
    import numpy as np
    import pandas as pd

    from tenfold.data import pbmc, simulate

    adata = pbmc()
    halves = (np.random.default_rng(seed).random(adata.n_obs) < 0.5).astype(np.int32)
    adata.X = simulate.plant_batch(adata.X, halves, seed=seed)[0]
    adata.obs["batch"] = pd.Categorical(np.where(halves == 1, "planted", "as measured"))
    return adata
