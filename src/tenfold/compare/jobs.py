"""One run in a process of its own, under a time and a memory limit."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """How a process ended (``"ok"``, ``"timeout"``, ``"out of memory"``, ``"crash"`` or ``"called off"``) and why."""

    status: str
    message: str = ""


def default_memory_limit() -> float:
    """Return 80 % of the memory that is free now, in MiB."""
    return 0.8 * psutil.virtual_memory().available / 2**20


def run_job(
    job: Path, log: Path, *, timeout: float | None, memory_mb: float | None, on_stage: Callable[[str], None]
) -> Outcome:
    """Run the worker on a job file and wait for it. Removing the job file calls the run off.

    Parameters
    ----------
    job
        Job file, as `tenfold.compare.worker` reads it.
    log
        Where the worker's error output goes.
    timeout
        Seconds after which the worker is ended; None for no limit.
    memory_mb
        Resident memory (with its children) above which the worker is ended, in MiB; None for 80 % of what is free.
    on_stage
        Called with each stage that the worker announces.
    """
    memory_mb = default_memory_limit() if memory_mb is None else memory_mb
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tenfold.compare.worker", str(job)],
            stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        reader = threading.Thread(target=_announce, args=(process, on_stage), daemon=True)
        reader.start()
        try:
            outcome = _watch(process, job, timeout, memory_mb)
        finally:
            end(process)
        reader.join(timeout=5)
    return outcome


def _announce(process: subprocess.Popen, on_stage: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("stage: "):
            on_stage(line.removeprefix("stage: ").strip())


def _watch(process: subprocess.Popen, job: Path, timeout: float | None, memory_mb: float) -> Outcome:
    started = time.monotonic()
    while process.poll() is None:
        if timeout is not None and time.monotonic() - started > timeout:
            return Outcome("timeout", f"Ended after the time limit of {timeout:.0f} s.")
        used = resident_mb(process.pid)
        if used > memory_mb:
            return Outcome("out of memory", f"Ended at {used:.0f} MiB, above the limit of {memory_mb:.0f} MiB.")
        if not job.exists():
            return Outcome("called off", "The comparison was ended.")
        time.sleep(_POLL_SECONDS)
    if process.returncode == 0:
        return Outcome("ok")
    if process.returncode == -9:
        return Outcome("out of memory", "Killed by the system, most likely because the machine ran out of memory.")
    return Outcome("crash", f"The process ended with code {process.returncode}.")


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB; 0 when it is gone."""
    try:
        root = psutil.Process(pid)
        return sum(p.memory_info().rss for p in (root, *root.children(recursive=True))) / 2**20
    except psutil.Error:
        return 0.0


def end(process: subprocess.Popen) -> None:
    """Kill a process and its children, if they still run."""
    try:
        root = psutil.Process(process.pid)
        family = [*root.children(recursive=True), root]
    except psutil.Error:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue
    process.wait()
