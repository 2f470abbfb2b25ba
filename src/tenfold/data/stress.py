"""What makes an annotator's work harder, by a chosen amount: fewer counts, fewer genes, wrong labels."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.errors import DataError, ParameterError

__all__ = ["downsample_depth", "gene_dropout", "label_noise"]


def downsample_depth(counts: sparse.csr_matrix, share: float, seed: int = 0) -> sparse.csr_matrix:
    """Keep each molecule with probability `share` (binomial thinning); a cell keeps at least one.

    Parameters
    ----------
    counts
        Raw counts, CSR, shape (n_cells, n_genes); not changed.
    share
        In (0, 1].
    seed
        Of the thinning.

    Returns
    -------
    CSR, float32.
    """
    if not 0 < share <= 1:
        raise ParameterError(f"share={share} is not valid: above 0, at most 1.")
    counts = sparse.csr_matrix(counts)
    kept = np.random.default_rng(seed).binomial(counts.data.astype(np.int64), share).astype(np.float32)
    thin = sparse.csr_matrix((kept, counts.indices.copy(), counts.indptr.copy()), counts.shape)
    for row in np.flatnonzero(np.asarray(thin.sum(axis=1)).ravel() == 0):
        first, last = counts.indptr[row], counts.indptr[row + 1]
        if last > first:
            thin.data[first + int(counts.data[first:last].argmax())] = 1
    thin.eliminate_zeros()
    return thin


def gene_dropout(n_genes: int, share: float, seed: int = 0) -> np.ndarray:
    """Return the sorted columns of the genes that a panel without a `share` of them has, shape (n_kept,)."""
    if not 0 < share < 1:
        raise ParameterError(f"share={share} is not valid: between 0 and 1.")
    n_kept = max(1, round(n_genes * (1 - share)))
    return np.sort(np.random.default_rng(seed).choice(n_genes, n_kept, replace=False))


def label_noise(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Give a `share` of cells, at random, the label of another cell with a different one; the rest stay as they are.

    Parameters
    ----------
    labels
        Label of each cell, shape (n_cells,); not changed.
    share
        In [0, 1]; 1 changes all.
    seed
        Of the choice.
    """
    if not 0 <= share <= 1:
        raise ParameterError(f"share={share} is not valid: between 0 and 1.")
    rng = np.random.default_rng(seed)
    noisy = np.asarray(labels).copy()
    if len(np.unique(noisy)) < 2:
        raise DataError("All cells have the same label; there is no other to give them.")
    for cell in rng.choice(len(noisy), round(share * len(noisy)), replace=False):
        others = np.flatnonzero(np.asarray(labels) != labels[cell])
        noisy[cell] = labels[rng.choice(others)]
    return noisy
