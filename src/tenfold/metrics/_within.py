"""Neighbours inside each label, for metrics that must not reward the mixing of different cell types."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import sparse

from tenfold.errors import DataError
from tenfold.metrics._checks import Groups, groups, points
from tenfold.metrics.neighborhoods import Neighbors, graph_neighbors, neighbors

Cells: TypeAlias = np.ndarray | sparse.spmatrix

#: Fewer cells of a label say nothing about mixing.
LEAST_CELLS = 10


class LabelCells(NamedTuple):
    """Cells of one label that is found in several batches.

    Attributes
    ----------
    level
        The label.
    members
        Its cells, shape (m,).
    batch
        Their batches, without gaps in the codes.
    near
        Their neighbours among themselves, each cell itself first; indices count within `members`.
    """

    level: object
    members: np.ndarray
    batch: Groups
    near: Neighbors


def label_cells(cells: Cells, labels: np.ndarray, batch: np.ndarray, k: int, seed: int = 0) -> list[LabelCells]:
    """Search `k` neighbours (each cell itself counted) among the cells of each label that can be judged.

    Parameters
    ----------
    cells
        Embedding, shape (n, d), or connectivities of a graph, sparse, shape (n, n).
    labels, batch
        Groups, shape (n,).
    k
        Neighbours wanted; a label with fewer cells has all of them.
    seed
        Of the approximate search above 100,000 cells of a label.

    Raises
    ------
    DataError
        No label has 10 cells and two batches.
    """
    n = cells.shape[0]
    label, batches = groups(labels, "labels", n), groups(batch, "batch", n)
    found = []
    for code, level in enumerate(label.levels):
        members = np.flatnonzero(label.codes == code)
        inside = groups(batches.codes[members], "batch")
        if len(members) < LEAST_CELLS or len(inside.levels) < 2:
            continue
        found.append(LabelCells(level, members, inside, _search(cells, members, k, seed)))
    if not found:
        raise DataError(
            f"No label has {LEAST_CELLS} cells and is found in two batches, so mixing inside labels cannot be scored. "
            "Use a metric that needs no labels, or coarser labels."
        )
    return found


def _search(cells: Cells, members: np.ndarray, k: int, seed: int) -> Neighbors:
    if isinstance(cells, np.ndarray):
        return neighbors(points(cells)[members], k, seed)
    others = graph_neighbors(cells.tocsr()[members][:, members], min(k, len(members)) - 1)
    itself = np.arange(len(members), dtype=np.int32)[:, None]
    return Neighbors(
        np.hstack([itself, others.indices]), np.hstack([np.zeros_like(itself, np.float32), others.distances])
    )
