"""How sure a score is, and whether two annotators differ: by resampling donors or batches, not cells."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np

from tenfold.errors import DataError
from tenfold.metrics._checks import groups

#: With so many groups all sign changes are tried; with more, so many at random.
EXACT_GROUPS, PERMUTATIONS = 12, 4096


class Interval(NamedTuple):
    """A value, and the interval that holds it with the wanted confidence."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2


def bootstrap_interval(
    score: Callable[..., float],
    *arrays: np.ndarray,
    group: np.ndarray | None = None,
    level: float = 0.95,
    repeats: int = 500,
    seed: int = 0,
) -> Interval:
    """Interval of a score by the bootstrap, percentile method. Groups are drawn, whole, with replacement.

    Cells of one donor are alike, so an interval from cells is far too narrow for the question of another donor. With
    fewer than about ten groups the interval is still rough, and too narrow.

    Parameters
    ----------
    score
        Function of the arrays, such as `macro_f1`.
    *arrays
        Each with one entry, or row, a cell.
    group
        Donor or batch of every cell, shape (n,); ``None`` draws cells, which is optimistic.
    level, repeats, seed
        Confidence; number of draws; of the draws.

    References
    ----------
    Davison & Hinkley (1997), doi:10.1017/CBO9780511802843.
    """
    given = [np.asarray(array) for array in arrays]
    n = len(given[0])
    units = np.arange(n) if group is None else groups(group, "group", n).codes
    order = np.argsort(units, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(units))[:-1])
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(repeats):
        cells = np.concatenate([members[unit] for unit in rng.integers(len(members), size=len(members))])
        found.append(score(*(array[cells] for array in given)))
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(score(*given)), float(low), float(high))


def paired_permutation(first: np.ndarray, second: np.ndarray, group: np.ndarray, seed: int = 0) -> float:
    """P-value of the hypothesis that two annotators are equally good on a new group (two-sided).

    The mean over groups of the difference in mean score is compared with what it is when the two annotators are
    exchanged in some groups at random: in all 2^n ways up to twelve groups. The smallest value possible is 2^(1 - n):
    with five groups 0.06, so no difference can be shown at 5 % with fewer than six.

    Parameters
    ----------
    first, second
        Score of each cell by each annotator, such as whether its label is right, shape (n,).
    group
        Donor or batch of every cell, shape (n,).
    seed
        Of the exchanges, where there are more than twelve groups.

    References
    ----------
    Good (2005), doi:10.1007/b138696.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise DataError(f"Both annotators need a score for each cell; shapes are {a.shape} and {b.shape}.")
    of = groups(group, "group", len(a))
    gaps = np.bincount(of.codes, weights=a - b) / of.sizes
    if len(gaps) <= EXACT_GROUPS:
        signs = np.array(list(product((1, -1), repeat=len(gaps))))
    else:
        drawn = np.random.default_rng(seed).choice((1, -1), (PERMUTATIONS - 1, len(gaps)))
        signs = np.vstack([np.ones(len(gaps), dtype=int), drawn])
    reached = np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-12
    return float(reached.mean())
