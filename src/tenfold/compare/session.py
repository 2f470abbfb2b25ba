"""`compare`: check, plan, run each method in its own process, collect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anndata import AnnData

from tenfold import catalog
from tenfold.compare.cluster import run_all_on
from tenfold.compare.prepared import head, prepared, write_cells
from tenfold.compare.results import Comparison, collect
from tenfold.compare.runs import Limits, run_all
from tenfold.compare.tasks import compared_task
from tenfold.compare.worker import Job
from tenfold.data.writing import write_h5ad
from tenfold.errors import DataError, ParameterError, RoleError, closest
from tenfold.task import Assessment, ComparedTask

if TYPE_CHECKING:
    from rich.console import Console


def compare(
    task: str,
    adata: AnnData,
    methods: str | Sequence[str] = "recommended",
    *,
    out: str | Path,
    seeds: int | Iterable[int] = 3,
    params: dict[str, dict[str, Any]] | None = None,
    timeout: float | None = None,
    memory_gb: float | None = None,
    controls: bool | Literal["all"] = True,
    resume: bool = False,
    overwrite: bool = False,
    scheduler: str | None = None,
    name: str = "AnnData in memory",
    console: Console | None = None,
    **roles: str,
) -> Comparison:
    """Run methods on your data, score them, test them with controls, and say which to trust.

    Parameters
    ----------
    task
        What to compare, e.g. ``"integrate"``.
    adata
        Cells × genes with raw counts in X or in ``layer``; not changed.
    methods
        Names, ``"recommended"`` or ``"all"``. The task's baselines are always run beside them.
    out
        Folder for ``scores.csv``, ``runs/``, ``compare.json`` and ``report.html``.
    seeds
        Number of seeds, or the seeds themselves. Methods without a seed run once.
    params
        Hyper-parameters by method name.
    timeout
        Seconds that one run may take, controls included.
    memory_gb
        Memory that one run may take, in GiB; default 80 % of what is free.
    controls
        Also run the task's controls (each refits the method on at most 3,000 cells; first seed only). ``"all"``: also
        those that would train a deep model many times, and every repeat of the others.
    resume
        Continue a comparison of the same data in `out`; runs that are done are kept.
    overwrite
        Replace an earlier comparison in `out`.
    scheduler
        Address of a Dask scheduler on whose workers to run, instead of one run after the other here; `out` must be on
        a file system that the workers share. Start workers with one thread each, or runs disturb each other's times.
    name
        How the report calls the data.
    console
        Rich console for progress; None shows progress only in a terminal.
    **roles
        Data roles (``batch=``, ``labels=``, ``layer=``, ...).

    Returns
    -------
    Scores, runs, ranking and recommendation, all of it stored in `out`.

    Raises
    ------
    DataError, ParameterError, RoleError
        Before any run starts, where the data, a name or a role cannot be used. A method that fails while running is a
        row of the result, not an error.
    MissingExtraError, ResourceError
        With `scheduler`: Dask is not installed, or the cluster cannot be used as it is.
    """
    if controls not in (True, False, "all"):
        raise ParameterError(f'controls is True, False or "all", not {controls!r}.')
    judge = compared_task(task)
    roles = _checked_roles(judge, roles)
    plan = _plan(judge, methods, seeds, params or {})
    cells = prepared(adata, judge, roles)
    kept_roles = {role: key for role, key in roles.items() if role != "layer"}
    about = head(task, name, cells, kept_roles, roles, plan)
    directory = _open_directory(Path(out).resolve(), about["fingerprint"], resume, overwrite)
    work = directory / ".work"
    work.mkdir(exist_ok=True)
    try:
        with _progress(console, sum(map(len, plan.values())) + 1) as tell:
            tell("reading the data", 0)
            write_h5ad(cells, work / "data.h5ad")
            write_cells(directory, cells, kept_roles)
            tell("is there anything to correct?", 0)
            assessment = _assessed(judge, cells, kept_roles)
            tell("assessed", 1)
            limits = Limits(timeout, memory_gb * 1024 if memory_gb else None)
            jobs = _jobs(task, plan, params or {}, kept_roles, directory, about["fingerprint"], controls)
            if scheduler is None:
                run_all(jobs, work, limits, tell)
            else:
                run_all_on(scheduler, jobs, work, limits, tell)
            return collect(directory, about, assessment)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _assessed(judge: ComparedTask, adata: AnnData, roles: dict[str, str]) -> Assessment:
    """Return the task's verdict on whether it should be done; the methods run even where it cannot be had."""
    try:
        return judge.assess(adata, roles, 0)
    except Exception as error:
        return Assessment("not run", f"Whether {judge.name} is called for could not be assessed: {error}", "")


def _checked_roles(judge: ComparedTask, roles: dict[str, Any]) -> dict[str, str]:
    roles = {role: value for role, value in roles.items() if value is not None}
    known = (*judge.needs, *judge.accepts)
    for role in roles:
        if role not in known:
            raise RoleError(
                f"compare '{judge.name}' does not take '{role}'.{closest(role, known)} It takes {', '.join(known)}."
            )
    for role in judge.needs:
        if role not in roles:
            raise RoleError(f"compare '{judge.name}' needs {role}=...: name the obs column that holds it.")
    return roles


def _plan(
    judge: ComparedTask, methods: str | Sequence[str], seeds: int | Iterable[int], params: dict[str, dict[str, Any]]
) -> dict[str, list[int]]:
    """Return the seeds to run of every method; names and hyper-parameters are checked here."""
    if methods == "recommended":
        chosen = list(judge.recommended)
    elif methods == "all":
        chosen = catalog.names(judge.name)
    else:
        chosen = methods.split(",") if isinstance(methods, str) else list(methods)
    classes = {}
    for given in (judge.baseline, *judge.companions, *chosen):
        cls = catalog.find(judge.name, given.strip())
        classes[cls.name()] = cls
    for given, values in params.items():
        if given not in classes:
            raise ParameterError(f"params names '{given}', which is not compared.{closest(given, classes)}")
        classes[given](**values)
    numbers = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not numbers:
        raise ParameterError("seeds must be at least 1.")
    return {name: numbers if cls.info.stochastic else numbers[:1] for name, cls in classes.items()}


def _open_directory(directory: Path, fingerprint: str, resume: bool, overwrite: bool) -> Path:
    marker, runs = directory / "comparison.id", directory / "runs"
    if directory.exists() and not directory.is_dir():
        raise ParameterError(f"'{directory}' is a file; give the name of a folder.")
    if marker.exists():
        if overwrite:
            shutil.rmtree(runs, ignore_errors=True)
        elif not resume:
            raise ParameterError(
                f"'{directory}' already holds a comparison. Give resume=True (--resume) to continue it, "
                "overwrite=True (--overwrite) to replace it, or another folder."
            )
        elif marker.read_text() != fingerprint:
            raise DataError(
                f"'{directory}' holds a comparison of other data, other roles or another tenfold version, so it cannot "
                "be resumed. Choose another folder."
            )
    elif runs.exists():
        raise ParameterError(f"'{directory}' has a folder 'runs' that is not tenfold's; choose another folder.")
    runs.mkdir(parents=True, exist_ok=True)
    marker.write_text(fingerprint)
    return directory


def _jobs(
    task: str,
    plan: dict[str, list[int]],
    params: dict[str, dict[str, Any]],
    roles: dict[str, str],
    directory: Path,
    fingerprint: str,
    controls: bool | Literal["all"],
) -> Iterable[Job]:
    for method, seeds in plan.items():
        for seed in seeds:
            with_controls = controls if seed == seeds[0] else False
            values = params.get(method, {})
            yield Job(
                task, method, seed, values, roles,
                data=str(directory / ".work" / "data.h5ad"),
                cells=str(directory / "cells.safetensors"),
                result=str(directory / "runs" / f"{method}-{seed}.json"),
                fingerprint=f"{fingerprint}-{json.dumps(values, sort_keys=True)}-{with_controls}",
                controls=with_controls,
            )  # fmt: skip


@contextmanager
def _progress(console: Console | None, total: int):
    """Yield ``tell(text, advance)``, which moves a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = console or Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        running = bar.add_task("", total=total)
        yield lambda text, advance: bar.update(running, description=text, advance=advance)
