"""Points of many genes in the plane of unspliced and spliced counts: which neighbour lies most nearly ahead."""

# mypy: disable-error-code="no-untyped-def, call-arg"
from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tenfold.kernels.threads import in_threads
from tenfold.kernels.vectormath import LOOP


def most_ahead(points: Tensor, scale: Tensor, counts: Tensor, directions: Tensor, k: int) -> Tensor:
    """Return for each point that one of its nearest neighbours to which a direction points most nearly.

    Parameters
    ----------
    points
        Shape (n_genes, n_points, 2), float32; of each gene the first `counts` are points, at least two.
    scale
        What the two axes are multiplied with where distances are taken, shape (n_genes, 2).
    counts
        Shape (n_genes,), int64.
    directions
        Shape (n_genes, n_points, 2), float32.
    k
        Neighbours among which to look; all others where a gene has fewer.

    Returns
    -------
    Places in the gene's points, shape (n_genes, n_points), int64; 0 beyond `counts`.
    """
    best = torch.zeros(points.shape[:2], dtype=torch.int64, device=points.device)
    if points.device.type == "cpu":
        arrays = [part.contiguous().numpy() for part in (points, scale, counts, directions, best)]
        in_threads(lambda first, last: _look(first, last, *arrays, k), len(points))
        return best
    for gene, count in enumerate(counts.tolist()):
        own = points[gene, :count]
        near = torch.cdist(own * scale[gene], own * scale[gene]).fill_diagonal_(torch.inf)
        near = near.topk(min(k, count - 1), largest=False).indices
        steps = own[near] - own[:, None]
        along = (steps * directions[gene, :count, None]).sum(dim=2) / steps.norm(dim=2).clamp_min(1e-30)
        best[gene, :count] = near.gather(1, along.argmax(dim=1, keepdim=True))[:, 0]
    return best


#: Guesses of the distance within which as many points lie as are wanted; more are taken where several lie at it.
_GUESSES = 40


@njit(**LOOP)
def _look(first, last, points, scale, counts, directions, best, k):
    longest = points.shape[1]
    xs, ys, apart = np.empty(longest, np.float32), np.empty(longest, np.float32), np.empty(longest, np.float32)
    limit = np.float32(0.01)
    for gene in range(first, last):
        n = counts[gene]
        wanted = min(k + 1, n)  # the point itself is one
        a, b = scale[gene, 0] ** 2, scale[gene, 1] ** 2
        for j in range(n):
            xs[j], ys[j] = points[gene, j, 0], points[gene, j, 1]
        for i in range(n):
            x, y = xs[i], ys[i]
            for j in range(n):
                apart[j] = a * (xs[j] - x) ** 2 + b * (ys[j] - y) ** 2
            limit = _reach(apart, n, wanted, limit)
            vx, vy = directions[gene, i, 0], directions[gene, i, 1]
            highest = np.float32(-np.inf)
            for j in range(n):
                if apart[j] <= limit and j != i:
                    dx, dy = xs[j] - x, ys[j] - y
                    along = (dx * vx + dy * vy) / np.sqrt(max(dx * dx + dy * dy, np.float32(1e-30)))
                    if along > highest:
                        highest = along
                        best[gene, i] = j


@njit(**LOOP)
def _reach(apart, n, wanted, limit):
    """Return a squared distance within which `wanted` points lie, from a guess: their number grows with it."""
    low, high = np.float32(0.0), np.float32(3e38)
    limit = max(limit, np.float32(1e-12))
    for _ in range(_GUESSES):
        inside = 0
        for j in range(n):
            inside += apart[j] <= limit
        if inside == wanted:
            return limit
        if inside < wanted:
            low = limit
        else:
            high = limit
        limit = limit * np.float32(wanted) / np.float32(max(inside, 1))
        if not low < limit < high:
            limit = (low + high) / 2 if high < 3e38 else 2 * low
    return high
