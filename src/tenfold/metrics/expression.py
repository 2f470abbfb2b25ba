"""What integration does to biology that labels do not name: the cell cycle, and which genes vary."""

from __future__ import annotations

import warnings
from typing import TypeAlias

import numpy as np
from scipy import sparse

from tenfold.errors import DataError
from tenfold.metrics._checks import groups, points
from tenfold.metrics.variance import pcr

N_COMPONENTS = 50
N_VARIABLE = 500
Expression: TypeAlias = np.ndarray | sparse.spmatrix


def cell_cycle(before: Expression, after: np.ndarray, scores: np.ndarray, batch: np.ndarray) -> float:
    """Cell-cycle conservation: whether the cell cycle explains as much variance after integration as before.

    Within each batch ``1 - |V_after - V_before| / V_before``, at least 0, with V the share of the variance (`pcr`, 50
    components) that the scores of the phases explain; mean over batches. From 0 to 1; high is good. Where few cells
    divide, V is small before and the ratio is noise.

    Parameters
    ----------
    before
        Log-normalised expression before integration, shape (n, genes), sparse or dense.
    after
        Embedding after integration, shape (n, d).
    scores
        Scores of the S and the G2/M phase, shape (n, 2).
    batch
        Batch of every cell, shape (n,).

    Raises
    ------
    DataError
        No batch in which the scores explain anything.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8.
    """
    return float(np.mean(list(cell_cycle_per_batch(before, after, scores, batch).values())))


def cell_cycle_per_batch(before: Expression, after: np.ndarray, scores: np.ndarray, batch: np.ndarray) -> dict:
    """Return `cell_cycle` of each batch with at least 3 cells in which the scores explain something."""
    embedding = points(after, "after")
    batches = groups(batch, "batch", len(embedding))
    scores = np.asarray(scores, dtype=np.float64)
    if before.shape[0] != len(embedding) or scores.shape != (len(embedding), 2):
        raise DataError(
            f"`before`, `after` and `scores` must be of the same cells, with two scores a cell; their shapes are "
            f"{before.shape}, {embedding.shape} and {scores.shape}."
        )
    found = {}
    for code, level in enumerate(batches.levels):
        inside = np.flatnonzero(batches.codes == code)
        if len(inside) < 3:
            continue
        at_first = _explained(_dense(before[inside]), scores[inside])
        if at_first > 1e-12:
            change = abs(_explained(embedding[inside], scores[inside]) - at_first)
            found[level] = max(0.0, 1 - change / at_first)
    if not found:
        raise DataError("The scores of the cell cycle explain nothing in any batch, so nothing can be conserved.")
    return found


def _explained(cells: np.ndarray, scores: np.ndarray) -> float:
    """Share of the variance of the leading components that the scores explain; 0 where the cells lie on one spot."""
    centred = cells.astype(np.float64) - cells.mean(axis=0)
    if not np.abs(centred).max() > 1e-9:
        return 0.0
    if min(centred.shape) > N_COMPONENTS:
        small = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
        vectors = np.linalg.eigh(small)[1][:, ::-1][:, :N_COMPONENTS]
        if len(centred) < centred.shape[1]:
            centred = vectors * np.linalg.norm(centred.T @ vectors, axis=0)
        else:
            centred = centred @ vectors
    return pcr(centred, scores, categorical=False)


def hvg_overlap(before: Expression, after: Expression, batch: np.ndarray, n_genes: int = N_VARIABLE) -> float:
    """HVG overlap: whether the most variable genes of a batch are still those after its expression was corrected.

    Within each batch the variable genes before and after (Scanpy's ``cell_ranger`` choice): their number in common over
    the smaller number; mean over batches. From about `n_genes` / genes (chance) to 1; high is good.

    Parameters
    ----------
    before
        Log-normalised expression, shape (n, genes).
    after
        Corrected log-expression of the same cells and genes, shape (n, genes).
    batch
        Batch of every cell, shape (n,).
    n_genes
        Variable genes to choose; at most half of the genes seen in the batch.

    Raises
    ------
    DataError
        Shapes differ, or in no batch can genes be chosen.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8.
    """
    return float(np.mean(list(hvg_overlap_per_batch(before, after, batch, n_genes).values())))


def hvg_overlap_per_batch(before: Expression, after: Expression, batch: np.ndarray, n_genes: int = N_VARIABLE) -> dict:
    """Return `hvg_overlap` of each batch in which genes can be chosen."""
    if before.shape != after.shape:
        raise DataError(
            f"`before` and `after` must hold the same cells and genes; they are {before.shape}, {after.shape}."
        )
    batches = groups(batch, "batch", before.shape[0])
    found = {}
    for code, level in enumerate(batches.levels):
        inside = np.flatnonzero(batches.codes == code)
        first = _variable(_dense(before[inside]), n_genes)
        second = None if first is None else _variable(_dense(after[inside]), len(first))
        if first is not None and second is not None:
            found[level] = len(first & second) / min(len(first), len(second))
    if not found:
        raise DataError("Variable genes could not be chosen in any batch: too few cells, or too few genes that differ.")
    return found


def _variable(expression: np.ndarray, n_genes: int) -> set[int] | None:
    """Return the columns of the variable genes, among those with a value above 0 in some cell."""
    import scanpy as sc
    from anndata import AnnData

    seen = np.flatnonzero((expression > 0).any(axis=0))
    wanted = min(n_genes, len(seen) // 2)
    if wanted < 1 or len(expression) < 3:
        return None
    cells = AnnData(expression[:, seen].astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            chosen = sc.pp.highly_variable_genes(cells, flavor="cell_ranger", n_top_genes=wanted, inplace=False)
        except ValueError:  # too many genes of one mean: the bins of this choice are not distinct
            return None
    picked = np.flatnonzero(chosen["highly_variable"].to_numpy())
    return set(seen[picked].tolist()) or None


def _dense(matrix: Expression) -> np.ndarray:
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)  # type: ignore[union-attr]
