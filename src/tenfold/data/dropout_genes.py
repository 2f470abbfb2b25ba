"""Genes that are missing from more cells than their mean explains: those that some cell types have and others lack."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.data.preprocess import DEPTH
from tenfold.data.streamed import StreamedCounts, cell_sums, row_chunks


def dropout_genes(counts: sparse.csr_matrix | StreamedCounts, n_top_genes: int, normalize: bool = True) -> np.ndarray:
    """Return the genes with the largest residuals of log2(share of cells without) on mean log-expression.

    Genes that no cell or every cell has come last.

    Parameters
    ----------
    counts
        Cells × genes.
    n_top_genes
        How many genes.
    normalize
        Scale counts to 10,000 a cell before the logarithm.

    Returns
    -------
    Sorted columns, shape (min(n_top_genes, n_genes),).

    References
    ----------
    Kiselev et al. (2018), doi 10.1038/nmeth.4644; Andrews & Hemberg (2019), doi 10.1093/bioinformatics/bty1044.
    """
    n_cells, n_genes = counts.shape
    total, seen = np.zeros(n_genes), np.zeros(n_genes)
    factor = DEPTH / np.maximum(cell_sums(counts), 1) if normalize else np.ones(n_cells)
    for rows, chunk in row_chunks(counts, "choosing genes"):
        logged = np.log1p(chunk.data * np.repeat(factor[rows], np.diff(chunk.indptr)))
        total += np.bincount(chunk.indices, weights=logged, minlength=n_genes)
        seen += np.bincount(chunk.indices[chunk.data > 0], minlength=n_genes)
    residual = np.full(n_genes, -np.inf)
    usable = (seen > 0) & (seen < n_cells)
    if usable.any():
        mean, absent = total[usable] / n_cells, np.log2(100 * (1 - seen[usable] / n_cells))
        slope = np.cov(mean, absent)[0, 1] / max(np.var(mean, ddof=1), np.finfo(float).tiny) if len(mean) > 1 else 0.0
        residual[usable] = absent - absent.mean() - slope * (mean - mean.mean())
    return np.sort(np.argsort(-residual, kind="stable")[:n_top_genes])
