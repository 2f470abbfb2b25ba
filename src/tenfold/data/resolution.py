"""The resolution of a community search that gives a wanted number of clusters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Trials at most, and the factor from one to the next until two enclose the number.
TRIALS, GROWTH = 20, 1.3


def sought(
    tried: Callable[[float], tuple[int, np.ndarray]], wanted: int, resolution: float
) -> tuple[float, int, np.ndarray]:
    """Look for the resolution that gives a number of clusters.

    It grows or shrinks by a factor until two resolutions enclose the number, and is halved from then on.

    Parameters
    ----------
    tried
        From a resolution, the number of clusters it gives, and something to keep of the trial.
    wanted
        Number of clusters.
    resolution
        The first that is tried.

    Returns
    -------
    The resolution that gives the number or comes nearest, the number it gives, and what was kept.
    """
    low, high, best = 0.0, np.inf, None
    for _ in range(TRIALS):
        found, labels = tried(resolution)
        if best is None or abs(found - wanted) < abs(best[1] - wanted):
            best = (resolution, found, labels)
        if found == wanted:
            break
        low, high = (resolution, high) if found < wanted else (low, resolution)
        if low == 0.0:
            resolution /= GROWTH
        else:
            resolution = (low + high) / 2 if np.isfinite(high) else resolution * GROWTH
    assert best is not None
    return best
