"""Interrupt and resume: Ctrl-C and SIGKILL at random moments, bit for bit the same end; foreign checkpoints."""

# ruff: noqa: NPY002  (the global generator is what is tested)
from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tenfold import engine
from tenfold.engine import EarlyStopping, Phase, Step, checkpoint, updates
from tenfold.errors import FileFormatError, ParameterError, ResourceError
from tenfold.types import RunOptions

N_CELLS, N_GENES = 80, 6
#: Children are forked from a clean process that has loaded torch already, so that each starts at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tenfold.engine.loop"])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(N_GENES, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.1))
        self.decode, self.critic = nn.Linear(5, N_GENES), nn.Linear(5, 1)


def make_data():
    rng = np.random.default_rng(0)
    return {"x": sparse.random(N_CELLS, N_GENES, density=0.5, format="csr", dtype=np.float32, rng=rng)}


def reconstruction(net, batch, progress):
    x = batch["x"].dense()
    latent = net.encode(x)
    noise = np.random.rand() * 0.01 + random.random() * 0.01  # all three generators must be resumed
    loss = (net.decode(latent) - x).square().mean() + progress.ramp(over_steps=20) * noise * latent.square().mean()
    return {"loss": loss, "size": latent.mean()}


def toward_centre(net, batch, progress):
    return (
        reconstruction(net, batch, progress)["loss"]
        + (net.encode(batch["x"].dense()) - batch["centre"]).square().mean()
    )


def find_centre(net, data, progress):
    latent = engine.predict(net, data, lambda net, batch: net.encode(batch["x"].dense()))
    spread = float(np.random.rand())
    return {"centre": np.repeat(latent.mean(axis=0, keepdims=True), N_CELLS, axis=0), "spread": spread}


def critic(net, batch, progress):
    return net.critic(net.encode(batch["x"].dense())).mean()


def phases(epochs=6, slow=0.0):
    """Return a training with everything that a checkpoint has to carry."""

    def loss(*arguments):
        time.sleep(slow)
        return reconstruction(*arguments)

    stopping = EarlyStopping(patience=epochs, restore_best=True)
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    steps = [
        Step("critic", lambda net: net.critic.parameters(), critic, sgd),
        Step("body", lambda net: [*net.encode.parameters(), *net.decode.parameters()], loss, torch.optim.Adam, every=2),
    ]
    return [
        Phase("pretrain", epochs, loss, optimizer=partial(torch.optim.AdamW, lr=0.02), early_stopping=stopping,
              scheduler=lambda o: ReduceLROnPlateau(o, patience=0)),
        Phase("cluster", 3, toward_centre, before_epoch=find_centre),
        Phase("adversarial", 3, steps=steps),
    ]  # fmt: skip


def train(folder=None, *, epochs=6, slow=0.0, seed=0, data=None, **changes):
    with engine.seeded(seed):
        net = Net()
    data = data or make_data()
    weights = np.linspace(1, 2, N_CELLS)
    run = RunOptions(checkpoint=None if folder is None else str(folder))
    options = {"batch_size": 16, "seed": seed, "weights": weights, "device": "cpu", "run": run, **changes}
    history = engine.fit(net, data, phases(epochs, slow), **options)
    return net, history


def child(folder, slow):
    """Train in a process of its own, saving after every minibatch."""
    torch.set_num_threads(1)
    checkpoint.SECONDS, checkpoint.SHARE, engine.loop.LOOK_SECONDS = 0.0, 1e9, 0.0
    try:
        train(folder, slow=slow)
    except KeyboardInterrupt:
        os._exit(130)


def same(result, expected):
    net, history = result
    other, expected_history = expected
    for (name, value), reference in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, reference), name
    assert json.dumps(history.rows) == json.dumps(expected_history.rows)
    assert (history.stops, history.best_epochs) == (expected_history.stops, expected_history.best_epochs)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums are in another order, and differ in the last bits, with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(one_thread):
    return train()


def interrupt(folder, send, after, slow=0.004):
    """Start a training, send it a signal `after` seconds from its first save, return its exit code."""

    def saved():
        return [path.stat().st_mtime_ns for path in Path(folder).glob("*.safetensors")]

    earlier = saved()
    process = PROCESSES.Process(target=child, args=(folder, slow))
    process.start()
    deadline = time.monotonic() + 60
    while saved() == earlier and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(after)
    if process.is_alive():
        os.kill(process.pid, send)
    process.join(60)
    return process.exitcode


# ---- interruptions -------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_ends_the_same_bit_for_bit(tmp_path, uninterrupted):
    moments, codes = np.random.default_rng().uniform(0.0, 0.08, size=4), []
    for moment in moments:
        codes.append(interrupt(tmp_path, signal.SIGKILL, moment))
        if codes[-1] == 0:
            break
    assert -signal.SIGKILL in codes, (codes, moments)
    same(train(tmp_path), uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"], moments


def test_ctrl_c_saves_and_stops_and_the_rest_ends_the_same(tmp_path, uninterrupted):
    moment = np.random.default_rng().uniform(0.0, 0.1)
    assert interrupt(tmp_path, signal.SIGINT, moment) == 130, moment
    same(train(tmp_path), uninterrupted)


@pytest.mark.parametrize("after", range(0, 62, 4))
def test_interrupted_after_any_step_ends_the_same(tmp_path, uninterrupted, monkeypatch, after):
    steps = itertools.count()
    original = updates.Updates._update

    def update(self, *arguments):
        if next(steps) == after:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(updates.Updates, "_update", update)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(train(tmp_path), uninterrupted)


def test_a_checkpoint_alters_nothing_and_a_complete_one_is_only_loaded(tmp_path, uninterrupted, monkeypatch):
    same(train(tmp_path), uninterrupted)
    monkeypatch.setattr(updates.Updates, "_update", lambda *_: pytest.fail("trained again"))
    same(train(tmp_path), uninterrupted)


def test_without_a_checkpoint_ctrl_c_acts_at_once(monkeypatch):
    def update(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        pytest.fail("went on")

    monkeypatch.setattr(updates.Updates, "_update", update)
    with pytest.raises(KeyboardInterrupt):
        train()


def test_a_second_ctrl_c_acts_at_once(tmp_path, monkeypatch):
    def update(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun hands on what the terminal has sent to all
        time.sleep(1.2 * checkpoint.ONE_PRESS)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        pytest.fail("went on")

    monkeypatch.setattr(updates.Updates, "_update", update)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_time_spent_before_an_interruption_counts(tmp_path, monkeypatch):
    _, history = train(tmp_path)
    assert train(tmp_path)[1].seconds >= history.seconds > 0


# ---- checkpoints that do not belong here ---------------------------------------------------------------------------


def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path):
    train(tmp_path, fingerprint={"likelihood": "nb"})
    data = make_data()
    data["x"].data[0] += 1
    for changes, named in (
        ({"data": data}, "entry 'x' of the data was"),
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"batch_size": 8}, "batch_size was 16, is now 8"),
        ({"epochs": 7}, "phase 'pretrain' was"),
        ({"train_fraction": 0.8}, "train_fraction was 0.9, is now 0.8"),
        ({"weights": np.ones(N_CELLS)}, "entry 'weights' of the data was"),
        ({"weights": None}, "entry 'weights' of the data was"),
        ({"precision": "bf16-mixed"}, "precision was 32-true"),
        ({"fingerprint": {"likelihood": "zinb"}}, "likelihood was nb, is now zinb"),
    ):
        with pytest.raises(ParameterError, match=f"belongs to another training: {named}"):
            train(tmp_path, **{"fingerprint": {"likelihood": "nb"}, **changes})


def test_another_network_or_optimiser_is_refused(tmp_path, monkeypatch):
    def run(width, optimizer):
        net = nn.Linear(N_GENES, width)
        loss = lambda net, batch, progress: net(batch["x"].dense()).square().mean()  # noqa: E731
        phase = Phase("p", 2, loss, optimizer=optimizer, until=lambda history: False)
        return engine.fit(net, make_data(), [phase], run=RunOptions(checkpoint=str(tmp_path)), device="cpu")

    monkeypatch.setattr(engine.loop._Training, "_validate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(checkpoint, "SECONDS", -1.0)
    monkeypatch.setattr(engine.loop, "LOOK_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(2, torch.optim.Adam)
    with pytest.raises(ParameterError, match=r"the network was Linear with 14 weights .* is now Linear with 21"):
        run(3, torch.optim.Adam)
    with pytest.raises(ParameterError, match=r"phase 'p' was .*Adam .*, is now .*SGD"):
        run(2, partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(ParameterError, match=r"lr: 0.001.*, is now .*Adam.*lr: 0.1"):
        run(2, partial(torch.optim.Adam, lr=0.1))


@pytest.mark.parametrize("damage", ["truncated", "emptied", "scrambled", "replaced"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    train(tmp_path)
    file = tmp_path / "training.safetensors"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "emptied": b"",
            "scrambled": b"\xff" * len(whole),
            "replaced": b"{}" * 20,
        }[damage]
    )
    with pytest.raises(FileFormatError, match=r"training.safetensors' is damaged .*Delete it"):
        train(tmp_path)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ResourceError, match="disk full"):
        train(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    same(train(tmp_path), uninterrupted)


def test_two_trainings_of_one_method_keep_two_files(tmp_path):
    folder = tmp_path / "deep" / "folder"
    train(folder, name="first")
    train(folder, name="second")
    assert sorted(path.name for path in folder.iterdir()) == [
        "first.safetensors",
        "second.safetensors",
    ]
