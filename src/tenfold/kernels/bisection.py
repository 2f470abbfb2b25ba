"""One equation for each of many rows, solved together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def solve_rows(
    value: Callable[[np.ndarray, np.ndarray], np.ndarray],
    start: np.ndarray,
    target: float,
    tolerance: float = 1e-5,
    steps: int = 60,
) -> np.ndarray:
    """Find for every row the positive number at which a falling function takes the value `target`.

    Doubling or halving until the solution is enclosed, then bisection. Rows that are done drop out.

    Parameters
    ----------
    value
        ``value(x, rows)`` gives the function at `x`, shape (m,), for the rows `rows`, shape (m,); it falls with x.
    start
        First guess of every row, positive, shape (n,).
    target
        Value wanted.
    tolerance
        A row is done when its value is this close to `target`.
    steps
        Most evaluations of a row. One whose function never reaches the target keeps its last, extreme number.

    Returns
    -------
    Solutions, shape (n,), dtype of `start`.
    """
    x = start.copy()
    low, high = np.zeros_like(x), np.full_like(x, np.inf)
    rows = np.arange(len(x))
    for _ in range(steps):
        excess = value(x[rows], rows) - target
        rows, above = rows[np.abs(excess) >= tolerance], excess[np.abs(excess) >= tolerance] > 0
        if len(rows) == 0:
            break
        low[rows[above]] = x[rows[above]]
        high[rows[~above]] = x[rows[~above]]
        bounded = np.isfinite(high[rows])
        x[rows] = np.where(bounded, (low[rows] + high[rows]) / 2, np.minimum(2 * low[rows], 1e30))
    return x
