"""Unwanted variation among replicates, in the closed form of RUV-III, and components of what is left without it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse

BLOCK = 2048
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
    weights = np.zeros((alpha.shape[1], len(alpha)))
    weights[controls] = np.linalg.pinv(alpha[:, controls].astype(np.float64))
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
