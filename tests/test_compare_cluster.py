"""Comparisons on a Dask cluster: a scheduler and two workers as processes of their own, one of them killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import psutil
import pytest

import tenfold as tf
from tenfold.compare import cluster as cluster_runs
from tenfold.errors import ResourceError

pytest.importorskip("distributed")
ROLES = {"batch": "batch", "labels": "cell_type"}


def cells():
    return tf.data.simulate(n_cells=150, n_genes=80, n_types=3, n_batches=2, batch_strength=0.4)


def _start(folder, *command: str) -> subprocess.Popen:
    log = (folder / f"{command[0].rpartition('.')[2]}-{time.monotonic_ns()}.log").open("wb")
    return subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)


def _wait_for(found, seconds: float = 90):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := found():
            return value
        time.sleep(0.05)
    raise TimeoutError


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    local = ("--host", "127.0.0.1", "--no-dashboard")
    scheduler = _start(folder, "distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", str(file), *local)
    options = ("--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--local-directory", str(folder), *local)
    workers = [_start(folder, "distributed.cli.dask_worker", *options) for _ in range(2)]
    address = _wait_for(lambda: file.exists() and file.read_text().strip() and json.loads(file.read_text())["address"])
    from distributed import Client

    with Client(address, timeout=60) as client:
        client.wait_for_workers(2, timeout=90)
    yield address, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


def _runs_of(worker: subprocess.Popen) -> list[psutil.Process]:
    try:
        children = psutil.Process(worker.pid).children(recursive=True)
        return [child for child in children if "tenfold.compare.worker" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def test_a_worker_killed_in_the_middle_loses_and_doubles_nothing(cluster, tmp_path):
    address, workers = cluster
    orphans: list[psutil.Process] = []

    def kill_a_busy_worker() -> None:
        orphans.extend(_wait_for(lambda: _runs_of(workers[0])))
        workers[0].kill()

    killer = threading.Thread(target=kill_a_busy_worker)
    killer.start()
    result = tf.compare(
        "integrate", cells(), methods=["harmony", "combat"], out=tmp_path / "t", seeds=2, controls=False,
        scheduler=address, **ROLES,
    )  # fmt: skip
    killer.join()
    assert workers[0].wait(timeout=10) != 0
    expected = {("pca", 0), ("combat", 0), ("harmony", 0), ("harmony", 1)}
    runs = [(run["method"], run["seed"]) for run in result.runs]
    assert expected <= set(runs) and len(runs) == len(set(runs))
    assert all(run["status"] == "ok" and run["seconds"] > 0 for run in result.runs)
    once = result.scores.groupby(["method", "seed", "group", "metric"]).size()
    assert (once == 1).all()
    _, alive = psutil.wait_procs(orphans, timeout=10)
    assert not alive, "the run of a killed worker went on"

    here = tf.compare("integrate", cells(), methods=["pca"], out=tmp_path / "here", seeds=1, controls=False, **ROLES)
    merged = here.scores.merge(result.scores, on=["method", "seed", "group", "metric"])
    merged = merged[merged["group"] != "resources"]
    assert len(merged) > 5 and (merged["value_x"] - merged["value_y"]).abs().max() < 1e-6


def test_no_scheduler_there(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_runs, "_SECONDS_TO_CONNECT", 1)
    address = "tcp://127.0.0.1:1"
    with pytest.raises(ResourceError, match="No Dask scheduler answers"):
        tf.compare("integrate", cells(), methods=["pca"], out=tmp_path / "t", scheduler=address, **ROLES)
