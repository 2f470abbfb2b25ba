"""What commands print and write."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.errors import ParameterError

if TYPE_CHECKING:
    from anndata import AnnData
    from rich.console import Console

_WIDTH_OF_FILES = 140  # score tables are not broken when the output goes to a file or a pipe


def console() -> Console:
    """Return the console for results, on standard output."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES, soft_wrap=False, highlight=False)


def errors() -> Console:
    """Return the console for errors and progress, on standard error."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH_OF_FILES, highlight=False)


@contextmanager
def stoppable(sentence: str) -> Iterator[None]:
    """Give Ctrl-C inside the block a sentence that says what is left and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(sentence) from None


def this_command(*added: str) -> str:
    """Return the command line that was given, ready to be pasted, with words added that it lacks."""
    words = ["tenfold", *sys.argv[1:]]
    return shlex.join([*words, *(word for word in added if word not in words)])


def checked_output(out: Path, overwrite: bool) -> Path:
    """Return `out` if results can be written there; says so before any work is done.

    Raises
    ------
    ParameterError
        Neither .h5ad nor .zarr, or it exists and `overwrite` is not given.
    """
    if out.suffix not in (".h5ad", ".zarr"):
        raise ParameterError(f"'{out}' should end in .h5ad or .zarr, the formats of results.")
    if out.exists() and not overwrite:
        raise ParameterError(f"'{out}' exists. Give another name, or --overwrite to replace it.")
    if out.is_dir() != (out.suffix == ".zarr") and out.exists():
        raise ParameterError(f"'{out}' is {'a folder' if out.is_dir() else 'a file'}; give another name.")
    return out


def slots(adata: AnnData) -> set[str]:
    """Return the names of all filled slots, as a user writes them: ``obsm["X_pca"]``."""
    parts = ("obs", "obsm", "obsp", "layers", "uns")
    return {f'{part}["{key}"]' for part in parts for key in getattr(adata, part)}


def show_comparison(result: Any) -> None:
    """Print a `tenfold.compare.Comparison`: table, assessment, recommendation, where the report is."""
    from rich.markup import escape

    from tenfold.report import terminal_table

    screen, summary = console(), result.summary
    screen.print(terminal_table(result.directory))
    screen.print(f"\n{escape(summary['assessment']['sentence'])}")
    screen.print(f"[bold]{escape(result.recommendation)}[/]")
    for reason in summary["recommendation"]["reasons"]:
        screen.print(f"  • {escape(str(reason))}")
    screen.print(f"\nScores: {escape(str(result.directory / 'scores.csv'))}")
    screen.print(f"Report: [bold]{escape(str(result.report.resolve()))}[/] (open it in a browser)", soft_wrap=True)
