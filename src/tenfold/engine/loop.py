"""The training loop."""

from __future__ import annotations

import time
from threading import Event
from typing import Any

import numpy as np
import torch
from torch.nn import Module

from tenfold.data.bar import Bar
from tenfold.data.minibatches import Minibatches, split
from tenfold.engine import devices
from tenfold.engine.checkpoint import Checkpoint, fingerprint_of, noted_interruption
from tenfold.engine.devices import find_device, make_fabric, random_state, seeded, set_random_state, share_weights
from tenfold.engine.guard import NotFiniteError, TermMeans, breakdown, broken_weights
from tenfold.engine.history import History
from tenfold.engine.phases import Phase, Progress, named_terms
from tenfold.engine.updates import Updates
from tenfold.errors import ParameterError, closest
from tenfold.kernels.memory import memory_kept
from tenfold.kernels.threads import threads_for
from tenfold.types import RunOptions

#: Between two looks at the progress bar and the clock of the checkpoint.
LOOK_SECONDS = 0.1


def fit(
    net: Module,
    data: dict[str, Any],
    phases: list[Phase],
    *,
    batch_size: int | None = 128,
    train_fraction: float = 0.9,
    weights: np.ndarray | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    run: RunOptions | None = None,
    name: str = "training",
    fingerprint: dict[str, Any] | None = None,
) -> History:
    """Train a network, phase by phase.

    With ``run.checkpoint``, the state is saved as training goes and on Ctrl-C; the same call then goes on from there,
    and on a CPU (with as many threads) ends with the same weights, bit for bit, as if it had never been interrupted. A
    training that is complete there is only loaded.

    Under ``torchrun --nproc_per_node=N`` (on SLURM: ``srun torchrun ...``) all processes train one network: each takes
    its share of every minibatch, gradients are averaged, and the first process alone shows the bar and saves.

    Parameters
    ----------
    net
        The network; trained in place, left on the device and in evaluation mode.
    data
        Arrays, tensors or CSR matrices with one row a cell; batches have the same keys (see `Minibatches`).
    phases
        What to do, in order; their names must differ.
    batch_size
        Cells in a minibatch; ``None`` for all at once.
    train_fraction
        Share of cells to train on, drawn at random; the rest is for validation.
    weights
        Sampling weight of each cell, shape (n_cells,); default every cell once an epoch.
    seed
        Of the split, the order of minibatches and all random numbers in training. The caller's own random state is
        left alone. To make initial weights reproducible as well, build the network under `seeded`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    precision
        ``"32-true"``, or ``"bf16-mixed"`` for matrix products in bfloat16.
    run
        Progress bar and checkpoint folder.
    name
        For the bar, messages and the checkpoint file.
    fingerprint
        Hyper-parameters as plain values: a checkpoint made with others is refused. (Shapes of the network, phases,
        optimisers, data, seed and version are compared in any case.)

    Returns
    -------
    The terms of every epoch and how each phase ended.

    Raises
    ------
    TrainingError
        A loss or weight is no longer a finite number; the message names where, and the likely cause.
    ResourceError
        The device is not in this machine.
    DataError
        The entries of `data` do not fit together.
    ParameterError
        An argument out of range, or a checkpoint of another training.
    FileFormatError
        A damaged checkpoint.
    """
    if not phases or len({phase.name for phase in phases}) < len(phases):
        raise ParameterError("A training needs phases, each with a name of its own.")
    run = run or RunOptions()
    training = _Training(net, phases, name, seed, find_device(device), precision)
    training.load(data, batch_size, train_fraction, weights)
    if run.checkpoint is not None:
        settings = {"batch_size": batch_size, "train_fraction": train_fraction, "seed": seed, "precision": precision}
        prints = fingerprint_of(net, phases, data if weights is None else {**data, "weights": np.asarray(weights)})
        training.checkpoint = Checkpoint(run.checkpoint, name, {**(fingerprint or {}), **settings, **prints})
    training.go(run.progress)
    return training.history


#: Plain attributes of a training that belong to its state.
_STATE = ("number", "passes", "batch", "waited", "best_value", "best", "renewed")


class _Training:
    """One training: where it stands, and the moves that take it on. `_state` is all that a resumed one needs."""

    checkpoint: Checkpoint | None = None
    bar: Bar
    interrupted: Event

    def __init__(self, net: Module, phases: list[Phase], name: str, seed: int, device: torch.device, precision: str):
        self.fabric = make_fabric(device, precision)
        self.device, self.net = self.fabric.device, net.to(self.fabric.device)
        self.phases, self.name, self.seed = phases, name, seed
        self.terms = TermMeans(self.device)
        self.renewed: dict[str, np.ndarray] = {}
        self.number = self.passes = 0  # phases and epochs done
        self._enter()

    def load(self, data: dict[str, Any], size: int | None, train_fraction: float, weights: np.ndarray | None) -> None:
        """Divide the cells into those to train on and those held out."""
        self.data = dict(data)
        n_cells = next((value.shape[0] for value in data.values()), 0)
        rows, held_out = split(n_cells, train_fraction, self.seed)
        share = (self.fabric.global_rank, self.fabric.world_size)
        self.train = Minibatches(
            data, size, index=rows, seed=self.seed, weights=weights, device=self.device, share=share
        )
        self.held_out: Minibatches | None = None
        if len(held_out):
            # The prepared entries, so that both hold the same memory.
            self.held_out = Minibatches(self.train.data, size, index=held_out, shuffle=False, device=self.device)
        self.history = History(rows, held_out)

    def _enter(self) -> None:
        """Stand at the beginning of the current phase, or at the end of all."""
        phase = self.phases[min(self.number, len(self.phases) - 1)]
        self.progress = Progress(phase.name, phase.epochs)
        self.batch = 0  # minibatches done in this epoch
        self.waited, self.best_value = 0, float("inf")  # of early stopping
        self.best: dict[str, torch.Tensor] = {}
        self.updates: Updates | None = None

    # ---- the course of a training ------------------------------------------------------------------------------------

    def go(self, progress: bool) -> None:
        """Train from where the checkpoint stands to the end."""
        started = self._next_look = time.perf_counter()
        steps = sum(phase.epochs for phase in self.phases) * len(self.train)
        self.bar = Bar(self.name, steps, progress and self.fabric.is_global_zero)
        stream = f"fit {self.fabric.global_rank}"
        weights = sum(parameter.numel() for parameter in self.net.parameters())
        threads = threads_for(weights * len(self.train.index) / len(self.train), bool(self.train.streamed))
        with (
            threads, memory_kept(), seeded(self.seed, stream, self.device),
            noted_interruption(bool(self.checkpoint)) as self.interrupted,
        ):  # fmt: skip
            if self.checkpoint and (stored := self.checkpoint.load()):
                self._restore(stored)
            share_weights(self.fabric, self.net)
            self._started = started - self.history.seconds
            try:
                while self.number < len(self.phases):
                    self._advance(self.phases[self.number])
            finally:
                self.bar.close()
        self.fabric.barrier()  # a process that left earlier would close the connection on the others
        self.net.eval()

    def _advance(self, phase: Phase) -> None:
        """Train for the rest of an epoch, and end the phase if it is over."""
        updates = self.updates = self.updates or Updates(phase, self.net, self.fabric)
        try:
            self._epoch(phase, updates)
            reason = self._end_epoch(phase, updates)
            if reason:
                self._end_phase(phase, reason)
        except NotFiniteError as error:
            where = f"Training of {self.name} broke down in phase '{phase.name}', epoch {self.progress.epoch + 1} of "
            raise breakdown(f"{where}{phase.epochs}", error, self.train.data, self.net, updates.rates) from None
        self.passes, self.batch, self.terms.totals = self.passes + 1, 0, {}
        if not reason:
            self.progress.epoch += 1
        self._pause(saving=reason is not None)

    def _epoch(self, phase: Phase, updates: Updates) -> None:
        if self.batch == 0 and phase.before_epoch is not None:
            self._renew(self.fabric.broadcast(phase.before_epoch(self.net, self.data, self.progress) or {}))
            share_weights(self.fabric, self.net)
        self.net.train()
        for batch in self.train.epoch(self.passes, start=self.batch):
            if not self.fabric.is_global_zero:  # the checkpoint holds the first one's generators only
                devices.set_seed(self.seed, f"fit {self.fabric.global_rank} {self.passes} {self.batch}", self.device)
            stop = updates.take(batch, self.progress, self.batch, self.terms, self.interrupted.is_set())
            self.batch += 1
            self.progress.step += 1
            if stop or self.interrupted.is_set() or time.perf_counter() >= self._next_look:
                self._pause(stop=stop)

    def _renew(self, returned: dict[str, np.ndarray | float]) -> None:
        """Take in what ``before_epoch`` returned: arrays join the data, numbers the history."""
        for key, value in returned.items():
            if isinstance(value, np.ndarray) and value.ndim:
                self.data[key] = self.renewed[key] = value
                for batches in (self.train, self.held_out):
                    if batches is not None:
                        batches.replace(key, value)
            else:
                self.terms.totals[key] = [float(value), 1.0]

    def _end_epoch(self, phase: Phase, updates: Updates) -> str | None:
        """Record the epoch, step the schedules, and say why the phase ends here, if it does."""
        share_weights(self.fabric, self.net)  # each process has seen other cells in its batch norm
        # Every process must come to the same decisions, so all take the first one's numbers.
        train, validation = self.fabric.broadcast((self.terms.means(self.fabric), self._validate(phase)))
        if updates.schedulers:
            train["learning_rate"] = updates.rates[0]
        self.history.add(phase.name, self.progress.epoch, train, validation)
        watched = self._watched(phase, train, validation) if phase.early_stopping or updates.watch else None
        updates.schedule(watched)
        if watched is not None and self._out_of_patience(phase, watched):
            return "early"
        if phase.until is not None and phase.until(self.history):
            return "until"
        return "finished" if self.progress.epoch + 1 == phase.epochs else None

    def _validate(self, phase: Phase) -> dict[str, float]:
        """Return the mean terms over held-out cells, without touching the training's random numbers."""
        due = phase.validate_every and (self.progress.epoch + 1) % phase.validate_every == 0
        if self.held_out is None or phase.validation is None or not due:
            return {}
        means = TermMeans(self.device, "validation minibatch")
        self.net.eval()
        with torch.no_grad(), seeded(self.seed, "validation", self.device), self.fabric.autocast():
            for number, batch in enumerate(self.held_out):
                means.add(number, len(batch["index"]), named_terms(phase.validation(self.net, batch, self.progress)))
        return means.means()

    def _watched(self, phase: Phase, train: dict[str, float], validation: dict[str, float]) -> float | None:
        """Return this epoch's value of the monitored term; None if it is one of validation, and this epoch had none."""
        validates = self.held_out is not None and phase.validation is not None and phase.validate_every
        terms = validation if validates else train
        if validates and not validation:
            return None
        if phase.monitor not in terms:
            raise ParameterError(
                f"Phase '{phase.name}' is to watch '{phase.monitor}', which is not among its terms: {', '.join(terms)}."
                + closest(phase.monitor, terms)
            )
        return terms[phase.monitor]

    def _out_of_patience(self, phase: Phase, watched: float) -> bool:
        stopping = phase.early_stopping
        if stopping is None or self.progress.epoch < stopping.start_epoch:
            return False
        if watched < self.best_value - stopping.min_delta:
            self.best_value, self.waited = watched, 0
            self.history.best_epochs[phase.name] = self.progress.epoch
            if stopping.restore_best:
                self.best = {key: value.detach().clone() for key, value in self.net.state_dict().items()}
            return False
        self.waited += 1
        return self.waited >= stopping.patience

    def _end_phase(self, phase: Phase, reason: str) -> None:
        if self.best:
            self.net.load_state_dict(self.best)
        if broken_weights(self.net):
            raise NotFiniteError("at its end", {})
        self.history.stops[phase.name] = reason
        self.number += 1
        self._enter()

    # ---- the bar, the checkpoint, Ctrl-C -----------------------------------------------------------------------------

    def _pause(self, saving: bool = False, stop: bool = False) -> None:
        """Show progress, save if it is time or asked for, and stop if Ctrl-C was pressed, all processes at one step."""
        stop |= self.fabric.world_size == 1 and self.interrupted.is_set()
        earlier = sum(phase.epochs for phase in self.phases[: self.number]) * len(self.train)
        at = self.progress
        where = f"{at.phase} epoch {at.epoch + 1}/{at.epochs}"
        self.bar.show(earlier + at.step, where, f"loss {self.terms.latest:.5g} ·")
        self.history.seconds = time.perf_counter() - self._started
        self._next_look = time.perf_counter() + LOOK_SECONDS
        if self.fabric.is_global_zero and self.checkpoint and (saving or stop or self.checkpoint.due()):
            self.terms.read()
            self.checkpoint.save(self._state())
        if stop:
            self.fabric.barrier()
            if not self.fabric.is_global_zero:
                raise SystemExit(130)
            path = self.checkpoint and self.checkpoint.path
            raise KeyboardInterrupt(f"Stopped in {where}. The state is in '{path}'; the same call goes on from there.")

    def _state(self) -> dict[str, Any]:
        return {
            **{key: getattr(self, key) for key in _STATE},
            "progress": vars(self.progress), "history": vars(self.history), "totals": self.terms.totals,
            "net": self.net, "random": random_state(self.device), "updates": self.updates and self.updates.state(),
        }  # fmt: skip

    def _restore(self, state: dict[str, Any]) -> None:
        self.number = state["number"]
        self._enter()
        for key in _STATE:
            setattr(self, key, state[key])
        self.net.load_state_dict(state["net"])
        self.progress = Progress(**state["progress"])
        self.history = History(**state["history"])
        self._renew(state["renewed"])
        self.terms.totals = state["totals"]
        if state["updates"]:
            self.updates = Updates(self.phases[self.number], self.net, self.fabric)
            self.updates.restore(state["updates"])
        if self.fabric.is_global_zero:
            set_random_state(state["random"], self.device)
