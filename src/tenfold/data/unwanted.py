"""Unwanted variation among replicates, in the closed form of RUV-III, and components of what is left without it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, eigsh

from tenfold.data.preprocess import BLOCK, LARGEST_DENSE

_NOTHING = 1e-10  # squares of singular values below this share of the largest are rounding


class Factors(NamedTuple):
    """Directions in which replicates differ.

    Attributes
    ----------
    effects
        Of each factor on the genes, largest first, (k, n_genes), float64: singular values × right vectors.
    spread
        Root mean square of the rows along each: singular value over the root of the degrees of freedom, (k,).
    """

    effects: np.ndarray
    spread: np.ndarray


def replicate_factors(profiles: np.ndarray, group: np.ndarray, weights: np.ndarray, most: int) -> Factors:
    """Decompose what is left of the rows when the mean of their group of replicates is subtracted.

    Parameters
    ----------
    profiles
        (n_rows, n_genes).
    group
        Group of each row, (n_rows,).
    weights
        How many observations a row stands for, (n_rows,).
    most
        At most so many factors, and no more than rows less groups.

    Returns
    -------
    `Factors`, from the eigenvectors of the rows' product with themselves; none where every row is its own group.
    """
    _, group = np.unique(group, return_inverse=True)
    totals = np.bincount(group, weights)
    n_rows, degrees = len(group), len(group) - len(totals)
    k = min(most, degrees)
    if k < 1:
        return Factors(np.zeros((0, profiles.shape[1])), np.zeros(0))
    member = sparse.csr_matrix((weights / totals[group], (group, np.arange(n_rows))), shape=(len(totals), n_rows))
    residual = (profiles - (member @ profiles)[group]) * np.sqrt(weights)[:, None]
    values, vectors = linalg.eigh(residual @ residual.T, subset_by_index=(n_rows - k, n_rows - 1), overwrite_a=True)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > _NOTHING * max(values[0], 1e-30)
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[largest, np.arange(k)] < 0, -1.0, 1.0)
    return Factors(vectors[:, keep].T @ residual, np.sqrt(values[keep] / degrees))


def control_weights(alpha: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Return what a centred cell is multiplied with to give its factors: α_c' (α_c α_c')⁻¹, (n_genes, k), float64.

    Parameters
    ----------
    alpha
        Effects of the factors, (k, n_genes).
    controls
        Columns of the control genes; the rows of all others are zero.
    """
    weights = np.zeros((alpha.shape[1], len(alpha)))
    weights[controls] = np.linalg.pinv(alpha[:, controls].astype(np.float64))
    return weights


def cell_factors(matrix: sparse.csr_matrix, mean: np.ndarray, alpha: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Regress centred cells on the effects `alpha` over the control genes: W = Y_c α_c' (α_c α_c')⁻¹.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    mean
        Of each gene, (n_genes,).
    alpha
        Effects of the factors, (k, n_genes).
    controls
        Columns of the control genes.

    Returns
    -------
    (n_cells, k), float64.
    """
    weights = control_weights(alpha, controls)
    return matrix @ weights - mean @ weights


def components_without(
    matrix: sparse.csr_matrix, factors: np.ndarray, alpha: np.ndarray, n_components: int
) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of matrix - factors × alpha, which is never made dense.

    Its scatter matrix is that of the centred cells, less terms of rank k, as the factors have mean zero.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    factors
        (n_cells, k), columns of mean zero.
    alpha
        (k, n_genes).
    n_components
        Lowered to what cells and genes allow.

    Returns
    -------
    Coordinates (n_cells, d), and loadings (n_genes, d) whose largest entry is positive; float32.
    """
    n_cells, n_genes = matrix.shape
    n_components = min(n_components, n_cells - 1, n_genes)
    mean = np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()
    scatter = np.zeros((n_genes, n_genes))
    for start in range(0, n_cells, BLOCK):
        block = matrix[start : start + BLOCK].toarray()
        block -= mean.astype(block.dtype)  # centring first: nothing large cancels
        scatter += block.T @ block
    cross = matrix.T @ factors @ alpha
    scatter -= cross + cross.T - alpha.T @ (factors.T @ factors) @ alpha
    last = n_genes - 1
    _, vectors = linalg.eigh(scatter, subset_by_index=(last - n_components + 1, last), overwrite_a=True)
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[largest, np.arange(n_components)] < 0, -1.0, 1.0)
    embedding = matrix @ vectors - mean @ vectors - factors @ (alpha @ vectors)
    return embedding.astype(np.float32), vectors.astype(np.float32)


def standard_components(
    matrix: sparse.csr_matrix, factors: np.ndarray, alpha: np.ndarray, n_components: int
) -> np.ndarray:
    """Return components of ``matrix - factors @ alpha`` in which every gene has unit variance.

    Parameters
    ----------
    matrix, factors, alpha, n_components
        As in `components_without`.

    Returns
    -------
    Shape (n_cells, n_components), float32.
    """
    mean = np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()
    squares = np.asarray(matrix.power(2).mean(axis=0, dtype=np.float64)).ravel() - mean**2
    cross = (alpha * (matrix.T @ factors).T).sum(axis=0) / len(factors)  # factors have mean zero
    own = np.einsum("ij,ip,jp->p", factors.T @ factors / len(factors), alpha, alpha)
    deviation = np.sqrt(np.maximum(squares - 2 * cross + own, 1e-12))
    return components_without(scaled_columns(matrix, 1 / deviation), factors, alpha / deviation, n_components)[0]


def lost_variance(matrix: sparse.csr_matrix, factors: np.ndarray, alpha: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return the share of each batch's own variance, summed over genes, that subtracting factors × alpha removes.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    factors
        (n_cells, k).
    alpha
        (k, n_genes).
    batch
        Codes, (n_cells,).

    Returns
    -------
    (n_batches,), float64; 0 for a batch that does not vary.
    """
    products, inner, lost = matrix @ alpha.T, alpha @ alpha.T, np.zeros(int(batch.max()) + 1)
    squares = np.asarray(matrix.power(2).sum(axis=1, dtype=np.float64)).ravel()
    for b in range(len(lost)):
        rows = np.flatnonzero(batch == b)
        mean = np.asarray(matrix[rows].mean(axis=0, dtype=np.float64)).ravel()
        before = squares[rows].sum() - len(rows) * (mean @ mean)
        own = factors[rows] - factors[rows].mean(axis=0)
        removed = 2 * (own * products[rows]).sum() - np.einsum("ij,ij->", own @ inner, own)
        lost[b] = removed / before if before > 0 else 0.0
    return lost


def pooled_deviation(matrix: sparse.csr_matrix, batch: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each gene about the means of the batches, (n_genes,); 1 where it is zero.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    batch
        Codes, (n_cells,); the divisor is cells less batches.
    """
    sizes = np.bincount(batch)
    member = sparse.csr_matrix((np.ones(len(batch)), (batch, np.arange(len(batch)))), shape=(len(sizes), len(batch)))
    sums = (member @ matrix.astype(np.float64)).toarray()
    squares = np.asarray(matrix.astype(np.float64).power(2).sum(axis=0)).ravel()
    within = squares - (sums**2 / np.maximum(sizes, 1)[:, None]).sum(axis=0)
    variance = within / max(len(batch) - len(sizes), 1)
    return np.where(
        variance > _NOTHING * np.maximum(squares / len(batch), 1e-30), np.sqrt(np.maximum(variance, 0)), 1.0
    )


def scaled_columns(matrix: sparse.csr_matrix, factor: np.ndarray) -> sparse.csr_matrix:
    """Multiply each column of a CSR matrix by its `factor`, (n_columns,); float32, the index arrays are shared."""
    values = matrix.data * factor.astype(np.float32)[matrix.indices]
    return sparse.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def cell_replicate_factors(matrix: sparse.csr_matrix, group: np.ndarray, most: int) -> Factors:
    """Decompose what is left of single cells when the mean of their group of replicates is subtracted.

    The same as `replicate_factors` of all cells, from the genes' side: nothing of cells × genes is made dense.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    group
        Group of each cell, (n_cells,).
    most
        At most so many factors, and fewer than genes, and no more than cells less groups.
    """
    _, group, sizes = np.unique(group, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(sizes[group] > 1)  # the others are their own mean
    n_genes, degrees = matrix.shape[1], len(group) - len(sizes)
    k = min(most, degrees, n_genes - 1)
    if k < 1:
        return Factors(np.zeros((0, n_genes)), np.zeros(0))
    matrix, (_, group) = matrix[rows], np.unique(group[rows], return_inverse=True)
    sizes = np.bincount(group)
    weights = sparse.csr_matrix((1 / sizes[group], (group, np.arange(len(rows)))), shape=(len(sizes), len(rows)))
    means = (weights @ matrix.astype(np.float64)).toarray()
    if n_genes <= LARGEST_DENSE:
        scatter = np.zeros((n_genes, n_genes))
        for start in range(0, len(rows), BLOCK):
            block = matrix[start : start + BLOCK].toarray()
            block -= means[group[start : start + BLOCK]].astype(block.dtype)
            scatter += block.T @ block
        values, vectors = linalg.eigh(scatter, subset_by_index=(n_genes - k, n_genes - 1), overwrite_a=True)
    else:
        values, vectors = _leading_within(matrix, means, group, k)
    order = np.argsort(values)[::-1]
    values, vectors = np.maximum(values[order], 0), vectors[:, order]
    keep = values > _NOTHING * max(values[0], 1e-30)
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[largest, np.arange(k)] < 0, -1.0, 1.0)
    return Factors((vectors * np.sqrt(values))[:, keep].T, np.sqrt(values[keep] / degrees))


def _leading_within(
    matrix: sparse.csr_matrix, means: np.ndarray, group: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenvalues and eigenvectors of the scatter within groups, by Lanczos iterations."""
    transposed = matrix.T.tocsr()

    def scatter_times(vector: np.ndarray) -> np.ndarray:
        # Within a group the image sums to zero, so the means drop out of the second product.
        return transposed @ (matrix @ vector - (means @ vector)[group])

    n_genes = matrix.shape[1]
    start = np.random.default_rng(0).normal(size=n_genes)
    return eigsh(LinearOperator((n_genes, n_genes), matvec=scatter_times, dtype=np.float64), k=k, v0=start)
