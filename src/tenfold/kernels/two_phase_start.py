"""What scVelo's start looks at: percentiles of a gene's values, and whether they have two modes."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np
from numba import njit

_POINTS = 30


@njit(cache=True, nogil=True, error_model="numpy")
def percentile(x, q):  # pragma: no cover  (compiled)
    """Return the q-th percentile, between values as NumPy's; its compiled form takes seconds to compile."""
    place = (len(x) - 1) * q / 100
    k = int(place)
    parted = np.partition(x, k)
    if k == len(x) - 1:
        return parted[k]
    above = parted[k + 1 :].min()
    return parted[k] + (above - parted[k]) * (place - k)


@njit(cache=True, nogil=True, error_model="numpy")
def bimodality(x):  # pragma: no cover  (compiled)
    """Test for a second mode in a kernel density on thirty points.

    Parameters
    ----------
    x
        Values, shape (n,), float64.

    Returns
    -------
    The p value, and the position of the upper mode.
    """
    n = len(x)
    low, high = x.min(), x.max()
    width = x.std() * math.sqrt(n / (n - 1)) * n ** (-0.2)  # Scott's rule
    if not width > 0:
        return 1.0, 0.0
    step = (high - low) / (_POINTS - 1)
    density = np.zeros(_POINTS)
    reach = 6 * width
    for i in range(n):
        first = max(math.ceil((x[i] - reach - low) / step), 0)
        last = min(int((x[i] + reach - low) / step), _POINTS - 1)
        for k in range(first, last + 1):
            z = (low + k * step - x[i]) / width
            density[k] += math.exp(-0.5 * z * z)
    density /= n * width * math.sqrt(2 * math.pi)
    middle = _POINTS // 2 - 2
    middle += int(density[middle : middle + 4].argmin())
    upper = density[middle:]
    peak = int(upper.argmax())
    spread = max(density.std() / math.sqrt(_POINTS), 1.0)
    statistic = (upper[peak] - upper.mean()) / spread
    after = min(peak + 1, len(upper) - 1)
    mode = low + step * (middle + (peak + after) / 2)
    return 0.5 * math.erfc(statistic / math.sqrt(2)), mode
