"""Data-parallel training: two processes train as one does, with the same global batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import nn

from tenfold import engine
from tenfold.engine import EarlyStopping, Phase
from tenfold.types import RunOptions

N_CELLS, N_GENES = 101, 6


def train(folder: Path) -> tuple[nn.Module, engine.History]:
    """Train without random numbers, so that only the order of sums can differ between one process and two."""
    with engine.seeded(3):
        net = nn.Sequential(nn.Linear(N_GENES, 4), nn.Tanh(), nn.Linear(4, N_GENES))
    counts = sparse.random(N_CELLS, N_GENES, density=0.5, format="csr", dtype=np.float32, random_state=0)

    def loss(net, batch, progress):
        x = batch["x"].dense()
        assert len(x) > 0
        return {"loss": (net(x) - x).square().mean(), "cells": torch.tensor(float(len(x)))}

    stopping = EarlyStopping(patience=2, restore_best=True)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
    phase = Phase("p", 8, loss, optimizer=adam, clip=1.0, early_stopping=stopping)
    run = RunOptions(checkpoint=str(folder))
    return net, engine.fit(net, {"x": counts}, [phase], batch_size=32, device="cpu", run=run)


def trained_noisily(seed: int = 0) -> float:
    """Return the last loss of a training with dropout; untrained it is 2.5."""
    with engine.seeded(3):
        net = nn.Sequential(nn.Linear(N_GENES, 8), nn.Dropout(0.1), nn.Linear(8, N_GENES))
    x = np.random.default_rng(0).normal(size=(N_CELLS, N_GENES)) @ np.diag([3, 2, 1, 0, 0, 0])
    mean = lambda net, batch, progress: (net(batch["x"]) - batch["x"]).square().mean()  # noqa: E731
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
    phase = Phase("p", 20, mean, optimizer=adam)
    return engine.fit(net, {"x": x}, [phase], batch_size=32, device="cpu", seed=seed).last()


def test_two_processes_train_as_one_does(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        __file__,
        str(tmp_path),
        "train",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["rows"] == second["rows"]
    net, history = train(tmp_path / "alone")
    np.testing.assert_allclose(first["weights"], _flat(net), rtol=1e-3, atol=1e-5)
    for term in ("loss", "cells"):
        here = history.values(term, validation=term == "loss")
        there = [row[4 if term == "loss" else 3] for row in first["rows"] if row[2] == term]
        # Each process had half of every batch.
        np.testing.assert_allclose(there, here if term == "loss" else np.array(here) / 2, rtol=1e-3)
    np.testing.assert_allclose([r[3] for r in first["rows"] if r[2] == "loss"], history.values(), rtol=1e-4)
    alone = [trained_noisily(seed) for seed in range(4)]
    assert min(alone) / 1.5 < first["noisy"] < max(alone) * 1.5
    # One checkpoint, written by the first process; a single process resumes from it.
    assert [path.name for path in (tmp_path / "together").iterdir()] == ["training.safetensors"]
    again, _ = train(tmp_path / "together")
    np.testing.assert_array_equal(_flat(again), np.float32(first["weights"]))


def interruptible(folder: Path, marker: Path | None) -> nn.Module:
    """Train with dropout, for as long as Ctrl-C takes; `marker` appears when training is under way."""
    with engine.seeded(3):
        net = nn.Sequential(nn.Linear(N_GENES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, N_GENES))
    x = np.random.default_rng(0).normal(size=(N_CELLS, N_GENES))

    def loss(net, batch, progress):
        if marker is not None:
            time.sleep(0.02)
            if progress.step == 5:
                marker.touch()
        return (net(batch["x"]) - batch["x"]).square().mean()

    run = RunOptions(checkpoint=str(folder))
    engine.fit(net, {"x": x}, [Phase("p", 30, loss)], batch_size=16, train_fraction=1.0, device="cpu", run=run)
    return net


def test_ctrl_c_stops_two_processes_at_one_step_and_the_rest_ends_the_same(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    going = subprocess.Popen(
        [*command, str(tmp_path), "interrupt"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(1200):
        if (tmp_path / "under_way").exists() or going.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(going.pid, signal.SIGINT)  # what a terminal sends: to torchrun and to both
    said = going.communicate(timeout=120)[1]
    assert going.returncode != 0
    assert said.count("Stopped in p epoch") == 1, said
    assert [(tmp_path / f"exit{rank}").read_text() for rank in (0, 1)] == ["130", "130"]
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["training.safetensors"]
    done = subprocess.run([*command, str(tmp_path), "resume"], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    broken, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("broken", "whole"))
    assert broken == whole


def _flat(net: nn.Module) -> list[float]:
    return torch.cat([value.flatten() for value in net.state_dict().values()]).tolist()


def _interrupt(folder: Path) -> None:
    code = "0"
    try:
        interruptible(folder / "broken", folder / "under_way")
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr, flush=True)
        code = "130"
    except SystemExit as stop:
        code = str(stop.code)
    (folder / f"exit{os.environ['RANK']}").write_text(code)
    raise SystemExit(int(code))


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if what == "interrupt":
        _interrupt(folder)
    elif what == "resume":
        for name in ("broken", "whole"):
            weights = _flat(interruptible(folder / name, None))
            (folder / f"{name}.json").write_text(json.dumps(weights))
    else:
        net, history = train(folder / "together")
        result = {"weights": _flat(net), "rows": history.rows, "noisy": trained_noisily()}
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
