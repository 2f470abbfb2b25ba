"""The training loop."""

from __future__ import annotations

import time
from threading import Event
from typing import Any

import numpy as np
import torch
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tenfold.engine.bar import Bar
from tenfold.engine.checkpoint import Checkpoint, fingerprint_of, noted_interruption
from tenfold.engine.devices import find_device, make_fabric, random_state, seeded, set_random_state
from tenfold.engine.guard import NotFiniteError, TermMeans, breakdown, broken_weights
from tenfold.engine.history import History
from tenfold.engine.minibatches import Minibatches, split
from tenfold.engine.phases import Batch, Phase, Progress, Step, named_terms
from tenfold.errors import ParameterError, closest
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
        self.net = net.to(device)
        self.phases, self.name, self.seed, self.device = phases, name, seed, device
        self.renewed: dict[str, np.ndarray] = {}
        self.number = self.passes = 0  # phases and epochs done
        self._enter()

    def load(self, data: dict[str, Any], size: int | None, train_fraction: float, weights: np.ndarray | None) -> None:
        """Divide the cells into those to train on and those held out."""
        self.data = dict(data)
        n_cells = next((value.shape[0] for value in data.values()), 0)
        rows, held_out = split(n_cells, train_fraction, self.seed)
        self.train = Minibatches(data, size, index=rows, seed=self.seed, weights=weights, device=self.device)
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
        self.terms = TermMeans(self.device)
        self.waited, self.best_value = 0, float("inf")  # of early stopping
        self.best: dict[str, torch.Tensor] = {}
        self.optimizers: list[Optimizer] = []
        self.schedulers: list[Any] = []

    # ---- the course of a training ------------------------------------------------------------------------------------

    def go(self, progress: bool) -> None:
        """Train from where the checkpoint stands to the end."""
        started = self._next_look = time.perf_counter()
        steps = sum(phase.epochs for phase in self.phases) * len(self.train)
        self.bar = Bar(self.name, steps, progress)
        with seeded(self.seed, "fit", self.device), noted_interruption(bool(self.checkpoint)) as self.interrupted:
            if self.checkpoint and (stored := self.checkpoint.load()):
                self._restore(stored)
            self._started = started - self.history.seconds
            try:
                while self.number < len(self.phases):
                    self._advance(self.phases[self.number])
            finally:
                self.bar.close()
        self.net.eval()

    def _advance(self, phase: Phase) -> None:
        """Train for the rest of an epoch, and end the phase if it is over."""
        if not self.optimizers:
            self._start(phase)
        try:
            self._epoch(phase)
            reason = self._end_epoch(phase)
            if reason:
                self._end_phase(phase, reason)
        except NotFiniteError as error:
            rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
            where = f"Training of {self.name} broke down in phase '{phase.name}', epoch {self.progress.epoch + 1} of "
            raise breakdown(f"{where}{phase.epochs}", error, self.train.data, self.net, rates) from None
        self.passes, self.batch, self.terms = self.passes + 1, 0, TermMeans(self.device)
        if not reason:
            self.progress.epoch += 1
        self._pause(saving=reason is not None)

    def _start(self, phase: Phase) -> None:
        """Make the optimisers and schedulers of a phase."""
        self.parameters: list[list[Parameter]] = []
        for step in phase.steps:
            chosen = self.net.parameters() if step.parameters is None else step.parameters(self.net)
            self.parameters.append([parameter for parameter in chosen if parameter.requires_grad])
            if not self.parameters[-1]:
                raise ParameterError(f"Phase '{phase.name}' {step.name} has no parameters to train.")
        self.optimizers = [step.optimizer(own) for step, own in zip(phase.steps, self.parameters, strict=True)]
        self.kinds = [_kind(optimizer) for optimizer in self.optimizers]
        self.schedulers = [phase.scheduler(optimizer) for optimizer in self.optimizers] if phase.scheduler else []

    def _epoch(self, phase: Phase) -> None:
        if self.batch == 0 and phase.before_epoch is not None:
            self._renew(phase.before_epoch(self.net, self.data, self.progress) or {})
        self.net.train()
        for batch in self.train.epoch(self.passes, start=self.batch):
            for number, step in enumerate(phase.steps):
                if self.progress.step % step.every == 0:
                    for _ in range(step.repeat):
                        self._update(phase, step, number, batch)
            self.batch += 1
            self.progress.step += 1
            if self.interrupted.is_set() or time.perf_counter() >= self._next_look:
                self._pause()

    def _update(self, phase: Phase, step: Step, number: int, batch: Batch) -> None:
        optimizer, own = self.optimizers[number], self.parameters[number]
        with self.fabric.autocast():
            terms = named_terms(step.loss(self.net, batch, self.progress), step.name)
        self.terms.add(self.batch, len(batch["index"]), terms)
        optimizer.zero_grad(set_to_none=True)
        # Only the step's own parameters: the generator's loss must leave no gradient in the critic.
        only: dict[str, Any] = {} if step.parameters is None else {"inputs": own}
        self.fabric.backward(next(iter(terms.values())), **only)
        if phase.clip_value is not None:
            torch.nn.utils.clip_grad_value_(own, phase.clip_value)
        if phase.clip is not None:
            torch.nn.utils.clip_grad_norm_(own, phase.clip)
        optimizer.step()

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

    def _end_epoch(self, phase: Phase) -> str | None:
        """Record the epoch, step the schedules, and say why the phase ends here, if it does."""
        epoch, train, validation = self.progress.epoch, self.terms.means(), self._validate(phase)
        if self.schedulers:
            train["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        self.history.add(phase.name, epoch, train, validation)
        watched = self._watched(phase, train, validation)
        for scheduler in self.schedulers:
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
            elif watched is not None:
                scheduler.step(watched)
        if watched is not None and self._out_of_patience(phase, watched):
            return "early"
        if phase.until is not None and phase.until(self.history):
            return "until"
        return "finished" if epoch + 1 == phase.epochs else None

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
        """Return this epoch's value of the monitored term; None if the phase watches nothing, or not in this epoch."""
        if phase.early_stopping is None and not any(isinstance(s, ReduceLROnPlateau) for s in self.schedulers):
            return None
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

    def _pause(self, saving: bool = False) -> None:
        """Show progress, save if it is time or asked for, and stop if Ctrl-C was pressed."""
        earlier, progress = sum(phase.epochs for phase in self.phases[: self.number]), self.progress
        done = earlier * len(self.train) + progress.step
        self.bar.show(done, progress.phase, progress.epoch, progress.epochs, self.terms.latest)
        self.history.seconds = time.perf_counter() - self._started
        self._next_look = time.perf_counter() + LOOK_SECONDS
        if self.checkpoint and (saving or self.interrupted.is_set() or self.checkpoint.due()):
            self.terms.read()
            self.checkpoint.save(self._state())
        if self.interrupted.is_set():
            raise KeyboardInterrupt

    def _state(self) -> dict[str, Any]:
        return {
            **{key: getattr(self, key) for key in _STATE},
            "progress": vars(self.progress), "history": vars(self.history), "totals": self.terms.totals,
            "net": self.net, "random": random_state(self.device), "kinds": self.kinds,
            "optimizers": self.optimizers, "schedulers": self.schedulers,
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
        if state["optimizers"]:
            self._start(self.phases[self.number])
            if self.kinds != state["kinds"]:
                raise self.checkpoint.foreign(f"the optimiser was {state['kinds']}, is now {self.kinds}")  # type: ignore[union-attr]
            parts = [*self.optimizers, *self.schedulers]
            for part, stored in zip(parts, [*state["optimizers"], *state["schedulers"]], strict=True):
                part.load_state_dict(stored)
        set_random_state(state["random"], self.device)


def _kind(optimizer: Optimizer) -> str:
    """Return an optimiser's class and settings, before any schedule changes them."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return f"{type(optimizer).__name__} {groups}"
