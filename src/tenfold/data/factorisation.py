"""Non-negative factors that several data sets share, each with an addition of its own; and their alignment."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from tenfold.kernels.knn import knn
from tenfold.kernels.nnls import nnls_rows


class Factorisation(NamedTuple):
    """``E_b ≈ H_b (W + V_b)``, all non-negative.

    Attributes
    ----------
    cells
        H of each data set, (n_b, k), float64.
    shared
        W, (k, n_genes).
    own
        V of each data set, (n_datasets, k, n_genes).
    objective
        Before the first step and after each.
    """

    cells: list[np.ndarray]
    shared: np.ndarray
    own: np.ndarray
    objective: np.ndarray


def random_start(sizes: list[int], n_factors: int, n_genes: int, seed: int) -> Factorisation:
    """Return factors whose entries are uniform from 0 to 2."""
    rng = np.random.default_rng(seed)
    shared, *own = rng.uniform(0, 2, (1 + len(sizes), n_factors, n_genes))
    return Factorisation([rng.uniform(0, 2, (n, n_factors)) for n in sizes], shared, np.stack(own), np.zeros(0))


def integrative_nmf(
    matrices: list[sparse.csr_matrix], start: Factorisation, penalty: float, most_steps: int, tolerance: float
) -> Factorisation:
    """Minimise ``sum_b |E_b - H_b (W + V_b)|² + penalty |H_b V_b|²`` by alternating non-negative least squares.

    Each of H, V and W is solved with the others held; every quantity follows from sparse products E H and E W', and
    from Gram matrices of k × k.

    Parameters
    ----------
    matrices
        Cells × genes, one a data set, CSR, not negative.
    start
        Where to begin; see `random_start`.
    penalty
        Weight of what is not shared.
    most_steps
        At most so many rounds.
    tolerance
        End when the objective changes by less than this share.
    """
    cells, shared, own = list(start.cells), start.shared, start.own.copy()
    squares = [float(np.square(matrix.data, dtype=np.float64).sum()) for matrix in matrices]
    grams, products = _sums(matrices, cells)
    trace = [_objective(squares, grams, products, shared, own, penalty)]
    for _ in range(most_steps):
        for b, matrix in enumerate(matrices):
            both = shared + own[b]
            gram = both @ both.T + penalty * own[b] @ own[b].T
            cells[b] = nnls_rows(gram, matrix @ both.T, cells[b])
        grams, products = _sums(matrices, cells)
        for b, (gram, product) in enumerate(zip(grams, products, strict=True)):
            own[b] = nnls_rows((1 + penalty) * gram, (product - gram @ shared).T, own[b].T).T
        rest = np.sum([product - gram @ v for gram, product, v in zip(grams, products, own, strict=True)], axis=0)
        shared = nnls_rows(np.sum(grams, axis=0), rest.T, shared.T).T
        trace.append(_objective(squares, grams, products, shared, own, penalty))
        if trace[-2] - trace[-1] <= tolerance * 0.5 * (trace[-2] + trace[-1]):
            break
    return Factorisation(cells, shared, own, np.array(trace))


def _sums(matrices: list[sparse.csr_matrix], cells: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return H'H, (k, k), and H'E, (k, n_genes), of each data set."""
    products = [(matrix.T @ h).T for matrix, h in zip(matrices, cells, strict=True)]
    return [h.T @ h for h in cells], products


def _objective(
    squares: list[float], grams: list[np.ndarray], products: list[np.ndarray], shared: np.ndarray, own: np.ndarray,
    penalty: float,
) -> float:  # fmt: skip
    total = 0.0
    for square, gram, product, v in zip(squares, grams, products, own, strict=True):
        both = shared + v
        total += square - 2 * float((product * both).sum())
        total += float((gram * (both @ both.T)).sum()) + penalty * float((gram * (v @ v.T)).sum())
    return total


def factor_clusters(cells: np.ndarray, n_neighbors: int, seed: int) -> np.ndarray:
    """Assign each cell the factor that most of its neighbours are highest in, factors scaled to equal mean square.

    Parameters
    ----------
    cells
        Factors of the cells of one data set, (n, k).
    n_neighbors
        That vote, the cell itself among them; lowered to the cells that there are.
    seed
        Of an approximate search among very many cells.
    """
    scale = np.sqrt((cells**2).sum(axis=0))
    highest = (cells / np.where(scale > 0, scale, 1)).argmax(axis=1)
    near, _ = knn(cells.astype(np.float32), k=min(n_neighbors, len(cells)), seed=seed)
    votes = np.zeros(cells.shape, dtype=np.int32)
    np.add.at(votes, (np.arange(len(cells))[:, None], highest[near]), 1)
    return votes.argmax(axis=1)


def quantile_aligned(
    cells: list[np.ndarray], clusters: list[np.ndarray], reference: int, n_quantiles: int, fewest: int, most: int,
    seed: int,
) -> list[np.ndarray]:  # fmt: skip
    """Map each factor, in each cluster, onto the distribution that it has in the reference data set.

    Parameters
    ----------
    cells
        Factors of each data set, (n_b, k).
    clusters
        Of the cells of each, `factor_clusters`.
    reference
        Data set that stays as it is.
    n_quantiles
        Between which values are interpolated.
    fewest
        Clusters of fewer cells, in the data set or in the reference, are left as they are.
    most
        Quantiles are taken over at most so many random cells.
    seed
        Of these cells.

    Returns
    -------
    (n_b, k) of each data set; 0 where a factor is constant in the cluster of either data set.
    """
    rng, target = np.random.default_rng(seed), cells[reference]
    aligned, at = [values.copy() for values in cells], np.linspace(0, 1, n_quantiles + 1)
    for b, (values, own) in enumerate(zip(aligned, clusters, strict=True)):
        for c in np.unique(own) if b != reference else ():
            here, there = np.flatnonzero(own == c), np.flatnonzero(clusters[reference] == c)
            if min(len(here), len(there)) < fewest:
                continue
            sampled = values[_some(here, most, rng)]
            old, new = np.quantile(sampled, at, axis=0), np.quantile(target[_some(there, most, rng)], at, axis=0)
            old[0], old[-1] = values[here].min(axis=0), values[here].max(axis=0)
            for factor in range(values.shape[1]):
                values[here, factor] = _mapped(values[here, factor], old[:, factor], new[:, factor])
    return aligned


def _some(cells: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return cells if len(cells) <= most else rng.choice(cells, most, replace=False)


def _mapped(values: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Interpolate from old to new quantiles; equal old ones, zeros mostly, go to the mean of their new ones."""
    levels, place, counts = np.unique(old, return_inverse=True, return_counts=True)
    if len(levels) < 2 or new[0] == new[-1]:
        return np.zeros_like(values)
    return np.interp(values, levels, np.bincount(place, new) / counts)
