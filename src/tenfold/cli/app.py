"""The program ``tenfold``: its commands, and what happens to errors, warnings and Ctrl-C.

Nothing heavy is imported before a command needs it, so that ``tenfold --help`` answers at once.
"""

from __future__ import annotations

import re
import signal
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tenfold.cli import compare, demo, doctor, methods, run
from tenfold.cli.options import NO_VALUE
from tenfold.cli.output import errors
from tenfold.errors import TenfoldError
from tenfold.method import ROLES

_ROLE_AS_KEYWORD = re.compile(rf"\b({'|'.join([*ROLES, 'modality'])})=(?:\.\.\.|['\"]([^'\"]*)['\"])?")


class Commands(TyperGroup):
    """Runs a command; errors become one paragraph, exit code 1, and Ctrl-C a sentence, exit code 130."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let ``--debug`` stand anywhere on the line."""
        if "--debug" in args:
            args = ["--debug", *(word for word in args if word != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with warnings.catch_warnings():
            if not ctx.params.get("debug"):
                warnings.simplefilter("ignore")
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = _show_note  # type: ignore[assignment]
            return self._guarded(lambda: super(Commands, self).invoke(ctx), debug=ctx.params.get("debug", False))

    def _guarded(self, command: Callable[[], Any], debug: bool) -> Any:
        try:
            return command()
        except KeyboardInterrupt as stop:
            errors().print(str(stop) or "Stopped.", markup=False)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of a pipe has had enough, as in ``tenfold methods | head``
            raise
        except (TenfoldError, OSError, MemoryError) as error:
            if debug:
                raise
            errors().print(f"[bold red]Error:[/] {_escaped(in_words(error))}")
            raise typer.Exit(1) from None
        except Exception as error:
            if debug or type(error).__module__.partition(".")[0] in ("typer", "click"):
                raise
            text = f"{type(error).__name__}: {error}. This is a fault in tenfold; add --debug to see where it is."
            errors().print(f"[bold red]Error:[/] {_escaped(text)}")
            raise typer.Exit(1) from None


def in_words(error: BaseException) -> str:
    """Return an error as a paragraph in which data roles look as they do on the command line."""
    if isinstance(error, MemoryError):
        return "The memory of this machine does not suffice. Take fewer cells or genes, or a larger machine."
    return _ROLE_AS_KEYWORD.sub(_as_option, str(error))


def _as_option(match: re.Match[str]) -> str:
    option = f"--{match[1].replace('_', '-')}"
    return f"{option} {match[2]}" if match[2] else option


def _show_note(message: Warning | str, *_: Any, **__: Any) -> None:
    errors().print(f"[yellow]Note:[/] {_escaped(' '.join(str(message).split()))}")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]tenfold demo[/]. Every command has its own --help.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tenfold import __version__

        typer.echo(f"tenfold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar=NO_VALUE, help="Print the version and stop.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", metavar=NO_VALUE, help="Show the traceback of an error.")] = False,
) -> None:
    """Methods for single-cell transcriptomics behind one interface, judged on your own data."""


app.command("demo")(demo.demo)
app.command("methods")(methods.methods)
app.command("run")(run.run)
app.command("compare")(compare.compare)
app.command("report")(compare.report)
app.command("doctor")(doctor.doctor)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the program."""
    signal.signal(signal.SIGTERM, _stop)  # so that a scheduler's time limit ends the runs, too, and tells how to go on
    app(prog_name="tenfold")
