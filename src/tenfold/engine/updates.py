"""The optimisers of a phase, which take turns on every minibatch, and their learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.nn import Module
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tenfold.engine.devices import average_gradients
from tenfold.engine.guard import TermMeans
from tenfold.engine.phases import Batch, Phase, Progress, named_terms


class Updates:
    """One optimiser for each step of a phase, and one schedule for each optimiser if the phase has any."""

    def __init__(self, phase: Phase, net: Module, fabric: Fabric):
        self.phase, self.net, self.fabric = phase, net, fabric
        self.parameters = [step.trained(net) for step in phase.steps]
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.others = [[each for each in trained if not any(each is o for o in own)] for own in self.parameters]
        self.optimizers = [step.optimizer(own) for step, own in zip(phase.steps, self.parameters, strict=True)]
        self.schedulers = [phase.scheduler(optimizer) for optimizer in self.optimizers] if phase.scheduler else []

    @property
    def rates(self) -> list[float]:
        """Current learning rates."""
        return [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def watch(self) -> bool:
        """Whether a schedule depends on the monitored term."""
        return any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in self.schedulers)

    def take(self, batch: Batch, progress: Progress, number: int, terms: TermMeans, stop: bool = False) -> bool:
        """Take the steps on minibatch `number` and note their terms; return whether any process is asked to stop."""
        for position, step in enumerate(self.phase.steps):
            if progress.step % step.every == 0:
                for _ in range(step.repeat):
                    stop = self._update(position, batch, progress, number, terms, stop)
        return stop

    def _update(self, at: int, batch: Batch, progress: Progress, number: int, terms: TermMeans, stop: bool) -> bool:
        step, own, optimizer = self.phase.steps[at], self.parameters[at], self.optimizers[at]
        with self._others_frozen(at), self.fabric.autocast():
            found = named_terms(step.loss(self.net, batch, progress), step.name)
        n_cells = len(batch["index"])
        terms.add(number, n_cells, found)
        for parameter in own:
            parameter.grad = None
        self.fabric.backward(next(iter(found.values())))
        stop = average_gradients(self.fabric, own, n_cells, stop)
        if self.phase.clip_value is not None:
            torch.nn.utils.clip_grad_value_(own, self.phase.clip_value)
        if self.phase.clip is not None:
            torch.nn.utils.clip_grad_norm_(own, self.phase.clip)
        optimizer.step()
        return stop

    @contextmanager
    def _others_frozen(self, at: int) -> Iterator[None]:
        """Freeze what is not a step's own: the generator's loss must leave no gradient in the critic."""
        for parameter in self.others[at]:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.others[at]:
                parameter.requires_grad_(True)

    def schedule(self, watched: float | None) -> None:
        """End an epoch with this value of the monitored term, if it was evaluated."""
        for scheduler in self.schedulers:
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
            elif watched is not None:
                scheduler.step(watched)

    def state(self) -> list[dict[str, Any]]:
        """Return the state of optimisers and schedules."""
        return [part.state_dict() for part in (*self.optimizers, *self.schedulers)]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on from what `state` gave."""
        for part, stored in zip((*self.optimizers, *self.schedulers), state, strict=True):
            part.load_state_dict(stored)
