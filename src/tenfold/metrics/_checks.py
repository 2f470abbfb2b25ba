"""Checks that every metric makes of its arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tenfold.errors import DataError


class Groups(NamedTuple):
    """A grouping of cells without gaps in its codes.

    Attributes
    ----------
    codes
        Group of every cell, shape (n,), int64 in ``range(len(levels))``; every code occurs.
    levels
        The value that each code stands for, as it was given.
    """

    codes: np.ndarray
    levels: list

    @property
    def sizes(self) -> np.ndarray:
        """Number of cells of each group, shape (n_levels,)."""
        return np.bincount(self.codes, minlength=len(self.levels))


def groups(values: object, name: str, n: int | None = None) -> Groups:
    """Read labels or batches.

    Parameters
    ----------
    values
        One entry per cell.
    name
        What to call it in an error.
    n
        Number of cells that there must be.

    Raises
    ------
    DataError
        Not one-dimensional, of another length, empty, or with missing entries (NaN, None, or codes below 0).
    """
    array = np.asarray(values)
    if array.ndim != 1 or (n is not None and len(array) != n):
        wanted = "one entry per cell" if n is None else f"one entry for each of the {n} cells"
        raise DataError(f"`{name}` must have {wanted}; it has the shape {array.shape}.")
    if len(array) == 0:
        raise DataError(f"`{name}` is empty: a metric needs cells.")
    if array.dtype.kind == "O":
        from pandas import isna

        missing = np.asarray(isna(array))
        array = array if missing.any() else array.astype(str)
    elif array.dtype.kind == "f":
        missing = np.isnan(array)
    else:
        missing = array < 0 if array.dtype.kind == "i" else np.zeros(len(array), dtype=bool)
    if missing.any():
        raise DataError(
            f"{int(missing.sum())} cells have no entry in `{name}` (NaN, None or a code below 0; first: cell "
            f"{int(missing.argmax())}). Remove these cells or give them a group of their own."
        )
    levels, codes = np.unique(array, return_inverse=True)
    return Groups(codes.astype(np.int64), levels.tolist())


def several(grouping: Groups, name: str) -> Groups:
    """Return `grouping`, or raise `DataError` where it has one group only."""
    if len(grouping.levels) < 2:
        raise DataError(f"All cells have the same entry in `{name}`; this metric compares at least two groups.")
    return grouping


def points(array: object, name: str = "points") -> np.ndarray:
    """Read coordinates as floating-point numbers, shape (n, d).

    Raises
    ------
    DataError
        Not two-dimensional, empty, or with NaN or infinite entries.
    """
    found = np.asarray(array)
    if found.ndim != 2 or 0 in found.shape:
        raise DataError(f"`{name}` must have the shape (cells, dimensions); it has the shape {found.shape}.")
    if found.dtype.kind != "f":
        found = found.astype(np.float64)
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(found)} cells in `{name}` hold NaN or infinite coordinates (first: cell "
            f"{int(bad.argmax())}). Remove these cells or repair the embedding."
        )
    return found
