"""Silhouettes of batches inside labels: the one of the literature, and BRAS in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tenfold.errors import DataError
from tenfold.metrics._checks import Groups, groups, points
from tenfold.metrics.silhouettes import distance_sums, ratio, sample_cells, widths_of


def asw_batch(
    cells: np.ndarray, labels: np.ndarray, batch: np.ndarray, sample: int | None = None, seed: int = 0
) -> float:
    """Average silhouette width of batches inside each label, ``1 - |width|``; mean of a label, then over labels.

    From 0 to 1; high is said to be good. For comparison with the literature only: it looks at the nearest other batch,
    so a partial overlap of two of many batches already scores near 1. Use `bras`.

    Parameters
    ----------
    cells
        Embedding, shape (n, d).
    labels, batch
        Groups, shape (n,). Labels in one batch, or with one cell in each batch, are left out.
    sample
        Score at most this many cells of each batch of a label, against all its cells; ``None``: all.
    seed
        Of the sample.

    Raises
    ------
    DataError
        No label is found in two batches.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8; criticism: Rautenstrauch & Ohler, Nature
    Biotechnology 2025, doi:10.1038/s41587-025-02743-4.
    """
    return float(np.mean(list(asw_batch_per_label(cells, labels, batch, sample, seed).values())))


def asw_batch_per_label(
    cells: np.ndarray, labels: np.ndarray, batch: np.ndarray, sample: int | None = None, seed: int = 0
) -> dict:
    """Return the batch silhouette of each label in several batches; parameters as in `asw_batch`."""

    def score(inside: np.ndarray, batches: Groups) -> float:
        rows = sample_cells(batches.codes, sample, seed)
        codes = batches.codes[rows]
        width = 1 - np.abs(widths_of(distance_sums(inside, rows, batches), codes, batches.sizes))
        return float(np.average(np.bincount(codes, weights=width) / np.bincount(codes), weights=batches.sizes))

    return _inside_labels(points(cells), labels, batch, score)


def bras(cells: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> float:
    """Batch-removal adapted silhouette (BRAS): whether batches are mixed inside each label.

    ``1 - |(b - a) / max(a, b)|`` with the mean cosine distance a to the label's other cells of the same batch and b
    to its cells of all other batches; mean of a label's cells, then over labels. From 0 to 1; high is good. The cosine
    is taken from the origin of the embedding, so a shift of all coordinates changes it.

    The mean cosine distance to a group is ``1 - x . mean(unit vectors of the group)``: no pairs are needed, and the
    cost grows with cells, not with their square.

    Parameters
    ----------
    cells
        Embedding, shape (n, d). A cell at the origin has distance 1 from all others.
    labels, batch
        Groups, shape (n,). Labels in one batch, or with one cell in each batch, are left out.

    Raises
    ------
    DataError
        No label is found in two batches.

    References
    ----------
    Rautenstrauch & Ohler, Nature Biotechnology 2025, doi:10.1038/s41587-025-02743-4.
    """
    return float(np.mean(list(bras_per_label(cells, labels, batch).values())))


def bras_per_label(cells: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> dict:
    """Return BRAS of each label in several batches; parameters as in `bras`."""
    found = points(cells).astype(np.float64)
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    unit = np.divide(found, norm, out=np.zeros_like(found), where=norm > 0)

    def score(inside: np.ndarray, batches: Groups) -> float:
        sums = np.zeros((len(batches.levels), inside.shape[1]))
        np.add.at(sums, batches.codes, inside)
        own_size, own = batches.sizes[batches.codes], sums[batches.codes]
        to_all = inside @ sums.sum(axis=0)
        to_own = np.einsum("ij,ij->i", inside, own)
        itself = np.einsum("ij,ij->i", inside, inside)
        near = np.maximum(own_size - 1 - (to_own - itself), 0) / np.maximum(own_size - 1, 1)
        far = np.maximum(len(inside) - own_size - (to_all - to_own), 0) / (len(inside) - own_size)
        return float(1 - np.abs(ratio(near, far, own_size)).mean())

    return _inside_labels(unit, labels, batch, score)


def _inside_labels(
    cells: np.ndarray, labels: np.ndarray, batch: np.ndarray, score: Callable[[np.ndarray, Groups], float]
) -> dict:
    label = groups(labels, "labels", len(cells))
    batches = groups(batch, "batch", len(cells))
    found = {}
    for code, level in enumerate(label.levels):
        members = np.flatnonzero(label.codes == code)
        inside = groups(batches.codes[members], "batch")
        if 1 < len(inside.levels) < len(members):
            found[level] = score(cells[members], inside)
    if not found:
        raise DataError("No label is found in two batches, so mixing inside labels cannot be scored.")
    return found
