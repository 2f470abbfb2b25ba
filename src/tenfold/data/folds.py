"""Folds of a split of labelled cells: who trains, who is tested, and which labels only one side has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Fold:
    """One division of the cells.

    Attributes
    ----------
    name
        What is left out.
    train, test
        Numbers of the cells, ascending; disjoint.
    unseen
        Labels of test cells that no training cell has: right is to reject these cells.
    untested
        Labels of training cells that no test cell has.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    unseen: list[str] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Split:
    """Folds, and how they were made.

    Attributes
    ----------
    kind
        Name of the function that made them.
    folds
        The folds.
    keys
        obs columns and settings by which they were made.
    banner
        What must be said beside every number that comes of it; ``""`` for nothing.
    """

    kind: str
    folds: list[Fold]
    keys: dict[str, Any]
    banner: str = ""

    def __iter__(self) -> Iterator[Fold]:
        return iter(self.folds)

    def __len__(self) -> int:
        return len(self.folds)

    def report(self) -> pd.DataFrame:
        """Return a table, one row a fold: cells on both sides, labels only in test, labels only in training."""
        rows = [
            {
                "fold": fold.name, "train": len(fold.train), "test": len(fold.test),
                "only in test": ", ".join(fold.unseen), "only in training": ", ".join(fold.untested),
            }
            for fold in self.folds
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def describe(self) -> dict[str, Any]:
        """Return what a file keeps of the split: kind, keys, banner, and the test cells of each fold."""
        folds = {fold.name: fold.test for fold in self.folds}
        return {"kind": self.kind, **self.keys, "banner": self.banner, "test": folds}
