"""Logistic regressions of every label against the rest, fitted together: one product a step serves all labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import expit

from tenfold.kernels.sparse_linear import csr_product

#: Steps that L-BFGS remembers.
MEMORY = 10
#: Share of stored entries above which a dense product is faster, and the most entries that are made dense for it.
DENSE, LARGEST_DENSE = 0.15, 2**28
#: Gradients below this need products in float64.
FINE = 1e-5
#: The slope at the end of a line search, as a share of that at its start, and trials at most.
SLOPE, TRIALS = 0.3, 12
TINY = np.finfo(float).tiny


class Scaled(NamedTuple):
    """Sparse cells whose genes are centred and scaled, without being made dense.

    Attributes
    ----------
    x
        Expression over the standard deviation of its gene, stored entries capped, CSR, shape (n_cells, n_genes).
    shift
        Mean of each gene over its standard deviation, shape (n_genes,).
    """

    x: sparse.csr_matrix
    shift: np.ndarray


def fit_one_vs_rest(
    cells: Scaled, targets: np.ndarray, C: float, tol: float, max_iter: int, start: np.ndarray | None = None
) -> np.ndarray:
    """Minimise Σ log(1 + exp(-y f)) + ‖w‖² / 2C for every column of `targets`; the offset is not penalised.

    L-BFGS on all columns at once. The decision f is linear in the weights, so the line search needs no further
    product; columns that have converged leave.

    Parameters
    ----------
    cells
        What is learnt from.
    targets
        Whether each cell has each label, shape (n_cells, n_labels), bool.
    C
        Weight of the loss against the penalty.
    tol
        Largest entry of the gradient of the objective over the number of cells.
    max_iter
        Steps at most.
    start
        Weights to begin from, as returned.

    Returns
    -------
    Weights of the scaled genes and, as last column, the offset, shape (n_labels, n_genes + 1), float64.
    """
    n_cells, n_genes = cells.x.shape
    x: Any = cells.x if tol >= FINE else cells.x.astype(np.float64)
    if x.nnz > DENSE * n_cells * n_genes and n_cells * n_genes < LARGEST_DENSE:
        x = x.toarray()
    transposed = x.T if isinstance(x, np.ndarray) else x.T.tocsr()
    weights = np.zeros((targets.shape[1], n_genes + 1)) if start is None else start.astype(np.float64)
    ridge = np.append(np.full(n_genes, 1 / (C * n_cells)), 0.0)
    decisions = _decisions(x, cells.shift, weights)
    active = np.arange(len(weights))
    wanted = targets.astype(np.float64)
    memory = _Memory()
    step = slopes = np.zeros((0, 0))
    for _ in range(max_iter):
        residual = (expit(decisions) - wanted) / n_cells
        gradient = _gradient(transposed, cells.shift, residual) + ridge * weights[active]
        if len(step):
            memory.add(step, gradient - slopes)
        left = np.abs(gradient).max(axis=1) > tol
        if not left.any():
            break
        active, gradient, decisions, wanted = active[left], gradient[left], decisions[:, left], wanted[:, left]
        memory.keep(left)
        direction = -memory.apply(gradient)
        change = _decisions(x, cells.shift, direction)
        length = _line_search(decisions, change, wanted, weights[active], direction, ridge)
        step, slopes = length[:, None] * direction, gradient
        weights[active] += step
        decisions += length * change
    return weights


def _decisions(x: Any, shift: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the decision of each cell for each row of weights, shape (n_cells, n_rows)."""
    return _times(x, weights[:, :-1].T) - weights[:, :-1] @ shift + weights[:, -1]


def _gradient(transposed: Any, shift: np.ndarray, residual: np.ndarray) -> np.ndarray:
    total = residual.sum(axis=0)
    return np.column_stack([(_times(transposed, residual) - np.outer(shift, total)).T, total])


def _times(x: Any, matrix: np.ndarray) -> np.ndarray:
    """Return a product with the precision of `x`, as float64."""
    same = matrix.astype(x.dtype)
    found = x @ same if isinstance(x, np.ndarray) else csr_product(x, same)
    return found.astype(np.float64, copy=False)


def _line_search(
    decisions: np.ndarray, change: np.ndarray, wanted: np.ndarray, weights: np.ndarray, direction: np.ndarray,
    ridge: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return how far to go along each direction: Newton's steps on the slope, kept inside what brackets its zero."""
    n_cells = len(decisions)
    linear = np.einsum("kg,kg,g->k", weights, direction, ridge)
    square = np.einsum("kg,kg,g->k", direction, direction, ridge)
    length, low, high = np.zeros(len(weights)), np.zeros(len(weights)), np.full(len(weights), np.inf)
    first = None
    for _ in range(TRIALS):
        share = expit(decisions + length * change)
        slope = ((share - wanted) * change).sum(axis=0) / n_cells + linear + length * square
        curvature = (share * (1 - share) * change**2).sum(axis=0) / n_cells + square
        if first is None:
            first = np.abs(slope)
        open_ = np.abs(slope) > SLOPE * first
        if not open_.any():
            break
        low, high = np.where(slope < 0, length, low), np.where(slope < 0, high, length)
        newton = length - slope / np.maximum(curvature, TINY)
        outside = (newton <= low) | (newton >= high)
        middle = np.where(np.isfinite(high), (low + high) / 2, 2 * np.maximum(low, 1e-3))
        length = np.where(open_, np.where(outside, middle, newton), length)
    return length


class _Memory:
    """What L-BFGS remembers of earlier steps, of many problems of the same size."""

    def __init__(self) -> None:
        self.steps: list[np.ndarray] = []
        self.changes: list[np.ndarray] = []

    def add(self, step: np.ndarray, change: np.ndarray) -> None:
        self.steps, self.changes = [*self.steps, step][-MEMORY:], [*self.changes, change][-MEMORY:]

    def keep(self, rows: np.ndarray) -> None:
        if not rows.all():
            self.steps, self.changes = [s[rows] for s in self.steps], [c[rows] for c in self.changes]

    def apply(self, gradient: np.ndarray) -> np.ndarray:
        """Return the inverse Hessian, as far as it is known, times the gradient."""
        out, shares = gradient.copy(), []
        # A pair that rounding has left without curvature says nothing.
        curvatures = [_dot(step, change) for step, change in zip(self.steps, self.changes, strict=True)]
        weights = [np.where(found > 0, 1 / np.maximum(found, TINY), 0.0) for found in curvatures]
        for step, change, weight in zip(self.steps[::-1], self.changes[::-1], weights[::-1], strict=True):
            shares.append(weight * _dot(step, out))
            out -= shares[-1][:, None] * change
        if self.steps:
            known = curvatures[-1] > 0
            square = np.maximum(_dot(self.changes[-1], self.changes[-1]), TINY)
            out *= np.where(known, curvatures[-1] / square, 1.0)[:, None]
        for step, change, weight, share in zip(self.steps, self.changes, weights, shares[::-1], strict=True):
            out += (share - weight * _dot(change, out))[:, None] * step
        return out


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("kg,kg->k", first, second)
