"""Covariates of cells as numbers for a model, and the same numbers for cells that come later."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, closest
from tenfold.types import Codes


@dataclass(frozen=True)
class Design:
    """Levels and scales of the covariates that a model was fitted with.

    Attributes
    ----------
    batch
        Names of the batches; a single one where none were given.
    categorical
        Names of the levels of each further categorical covariate.
    labels
        Names of the labels; empty where none were given.
    mean, deviation
        Of each continuous covariate, which is standardised, shape (n_continuous,).
    sized
        Whether cells came with a size factor.
    """

    batch: list[str]
    categorical: list[list[str]]
    labels: list[str]
    mean: np.ndarray
    deviation: np.ndarray
    sized: bool

    @classmethod
    def of(cls, data: Inputs) -> Design:
        """Take the design from the cells of a fit."""
        continuous = data.numeric("continuous_covariates").astype(np.float64)
        deviation = continuous.std(axis=0)
        return cls(
            data.batch_or_one.names,
            [codes.names for codes in data.categorical("categorical_covariates")],
            [] if data.labels is None else data.labels.names,
            continuous.mean(axis=0).astype(np.float32),
            np.where(deviation > 0, deviation, 1).astype(np.float32),
            "size_factor" in data.roles,
        )

    def extended(self, data: Inputs) -> Design:
        """Return a design that also knows the levels of these cells that it lacks, after those that it knows."""

        def more(known: list[str], codes: Codes) -> list[str]:
            return [*known, *(name for name in codes.names if name not in known)]

        found = data.categorical("categorical_covariates")
        categorical = [more(known, codes) for known, codes in zip(self.categorical, found, strict=True)]
        return replace(self, batch=more(self.batch, data.batch_or_one), categorical=categorical)

    @property
    def categories(self) -> tuple[int, ...]:
        """Number of levels of each categorical covariate; the batch is the first."""
        return (len(self.batch), *(len(names) for names in self.categorical))

    @property
    def n_continuous(self) -> int:
        """Number of continuous covariates."""
        return len(self.mean)

    def encode(self, data: Inputs) -> dict[str, Any]:
        """Return covariates as numbers, one row a cell; those without variation are left out.

        Returns
        -------
        ``levels``, shape (n_cells, n_categorical), int64, the batch first; ``continuous``, shape
        (n_cells, n_continuous), float32, standardised as in the fit; ``label``, shape (n_cells,), int64; ``log_size``,
        shape (n_cells,), float32, the logarithm of the size factor.

        Raises
        ------
        DataError
            A level that was not there in the fit, or a size factor that is not positive.
        """
        cells: dict[str, Any] = {}
        if max(self.categories) > 1:
            found = [data.batch_or_one, *data.categorical("categorical_covariates")]
            known = [self.batch, *self.categorical]
            named = data.roles.get("categorical_covariates", [])
            keys = [data.roles.get("batch", "batch"), *([named] if isinstance(named, str) else named)]
            columns = [recode(*each) for each in zip(found, known, keys, strict=True)]
            cells["levels"] = np.stack(columns, axis=1)
        if self.n_continuous:
            cells["continuous"] = (data.numeric("continuous_covariates") - self.mean) / self.deviation
        if data.labels is not None:
            cells["label"] = recode(data.labels, self.labels, data.roles["labels"])
        if self.sized:
            factor = data.numeric("size_factor")[:, 0]
            if factor.min() <= 0:
                raise DataError(
                    f"obs['{data.roles['size_factor']}'] is 0 or less in {(factor <= 0).sum():,} cells. Size factors "
                    "must be positive; remove these cells, or leave size_factor= out to use the observed library size."
                )
            cells["log_size"] = np.log(factor)
        return cells


def recode(codes: Codes, known: list[str], key: str) -> np.ndarray:
    """Return levels as positions in `known`, shape (n_cells,), int64.

    Raises
    ------
    DataError
        A level that is not known.
    """
    place = {name: position for position, name in enumerate(known)}
    unknown = [name for name in codes.names if name not in place]
    if unknown:
        n_cells = int(np.isin(codes.values, [codes.names.index(name) for name in unknown]).sum())
        raise DataError(
            f"obs['{key}'] of {n_cells:,} cells is '{unknown[0]}', which the model was not fitted with."
            f"{closest(unknown[0], known)} It knows {', '.join(map(repr, known[:15]))}. "
            "Fit again with these cells included, or give cells of the fitted levels."
        )
    return np.array([place[name] for name in codes.names], dtype=np.int64)[codes.values]
