"""The base of velocity methods that train a network which gives every cell rates of its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.velocity_models.base import Rates
from tenfold.velocity_models.steady_state import by_blocks, steady_state
from tenfold.velocity_models.trained import TrainedVelocity


class CellRates(TrainedVelocity):
    """A `TrainedVelocity` of the genes in which a line through the highest cells explains some of u.

    A subclass implements ``_learnt``; ``fitted_`` are the genes that it was given.
    """

    #: All cells at once.
    batch_size: ClassVar[None] = None  # type: ignore[misc]

    min_r2: float = 0.01
    min_ratio: float = 0.01

    @abstractmethod
    def _learnt(self, data: Inputs, s: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return ds/dt in units of `s`, (n_cells, n_genes), and numbers of each gene, from averages of the genes."""

    @abstractmethod
    def cell_rates(self) -> dict[str, np.ndarray]:
        """Return rates of each fitted gene in each cell, by name, each (n_cells, n_genes of ``fitted_``), float32."""

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        gamma, r2, _ = by_blocks(steady_state, moments.spliced, moments.unspliced)
        moving = (r2 > self.min_r2) & (gamma > self.min_ratio)
        # Where hardly any gene moves, all are fitted, of which the base takes the best with a warning.
        self.fitted_ = moving if moving.sum() > 1 else np.ones_like(moving)
        found, numbers = self._learnt(data, moments.spliced[:, self.fitted_], moments.unspliced[:, self.fitted_])
        velocity = np.full(moments.spliced.shape, np.nan, np.float32)
        velocity[:, self.fitted_] = found
        table = {name: np.full(len(r2), np.nan) for name in numbers}
        for name, values in numbers.items():
            table[name][self.fitted_] = values
        return Rates(velocity, moving, {**table, "r2": r2})
