"""Scores of velocities. None of them is evidence alone: each is to be read beside its value on permuted counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tenfold.errors import DataError
from tenfold.kernels.velocity_graph import coherence


def neighbor_coherence(velocities: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Return the mean correlation of each cell's velocity with those of its neighbours: scVelo's confidence.

    High wherever velocities were computed from counts averaged over the same neighbours, whether or not there is
    kinetics in the data.

    Parameters
    ----------
    velocities
        Shape (n_cells, n_genes), finite.
    neighbors
        Nearest cells of each cell, shape (n_cells, k), integers.

    Returns
    -------
    Shape (n_cells,), float32, from 0 (or below) to 1. 0 for a cell without velocity.

    References
    ----------
    Bergen et al. (2020), doi 10.1038/s41587-020-0591-3.
    """
    return coherence(velocities, neighbors)


def cross_boundary_direction(
    positions: np.ndarray,
    velocities: np.ndarray,
    neighbors: np.ndarray,
    labels: np.ndarray,
    transitions: Sequence[tuple[str, str]],
) -> dict[tuple[str, str], tuple[float, int]]:
    """Score whether velocities at the boundary of two groups point from the first to the second (CBDir).

    For cells of the first group with neighbours in the second: the mean cosine of the velocity with the displacements
    to those neighbours, averaged over cells. 0 is chance. In a two-dimensional embedding it is inflated, since arrows
    there average towards neighbours.

    Parameters
    ----------
    positions, velocities
        In the same space, shape (n_cells, d).
    neighbors
        Nearest cells of each cell, shape (n_cells, k).
    labels
        Group of each cell, shape (n_cells,).
    transitions
        Pairs of groups, from and to.

    Returns
    -------
    For each pair the score, in [-1, 1], NaN where no cell lies at the boundary; and the number of cells that do.

    Raises
    ------
    DataError
        A pair names a group that no cell belongs to.

    References
    ----------
    Qiao & Huang (2021), doi 10.1073/pnas.2105859118.
    """
    known = set(np.unique(labels))
    unit = _unit(np.asarray(velocities, dtype=np.float32))
    found = {}
    for source, target in transitions:
        for name in (source, target):
            if name not in known:
                raise DataError(f"No cell belongs to '{name}'; groups are {', '.join(map(str, sorted(known)))}.")
        cells = np.flatnonzero(labels == source)
        there = labels[neighbors[cells]] == target
        row, place = np.nonzero(there)
        steps = _unit(positions[neighbors[cells[row], place]] - positions[cells[row]])
        cosines = np.einsum("ij,ij->i", steps, unit[cells[row]])
        size = there.sum(axis=1)
        own = np.bincount(row, weights=cosines, minlength=len(cells))[size > 0] / size[size > 0]
        found[source, target] = (float(own.mean()) if len(own) else float("nan"), len(own))
    return found


def in_cluster_coherence(velocities: np.ndarray, neighbors: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cosine of velocities of neighbours of one group (ICCoh), averaged over groups.

    In [-1, 1]. Smoothing alone makes it high: only its excess over permuted counts says anything.

    Parameters
    ----------
    velocities
        Shape (n_cells, d).
    neighbors
        Nearest cells of each cell, shape (n_cells, k).
    labels
        Group of each cell, shape (n_cells,).

    References
    ----------
    Qiao & Huang (2021), doi 10.1073/pnas.2105859118.
    """
    unit = _unit(np.asarray(velocities, dtype=np.float32))
    same = labels[neighbors] == labels[:, None]
    row, place = np.nonzero(same)
    cosines = np.einsum("ij,ij->i", unit[row], unit[neighbors[row, place]])
    size = same.sum(axis=1)
    own = np.bincount(row, weights=cosines, minlength=len(labels)) / np.maximum(size, 1)
    means = [own[(labels == name) & (size > 0)].mean() for name in np.unique(labels[size > 0])]
    return float(np.mean(means)) if means else float("nan")


def velocity_agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosine of two sets of velocities in each cell, after genes were scaled to unit spread.

    Parameters
    ----------
    first, second
        Shape (n_cells, n_genes), of the same genes, finite. Each is divided by its standard deviation per gene, so
        that methods with other units can be compared.

    Returns
    -------
    Shape (n_cells,), float32, in [-1, 1].
    """
    scaled = [_unit(v / np.maximum(np.std(v, axis=0), 1e-12)) for v in (first, second)]
    return np.einsum("ij,ij->i", *scaled).astype(np.float32)


def consensus_direction(displacements: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean direction of several methods in each cell, and their disagreement.

    Parameters
    ----------
    displacements
        For each method the displacement that it expects of each cell, shape (n_cells, d), in one space.

    Returns
    -------
    Mean of the unit vectors, shape (n_cells, d), and 1 less its length, shape (n_cells,): 0 where all methods point
    the same way, near 1 where they contradict each other.
    """
    mean = np.mean([_unit(np.asarray(d, dtype=np.float64)) for d in displacements], axis=0)
    return mean.astype(np.float32), (1 - np.linalg.norm(mean, axis=1)).astype(np.float32)


def direction_accuracy(velocities: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of entries whose sign is right among those with a true speed above the gene's median.

    Parameters
    ----------
    velocities, truth
        Shape (n_cells, n_genes), finite.
    """
    speed = np.abs(truth)
    fast = speed > np.median(speed, axis=0)
    return float((np.sign(velocities[fast]) == np.sign(truth[fast])).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
