"""What happened in a training, term by term and epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass
class History:
    """Losses of every epoch, and how each phase ended."""

    #: Rows of the cells trained on and held out.
    train_index: np.ndarray
    validation_index: np.ndarray
    #: Tuples (phase, epoch, term, train, validation): means over cells, NaN where not evaluated.
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    #: For each phase done, ``"finished"`` (all epochs), ``"early"`` (early stopping) or ``"until"`` (its own rule).
    stops: dict[str, str] = field(default_factory=dict)
    #: For each phase with early stopping, its best epoch.
    best_epochs: dict[str, int] = field(default_factory=dict)
    #: Time spent training, earlier interrupted runs included.
    seconds: float = 0.0

    @property
    def stopped(self) -> str:
        """How the last phase ended."""
        return list(self.stops.values())[-1] if self.stops else "interrupted"

    @property
    def terms(self) -> pd.DataFrame:
        """One row for every phase, epoch and term: columns phase, epoch, term, train, validation."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=["phase", "epoch", "term", "train", "validation"])

    def values(self, term: str = "loss", *, validation: bool = False, phase: str | None = None) -> list[float]:
        """Return a term's course over the epochs of `phase` (default: of all phases)."""
        return [row[4 if validation else 3] for row in self.rows if row[2] == term and phase in (None, row[0])]

    def last(self, term: str = "loss", *, validation: bool = False) -> float:
        """Return a term's latest value, NaN if it has none."""
        return next(reversed(self.values(term, validation=validation)), nan)

    def add(self, phase: str, epoch: int, train: dict[str, float], validation: dict[str, float]) -> None:
        """Record the terms of one epoch."""
        for term in {**train, **validation}:
            self.rows.append((phase, epoch, term, train.get(term, nan), validation.get(term, nan)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, lists and arrays, as `Method.save` stores them."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> History:
        """Rebuild what `to_dict` gave."""
        return cls(**state)
