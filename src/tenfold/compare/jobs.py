"""Runs in processes of their own, under a time and a memory limit."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

_POLL_SECONDS = 0.1
_KILLED = -9  # code of a process that was killed; Windows has no name for the signal


@dataclass(frozen=True)
class Outcome:
    """How a process ended (``"ok"``, ``"timeout"``, ``"out of memory"``, ``"crash"`` or ``"called off"``) and why."""

    status: str
    message: str = ""


def default_memory_limit() -> float:
    """Return 80 % of the memory that is free now, in MiB."""
    return 0.8 * psutil.virtual_memory().available / 2**20


class Runner:
    """Runs jobs, one after the other, each in a process that a process of `tenfold.compare.worker` starts.

    A context manager; that process is started with the first job, and again where it was killed.
    """

    def __init__(self) -> None:
        self._server: subprocess.Popen | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        if self._server is not None:
            end(self._server.pid)
            with self._server:  # waits for it, and closes its pipes
                pass

    def run(
        self, job: Path, log: Path, *, timeout: float | None, memory_mb: float | None, on_stage: Callable[[str], None]
    ) -> Outcome:
        """Run a job file and wait for it. Removing the job file calls the run off.

        Parameters
        ----------
        job
            Job file, as `tenfold.compare.worker` reads it.
        log
            Where the run's error output goes.
        timeout
            Seconds after which the run is ended; None for no limit.
        memory_mb
            Resident memory (with its children) above which the run is ended, in MiB; None for 80 % of what is free.
        on_stage
            Called with each stage that the run announces.
        """
        if self._server is None or self._server.poll() is not None:
            with log.open("wb") as errors:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "tenfold.compare.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=errors, text=True,
                )  # fmt: skip
        run = _Run(self._server, on_stage)
        log.touch()
        try:
            run.start(job, log)
            return _watch(run, job, timeout, default_memory_limit() if memory_mb is None else memory_mb)
        finally:
            run.end()


class _Run:
    """A run under way, as far as its server tells of it."""

    def __init__(self, server: subprocess.Popen, on_stage: Callable[[str], None]):
        self._server, self._on_stage = server, on_stage
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._started = threading.Event()
        self.pid: int | None = None
        #: Exit code; that of a killed process where the server is gone.
        self.code: int | None = None

    def start(self, job: Path, log: Path) -> None:
        """Ask for it, and wait until its process is there."""
        assert self._server.stdin is not None
        self._reader.start()
        try:
            self._server.stdin.write(json.dumps([str(job), str(log)]) + "\n")
            self._server.stdin.flush()
        except OSError:  # the server is gone, and the reader notices
            pass
        self._started.wait()

    def end(self) -> None:
        """Kill it if it still runs; without its process, kill the server."""
        if self.code is None:
            end(self._server.pid if self.pid is None else self.pid)
        self._reader.join(timeout=5)

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            what, _, told = line.strip().partition(": ")
            if what == "pid":
                self.pid = int(told)
                self._started.set()
            elif what == "stage":
                self._on_stage(told)
            elif what == "ended":
                self.code = int(told)
                return
        self._server.wait()
        self.code = _KILLED
        self._started.set()


def _watch(run: _Run, job: Path, timeout: float | None, memory_mb: float) -> Outcome:
    started = time.monotonic()
    while run.code is None:
        if timeout is not None and time.monotonic() - started > timeout:
            return Outcome("timeout", f"Ended after the time limit of {timeout:.0f} s.")
        used = resident_mb(run.pid) if run.pid else 0.0
        if used > memory_mb:
            return Outcome("out of memory", f"Ended at {used:.0f} MiB, above the limit of {memory_mb:.0f} MiB.")
        if not job.exists():
            return Outcome("called off", "The comparison was ended.")
        time.sleep(_POLL_SECONDS)
    if run.code == 0:
        return Outcome("ok")
    if run.code == _KILLED:
        return Outcome("out of memory", "Killed by the system, most likely because the machine ran out of memory.")
    return Outcome("crash", f"The process ended with code {run.code}.")


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB; 0 when it is gone."""
    try:
        root = psutil.Process(pid)
        return sum(p.memory_info().rss for p in (root, *root.children(recursive=True))) / 2**20
    except psutil.Error:
        return 0.0


def end(pid: int) -> None:
    """Kill a process and its children, if they still run."""
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.Error:
        return
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue
