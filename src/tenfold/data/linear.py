"""A linear model of every gene on batch and covariates, from sums over the non-zero entries of a sparse matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse


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
    """Return the sums from which the model follows; cost: one pass over the non-zero entries per column [1, c].

    Parameters
    ----------
    matrix
        Cells × genes, CSR.
    batch
        Codes, (n_cells,).
    covariates
        (n_cells, q).
    """
    n_cells, n_batches = len(batch), int(batch.max()) + 1
    rows = np.column_stack([np.ones(n_cells), covariates])
    width = rows.shape[1]
    columns = batch[:, None] * width + np.arange(width)
    pointers = np.arange(0, n_cells * width + 1, width)
    blocks = sparse.csr_matrix((rows.ravel(), columns.ravel(), pointers), shape=(n_cells, n_batches * width))
    member = sparse.csr_matrix((np.ones(n_cells), (np.arange(n_cells), batch)), shape=(n_cells, n_batches))
    values = matrix.astype(np.float64)
    products = (blocks.T @ values).toarray().reshape(n_batches, width, -1)
    values.data **= 2
    squares = (member.T @ values).toarray()
    outer = np.stack([rows[batch == b].T @ rows[batch == b] for b in range(n_batches)])
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
