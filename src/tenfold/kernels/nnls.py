"""Non-negative least squares of many right sides with one small Gram matrix, by coordinate descent."""

from __future__ import annotations

import numpy as np
from numba import njit

from tenfold.kernels.threads import in_threads

_MOST_SWEEPS = 50


def nnls_rows(gram: np.ndarray, right: np.ndarray, start: np.ndarray, tolerance: float = 1e-5) -> np.ndarray:
    """Minimise ``h gram h' - 2 h right'`` over ``h >= 0``, row by row, from `start`; no step makes it larger.

    Parameters
    ----------
    gram
        Symmetric and positive, (k, k).
    right
        (n, k).
    start
        First guess, (n, k), not negative; near the solution it saves most of the work.
    tolerance
        A row ends when no entry changes by more than this share of its largest, or after 50 sweeps.

    Returns
    -------
    (n, k), float64.
    """
    found = np.array(start, dtype=np.float64, order="C")
    gram, right = (np.ascontiguousarray(part, dtype=np.float64) for part in (gram, right))
    in_threads(lambda first, last: _descend(gram, right, found, tolerance, first, last), len(found))
    return found


@njit(error_model="numpy", nogil=True, cache=True)
def _descend(gram, right, found, tolerance, first, last):
    k = gram.shape[0]
    slope = np.empty(k)
    for i in range(first, last):
        h = found[i]
        for j in range(k):
            slope[j] = -right[i, j]
            for m in range(k):
                slope[j] += gram[j, m] * h[m]
        for _ in range(_MOST_SWEEPS):
            moved, largest = 0.0, 0.0
            for j in range(k):
                if gram[j, j] > 0:
                    new = max(h[j] - slope[j] / gram[j, j], 0.0)
                    step = new - h[j]
                    if step != 0:
                        h[j] = new
                        moved = max(moved, abs(step))
                        for m in range(k):
                            slope[m] += step * gram[m, j]
                largest = max(largest, h[j])
            if moved <= tolerance * largest:
                break
