"""Where a model with one time for all genes starts: two-phase fits of genes, a time of cells, and modes of genes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import beta as beta_distribution
from scipy.stats import kstest, rankdata

from tenfold.data.kinetics import unspliced_after
from tenfold.kernels.two_phase_start import bimodality

#: Percentile of both kinds of RNA from which on cells are at the steady state, and that of high cells later on.
STEADY, HIGH = 98.0, 95.0
#: Groups of genes that move together, and means of the share of induced ones by what a group is taken for.
GROUPS, INDUCED, REPRESSED = 3, 0.6, 0.4
#: Standard deviation of that share among the genes of a group, and least probability that a group has no mode.
MODE_SD, LEAST_P = 0.1, 0.05
_EPS = 1e-6


class Fitted(NamedTuple):
    """What two phases say of each gene: RNA at the switch and its time, (g,), and times of cells, (n_cells, g)."""

    u0: np.ndarray
    s0: np.ndarray
    switch: np.ndarray
    times: np.ndarray
    sd: np.ndarray


def two_phase_fits(u: np.ndarray, s: np.ndarray) -> Fitted:
    """Fit induction and repression to each gene, from its highest cells, in closed form.

    Parameters
    ----------
    u, s
        Unspliced and spliced averages, shape (n_cells, g), float64, on one scale, each gene with cells that have both.

    Returns
    -------
    Numbers of genes, times in units of each gene's splicing, 0 where either RNA is missing, and standard deviations of
    u and of s around the fit, (2, g).
    """
    one = [_fit(u[:, j], s[:, j]) for j in range(u.shape[1])]
    u0, s0, switch, times, sd = (np.stack(part, axis=-1) for part in zip(*one, strict=True))
    return Fitted(u0, s0, switch, times, sd)


def _fit(u: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, ...]:
    both = (u > 0) & (s > 0)
    own_u, own_s = u[both], s[both]
    top_s = own_s >= np.percentile(own_s, STEADY)
    top = top_s & (own_u >= np.percentile(own_u, STEADY))
    top = top if top.any() else top_s
    gamma = (own_u[top] * own_s[top]).sum() / (own_s[top] ** 2).sum() + _EPS
    gamma = gamma * 1.2 if gamma < 0.05 else gamma / 1.2 if gamma > 1.5 else gamma
    u0, s0 = own_u[top].mean(), own_s[top].mean()
    alpha, beta = u0, 1.0
    tests = bimodality(own_u), bimodality(own_s)
    if max(p for p, _ in tests) < 1e-3:
        u0 = (u0 + tests[0][1]) / 2
        alpha = gamma * s0
        beta = alpha / u0
    switch = _time_of(u0, s0, 0.0, 0.0, alpha, beta, gamma)
    on = np.minimum(_time_of(u, s, 0.0, 0.0, alpha, beta, gamma), switch)
    off = _time_of(u, s, u0, s0, 0.0, beta, gamma)
    rising = np.stack([u, s]) - _after(on, 0.0, 0.0, alpha, beta, gamma)
    falling = np.stack([u, s]) - _after(off, u0, s0, 0.0, beta, gamma)
    first = (rising**2).sum(axis=0) <= (falling**2).sum(axis=0)
    t = np.where(first, on, switch + off) * both
    return np.asarray(u0), np.asarray(s0), np.asarray(switch), t, np.where(first, rising, falling).std(axis=1)


def _time_of(
    u: np.ndarray | float, s: np.ndarray | float, u0: float, s0: float, alpha: float, beta: float, gamma: float
) -> np.ndarray:
    """Return the time since (u0, s0), of u, or where degradation is slower than splicing, of a mixture of both."""
    part, rate = (0.0, beta) if gamma >= beta else (beta / (gamma - beta), gamma)
    if gamma >= beta:
        value, first, last = u, u0, alpha / beta
    else:
        value, first, last = s - part * u, s0 - part * u0, alpha / gamma - part * alpha / beta
    return -np.log(np.clip((value - last) / (first - last), _EPS, 1 - _EPS)) / rate


def _after(t: np.ndarray, u0: float, s0: float, alpha: float, beta: float, gamma: float) -> np.ndarray:
    """Return unspliced and spliced RNA a time `t` after (u0, s0), (2, n); also for times at which all has decayed."""
    left, gap = np.exp(-gamma * t), abs(gamma - beta)
    lag = np.expm1(-gap * t) / gap if gap > _EPS else -t
    s = s0 * left + alpha / gamma * (1 - left) + (alpha - beta * u0) * lag * np.exp(-min(beta, gamma) * t)
    return np.stack([unspliced_after(t, u0, alpha, beta), s])


def time_of_cells(times: np.ndarray) -> np.ndarray:
    """Return the median over genes of the ranks of their times, shape (n_cells,), from 0 to 1."""
    return np.median(rankdata(times, axis=0), axis=1) / len(times)


def course_of_genes(u: np.ndarray, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return rates of transcription and degradation, splicing being 1, that lead to the high cells by their times.

    Parameters
    ----------
    u, s
        As in `two_phase_fits`.
    t
        Times of cells, shape (n_cells,).

    Returns
    -------
    Shape (2, g).
    """
    high_s = np.percentile(s, HIGH, axis=0)
    high = (u >= np.percentile(u, HIGH, axis=0)) | (s >= high_s)
    level, when = (np.array([np.median(part[own]) for part, own in zip(of, high.T, strict=True)]) for of in
                   (u.T, np.broadcast_to(t, (len(high.T), len(t)))))  # fmt: skip
    alpha = level / -np.expm1(-np.maximum(when, _EPS))
    return np.stack([alpha, alpha / np.maximum(high_s, _EPS)])


def share_before_switch(fits: Fitted, t_max: float) -> np.ndarray:
    """Return the share of each gene's moving cells that come before its switch, shape (g,)."""
    moving = (fits.times > 0.01 * t_max) & (np.abs(fits.times - fits.switch) > 0.01 * t_max)
    return (moving & (fits.times < fits.switch)).sum(axis=0) / np.maximum(moving.sum(axis=0), 1)


def gene_modes(u: np.ndarray, s: np.ndarray, share: np.ndarray, seed: int) -> np.ndarray:
    """Return the probability that each gene is induced rather than repressed, drawn by groups of genes.

    Genes are grouped by their correlations. A group is taken for induced unless the share of cells before the switch is
    too low for genes without a mode, by a Kolmogorov-Smirnov test; for repressed if it is; genes of a group in which it
    is both too low and too high are divided by it. Not both may be missing among all groups.

    Parameters
    ----------
    u, s
        As in `two_phase_fits`.
    share
        From `share_before_switch`.
    seed
        Of groups and draws.

    Returns
    -------
    Shape (g,), between 0 and 1.
    """
    from sklearn.cluster import KMeans, SpectralClustering

    rng, neutral = np.random.default_rng(seed), _beta(0.5)
    groups = np.zeros(len(share), int)
    if len(share) > 2 * GROUPS:
        alike = 1 + np.corrcoef(s.T) / 2 + np.corrcoef(u.T) / 2
        groups = SpectralClustering(
            GROUPS, affinity="precomputed", assign_labels="discretize", random_state=seed
        ).fit_predict(np.maximum(np.nan_to_num(alike), 0))
    middle, p_values = np.full(len(share), np.nan), {}
    for group in np.unique(groups):
        own = groups == group
        too_low, too_high = (kstest(share[own], neutral.cdf, alternative=side).pvalue for side in ("greater", "less"))
        p_values[group] = too_low, too_high
        if too_low >= LEAST_P:
            middle[own] = INDUCED
        elif too_high >= LEAST_P:
            middle[own] = REPRESSED
        else:
            values = share[own]
            part = KMeans(2, n_init=10, random_state=seed).fit_predict(values[:, None])
            middle[own] = np.where(part == 0, values[part == 0].mean(), values[part == 1].mean())
    for all_are, other, which in ((INDUCED, REPRESSED, 1), (REPRESSED, INDUCED, 0)):
        if (middle == all_are).all() and len(p_values) > 1:
            middle[groups == max(p_values, key=lambda group, which=which: p_values[group][which])] = other
            break
    return _beta(np.clip(middle, 0.05, 0.95)).rvs(random_state=rng)


def _beta(mean: np.ndarray | float) -> beta_distribution:
    """Return the Beta distribution with a mean and `MODE_SD`."""
    size = np.asarray(mean) * (1 - np.asarray(mean)) / MODE_SD**2 - 1
    return beta_distribution(mean * size, (1 - mean) * size)


def earlier_cells(t: np.ndarray, state: np.ndarray, n_neighbors: int, window: tuple[float, float]) -> np.ndarray:
    """Return for each cell the cells most like it among those that come somewhat before it.

    Parameters
    ----------
    t
        Times, shape (n_cells,).
    state
        What cells are alike in, (n_cells, d).
    n_neighbors
        Cells to find. Where no more than these come before, half of them.
    window
        How much earlier, at least and at most, as shares of all cells in the order of their times. The window grows to
        all earlier cells where too few are in it.

    Returns
    -------
    Shape (n_cells, n_neighbors), rows padded with -1; nothing else for the first cell.
    """
    n, order = len(t), np.argsort(t, kind="stable")
    found, z = np.full((n, n_neighbors), -1), state[order]
    for rank in range(n):
        low, high = (max(0, rank - round(share * n)) for share in window[::-1])
        if high - low < n_neighbors:
            low, high = max(0, min(low, rank - n_neighbors)), rank
        number = n_neighbors if high - low > n_neighbors else max((high - low) // 2, min(high - low, 1))
        if number:
            apart = ((z[low:high] - z[rank]) ** 2).sum(axis=1)
            nearest = np.argpartition(apart, number - 1)[:number]
            found[order[rank], :number] = order[low + nearest]
    return found


def averaged(values: np.ndarray, cells: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """Return the mean of values over the cells that `earlier_cells` found, or what is said where it found none.

    Parameters
    ----------
    values
        Shape (n_cells, d).
    cells
        Shape (n_cells, k), rows padded with -1.
    otherwise
        Shape (d,) or a number.

    Returns
    -------
    Shape (n_cells, d), float32.
    """
    out = np.empty(values.shape, np.float32)
    out[:] = otherwise
    for first in range(0, len(cells), 256):  # at a time, which bounds memory
        part = cells[first : first + 256]
        known = (part >= 0)[:, :, None]
        number = known.sum(axis=1)
        mean = (values[part] * known).sum(axis=1) / np.maximum(number, 1)
        out[first : first + 256] = np.where(number > 0, mean, out[first : first + 256])
    return out
