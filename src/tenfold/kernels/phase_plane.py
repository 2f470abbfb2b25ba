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


@njit(**LOOP)
def _look(first, last, points, scale, counts, directions, best, k):
    longest = points.shape[1]
    apart, sorted_apart = np.empty(longest, np.float32), np.empty(longest, np.float32)
    for gene in range(first, last):
        n = counts[gene]
        m = min(k, n - 1)
        a, b = scale[gene, 0], scale[gene, 1]
        for i in range(n):
            x, y = points[gene, i, 0], points[gene, i, 1]
            for j in range(n):
                dx, dy = a * (points[gene, j, 0] - x), b * (points[gene, j, 1] - y)
                apart[j] = dx * dx + dy * dy
                sorted_apart[j] = apart[j]
            limit = _smallest(sorted_apart, n, m)  # the point itself is the first, the m-th other one is at place m
            vx, vy = directions[gene, i, 0], directions[gene, i, 1]
            highest = np.float32(-np.inf)
            for j in range(n):
                if j != i and apart[j] <= limit:
                    dx, dy = points[gene, j, 0] - x, points[gene, j, 1] - y
                    along = (dx * vx + dy * vy) / np.sqrt(max(dx * dx + dy * dy, np.float32(1e-30)))
                    if along > highest:
                        highest = along
                        best[gene, i] = j


@njit(**LOOP)
def _smallest(values, n, place):
    """Return what would stand at `place` if the first `n` values were sorted; they are reordered."""
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return values[place]
