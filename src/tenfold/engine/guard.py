"""Means of the loss terms over an epoch, and the guard that finds the first value that is not finite."""

from __future__ import annotations

import math

import torch
from torch.nn import Module

from tenfold.engine.phases import Batch, Phase, Progress
from tenfold.errors import TrainingError
from tenfold.kernels.rows import SparseRows

#: Steps between two looks at losses on a GPU: each look makes the processor wait for the device.
LOOK_EVERY = 50
#: Counts above this make exponential link functions and float32 sums suspect.
LARGE = 1e5


class NotFiniteError(ArithmeticError):
    """A term became NaN or infinite: carries the minibatch of the epoch and that step's terms."""

    def __init__(self, batch: int, terms: dict[str, float]):
        super().__init__(batch, terms)
        self.batch, self.terms = batch, terms


class TermMeans:
    """Means over cells of the terms of an epoch.

    On the CPU every value is checked at once. On a GPU values stay there and are read every `LOOK_EVERY` steps, so that
    no step waits.

    Attributes
    ----------
    totals
        For each term, the sum over cells and the number of cells.
    """

    def __init__(self, device: torch.device):
        self.totals: dict[str, list[float]] = {}
        self.latest = math.nan
        self._patience = 1 if device.type == "cpu" else LOOK_EVERY
        self._pending: list[tuple[int, int, dict[str, torch.Tensor]]] = []

    def add(self, batch: int, n_cells: int, terms: dict[str, torch.Tensor]) -> None:
        """Take in the terms of one step on minibatch `batch` of the epoch; the first one is its loss."""
        self._pending.append((batch, n_cells, terms))
        if len(self._pending) >= self._patience:
            self.read()

    def add_number(self, name: str, value: float) -> None:
        """Take in a number that belongs to the epoch as a whole."""
        self.totals[name] = [float(value), 1.0]

    def read(self) -> None:
        """Read what is still on the device.

        Raises
        ------
        NotFiniteError
            At the first step with a term that is not finite.
        """
        pending, self._pending = self._pending, []
        if len(pending) > 1:
            flat = torch.stack([value.detach().float() for _, _, terms in pending for value in terms.values()])
            values = iter(flat.tolist())
            read = [(batch, n, {name: next(values) for name in terms}) for batch, n, terms in pending]
        else:
            read = [(batch, n, {name: value.item() for name, value in terms.items()}) for batch, n, terms in pending]
        for batch, n_cells, numbers in read:
            self.latest = next(iter(numbers.values()))
            for name, number in numbers.items():
                if not math.isfinite(number):
                    raise NotFiniteError(batch, numbers)
                total = self.totals.setdefault(name, [0.0, 0.0])
                total[0] += number * n_cells
                total[1] += n_cells

    def means(self) -> dict[str, float]:
        """Return the mean of each term so far."""
        self.read()
        return {name: total / n_cells for name, (total, n_cells) in self.totals.items()}


def broken_weights(net: Module) -> list[str]:
    """Return the names of parameters and buffers that hold a NaN or an infinity."""
    floats = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    return [name for name, value in floats.items() if not torch.isfinite(value).all()]


def breakdown(
    name: str,
    phase: Phase,
    progress: Progress,
    what: str,
    terms: dict[str, float],
    batch: Batch | None,
    net: Module,
    learning_rates: list[float],
) -> TrainingError:
    """Return the error for a training that broke down, with what is known and what probably caused it.

    Parameters
    ----------
    name, phase, progress
        Which training, and where it stood.
    what
        Which step, or which check.
    terms
        Values of all terms there.
    batch
        The minibatch, if known: it is searched for values that are not finite or very large.
    net
        Searched for weights that are no longer finite.
    learning_rates
        Of the optimisers.
    """
    bad = [key for key, value in terms.items() if not math.isfinite(value)]
    shown = ", ".join(f"{key} = {value:.4g}" for key, value in terms.items())
    causes = _causes(batch, broken_weights(net), learning_rates)
    return TrainingError(
        f"Training of {name} broke down in phase '{phase.name}', epoch {progress.epoch + 1} of {progress.epochs}, {what}: "
        f"{' and '.join(bad) or 'a weight'} is not a finite number{f' ({shown})' if shown else ''}. {causes}"
    )


def _causes(batch: Batch | None, weights: list[str], learning_rates: list[float]) -> str:
    rates = " and ".join(f"{rate:g}" for rate in dict.fromkeys(learning_rates))
    lower = f"lower the learning rate (now {rates}) or clip gradients" if rates else "clip gradients"
    for key, value in (batch or {}).items():
        values = value.values if isinstance(value, SparseRows) else value
        if key == "index" or not isinstance(values, torch.Tensor) or values.numel() == 0:
            continue
        if not torch.isfinite(values).all():
            return f"Entry '{key}' of the data holds NaN or infinity in that minibatch: clean the data."
        if (largest := float(values.abs().max())) > LARGE:
            return (
                f"Likely cause: extreme values; the largest of '{key}' in that minibatch is {largest:.3g}. Remove or cap "
                f"such entries (are these raw counts?); if they are right, {lower}."
            )
    if weights:
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        return f"Likely cause: an update that exploded (weights '{weights[0]}'{more} are no longer finite): {lower}."
    return f"The data and weights are finite, so the loss itself overflowed: {lower}, or use precision='32-true'."
