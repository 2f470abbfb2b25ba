"""Lines through the cells in which a gene is as high (or as low) as it gets: closed forms, all genes at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tenfold.kernels.threads import in_threads

#: Genes, and numbers (cells × genes), that a thread handles at once, which bounds the memory of float64 copies.
BLOCK, LARGEST = 256, 2_000_000


def by_blocks(work: Callable[..., tuple[np.ndarray, ...]], *matrices: np.ndarray) -> tuple[np.ndarray, ...]:
    """Apply `work` to blocks of genes in float64, dealt to threads, and join what it returns for each gene."""
    n_cells, n_genes = matrices[0].shape
    size = min(BLOCK, max(1, LARGEST // n_cells))
    blocks = [slice(start, start + size) for start in range(0, n_genes, size)]
    parts: list[tuple[np.ndarray, ...]] = [()] * len(blocks)

    def several(first: int, last: int) -> None:
        for k in range(first, last):
            parts[k] = work(*(matrix[:, blocks[k]].astype(np.float64) for matrix in matrices))

    in_threads(several, len(blocks))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def highest_cells(s: np.ndarray, u: np.ndarray, percentile: float = 95.0) -> np.ndarray:
    """Return the cells above a percentile of s / max + u / max, gene by gene, shape (n_cells, n_genes), bool."""
    both = relative(s, u)
    return both >= np.percentile(both, percentile, axis=0)


def relative(s: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return s / max(s) + u / max(u)."""
    s, u = s.astype(np.float32), u.astype(np.float32)  # as scVelo does: ties decide
    return s / np.maximum(s.max(axis=0), 1e-3) + u / np.maximum(u.max(axis=0), 1e-3)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def r_squared(residual: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the share of the variance of u that a line explains, gene by gene; below 0 if worse than the mean."""
    total = ((u - u.mean(axis=0)) ** 2).sum(axis=0)
    return np.where(total > 0, 1 - ratio((residual**2).sum(axis=0), total), 0.0)


def steady_state(s: np.ndarray, u: np.ndarray, percentile: float = 95.0) -> tuple[np.ndarray, ...]:
    """Fit u = gamma s through the origin to the highest cells of each gene.

    Parameters
    ----------
    s, u
        Spliced and unspliced averages, shape (n_cells, n_genes), float64.
    percentile
        Of s / max + u / max, from which on cells count as highest.

    Returns
    -------
    Gamma, R² over all cells, and standard deviation of the residual, each of shape (n_genes,).
    """
    top = highest_cells(s, u, percentile)
    gamma = ratio((top * s * u).sum(axis=0), (top * s * s).sum(axis=0))
    residual = u - gamma * s
    return gamma, r_squared(residual, u), residual.std(axis=0)


def distance(s: np.ndarray, u: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Return u - gamma s, (n_cells, n_genes), float32, in a single array of that size."""
    out = s * -gamma.astype(np.float32)
    out += u
    return out


def all_cells(s: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return R² of u = gamma s with gamma fitted to all cells, shape (n_genes,)."""
    gamma = ratio((s * u).sum(axis=0), (s * s).sum(axis=0))
    return (r_squared(u - gamma * s, u),)


def generalised(
    s: np.ndarray, u: np.ndarray, variance: np.ndarray, covariance: np.ndarray, percentile: float = 95.0
) -> tuple[np.ndarray, ...]:
    """Fit first and second moments by one gamma: generalised least squares through the origin.

    Parameters
    ----------
    s, u
        As for `steady_state`.
    variance, covariance
        2 <s²> - <s> and 2 <s u> + <u>, whose ratio is gamma at steady state too, shape (n_cells, n_genes).
    percentile
        As for `steady_state`; cells in which s alone is that high are taken too.

    Returns
    -------
    Gamma, shape (n_genes,).
    """
    first = steady_state(s, u, percentile)[2]
    slope = ratio((variance * covariance).sum(axis=0), (variance * variance).sum(axis=0))
    second = (covariance - slope * variance).std(axis=0)
    top = highest_cells(s, u, percentile) | (s >= np.percentile(s, percentile, axis=0))
    a, b = ratio(np.ones_like(first), first**2), ratio(np.ones_like(second), second**2)
    above = a * (top * s * u).sum(axis=0) + b * (variance * covariance).sum(axis=0)
    below = a * (top * s * s).sum(axis=0) + b * (variance * variance).sum(axis=0)
    return (ratio(above, below),)


def line_with_offset(s: np.ndarray, u: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit u = gamma s + q by weighted least squares with gamma in [0, 20] and q in [0, 2 × mean u], in closed form.

    The optimum of a convex quadratic in a box lies inside it or on an edge: all five candidates are compared.

    Parameters
    ----------
    s, u
        Shape (n_cells, n_genes), float64.
    weights
        Same shape.

    Returns
    -------
    gamma and q, each of shape (n_genes,).
    """
    n = np.maximum(weights.sum(axis=0), 1e-300)
    ms, mu = (weights * s).sum(axis=0) / n, (weights * u).sum(axis=0) / n
    ss, su = (weights * s * s).sum(axis=0) / n, (weights * s * u).sum(axis=0) / n
    top_gamma, top_q = np.full_like(ms, 20.0), 2 * mu
    inner = ratio(su - ms * mu, ss - ms**2)
    candidates = [(inner, mu - inner * ms)]
    for q in (np.zeros_like(ms), top_q):
        candidates.append((np.clip(ratio(su - q * ms, ss), 0, top_gamma), q))
    for gamma in (np.zeros_like(ms), top_gamma):
        candidates.append((gamma, np.clip(mu - gamma * ms, 0, top_q)))
    gammas, offsets = (np.stack(part) for part in zip(*candidates, strict=True))
    inside = (gammas >= 0) & (gammas <= top_gamma) & (offsets >= 0) & (offsets <= top_q)
    loss = gammas**2 * ss - 2 * gammas * su + 2 * gammas * offsets * ms - 2 * offsets * mu + offsets**2
    best = np.where(inside, loss, np.inf).argmin(axis=0)
    pick = np.arange(len(ms))
    return gammas[best, pick], offsets[best, pick]
