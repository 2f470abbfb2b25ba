"""A linear model of every gene on batch and covariates, from sums over the non-zero entries of a sparse matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse

from tenfold.kernels.batch_affine import batch_sums, column_scatter, scaled_rows


class Moments(NamedTuple):
    """Sums over the cells of each batch, float64; B batches, q covariate columns, p genes."""

    sizes: np.ndarray  # (B,)
    products: np.ndarray  # (B, 1 + q, p) sums of [1, c] × y
    squares: np.ndarray  # (B, p) sums of y²
    covariates: np.ndarray  # (B, 1 + q, 1 + q) sums of [1, c]' [1, c]


class GeneModel(NamedTuple):
    """Least-squares fit of every gene; the last axis counts genes."""

    mean: np.ndarray  # (p,) average over batches, weighted by cells
    effects: np.ndarray  # (q, p) of the covariates
    variance: np.ndarray  # (p,) of the residuals
    offsets: np.ndarray  # (B, p) of the batches, in units of the residual deviation
    scales: np.ndarray  # (B, p) variance in each batch, in units of the residual variance


def batch_moments(matrix: sparse.csr_matrix, batch: np.ndarray, covariates: np.ndarray) -> Moments:
    """Return the sums from which the model follows, in one pass over the non-zero entries.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    batch
        Codes, (n_cells,).
    covariates
        (n_cells, q).
    """
    rows = np.column_stack([np.ones(len(batch)), covariates])
    products, squares = batch_sums(matrix, batch, rows)
    outer = np.stack([rows[batch == b].T @ rows[batch == b] for b in range(int(batch.max()) + 1)])
    return Moments(np.bincount(batch), products, squares, outer)


def fit_genes(sums: Moments, reference: int | None) -> GeneModel:
    """Regress every gene on batch indicators and covariates; with a `reference`, mean and variance are its own."""
    sizes, n_batches, width = sums.sizes, len(sums.sizes), sums.products.shape[1]
    gram = linalg.block_diag(np.diag(sizes), sums.covariates[:, 1:, 1:].sum(axis=0))
    gram[:n_batches, n_batches:] = sums.covariates[:, 0, 1:]
    gram[n_batches:, :n_batches] = sums.covariates[:, 0, 1:].T
    right = np.vstack([sums.products[:, 0], sums.products[:, 1:].sum(axis=0)])
    solution = np.linalg.solve(gram, right)
    batch_means, effects = solution[:n_batches], solution[n_batches:]
    # Sums of squares about the means and the covariates, batch by batch.
    centred = sums.squares - sums.products[:, 0] ** 2 / sizes[:, None]
    if width > 1:
        mean_c = sums.covariates[:, 0, 1:] / sizes[:, None]
        with_y = sums.products[:, 1:] - mean_c[:, :, None] * sums.products[:, :1]
        with_c = sums.covariates[:, 1:, 1:] - sizes[:, None, None] * mean_c[:, :, None] * mean_c[:, None, :]
        centred += np.einsum("bij,ip,jp->bp", with_c, effects, effects) - 2 * np.einsum("bip,ip->bp", with_y, effects)
    centred = np.maximum(centred, 0)
    counted = np.arange(n_batches) if reference is None else np.array([reference])
    variance = centred[counted].sum(axis=0) / sizes[counted].sum()
    mean = sizes[counted] @ batch_means[counted] / sizes[counted].sum()
    unit = np.maximum(variance, 1e-300)
    scales = centred / np.maximum(sizes - 1, 1)[:, None] / unit
    return GeneModel(mean, effects, variance, (batch_means - mean) / np.sqrt(unit), scales)


def ridge_batches(
    matrix: sparse.csr_matrix, batch: np.ndarray, kept: list[np.ndarray], strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Regress standardised genes on indicators of batches and of what is to be kept, and subtract the batches' part.

    All levels have an indicator and there is no intercept: the penalty tells them apart.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    batch
        Codes, (n_cells,).
    kept
        Codes of the covariates whose effects stay, (n_cells,) each.
    strength
        Of the penalty, a number of cells.

    Returns
    -------
    Slope and shift by batch, (n_batches, n_genes), float64: slope × y + shift is what is left of standardised genes.
    """
    n_cells = len(batch)
    sizes = [int(codes.max()) + 1 for codes in (batch, *kept)]
    columns = np.stack([batch, *kept], axis=1) + np.cumsum([0, *sizes[:-1]])
    pointers = np.arange(0, columns.size + 1, columns.shape[1])
    design = sparse.csr_matrix((np.ones(columns.size), columns.ravel(), pointers), shape=(n_cells, sum(sizes)))
    values = matrix.astype(np.float64)
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.power(2).sum(axis=0)).ravel() - n_cells * mean**2
    deviation = np.sqrt(np.maximum(variance, 0) / max(n_cells - 1, 1))
    unit = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
    right = ((design.T @ values).toarray() - np.outer(np.asarray(design.sum(axis=0)).ravel(), mean)) * unit
    gram = (design.T @ design).toarray() + strength * np.eye(sum(sizes))
    effects = linalg.solve(gram, right, assume_a="pos")[: sizes[0]]
    return np.tile(unit, (sizes[0], 1)), -mean * unit - effects


def affine_components(
    matrix: sparse.csr_matrix, batch: np.ndarray, covariates: np.ndarray, slope: np.ndarray, shift: np.ndarray,
    n_components: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Principal components of slope × y + [1, c] × shift, each batch by its own; never dense but in small blocks.

    The scatter matrix is that of the scaled sparse rows, plus terms of the sums of each batch.

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    batch
        Codes, (n_cells,).
    covariates
        (n_cells, q).
    slope
        (n_batches, n_genes).
    shift
        (n_batches, 1 + q, n_genes).
    n_components
        Lowered to what cells and genes allow.

    Returns
    -------
    Coordinates (n_cells, d), and loadings (n_genes, d) whose largest entry is positive; float32.
    """
    n_cells, n_genes = matrix.shape
    scaled = scaled_rows(matrix, batch, slope)
    sums, (centre, scatter) = batch_moments(scaled, batch, covariates), column_scatter(scaled)
    moved = np.einsum("bw,bwp->p", sums.covariates[:, 0], shift) / n_cells
    for products, added, outer in zip(sums.products, shift, sums.covariates, strict=True):
        added = added.copy()
        added[0] -= moved  # both parts are centred, so that nothing large cancels
        cross = (products - np.outer(outer[:, 0], centre)).T @ added
        scatter += cross + cross.T + added.T @ outer @ added
    mean = centre + moved
    last, n_components = n_genes - 1, min(n_components, n_cells - 1, n_genes)
    _, vectors = linalg.eigh(scatter, subset_by_index=(last - n_components + 1, last), overwrite_a=True)
    vectors = vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(n_components)]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    rows = np.column_stack([np.ones(n_cells), covariates])
    added = np.einsum("nw,nwd->nd", rows, (shift @ vectors)[batch])
    return (scaled @ vectors + added - mean @ vectors).astype(np.float32), vectors.astype(np.float32)
