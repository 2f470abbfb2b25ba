"""Options that several commands share: data roles and ``--set``."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold.method import ROLES

_SEVERAL = ("categorical_covariates", "continuous_covariates")
#: Shown for a switch in place of the kind of value that it does not take.
NO_VALUE = " "
_PYTHON_WORDS = {"None": None, "True": True, "False": False}

Data = Annotated[
    Path,
    typer.Argument(help="Data: .h5ad, .h5mu, .zarr, .loom, 10x .h5, 10x mtx folder or Visium folder."),
]
Modality = Annotated[str, typer.Option(metavar="NAME", help="Of a MuData file (.h5mu): which part to take.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", metavar=NO_VALUE, help="Replace what is there.")]


def with_roles(command: Callable[..., None]) -> Callable[..., None]:
    """Replace ``**roles`` of a command by one option for each data role of the catalog (``--batch KEY``, ...)."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    roles = [_role_option(role, text) for role, text in ROLES.items()]

    @functools.wraps(command)
    def with_given_roles(**values: Any) -> None:
        command(**{name: value for name, value in values.items() if name not in ROLES or value})

    with_given_roles.__signature__ = signature.replace(parameters=[*own, *roles])  # type: ignore[attr-defined]
    with_given_roles.__annotations__ = {p.name: p.annotation for p in [*own, *roles]}
    return with_given_roles


def _role_option(role: str, text: str) -> inspect.Parameter:
    several = role in _SEVERAL
    option = typer.Option(
        f"--{role.replace('_', '-')}",
        help=f"{text[0].upper()}{text[1:]}{'; give the option once for each' if several else ''}.",
        metavar="FILE" if role == "reference" else "KEY",
        rich_help_panel="What is what in the data",
    )
    annotation = Annotated[list[str] | None if several else str | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(role, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def parsed_settings(settings: list[str] | None) -> dict[str, Any]:
    """Return ``--set name=value`` as hyper-parameters.

    A value is read as JSON where it is JSON (``0.1``, ``true``, ``[128, 64]``), ``None``, ``True`` and ``False`` as in
    Python, anything else as text.

    Raises
    ------
    typer.BadParameter
        An entry without a name or without ``=``.
    """
    found = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"'{setting}' should read name=value, e.g. --set n_latent=20.", param_hint="--set")
        found[name.strip().replace("-", "_")] = _parsed(value.strip())
    return found


def _parsed(text: str) -> Any:
    if text in _PYTHON_WORDS:
        return _PYTHON_WORDS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text
