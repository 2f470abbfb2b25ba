"""``tenfold doctor``: whether everything is here that the methods need."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import typer

_PACKAGES = ("numpy", "scipy", "pandas", "anndata", "mudata", "scanpy", "scikit-learn", "numba", "torch",
             "lightning-fabric", "plotly", "typer")  # fmt: skip
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+).*;.*extra\s*==\s*['\"]([\w-]+)['\"]")


class Finding(NamedTuple):
    """One line of the doctor's sheet; `ok` is None for plain facts."""

    name: str
    text: str
    ok: bool | None = None


def doctor() -> None:
    """Show versions, devices, threads, memory and optional parts, and what to do where something is missing.

    Exit code 1 when a method could fail for want of something.

    Example: [bold]tenfold doctor[/]
    """
    from rich.markup import escape
    from rich.table import Table

    from tenfold.cli.output import console

    findings = [*_versions(), *_machine(), *_extras(), *_checks()]
    table = Table(show_header=False, box=None, padding=(0, 1))
    signs = {None: " ", True: "[green]✓[/]", False: "[red]✗[/]"}
    for finding in findings:
        table.add_row(signs[finding.ok], escape(finding.name), escape(finding.text))
    console().print(table)
    broken = [finding.name for finding in findings if finding.ok is False]
    if broken:
        console().print(f"\n[bold red]To mend:[/] {escape(', '.join(broken))}")
        raise typer.Exit(1)
    console().print("\nAll is well.")


def _versions() -> list[Finding]:
    from tenfold import __version__

    found = [Finding("tenfold", __version__), Finding("Python", f"{platform.python_version()} ({platform.platform()})")]
    for package in _PACKAGES:
        try:
            found.append(Finding(package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            found.append(Finding(package, f"missing: pip install {package}", False))
    return found


def _machine() -> list[Finding]:
    import numba
    import psutil
    import torch

    memory = psutil.virtual_memory()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    build = "" if torch.version.cuda else " (this PyTorch is a build without CUDA)"
    threads = f"{torch.get_num_threads()} PyTorch, {numba.get_num_threads()} Numba, of {os.cpu_count()} cores"
    return [
        Finding("devices", ", ".join(["cpu", *(f"cuda:{i} {name}" for i, name in enumerate(gpus))]) + build),
        Finding("threads", threads),
        Finding("memory", f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f} GiB"),
    ]


def _extras() -> list[Finding]:
    """Return one line for each optional part, as the package's own metadata name them."""
    parts: dict[str, list[str]] = {}
    for line in metadata.requires("tenfold") or []:
        # The originals of [reference] ask for other versions: they live in an environment of their own.
        if (match := _REQUIREMENT.match(line)) and match[2] != "reference":
            parts.setdefault(match[2], []).append(match[1])
    found = []
    for extra, packages in sorted(parts.items()):
        missing = [package for package in packages if not _installed(package)]
        lacking = f"not installed ({', '.join(missing)}): in the clone, pip install -c constraints.txt '.[{extra}]'"
        found.append(Finding(f"optional: {extra}", lacking if missing else "installed"))
    return found


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _checks() -> list[Finding]:
    return [
        _check("Numba cache", _numba_cache),
        _check("temporary folder", _temporary_folder),
        _check("bundled data", _bundled_data),
        _check("catalog", _catalog),
    ]


def _check(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, look(), True)
    except Exception as error:
        return Finding(name, f"{type(error).__name__}: {error}", False)


def _numba_cache() -> str:
    """Find the folder that compiled kernels are kept in; without one they are compiled anew in every process."""
    from numba.core.caching import FunctionCache

    from tenfold.kernels import knn

    folder = Path(FunctionCache(knn.knn)._impl.locator.get_cache_path())
    with tempfile.TemporaryFile(dir=folder):
        return f"writable: {folder}"


def _temporary_folder() -> str:
    with tempfile.TemporaryFile():
        return f"writable: {tempfile.gettempdir()}"


def _bundled_data() -> str:
    from tenfold.data import pbmc

    cells = pbmc()
    return f"{cells.n_obs} cells × {cells.n_vars} genes can be read"


def _catalog() -> str:
    from tenfold import catalog

    return f"{len(catalog.names())} methods can be loaded"
