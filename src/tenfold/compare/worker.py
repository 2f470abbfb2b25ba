"""The process behind the runs of a comparison: ``python -m tenfold.compare.worker``.

It imports what a run needs, forks a process for it, and waits for the next, so that imports are paid for once. A run
fits, scores and stores, then runs the controls and stores again, so that a time-out in a control does not cost the
scores. Whatever goes wrong inside becomes the run's status, not a traceback.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tenfold.compare.files import write_json, write_tensors
from tenfold.errors import TenfoldError


@dataclass(frozen=True)
class Job:
    """What one run has to do; stored as JSON beside the comparison."""

    task: str
    method: str
    seed: int
    parameters: dict[str, Any]
    roles: dict[str, str]
    data: str
    cells: str
    result: str
    fingerprint: str
    #: True, False, or "all".
    controls: bool | str

    @property
    def label(self) -> str:
        """How progress and messages call it."""
        return f"{self.method}, seed {self.seed}"


def stage(name: str) -> None:
    """Tell the parent process what is being done."""
    print(f"stage: {name}", flush=True)


def main(path: str) -> None:
    """Carry out the job in `path`; its result file says how it went."""
    job = Job(**json.loads(Path(path).read_text()))
    record: dict[str, Any] = {**empty_record(job), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        _carry_out(job, record)
    except TenfoldError as error:
        record.update(status="error", message=str(error))
    except MemoryError:
        record.update(status="out of memory", message="The machine could not give the memory asked for.")
    except Exception as error:
        record.update(status="crash", message=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    write_json(Path(job.result), {**record, "complete": True})


def empty_record(job: Job) -> dict[str, Any]:
    """Return the record of a run of which nothing is known yet."""
    from tenfold import __version__, catalog

    info = catalog.find(job.task, job.method).info
    return {
        "task": job.task,
        "method": job.method,
        "title": info.title,
        "seed": job.seed,
        "status": "ok",
        "message": "",
        "seconds": None,
        "peak_memory_mb": None,
        "parameters": job.parameters,
        "versions": {"tenfold": __version__},
        "warnings": [],
        "doi": info.doi,
        "readiness": info.readiness_for(job.task),
        "sees_labels": info.sees_labels,
        "fingerprint": job.fingerprint,
        "scores": [],
        "controls": [],
    }


def _carry_out(job: Job, record: dict[str, Any]) -> None:
    from safetensors.numpy import load_file

    from tenfold import catalog
    from tenfold.compare.tasks import compared_task
    from tenfold.data.reading import read

    adata, task = read(job.data), compared_task(job.task)

    def make(seed: int):
        parameters = dict(job.parameters)
        if "seed" in catalog.find(job.task, job.method).parameter_names():
            parameters["seed"] = seed
        return catalog.method(job.task, job.method, **parameters)

    stage("fit")
    method = make(job.seed)
    record["sees_labels"] = method.info.sees_labels  # which parameters may decide
    taken = (*method.info.needs, *method.info.accepts)
    # Labels are for scoring; a method that is shown them is marked, and ranked apart.
    roles = {r: key for r, key in job.roles.items() if r in taken and (r != "labels" or method.info.sees_labels)}
    method.fit(adata, progress=False, **roles)
    record.update(method.run_, parameters=method.parameters)
    stage("score")
    scores = task.evaluate(method, adata, job.roles, job.seed)
    record["scores"] = [asdict(score) for score in scores]
    stage("layout")
    shown = load_file(job.cells)["shown"]
    layout, embedding = task.display(method, shown, job.seed)
    tensors = {"layout": layout.astype("float32")}
    if embedding is not None:
        tensors["embedding"] = embedding.astype("float32")
    tensors |= task.pictures(method, adata, job.roles, shown, layout, job.seed)
    write_tensors(Path(job.result).with_suffix(".safetensors"), tensors)
    if not job.controls:
        return
    write_json(Path(job.result), {**record, "complete": False})
    stage("controls")
    for control, found in task.controls(make, method, adata, job.roles, job.seed, job.controls == "all"):
        record["controls"].append(asdict(control))
        record["scores"] += [asdict(score) for score in found]
    write_json(Path(job.result), {**record, "complete": False})  # a time-out in a picture does not cost the controls
    stage("pictures of controls")
    more = task.control_pictures(make, method, adata, job.roles, shown, layout, job.seed)
    if more:
        write_tensors(Path(job.result).with_suffix(".safetensors"), {**tensors, **more})


def serve() -> None:
    """Start a run for each line on standard input, a job file and a log file, one run after the other.

    What is told on standard output: ``pid: NUMBER``, the stages of the run, and ``ended: CODE``.
    """
    client = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client hears of Ctrl-C, too, and ends the run
    for line in sys.stdin:
        job, log = json.loads(line)
        start = _fork if sys.platform == "linux" else _spawn  # elsewhere, libraries do not survive a fork
        pid, poll = start(job, log)
        print(f"pid: {pid}", flush=True)
        while (code := poll()) is None:
            if os.getppid() != client:
                os._exit(1)  # nobody waits for the result any more; the run ends with this process
            time.sleep(0.02)
        print(f"ended: {code}", flush=True)


def _fork(job: str, log: str) -> tuple[int, Callable[[], int | None]]:
    try:
        _import_for(json.loads(Path(job).read_text()))
    except Exception:  # the run meets it again, and records it
        traceback.print_exc()
    server, pid = os.getpid(), os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        code = 1
        try:
            _run(job, server)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll() -> int | None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None

    return pid, poll


def _spawn(job: str, log: str) -> tuple[int, Callable[[], int | None]]:
    command = [sys.executable, "-m", "tenfold.compare.worker", job]
    with open(log, "wb") as errors:
        process = subprocess.Popen(command, stderr=errors, stdin=subprocess.DEVNULL)
    return process.pid, process.poll


def _import_for(job: dict[str, Any]) -> None:
    """Import what a run would import first."""
    import sklearn.metrics  # noqa: F401

    import tenfold.data.inputs
    import tenfold.engine  # noqa: F401
    from tenfold import catalog
    from tenfold.compare.tasks import compared_task

    compared_task(job["task"])
    catalog.find(job["task"], job["method"])


def _run(job: str, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    main(job)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: nobody waits for the result any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _run(sys.argv[1], os.getppid())
    else:
        serve()
