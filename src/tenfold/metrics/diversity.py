"""LISI: how many batches, or labels, there are around a cell."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tenfold.errors import DataError, ParameterError
from tenfold.kernels.bisection import solve_rows
from tenfold.metrics._checks import Groups, groups, several
from tenfold.metrics._within import Cells, LabelCells, label_cells
from tenfold.metrics.neighborhoods import Neighbors

_BLOCK = 4096  # rows whose kernels are fitted at a time, so that they stay in the cache
WITHIN_LABELS = 90


def lisi(near: Neighbors, values: np.ndarray, perplexity: float | None = None) -> np.ndarray:
    """Local inverse Simpson index: the effective number of groups among a cell's neighbours.

    ``1 / sum_g p_g^2`` for the shares ``p_g`` of the groups among the neighbours, each weighted by
    ``exp(-beta distance)``, with beta such that the weights have the given perplexity. From 1 (all neighbours in one
    group) to the number of groups.

    Parameters
    ----------
    near
        Neighbours of every cell, shape (n, k); the cell itself is not counted. From `neighbors` or `graph_neighbors`.
    values
        Group of every cell, shape (n,).
    perplexity
        Effective number of neighbours; default k // 3.

    Returns
    -------
    LISI of every cell, shape (n,). NaN for a cell without neighbours.

    References
    ----------
    Korsunsky et al., Nature Methods 2019, doi:10.1038/s41592-019-0619-0.
    """
    return diversity(near, weights(near, perplexity), groups(values, "values", len(near.indices)))


def ilisi(near: Neighbors, batch: np.ndarray, perplexity: float | None = None) -> float:
    """Integration LISI: whether all batches are found around the typical cell.

    ``(median LISI of batch - 1) / (number of batches - 1)``. From 0 (separate) to 1 (mixed, batches of equal size).
    Less where sizes differ, and about 0.9 at best with two batches, since 30 neighbours are a sample. High is good only
    where all batches hold the same cell types: a method that merges everything scores 1. `cilisi` mends that. On a
    graph that was built with equal numbers of neighbours from each batch (BBKNN) it is high by construction.

    Parameters
    ----------
    near
        Neighbours of every cell, shape (n, k). The literature uses k = 90.
    batch
        Batch of every cell, shape (n,).
    perplexity
        Effective number of neighbours; default k // 3.

    Raises
    ------
    DataError
        A single batch.

    References
    ----------
    Korsunsky et al., Nature Methods 2019, doi:10.1038/s41592-019-0619-0; rescaling: Luecken et al., Nature Methods
    2022, doi:10.1038/s41592-021-01336-8.
    """
    batches = several(groups(batch, "batch", len(near.indices)), "batch")
    return mixed(lisi(near, batches.codes, perplexity), len(batches.levels))


def ilisi_per_label(near: Neighbors, labels: np.ndarray, batch: np.ndarray) -> dict:
    """`ilisi` over the cells of each label, still with all cells as neighbours. Returns a value by label."""
    batches = several(groups(batch, "batch", len(near.indices)), "batch")
    return by_label(lisi(near, batches.codes), labels, lambda values: mixed(values, len(batches.levels)))


def clisi(near: Neighbors, labels: np.ndarray, perplexity: float | None = None) -> float:
    """Cell-type LISI: whether the typical cell is surrounded by its own label only.

    ``(number of labels - median LISI of label) / (number of labels - 1)``. From 0 to 1; high is good. The median hides
    rare types: nearly every method scores above 0.95, so read `clisi_per_label`.

    Parameters
    ----------
    near
        Neighbours of every cell, shape (n, k). The literature uses k = 90.
    labels
        Label of every cell, shape (n,).
    perplexity
        Effective number of neighbours; default k // 3.

    Raises
    ------
    DataError
        A single label.

    References
    ----------
    Korsunsky et al., Nature Methods 2019, doi:10.1038/s41592-019-0619-0; rescaling: Luecken et al., Nature Methods
    2022, doi:10.1038/s41592-021-01336-8.
    """
    label = several(groups(labels, "labels", len(near.indices)), "labels")
    return 1 - mixed(lisi(near, label.codes, perplexity), len(label.levels))


def clisi_per_label(near: Neighbors, labels: np.ndarray) -> dict:
    """`clisi` over the cells of each label. Returns a value by label."""
    label = several(groups(labels, "labels", len(near.indices)), "labels")
    return by_label(lisi(near, label.codes), labels, lambda values: 1 - mixed(values, len(label.levels)))


def cilisi(cells: Cells, labels: np.ndarray, batch: np.ndarray, seed: int = 0) -> float:
    """Per-cell-type integration LISI: whether batches are mixed inside each cell type.

    LISI of batch among the 90 nearest cells of the same label, ``(LISI - 1) / (number of batches with the label - 1)``,
    averaged over cells. From 0 to 1; high is good. Merging different cell types does not raise it. Labels with fewer
    than 10 cells or in one batch are left out. Where batch and a real state coincide (treated against control), mixing
    is not the aim.

    Parameters
    ----------
    cells
        Embedding, shape (n, d), or connectivities of a graph, sparse, shape (n, n).
    labels, batch
        Groups, shape (n,).
    seed
        Of the approximate search above 100,000 cells of a label.

    Raises
    ------
    DataError
        No label has 10 cells and two batches.

    References
    ----------
    Andreatta et al., Nature Communications 2024, doi:10.1038/s41467-024-45240-z.
    """
    return pooled(label_mixing(label_cells(cells, labels, batch, WITHIN_LABELS, seed)))[0]


def cilisi_per_label(cells: Cells, labels: np.ndarray, batch: np.ndarray, seed: int = 0) -> dict:
    """`cilisi` of each label that can be scored. Returns a value by label."""
    found = label_mixing(label_cells(cells, labels, batch, WITHIN_LABELS, seed))
    return {level: mixing.value for level, mixing in found.items()}


class LabelMixing(NamedTuple):
    """Mean rescaled LISI of batch in a label, the cells that it is a mean of, and its standard error over them."""

    value: float
    n_cells: int
    error: float


def label_mixing(inside: list[LabelCells]) -> dict[Any, LabelMixing]:
    """Return how batches are mixed, by label."""
    found = {}
    for part in inside:
        near = part.near.first(WITHIN_LABELS)
        values = lisi(near, part.batch.codes)
        values = (values[np.isfinite(values)] - 1) / (len(part.batch.levels) - 1)
        if len(values):
            error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
            found[part.level] = LabelMixing(float(values.mean()), len(values), error)
    return found


def pooled(by_level: dict[Any, LabelMixing]) -> tuple[float, float]:
    """Return the mean of values by label, weighted by cells, and its standard error over cells."""
    values, cells, errors = (np.array(column) for column in zip(*by_level.values(), strict=True))
    return float(np.average(values, weights=cells)), float(np.linalg.norm(cells * errors) / cells.sum())


def mixed(values: np.ndarray, n_groups: int) -> float:
    """Rescale the median LISI to 0 (one group) .. 1 (all groups in equal parts)."""
    return float((np.nanmedian(values) - 1) / (n_groups - 1))


def by_label(values: np.ndarray, labels: np.ndarray, reduce) -> dict:  # type: ignore[no-untyped-def]
    """Apply `reduce` to the values of each label's cells."""
    label = groups(labels, "labels", len(values))
    return {level: reduce(values[label.codes == code]) for code, level in enumerate(label.levels)}


def weights(near: Neighbors, perplexity: float | None = None) -> np.ndarray:
    """Return the weight of each neighbour, rows summing to 1 (0 without neighbours), shape (n, k), float32."""
    n, k = near.indices.shape
    if perplexity is None:
        perplexity = max(k // 3, 1)
    if not 1 <= perplexity <= k:
        raise ParameterError(f"The perplexity must lie between 1 and the number of neighbours ({k}), not {perplexity}.")
    if n == 0:
        raise DataError("There are no cells.")
    out = np.empty((n, k), dtype=np.float32)
    for start in range(0, n, _BLOCK):
        rows = slice(start, min(start + _BLOCK, n))
        out[rows] = _kernel(near.indices[rows], near.distances[rows], start, float(np.log(perplexity)))
    return out


def _kernel(indices: np.ndarray, distances: np.ndarray, start: int, entropy: float) -> np.ndarray:
    own = np.arange(start, start + len(indices))
    counted = (indices >= 0) & (indices != own[:, None])
    beyond = np.where(counted, distances, np.inf).astype(np.float32)
    nearest = beyond.min(axis=1, keepdims=True)
    # A shift leaves the weights as they are, and keeps exp() from underflow far from the next cell.
    beyond = np.where(counted, beyond - np.where(np.isfinite(nearest), nearest, 0), 0).astype(np.float32)
    number = np.maximum(counted.sum(axis=1), 1)
    # Fewer neighbours than the perplexity asks for: all weigh the same.
    solvable = np.flatnonzero(np.log(number) > entropy)
    inverse = np.zeros(len(indices), dtype=np.float32)
    start_at = 1 / np.maximum(beyond.sum(axis=1) / number, 1e-30).astype(np.float32)

    def spread(beta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        rows = solvable[rows]
        weight = np.exp(beyond[rows] * -beta[:, None]) * counted[rows]
        total = weight.sum(axis=1)
        return np.log(total) + beta * (beyond[rows] * weight).sum(axis=1) / total

    inverse[solvable] = solve_rows(spread, start_at[solvable], entropy)
    weight = np.exp(beyond * -inverse[:, None]) * counted
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), np.float32(1e-30))


def diversity(near: Neighbors, weight: np.ndarray, grouping: Groups) -> np.ndarray:
    """Return the inverse Simpson index of groups among weighted neighbours, shape (n,)."""
    n, levels = len(weight), len(grouping.levels)
    found = np.full(n, np.nan)
    for start in range(0, n, _BLOCK):
        part, among = weight[start : start + _BLOCK], near.indices[start : start + _BLOCK]
        place = np.arange(len(part))[:, None] * levels + grouping.codes[np.maximum(among, 0)]
        shares = np.bincount(place.ravel(), weights=part.ravel(), minlength=len(part) * levels)
        simpson = (shares.reshape(len(part), levels) ** 2).sum(axis=1)
        known = simpson > 0
        found[start : start + _BLOCK][known] = 1 / simpson[known]
    return found
