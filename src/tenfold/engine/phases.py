"""What a training consists of: phases, the optimisers that alternate in them, and when they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from tenfold.data.minibatches import Batch
from tenfold.errors import ParameterError

if TYPE_CHECKING:
    import numpy as np

    from tenfold.engine.history import History

#: What a loss returns: the scalar to minimise, or a dict in which ``"loss"`` is that scalar and the rest is recorded.
Terms = torch.Tensor | dict[str, torch.Tensor]
Loss = Callable[[Module, Batch, "Progress"], Terms]


@dataclass
class Progress:
    """Where a training stands; losses read it to schedule their weights."""

    #: Name of the current phase.
    phase: str
    #: Epochs that the phase may last.
    epochs: int
    #: Epoch and minibatch of the phase, both from 0.
    epoch: int = 0
    step: int = 0

    def ramp(
        self, start: float = 0.0, end: float = 1.0, over_epochs: int | None = None, over_steps: int | None = None
    ) -> float:
        """Return a weight that goes linearly from `start` to `end`, then stays.

        The ramp lasts `over_epochs` or `over_steps` (minibatches; they win if both are given), by default the whole
        phase; zero means no ramp.
        """
        done, length = (self.epoch, over_epochs) if over_steps is None else (self.step, over_steps)
        length = self.epochs if length is None else length
        return end if done >= length else start + (end - start) * done / length


@dataclass
class Step:
    """One optimiser of a phase and what it minimises, e.g. the critic's or the generator's.

    Only `parameters` receive gradients from this loss, whatever else it touches.
    """

    #: Prefix of its terms in the history.
    name: str
    #: Given the network, the parameters it updates; ``None`` for all.
    parameters: Callable[[Module], Iterable[Parameter]] | None
    #: ``loss(net, batch, progress)``: the scalar to minimise, or a dict with that scalar under ``"loss"``.
    loss: Loss
    #: Given the parameters, the optimiser.
    optimizer: Callable[[list[Parameter]], Optimizer]
    #: Take this step on every n-th minibatch only.
    every: int = 1
    #: Updates on each of those minibatches.
    repeat: int = 1

    def trained(self, net: Module) -> list[Parameter]:
        """Return the parameters that it updates; ParameterError if there are none."""
        chosen = net.parameters() if self.parameters is None else self.parameters(net)
        trained = [parameter for parameter in chosen if parameter.requires_grad]
        if not trained:
            raise ParameterError(f"Step '{self.name or 'loss'}' has no parameters to train.")
        return trained


@dataclass
class EarlyStopping:
    """Stop a phase when its monitored loss has ceased to fall."""

    #: Epochs without improvement (validations, if the phase does not validate every epoch).
    patience: int = 45
    #: Smaller gains than this do not count.
    min_delta: float = 0.0
    #: End the phase with the weights of its best epoch.
    restore_best: bool = False
    #: Earlier epochs count neither for patience nor as the best: while a KL weight still rises, losses of different
    #: epochs are not comparable.
    start_epoch: int = 0


@dataclass
class Phase:
    """A stretch of training with one objective: a loss, or several that alternate.

    Raises
    ------
    ParameterError
        Both or neither of `loss` and `steps`, or no epochs.
    """

    #: For the history, the progress bar and messages.
    name: str
    #: Passes over the training cells, at most.
    epochs: int
    #: The objective, its optimiser and the parameters that it updates (``None`` for all that require gradients):
    #: a phase with a single step.
    loss: Loss | None = None
    #: Instead of these, the steps that alternate on every minibatch, in order.
    steps: list[Step] = field(default_factory=list)
    optimizer: Callable[[list[Parameter]], Optimizer] = torch.optim.Adam
    parameters: Callable[[Module], Iterable[Parameter]] | None = None
    #: Given an optimiser, a learning-rate scheduler, stepped every epoch; ``ReduceLROnPlateau`` watches `monitor`.
    scheduler: Callable[[Optimizer], Any] | None = None
    #: ``validation(net, batch, progress)``, evaluated on held-out cells in evaluation mode without gradients, with the
    #: same random numbers each time. Default: the loss; with `steps`, nothing.
    validation: Loss | None = None
    #: Epochs from one validation to the next; 0 for none.
    validate_every: int = 1
    #: Term that early stopping and plateau schedules watch: its validation value where there is one, else training.
    monitor: str = "loss"
    early_stopping: EarlyStopping | None = None
    #: ``until(history)`` is asked after every epoch; true ends the phase.
    until: Callable[[History], bool] | None = None
    #: ``before_epoch(net, data, progress)`` runs before every epoch. Arrays (one row a cell) that it returns join the
    #: data, numbers join the history: ``{"target": p, "label_change": 0.02}``. What the next call needs belongs in the
    #: data, not in a closure, so that a resumed training finds it. It may change parameters only in place.
    before_epoch: Callable[[Module, dict[str, Any], Progress], dict[str, np.ndarray | float] | None] | None = None
    #: Largest norm of the gradients of a step, and largest absolute value of each entry.
    clip: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ParameterError(f"Phase '{self.name}' has {self.epochs} epochs; it needs at least 1.")
        if (self.loss is None) == (not self.steps):
            raise ParameterError(f"Phase '{self.name}' needs either a loss or steps, and not both.")
        if self.loss is not None:
            self.steps = [Step("", self.parameters, self.loss, self.optimizer)]
            self.validation = self.validation or self.loss

    def summary(self, net: Module) -> dict[str, Any]:
        """Return the settings that a checkpoint must agree with, as plain values."""
        optimizers = [" ".join(str(step.optimizer(step.trained(net))).split()) for step in self.steps]
        steps = [f"{s.name} every {s.every} × {s.repeat}: {o}" for s, o in zip(self.steps, optimizers, strict=True)]
        plain = ("epochs", "monitor", "clip", "clip_value", "validate_every", "early_stopping")
        return {**{key: str(getattr(self, key)) for key in plain}, "steps": steps}


def named_terms(terms: Terms, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return a loss's terms by the names they have in the history; a step's own loss is first.

    Raises
    ------
    ParameterError
        If a dict has no ``"loss"``.
    """
    if isinstance(terms, torch.Tensor):
        return {prefix or "loss": terms}
    if "loss" not in terms:
        raise ParameterError(f"A loss returned {', '.join(terms)} without 'loss', the scalar to minimise.")
    ordered = {"loss": terms["loss"], **terms}
    return {f"{prefix}.{name}": value for name, value in ordered.items()} if prefix else ordered
