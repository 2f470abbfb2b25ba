"""Genes that vary more than their mean explains, of counts in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import sparse

from tenfold.data.streamed import StreamedCounts
from tenfold.kernels.counting import add_moments
from tenfold.types import Codes

# Below this many cells a batch's own gene variances are mostly noise, and the loess fit is often singular.
FEWEST_CELLS_TO_RANK = 20


def highly_variable_genes(
    counts: sparse.csr_matrix | StreamedCounts, n_top_genes: int, batch: Codes | None = None
) -> np.ndarray:
    """Choose the genes whose counts vary more than their mean explains, batch by batch.

    In each batch the variance of clipped, standardised counts is taken, with the standard deviation expected from
    a loess fit of log variance on log mean (span 0.3, degree 2). Genes are ordered by the number of batches in
    which they are among the first `n_top_genes`, then by their median rank there: the ranking of Seurat v3, and of
    ``scanpy.pp.highly_variable_genes(flavor="seurat_v3_paper")``, to which it is equal.

    Batches of fewer than 20 cells do not take part, unless all are that small: then cells are ranked together.
    Where the loess fit is singular (few distinct means), a quadratic takes its place.

    Parameters
    ----------
    counts
        Raw counts, cells × genes; those on disk are read twice from end to end.
    n_top_genes
        How many genes to choose; all are returned if there are no more.
    batch
        Batch of each cell; ``None`` for a single one.

    Returns
    -------
    Sorted columns, shape (min(n_top_genes, n_genes),), int64.

    References
    ----------
    Stuart et al. (2019), doi 10.1016/j.cell.2019.05.031.
    """
    n_cells, n_genes = counts.shape
    if n_top_genes >= n_genes:
        return np.arange(n_genes)
    codes = np.zeros(n_cells, dtype=np.int32) if batch is None else batch.values
    sizes = np.bincount(codes)
    levels = np.flatnonzero(sizes >= FEWEST_CELLS_TO_RANK)
    group = np.full(len(sizes), -1)
    group[levels] = np.arange(len(levels))
    codes = group[codes] if len(levels) else np.zeros(n_cells, dtype=np.int64)
    spread = _standardized_variance(counts, codes, np.bincount(codes[codes >= 0]))
    ranks = np.empty(spread.shape)
    order = np.argsort(-spread, axis=1, kind="stable")
    np.put_along_axis(ranks, order, np.arange(n_genes, dtype=float)[None, :], axis=1)
    chosen = ranks < n_top_genes
    ranks[~chosen] = np.nan
    median = np.full(n_genes, np.inf)
    seen = chosen.any(axis=0)
    median[seen] = np.nanmedian(ranks[:, seen], axis=0)
    best = np.lexsort((median, -chosen.sum(axis=0)))[:n_top_genes]
    return np.sort(best).astype(np.int64)


def gene_moments(
    counts: sparse.csr_matrix | StreamedCounts, codes: np.ndarray, highest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum each gene's counts, and their squares, over groups of cells.

    Parameters
    ----------
    counts
        Cells × genes; those on disk are read once from end to end.
    codes
        Group of each cell, -1 for none, shape (n_cells,).
    highest
        Counts above this count as this, shape (n_groups, n_genes).

    Returns
    -------
    Two arrays of shape (n_groups, n_genes), float64.
    """
    total, squares = np.zeros(highest.shape), np.zeros(highest.shape)
    on_disk = isinstance(counts, StreamedCounts)
    chunks: Iterable[tuple[slice, Any]] = counts.chunks("variable genes") if on_disk else [(slice(None), counts)]
    for rows, chunk in chunks:
        add_moments(chunk.indptr, chunk.indices, chunk.data, codes[rows], highest, total, squares)
    return total, squares


def _standardized_variance(
    counts: sparse.csr_matrix | StreamedCounts, codes: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Variance of each gene's standardised, clipped counts in each group; zero for constant genes."""
    n = sizes[:, None].astype(np.float64)
    total, squares = gene_moments(counts, codes, np.full((len(sizes), counts.shape[1]), np.inf))
    mean = total / n
    variance = (squares / n - mean**2) * n / np.maximum(n - 1, 1)
    varying = variance > 0
    deviation = np.ones(mean.shape)
    for own, mask, average, spread in zip(deviation, varying, mean, variance, strict=True):
        if mask.any():
            own[mask] = np.sqrt(10 ** _trend(np.log10(average[mask]), np.log10(spread[mask])))
    total, squares = gene_moments(counts, codes, deviation * np.sqrt(n) + mean)
    centred = n * mean**2 + squares - 2 * total * mean
    return np.where(varying, centred / (np.maximum(n - 1, 1) * deviation**2), 0.0)


def _trend(log_mean: np.ndarray, log_variance: np.ndarray) -> np.ndarray:
    """Fit log variance on log mean by loess, or by a polynomial where loess breaks down."""
    from skmisc.loess import loess

    try:
        model = loess(log_mean, log_variance, span=0.3, degree=2)
        model.fit()
        fitted = np.asarray(model.outputs.fitted_values)
        if np.isfinite(fitted).all() and np.abs(fitted - log_variance).max() < 10:
            return fitted
    except ValueError:  # "svddc failed", "Extrapolation not allowed with blending": too few distinct means
        pass
    degree = min(2, len(np.unique(log_mean)) - 1)
    centre = log_mean.mean()
    design = np.vander(log_mean - centre, degree + 1)
    return design @ np.linalg.lstsq(design, log_variance, rcond=None)[0]
