"""Mixture of linear models: soft clusters of cells, and in each a ridge regression on categorical covariates.

Everything is computed from sums over groups of cells (a group is a combination of covariate levels): with the cells
sorted by group, these sums and the correction itself are matrix products of contiguous rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

_LLOYD_STEPS = 10
_SEEDING_CELLS = 20_000  # k-means on more cells than this does not move the centroids noticeably
_CHUNK = 2048  # rows whose affinities fit the processor's cache
_SUPPORT = 1e-5  # share of a batch's cells below which a cluster says nothing about that batch


class Design(NamedTuple):
    """Covariates of the cells, which are sorted by group; a group is a combination of levels that occurs."""

    order: np.ndarray  # (n,) cells in sorted order
    group: np.ndarray  # (n,) group of every sorted cell, int32
    starts: np.ndarray  # (n_groups + 1,) first cell of every group
    membership: np.ndarray  # (n_groups, n_levels) 1 where the group has the level, float64
    covariate: np.ndarray  # (n_levels,) which covariate a level belongs to
    sizes: np.ndarray  # (n_levels,) cells


def make_design(covariates: list[np.ndarray]) -> Design:
    """Return the design of integer `covariates`, each of shape (n,)."""
    n_levels = [int(values.max()) + 1 for values in covariates]
    first = np.concatenate([[0], np.cumsum(n_levels)])
    stacked = np.stack([values + at for values, at in zip(covariates, first[:-1], strict=True)], axis=1)
    combinations, group = np.unique(stacked, axis=0, return_inverse=True)
    group = group.ravel().astype(np.int32)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    membership = np.zeros((len(combinations), first[-1]))
    np.put_along_axis(membership, combinations, 1.0, axis=1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return Design(order, group[order], starts, membership, np.repeat(np.arange(len(n_levels)), n_levels),
                  membership.T @ counts)  # fmt: skip


def unit_rows(points: np.ndarray) -> np.ndarray:
    """Return `points` with rows of length 1 (rows of zeros stay)."""
    norm = np.sqrt(np.einsum("ij,ij->i", points, points))
    return points / np.maximum(norm, 1e-12)[:, None]


def seed_centroids(unit: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Return unit centroids, (n_clusters, d): k-means++ and ten Lloyd steps on (at most 20,000) unit rows."""
    if len(unit) > _SEEDING_CELLS:
        unit = unit[np.sort(rng.choice(len(unit), _SEEDING_CELLS, replace=False))]
    chosen = [int(rng.integers(len(unit)))]
    nearest = np.full(len(unit), np.inf, dtype=np.float32)
    for _ in range(n_clusters - 1):
        nearest = np.minimum(nearest, np.maximum(2 - 2 * (unit @ unit[chosen[-1]]), 0))
        weight = np.cumsum(nearest, dtype=np.float64)
        chosen.append(min(int(np.searchsorted(weight, rng.random() * weight[-1], side="right")), len(unit) - 1))
    centroids = unit[chosen]
    for _ in range(_LLOYD_STEPS):
        score = unit @ centroids.T
        score -= 0.5 * np.einsum("ij,ij->i", centroids, centroids)
        belongs = np.zeros_like(score)
        belongs[np.arange(len(unit)), score.argmax(axis=1)] = 1
        size = belongs.sum(axis=0)
        centroids = np.where(size[:, None] > 0, belongs.T @ unit / np.maximum(size, 1)[:, None], centroids)
    return unit_rows(centroids)


def soft_assign(unit: np.ndarray, centroids: np.ndarray, sigma: float) -> tuple[np.ndarray, float]:
    """Return exp(-D / sigma) normalised over clusters, (n, k) float32, and the sum of the logs of the norms."""
    assigned = np.empty((len(unit), len(centroids)), dtype=np.float32)
    log_norm, columns = 0.0, np.ascontiguousarray(centroids.T) * np.float32(2 / sigma)
    for at in range(0, len(unit), _CHUNK):
        block = np.matmul(unit[at : at + _CHUNK], columns, out=assigned[at : at + _CHUNK])
        highest = block.max(axis=1, keepdims=True)
        block -= highest
        np.exp(block, out=block)
        norm = block.sum(axis=1, keepdims=True)
        block /= norm
        log_norm += float((np.log(norm, dtype=np.float64) + highest - 2 / sigma).sum())
    return assigned, log_norm


@njit(cache=True, fastmath=True, nogil=True)
def reassign(affinity, cells, group, factor, mass, store):  # pragma: no cover - compiled
    """Assign `cells` in proportion to affinity × factor; fill their `mass` (groups, k); return the sum of log norms.

    With `store` the assignments replace the affinities of these cells.
    """
    n_clusters = affinity.shape[1]
    mass[:] = 0.0
    row = np.empty(n_clusters, dtype=np.float32)
    total = 0.0
    for i in cells:
        g = group[i]
        norm = np.float32(1e-30)
        for k in range(n_clusters):
            row[k] = affinity[i, k] * factor[g, k]
            norm += row[k]
        inverse = np.float32(1.0) / norm
        total += np.log(norm)
        for k in range(n_clusters):
            mass[g, k] += row[k] * inverse
        if store:
            for k in range(n_clusters):
                affinity[i, k] = row[k] * inverse
    return total


def group_factor(log_factor: np.ndarray, design: Design, combine: str) -> np.ndarray:
    """Return the diversity factor per group, (n_groups, k) float32, scaled to a largest entry of 1 in each group."""
    member = design.membership
    factor = member @ np.exp(log_factor) if combine == "sum" else np.exp(member @ log_factor)
    factor /= factor.max(axis=1, keepdims=True)
    return np.maximum(factor, 1e-30).astype(np.float32)


def tables(mass: np.ndarray, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Return observed and expected mass per level and cluster, (n_levels, k), from the mass per group."""
    observed = design.membership.T @ mass
    share = design.sizes / len(design.group)
    return observed, share[:, None] * mass.sum(axis=0)


def separation_of(mass: np.ndarray, design: Design) -> float:
    """Return how far the levels of a covariate are from their overall share in every cluster.

    0: all levels have the same share everywhere; 1: no cluster holds two levels. Largest over the covariates.
    """
    observed, expected = tables(mass, design)
    apart = np.bincount(design.covariate, np.abs(observed - expected).sum(axis=1)) / (2 * mass.sum())
    most = 1 - np.bincount(design.covariate, (design.sizes / len(design.group)) ** 2)
    return float(np.max(apart / np.maximum(most, 1e-12)))


def grouped_moments(assigned: np.ndarray, points: np.ndarray, design: Design) -> np.ndarray:
    """Return the sums of assigned × points per group, (n_groups, k, d), float64."""
    pairs = zip(design.starts[:-1], design.starts[1:], strict=True)
    return np.stack([(assigned[a:b].T @ points[a:b]).astype(np.float64) for a, b in pairs])


def ridge_offsets(
    mass: np.ndarray, moments: np.ndarray, design: Design, lamb: float | None, alpha: float, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Regress, in every cluster, the coordinates on an unpenalised intercept and penalised level offsets.

    Parameters
    ----------
    mass, moments
        Sums of R and of R × z per group: (n_groups, k) and (n_groups, k, d).
    lamb, alpha
        Ridge penalty, or ``None`` for `alpha` × expected mass.
    centroids
        Kept for a cluster that holds no mass.

    Returns
    -------
    Offsets per group, (n_groups, k, d), and the intercepts as unit centroids, (k, d); both float32.
    """
    observed, expected = tables(mass, design)
    penalty = alpha * expected if lamb is None else np.full_like(expected, lamb)
    supported = observed / design.sizes[:, None] > _SUPPORT
    of_covariate = design.covariate[:, None] == design.covariate
    supported &= of_covariate @ supported.astype(np.int64) >= 2
    if design.covariate.max() == 0:
        offsets, intercept = _closed_form(observed, moments, np.maximum(penalty, 1e-12), supported)
    else:
        offsets, intercept = _solve(mass, moments, design, penalty, supported)
    centroids = np.where(mass.sum(axis=0)[:, None] > 1e-6, unit_rows(intercept), centroids)
    of_group = np.tensordot(design.membership, offsets, axes=1)
    return of_group.astype(np.float32), centroids.astype(np.float32)


def _closed_form(
    observed: np.ndarray, moments: np.ndarray, penalty: np.ndarray, supported: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One covariate: groups are levels, and eliminating the offsets leaves a weighted mean for the intercept."""
    # A level without support does not count towards the intercept. In `_solve` it does: the reference differs likewise.
    weight = np.where(supported, penalty / (observed + penalty), 0.0)
    weight[:, ~supported.any(axis=0)] = 1.0  # nothing to correct: the plain mean
    norm = np.maximum((weight * observed).sum(axis=0), 1e-12)
    intercept = np.einsum("bk,bkd->kd", weight, moments) / norm[:, None]
    offsets = (moments - observed[..., None] * intercept) / (observed + penalty)[..., None]
    return np.where(supported[..., None], offsets, 0.0), intercept


def _solve(
    mass: np.ndarray, moments: np.ndarray, design: Design, penalty: np.ndarray, supported: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Several covariates: one linear system a cluster, levels without support pinned to zero."""
    columns = np.column_stack([np.ones(len(mass)), design.membership])
    kept = np.vstack([np.ones_like(supported[:1]), supported]).T
    gram = np.einsum("ga,gk,gb->kab", columns, mass, columns, optimize=True) * kept[:, :, None] * kept[:, None, :]
    ridge = np.where(kept, np.vstack([np.full(mass.shape[1], 1e-9), penalty]).T, 1.0)
    np.einsum("kaa->ka", gram)[:] += ridge
    right = np.einsum("ga,gkd->kad", columns, moments) * kept[..., None]
    solution = np.linalg.solve(gram, right)
    return solution[:, 1:].swapaxes(0, 1), solution[:, 0]


def move_cells(points: np.ndarray, assigned: np.ndarray, offsets: np.ndarray, design: Design) -> np.ndarray:
    """Return `points` less the offsets of their group, weighted by their assignments; (n, d) float32."""
    moved = np.empty_like(points)
    for g, (a, b) in enumerate(zip(design.starts[:-1], design.starts[1:], strict=True)):
        np.subtract(points[a:b], assigned[a:b] @ offsets[g], out=moved[a:b])
    return moved
