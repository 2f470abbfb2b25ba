"""Means of the loss terms over an epoch, and the guard that finds the first value that is not finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning_fabric import Fabric
from scipy import sparse
from torch.nn import Module

from tenfold.data.streamed import StreamedCounts
from tenfold.errors import TrainingError

#: Steps between two looks at losses on a GPU: each look makes the processor wait for the device.
LOOK_EVERY = 50
#: Counts above this make exponential link functions and float32 sums suspect.
LARGE = 1e5


class NotFiniteError(ArithmeticError):
    """Something became NaN or infinite: carries where in the epoch, and the terms there."""

    def __init__(self, where: str, terms: dict[str, float]):
        super().__init__(where, terms)
        self.where, self.terms = where, terms


class TermMeans:
    """Means over cells of the terms of an epoch; `what` says what they are of, for the error.

    On the CPU every value is checked at once. On a GPU values stay there and are read every `LOOK_EVERY` steps, so that
    no step waits.
    """

    def __init__(self, device: torch.device, what: str = "step"):
        #: For each term, the sum over cells and the number of cells.
        self.totals: dict[str, list[float]] = {}
        self.latest = math.nan  # the last loss read
        self._what, self._patience = what, 1 if device.type == "cpu" else LOOK_EVERY
        self._pending: list[tuple[int, int, dict[str, torch.Tensor]]] = []

    def add(self, batch: int, n_cells: int, terms: dict[str, torch.Tensor]) -> None:
        """Take in the terms of minibatch `batch` of the epoch; the first one is its loss."""
        self._pending.append((batch, n_cells, terms))
        if len(self._pending) >= self._patience:
            self.read()

    def read(self) -> None:
        """Read what is still on the device.

        Raises
        ------
        NotFiniteError
            At the first step with a term that is not finite.
        """
        pending, self._pending = self._pending, []
        tensors = [value.detach() for _, _, terms in pending for value in terms.values()]
        if self._patience > 1 and tensors:  # all in one go
            tensors = torch.stack([value.double() for value in tensors]).tolist()
        values = map(float, tensors)
        for batch, n_cells, terms in pending:
            numbers = {name: next(values) for name in terms}
            self.latest = next(iter(numbers.values()))
            if not all(map(math.isfinite, numbers.values())):
                raise NotFiniteError(f"{self._what} {batch + 1}", numbers)
            for name, number in numbers.items():
                total, seen = self.totals.get(name, (0.0, 0.0))
                self.totals[name] = [total + number * n_cells, seen + n_cells]

    def means(self, fabric: Fabric | None = None) -> dict[str, float]:
        """Return the mean of each term so far, over the cells of all of the fabric's processes."""
        self.read()
        totals = torch.tensor(list(self.totals.values()), dtype=torch.float64).reshape(-1, 2)
        if fabric is not None and fabric.world_size > 1:
            totals = fabric.all_reduce(totals.to(fabric.device), reduce_op="sum")  # type: ignore[assignment]
        return dict(zip(self.totals, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))


def broken_weights(net: Module) -> list[str]:
    """Return the names of parameters and buffers that hold a NaN or an infinity."""
    floats = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
    return [name for name, value in floats.items() if not torch.isfinite(value).all()]


def breakdown(
    where: str, error: NotFiniteError, data: dict[str, Any], net: Module, rates: list[float]
) -> TrainingError:
    """Return the error for a training that broke down at `where` (in words), with the probable cause.

    The data and the network are searched for values that are not finite, or very large; `rates` are the learning rates.
    """
    bad = [key for key, value in error.terms.items() if not math.isfinite(value)]
    shown = ", ".join(f"{key} = {value:.4g}" for key, value in error.terms.items())
    found = f"{' and '.join(bad)} is not a finite number ({shown})" if bad else "a weight is not a finite number"
    return TrainingError(f"{where}, {error.where}: {found}. {_cause(data, broken_weights(net), rates)}")


def _cause(data: dict[str, Any], weights: list[str], rates: list[float]) -> str:
    now = " and ".join(f"{rate:g}" for rate in dict.fromkeys(rates))
    lower = f"lower the learning rate (now {now}) or clip gradients"
    for key, value in data.items():
        if isinstance(value, StreamedCounts):  # each count was checked before training
            continue
        values = torch.as_tensor(value.data if sparse.issparse(value) else value)
        if values.numel() == 0:
            continue
        if not torch.isfinite(values).all():
            return f"Entry '{key}' of the data holds NaN or infinity: clean the data."
        if (largest := float(values.abs().max())) > LARGE and values.is_floating_point():
            return (
                f"Likely cause: extreme values; the largest of '{key}' is {largest:.3g}. Remove or cap such entries "
                f"(are these raw counts?); if they are right, {lower}."
            )
    if weights:
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        return f"Likely cause: an update that exploded (weights '{weights[0]}'{more} are no longer finite): {lower}."
    return f"The data and weights are finite, so the loss itself overflowed: {lower}, or use precision='32-true'."
