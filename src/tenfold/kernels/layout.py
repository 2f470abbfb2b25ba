"""The inner loop of a UMAP layout, compiled; everything around it is in `tenfold.data.graph`."""

from __future__ import annotations

import numba
import numpy as np

# 1 / (1 + A d^2) is the least-squares fit, on [0, 3], of UMAP's target curve for min_dist 0.2 and spread 1
# (1 up to the distance 0.2, then exp(0.2 - d)), where UMAP's own fit has the exponent 2.006: 2 costs no power.
A = 1.263
NEGATIVES = 5
LARGEST_STEP = 4.0


def spread_out(
    start: np.ndarray, heads: np.ndarray, tails: np.ndarray, frequency: np.ndarray, n_epochs: int, seed: int
) -> np.ndarray:
    """Move points so that connected ones attract, and random pairs repel, each other.

    Parameters
    ----------
    start
        Shape (n, 2), float32; not changed.
    heads, tails
        Both directions of every edge, shape (n_edges,), int32.
    frequency
        Share of the epochs in which an edge is visited, shape (n_edges,), float32, in (0, 1].
    n_epochs
        Passes over the edges; the step falls linearly from one to zero.
    seed
        Of the random pairs.

    Returns
    -------
    Shape (n, 2), float32.
    """
    points = np.ascontiguousarray(start, dtype=np.float32).copy()
    if len(heads):
        _descend(points, heads, tails, frequency, n_epochs, np.uint64(2 * seed + 1), np.float32(A))
    return points


@numba.njit(cache=True, fastmath=True)
def _descend(points, heads, tails, frequency, n_epochs, state, a):  # pragma: no cover (compiled)
    n = np.uint64(points.shape[0])
    due = np.zeros(heads.shape[0], dtype=np.float32)
    for epoch in range(n_epochs):
        step = np.float32(1.0 - epoch / n_epochs)
        for edge in range(heads.shape[0]):
            due[edge] += frequency[edge]
            if due[edge] < 1.0:
                continue
            due[edge] -= np.float32(1.0)
            i, j = heads[edge], tails[edge]
            x, y = points[i, 0], points[i, 1]
            dx, dy = x - points[j, 0], y - points[j, 1]
            pull = np.float32(-2.0) * a / (np.float32(1.0) + a * (dx * dx + dy * dy))
            mx = step * min(max(pull * dx, np.float32(-LARGEST_STEP)), np.float32(LARGEST_STEP))
            my = step * min(max(pull * dy, np.float32(-LARGEST_STEP)), np.float32(LARGEST_STEP))
            points[j, 0] -= mx
            points[j, 1] -= my
            x += mx
            y += my
            for _ in range(NEGATIVES):
                state ^= state << np.uint64(13)
                state ^= state >> np.uint64(7)
                state ^= state << np.uint64(17)
                other = np.int64((state >> np.uint64(16)) % n)
                if other == i:
                    continue
                dx, dy = x - points[other, 0], y - points[other, 1]
                d2 = dx * dx + dy * dy
                push = np.float32(2.0) / ((np.float32(0.001) + d2) * (np.float32(1.0) + a * d2))
                x += step * min(max(push * dx, np.float32(-LARGEST_STEP)), np.float32(LARGEST_STEP))
                y += step * min(max(push * dy, np.float32(-LARGEST_STEP)), np.float32(LARGEST_STEP))
            points[i, 0] = x
            points[i, 1] = y
    return points
