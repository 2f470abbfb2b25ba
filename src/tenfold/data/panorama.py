"""Scanorama's matching of all batches with one another, and the order in which matched batches are stitched."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from tenfold.kernels.anchors import Pairs, nearest_manhattan

_MOST_USES = 3  # a pair of batches that were both used more often is passed over


class Step(NamedTuple):
    """One stitching: `moved` batches are shifted onto those of `reference` by the pairs of `links` (moved, fixed)."""

    moved: list[int]
    reference: list[int]
    links: list[tuple[int, int]]


def match_batches(
    points: np.ndarray, members: list[np.ndarray], k: int
) -> tuple[dict[tuple[int, int], Pairs], np.ndarray]:
    """Find mutual neighbours between batches; each looks among all earlier, and among all later ones, together.

    Parameters
    ----------
    points
        Coordinates, (n_cells, d); scaled to length 1 before the search by city-block distance.
    members
        Rows of each batch.
    k
        Number of neighbours.

    Returns
    -------
    pairs
        Rows of `points` for batches (i, j), i < j.
    alignment
        Share of paired cells, the larger of both sides, (n_batches, n_batches).
    """
    length = np.linalg.norm(points, axis=1, keepdims=True)
    unit = np.divide(points, length, out=np.zeros_like(points), where=length > 0)
    batch = np.empty(len(points), dtype=np.int64)
    for b, cells in enumerate(members):
        batch[cells] = b
    earlier: dict[int, np.ndarray] = {}
    later: dict[int, np.ndarray] = {}
    for b, cells in enumerate(members):
        for found, others in ((earlier, members[:b]), (later, members[b + 1 :])):
            if others:
                pool = np.concatenate(others)
                found[b] = pool[nearest_manhattan(unit[cells], unit[pool], k)]
    matches, alignment = {}, np.zeros((len(members), len(members)))
    for i, j in combinations(range(len(members)), 2):
        forward = _codes(members[i], later[i], batch, j, len(points))
        backward = _codes(members[j], earlier[j], batch, i, len(points), swap=True)
        both = np.intersect1d(forward, backward, assume_unique=True)
        matches[i, j] = Pairs(both // len(points), both % len(points))
        sides = zip(matches[i, j], (members[i], members[j]), strict=True)
        alignment[i, j] = alignment[j, i] = max(len(np.unique(rows)) / len(cells) for rows, cells in sides)
    return matches, alignment


def _codes(
    cells: np.ndarray, found: np.ndarray, batch: np.ndarray, other: int, n: int, swap: bool = False
) -> np.ndarray:
    """Return pairs (cell, neighbour in batch `other`) as row × n + row; `swap` exchanges the two."""
    own, neighbor = np.repeat(cells, found.shape[1]).astype(np.int64), found.ravel().astype(np.int64)
    kept = batch[neighbor] == other
    first, second = (neighbor, own) if swap else (own, neighbor)
    return first[kept] * n + second[kept]


def plan(alignment: np.ndarray, sizes: list[int], alpha: float) -> tuple[list[Step], list[list[int]]]:
    """Return the steps of stitching, the best aligned batches first, and the panoramas that result.

    Of two batches that belong to no panorama yet, the larger is the base; a batch joins a panorama by its pairs with
    all of it; of two panoramas, that of the first batch moves as a whole by the pairs of the two batches.
    """
    above = [(i, j) for i, j in combinations(range(len(sizes)), 2) if alignment[i, j] > alpha]
    above = sorted(above, key=lambda pair: alignment[pair])[::-1]  # of equal ones the last first, as in the original
    uses = np.zeros(len(sizes), dtype=int)
    panoramas: list[list[int]] = []
    steps = []
    for i, j in above:
        uses[[i, j]] += 1
        if (uses[[i, j]] > _MOST_USES).all():
            continue
        of_i, of_j = ([panorama for panorama in panoramas if b in panorama] for b in (i, j))
        if not of_i and not of_j:
            if sizes[i] < sizes[j]:
                i, j = j, i
            panoramas.append([i])
            of_i = [panoramas[-1]]
        if of_i and of_j:
            steps.append(Step([*of_i[0]], [*of_j[0]], [(i, j)]))
            if of_i[0] is not of_j[0]:
                of_i[0].extend(of_j[0])
                panoramas = [panorama for panorama in panoramas if panorama is not of_j[0]]
        else:
            new, panorama = (j, of_i[0]) if of_i else (i, of_j[0])
            steps.append(Step([new], [*panorama], [(new, other) for other in panorama]))
            panorama.append(new)
    placed = {b for panorama in panoramas for b in panorama}
    return steps, panoramas + [[b] for b in range(len(sizes)) if b not in placed]
