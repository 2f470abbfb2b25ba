"""Carrying out the runs of a comparison: one at a time, each in its own process, each leaving one record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenfold.compare.files import write_json
from tenfold.compare.jobs import Outcome, Runner
from tenfold.compare.worker import Job, empty_record

#: ``tell(text, advance)`` moves the progress bar.
Tell = Callable[[str, int], Any]


@dataclass(frozen=True)
class Limits:
    """What one run may take: seconds (None: no limit) and MiB (None: 80 % of what is free when it starts)."""

    timeout: float | None
    memory_mb: float | None


def run_all(jobs: Iterable[Job], work: Path, limits: Limits, tell: Tell) -> None:
    """Carry out the jobs whose results are not there yet, one after the other on this machine."""
    with Runner() as runner:
        for job in jobs:
            if is_done(job):
                tell(f"{job.label}: done before", 1)
                continue
            tell(f"{job.label}: starting", 0)
            carry_out(job, work, limits, runner, lambda stage, label=job.label: tell(f"{label}: {stage}", 0))
            tell(job.label, 1)


def is_done(job: Job) -> bool:
    """Whether an earlier comparison left the result of exactly this job."""
    before = stored(Path(job.result))
    return bool(
        before and before.get("complete") and before["fingerprint"] == job.fingerprint and before["status"] == "ok"
    )


def carry_out(
    job: Job, work: Path, limits: Limits, runner: Runner, on_stage: Callable[[str], Any] = lambda stage: None
) -> None:
    """Run a job in its own process; a process that dies leaves a record, too.

    Parameters
    ----------
    job
        What to do.
    work
        Folder for the job file and the log.
    limits
        Of time and memory.
    runner
        Starts the process.
    on_stage
        Called with each stage that the run announces.
    """
    Path(job.result).unlink(missing_ok=True)
    job_file, log = work / f"{job.method}-{job.seed}.job", work / f"{job.method}-{job.seed}.log"
    write_json(job_file, asdict(job))
    outcome = runner.run(job_file, log, timeout=limits.timeout, memory_mb=limits.memory_mb, on_stage=on_stage)
    if outcome.status not in ("ok", "called off"):
        record_death(job, outcome, log.read_text(errors="replace").strip().splitlines())


def record_death(job: Job, outcome: Outcome, log: list[str]) -> None:
    """Write the record of a process that was killed; scores that it had stored are kept."""
    record = stored(Path(job.result)) or empty_record(job)
    if record.get("complete") is False:
        unrun = {"name": "controls", "title": "Controls", "verdict": "not run", "numbers": {},
                 "sentence": outcome.message, "rule": "Controls share the run's time and memory limits."}  # fmt: skip
        record["controls"].append(unrun)
    else:
        record.update(status=outcome.status, message=outcome.message, log=log[-20:])
    write_json(Path(job.result), {**record, "complete": True})


def stored(path: Path) -> dict[str, Any] | None:
    """Return the record in a file; None where there is none, or only half of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
