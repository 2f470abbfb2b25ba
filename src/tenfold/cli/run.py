"""``tenfold run``: one method on one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.options import Data, Modality, Overwrite, parsed_settings, with_roles

if TYPE_CHECKING:
    from anndata import AnnData


@with_roles
def run(
    task: Annotated[str, typer.Argument(help="Task, e.g. embed, integrate, annotate, denoise, generate.")],
    method: Annotated[str, typer.Argument(help="Method, as [bold]tenfold methods[/] names it.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the result goes: .h5ad or .zarr.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyper-parameter; may be given several times."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed, for methods that have one.", min=0)] = None,
    n_cells: Annotated[
        int | None,
        typer.Option(metavar="N", help="generate: how many cells to make (default: as many as given).", min=1),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for training state; a stopped training goes on from it."),
    ] = None,
    modality: Modality = "rna",
    overwrite: Overwrite = False,
    **roles: Any,
) -> None:
    """Fit one method and write the data with its results.

    Example: [bold]tenfold run integrate harmony cells.h5ad -o integrated.h5ad --batch donor --set n_clusters=50[/]
    """
    from tenfold import catalog
    from tenfold.cli.output import checked_output, console, slots, stoppable, this_command
    from tenfold.data import read, write

    params = parsed_settings(settings)
    made = catalog.method(task, method, **params)  # a wrong name or value is told before the data are read
    samples = "generate" in made.info.tasks and task == "generate"
    if n_cells is not None and not samples:
        raise typer.BadParameter("only the task 'generate' makes cells.", param_hint="--n-cells")
    checked_output(out, overwrite)
    kept = f"The training state is in {checkpoint}; go on with: {this_command()}"
    lost = "Give --checkpoint FOLDER to be able to go on after a stop"
    with (
        stoppable(f"Stopped; nothing was written to {out}. {kept if checkpoint else lost}."),
        _opened(data, modality, None if samples else out) as (adata, written_at_the_end),
    ):
        before = slots(adata)
        if "reference" in roles:
            roles["reference"] = read(roles["reference"], modality)
        fitted = catalog.run(task, method, adata, params=params, seed=seed, checkpoint=checkpoint, **roles)
        result = _synthetic(fitted, adata, n_cells) if samples else adata
        wrote = f"{result.n_obs} synthetic cells" if samples else ", ".join(sorted(slots(adata) - before))
        if not written_at_the_end:
            write(result, out)
    run_ = fitted.run_
    console().print(
        f"{fitted.info.title}: {run_['seconds']:.1f} s, {run_['peak_memory_mb']:.0f} MiB at most. "
        f"Wrote {wrote or 'the results again'} to {out}.",
        markup=False,
    )


@contextmanager
def _opened(path: Path, modality: str, out: Path | None) -> Iterator[tuple[AnnData, bool]]:
    """Open the data, on disk where they are large; and say whether the end of the block writes the results to `out`."""
    from tenfold.data import read, results
    from tenfold.data.backed import is_large

    if not is_large(path):
        yield read(path, modality), False
    elif out is None:
        yield read(path, backed=True), False
    else:
        with results(path, out) as adata:
            yield adata, True


def _synthetic(fitted: Any, adata: AnnData, n_cells: int | None) -> AnnData:
    cells = fitted.sample(n_cells or adata.n_obs)
    cells.uns["tenfold"] = adata.uns["tenfold"]
    return cells
