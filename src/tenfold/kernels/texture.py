"""Statistics of pixels around cells, read from the picture in place: no crop is ever cut out."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit

#: Pairs of pixels by angle: 0, 45, 90 and 135 degrees, as (rows, columns) of a step of one pixel.
STEPS = ((0, 1), (1, 1), (1, 0), (1, -1))
#: Statistics of a matrix of co-occurrence, in the order of `cooccurrence`.
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "correlation", "ASM")


@njit(cache=True, nogil=True)
def _inside(row, column, centre_row, centre_column, half, disc):  # pragma: no cover - compiled
    down, right = row - centre_row, column - centre_column
    if abs(down) > half or abs(right) > half:
        return False
    return not disc or down * down + right * right <= half * half


@njit(cache=True, nogil=True)
def intensities(channel, rows, columns, half, disc):  # pragma: no cover - compiled
    """Return how often each of the 256 values occurs around each cell, shape (n_cells, 256), int64.

    Parameters
    ----------
    channel
        Shape (height, width), uint8.
    rows, columns
        Pixel of each cell, (n_cells,), int64. Pixels outside the picture are left out.
    half
        Half of the side of the square, or the radius of the disc, in whole pixels.
    disc
        Whether only pixels within `half` of the centre count.
    """
    height, width = channel.shape
    found = np.zeros((len(rows), 256), np.int64)
    for i in range(len(rows)):
        for row in range(max(0, rows[i] - half), min(height, rows[i] + half + 1)):
            for column in range(max(0, columns[i] - half), min(width, columns[i] + half + 1)):
                if _inside(row, column, rows[i], columns[i], half, disc):
                    found[i, channel[row, column]] += 1
    return found


@njit(cache=True, nogil=True)
def cooccurrence(channel, rows, columns, half, disc, down, right):  # pragma: no cover - compiled
    """Return statistics of pairs of pixels a step apart around each cell, shape (n_cells, 5): see `PROPERTIES`.

    They are those of the matrix of co-occurrence, not symmetric, of 256 levels, divided by its sum; it is filled for
    one cell at a time. Both pixels of a pair lie in the picture and around the cell. Without pairs, and for constant
    pixels, correlation is 1, as in scikit-image.

    Parameters
    ----------
    channel, rows, columns, half, disc
        As in `intensities`.
    down, right
        The step.

    References
    ----------
    Haralick, Shanmugam and Dinstein (1973), doi 10.1109/TSMC.1973.4309314.
    """
    height, width = channel.shape
    found = np.zeros((len(rows), 5))
    counts = np.zeros((256, 256), np.int64)
    for i in range(len(rows)):
        n, contrast, dissimilarity, homogeneity, squares = 0, 0.0, 0.0, 0.0, 0.0
        first, second, first2, second2, both = 0.0, 0.0, 0.0, 0.0, 0.0
        top, bottom = max(0, rows[i] - half), min(height, rows[i] + half + 1)
        left, end = max(0, columns[i] - half), min(width, columns[i] + half + 1)
        for clearing in (False, True):
            for row in range(top, bottom):
                other_row = row + down
                if other_row < top or other_row >= bottom:
                    continue
                for column in range(left, end):
                    other = column + right
                    if other < left or other >= end:
                        continue
                    if not _inside(row, column, rows[i], columns[i], half, disc):
                        continue
                    if not _inside(other_row, other, rows[i], columns[i], half, disc):
                        continue
                    a, b = np.int64(channel[row, column]), np.int64(channel[other_row, other])  # not unsigned
                    if clearing:
                        counts[a, b] = 0
                        continue
                    away = abs(a - b)
                    n += 1
                    contrast += away * away
                    dissimilarity += away
                    homogeneity += 1.0 / (1.0 + away * away)
                    squares += 2 * counts[a, b] + 1  # of a count that grows by one
                    counts[a, b] += 1
                    first += a
                    second += b
                    first2 += a * a
                    second2 += b * b
                    both += a * b
        found[i, 3] = 1.0
        if n > 0:
            found[i, 0], found[i, 1], found[i, 2] = contrast / n, dissimilarity / n, homogeneity / n
            found[i, 4] = squares / n / n
            spread = np.sqrt(max(first2 / n - (first / n) ** 2, 0.0) * max(second2 / n - (second / n) ** 2, 0.0))
            if spread > 1e-12:
                found[i, 3] = (both / n - first / n * second / n) / spread
    return found
