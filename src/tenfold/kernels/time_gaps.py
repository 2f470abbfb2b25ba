"""Gaps between the times of cells, found and closed without sorting all of them."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def widest_gaps(taus, members, wanted, gaps, places):  # pragma: no cover  (compiled)
    """Collect the gaps between consecutive times of some cells, from 0 on, that are wider than average.

    Parameters
    ----------
    taus, members, wanted
        Times; those of cells whose entry in `members` is `wanted`.
    gaps, places
        Filled with widths, and with the time at the end of each gap.

    Returns
    -------
    How many were filled, and how many gaps there are in all.
    """
    top, count = 0.0, 0
    for i in range(len(taus)):
        if members[i] == wanted:
            count += 1
            top = max(top, taus[i])
    if count == 0 or top <= 0:
        return 0, count
    low, high = np.full(count + 1, np.inf), np.full(count + 1, -1.0)
    for i in range(len(taus)):
        if members[i] == wanted:
            b = int(taus[i] / top * count)
            low[b], high[b] = min(low[b], taus[i]), max(high[b], taus[i])
    filled, before = 0, 0.0
    for b in range(count + 1):
        if high[b] >= 0:
            if low[b] - before > top / count:
                gaps[filled], places[filled] = low[b] - before, low[b]
                filled += 1
            before = high[b]
    return filled, count


@njit(cache=True, nogil=True, error_model="numpy")
def compress(first_taus, second_taus, on, gap_work):  # pragma: no cover  (compiled)
    """Close gaps wider than three times the 99.5th percentile of gaps; both phases share the percentile.

    Parameters
    ----------
    first_taus, second_taus
        Times in the first and in the second phase; changed in place for the cells of the phase.
    on
        1 for the cells of the first phase.
    gap_work
        Room, shape (2, n_cells).

    Returns
    -------
    Whether any time changed.
    """
    n = len(on)
    gaps, places = gap_work[0], gap_work[1]
    first, n_first = widest_gaps(first_taus, on, 1, gaps, places)
    second, n_second = widest_gaps(second_taus, on, 0, gaps[first:], places[first:])
    total, filled = n_first + n_second, first + second
    position = 0.995 * (total - 1)
    below = int(position)
    rank = total - 1 - below
    if filled <= rank:
        return False  # nothing is wider than the average gap by far
    ordered = np.sort(gaps[:filled])
    above = ordered[filled - rank] if rank > 0 else ordered[filled - 1]
    limit = 3 * (ordered[filled - 1 - rank] + (position - below) * (above - ordered[filled - 1 - rank]))
    if ordered[filled - 1] <= limit:
        return False
    wide, wide_first = 0, 0
    for k in range(filled):
        if gaps[k] > limit:
            gaps[wide], places[wide] = gaps[k], places[k]
            wide += 1
            if k < first:
                wide_first += 1
    for i in range(n):
        taus, start, stop = (first_taus, 0, wide_first) if on[i] == 1 else (second_taus, wide_first, wide)
        shift = 0.0
        for k in range(start, stop):
            if taus[i] >= places[k]:
                shift += gaps[k]
        taus[i] -= shift
    return True
