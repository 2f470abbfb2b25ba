"""Carrying out the runs of a comparison on a Dask cluster that exists already.

The cluster's workers and this process share the comparison's folder (as on any computing cluster): a run leaves its
record there, under a name of its own, so a run that Dask repeats because a worker died replaces what was there.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.compare.jobs import Outcome, Runner
from tenfold.compare.runs import Limits, Tell, carry_out, is_done, record_death
from tenfold.compare.worker import Job
from tenfold.errors import MissingExtraError, ResourceError

if TYPE_CHECKING:
    from distributed import Client

_SECONDS_TO_CONNECT = 10


def run_all_on(address: str, jobs: Iterable[Job], work: Path, limits: Limits, tell: Tell) -> None:
    """Carry out the jobs whose results are not there yet on the workers of a Dask cluster.

    Parameters
    ----------
    address
        Of the scheduler, e.g. ``"tcp://10.0.0.1:8786"``.
    jobs, work, limits, tell
        As for `tenfold.compare.runs.run_all`.

    Raises
    ------
    MissingExtraError
        Dask is not installed.
    ResourceError
        No scheduler answers there, it has no workers, they run another tenfold, or they do not see the folder.
    """
    with _connected(address) as client:
        from distributed import as_completed

        running = {}
        for job in jobs:
            if is_done(job):
                tell(f"{job.label}: done before", 1)
            else:
                running[client.submit(_on_worker, job, work, limits, pure=False)] = job
        tell(f"{len(running)} runs on {len(client.scheduler_info()['workers'])} workers", 0)
        try:
            for future in as_completed(list(running)):
                _settle(future, running[future])
                tell(running[future].label, 1)
        finally:
            client.cancel(list(running))


def _settle(future: Any, job: Job) -> None:
    """Leave a record of a run that no worker could finish; errors of the set-up end the comparison."""
    error = future.exception()
    if isinstance(error, ResourceError):
        raise error
    if error is not None:
        record_death(job, Outcome("crash", f"The cluster gave the run up: {type(error).__name__}: {error}"), [])


def _on_worker(job: Job, work: Path, limits: Limits) -> None:
    if not Path(job.data).exists():
        raise ResourceError(
            f"The worker on {socket.gethostname()} does not see '{job.data}'. A comparison on a cluster needs its "
            "folder on a file system that all workers share."
        )
    with Runner() as runner:
        carry_out(job, work, limits, runner)


def _version() -> str:
    from tenfold import __version__

    return __version__


def _connected(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingExtraError(
            "A comparison on a cluster needs Dask, which is not installed: pip install 'tenfold[scale]'."
        ) from error
    try:
        client = Client(address, timeout=_SECONDS_TO_CONNECT)
    except (OSError, ValueError, TimeoutError) as error:
        raise ResourceError(
            f"No Dask scheduler answers at '{address}' ({type(error).__name__}). Start one with 'dask scheduler' and "
            "workers with 'dask worker ADDRESS --nthreads 1', then give the address that it prints, such as "
            "tcp://10.0.0.1:8786."
        ) from error
    try:
        versions = set(client.run(_version).values())
    except Exception as error:
        client.close()
        raise ResourceError(
            f"The workers at '{address}' cannot import tenfold ({type(error).__name__}: {error}). "
            "Start them in an environment in which this version is installed."
        ) from error
    if versions != {_version()}:
        client.close()
        found = f"run tenfold {', '.join(sorted(versions))}, not {_version()}" if versions else "are not there yet"
        raise ResourceError(f"The workers at '{address}' {found}. Start workers with 'dask worker {address}'.")
    return client
