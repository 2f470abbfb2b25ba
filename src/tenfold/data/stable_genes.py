"""Genes that are expressed alike in all cells, chosen from the data themselves: the scSEG index."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse, stats

from tenfold.kernels.gamma_normal import gamma_normal

_MOST_ZEROS = 0.8
_MOST_STEPS = 1000  # the reference's 10,000 change the order of genes less than another seed does


class StableGenes(NamedTuple):
    """The index of every gene and what it is made of; NaN where a gene has over 80 % zeros or too few values.

    Attributes
    ----------
    score
        The index, from 0 to 1; the highest are the most stable, (n_genes,).
    rho, sigma, mu
        Weight, standard deviation and mean of the normal part of the non-zero values, (n_genes,).
    zero
        Share of zeros, times mu scaled to 0 to 1 over genes, (n_genes,).
    """

    score: np.ndarray
    rho: np.ndarray
    sigma: np.ndarray
    mu: np.ndarray
    zero: np.ndarray


def stable_genes(
    lognorm: sparse.csr_matrix, labels: np.ndarray | None = None, most_cells: int | None = None, seed: int = 0
) -> StableGenes:
    """Score how evenly genes are expressed: the mean of ranks of four features.

    A mixture of a normal and a gamma distribution is fitted to the non-zero values of every gene. A stable gene has a
    heavy and narrow normal part, few zeros for its mean, and, where types are known, means that hardly differ between
    them (F of an analysis of variance).

    Parameters
    ----------
    lognorm
        Log-expression, cells × genes, CSR.
    labels
        Type of each cell as codes, (n_cells,); ``None`` leaves the fourth feature out.
    most_cells
        Take at most so many cells, at random.
    seed
        Of the cells, and of the random first assignment of values to the two parts.

    References
    ----------
    Lin et al. (2019), doi 10.1093/gigascience/giz106.
    """
    rng = np.random.default_rng(seed)
    if most_cells is not None and lognorm.shape[0] > most_cells:
        rows = np.sort(rng.choice(lognorm.shape[0], most_cells, replace=False))
        lognorm, labels = lognorm[rows], None if labels is None else labels[rows]
    n_cells, n_genes = lognorm.shape
    zeros = 1 - lognorm.getnnz(axis=0) / n_cells
    tested = np.flatnonzero(zeros <= _MOST_ZEROS)
    columns = sparse.csc_matrix(lognorm[:, tested])
    fits = gamma_normal(
        columns.indptr.astype(np.int64),
        columns.data,
        rng.integers(2, size=columns.nnz).astype(np.float64),
        most_steps=_MOST_STEPS,
    )
    fitted = np.isfinite(fits).all(axis=1)
    found = tested[fitted]
    rho, mu, sigma = fits[fitted, :3].T
    span = np.ptp(mu) if len(mu) else 0.0
    zero = zeros[found] * ((mu - mu.min()) / span if span > 0 else np.zeros(len(mu)))
    features = [rho, -sigma, -zero]
    if labels is not None and len(np.unique(labels)) > 1:
        features.append(-_f_statistic(columns[:, fitted], labels))
    score = np.mean([stats.rankdata(feature) / (len(found) + 1) for feature in features], axis=0)
    result = StableGenes(*(np.full(n_genes, np.nan) for _ in range(5)))
    for target, values in zip(result, (score, rho, sigma, mu, zero), strict=True):
        target[found] = values
    return result


def _f_statistic(matrix: sparse.csc_matrix, labels: np.ndarray) -> np.ndarray:
    """Return F of an analysis of variance of every column by type; its order is that of its logarithm."""
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    n_cells, n_types = len(codes), len(sizes)
    member = sparse.csr_matrix((np.ones(n_cells), (codes, np.arange(n_cells))), shape=(n_types, n_cells))
    sums = (member @ matrix.astype(np.float64)).toarray()
    squares = np.asarray(matrix.astype(np.float64).power(2).sum(axis=0)).ravel()
    explained = (sums**2 / sizes[:, None]).sum(axis=0)
    between = explained - sums.sum(axis=0) ** 2 / n_cells
    within = np.maximum(squares - explained, 1e-300)
    return (between / (n_types - 1)) / (within / max(n_cells - n_types, 1))
