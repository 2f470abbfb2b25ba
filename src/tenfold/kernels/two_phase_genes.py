"""The two-phase splicing model fitted to many genes side by side."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from scipy import sparse

from tenfold.kernels.threads import in_threads
from tenfold.kernels.two_phase import FLAGS, N_ROWS, OFF_TAU, ON_TAU, assign
from tenfold.kernels.two_phase_fit import likelihood, prepare, reference_schedule, scan_scaling, start
from tenfold.kernels.two_phase_profile import close_gaps, profile_fit

#: Cells on which the profile's start is looked for; its later steps see all.
SCANNED = 5_000


class TwoPhaseFits(NamedTuple):
    """Fits of g genes to n cells.

    Attributes
    ----------
    rates
        alpha, beta, gamma, time of the switch and scaling of u, shape (g, 5), float64; NaN for a gene without fit.
    loss, likelihood, variance
        Each of shape (g,).
    ratio
        gamma / beta at the start, to which the loss pulls, shape (g,).
    sd
        Standard deviations of u and s over weighted cells, shape (g, 2).
    t
        Time of each cell, shape (g, n), float32.
    tau_on, tau_off
        Time of each cell within either phase, shape (g, n), float32.
    """

    rates: np.ndarray
    loss: np.ndarray
    likelihood: np.ndarray
    variance: np.ndarray
    ratio: np.ndarray
    sd: np.ndarray
    t: np.ndarray
    tau_on: np.ndarray
    tau_off: np.ndarray


def fit_genes(
    unspliced: np.ndarray, spliced: np.ndarray, mean: sparse.csr_matrix, profile: bool = False
) -> TwoPhaseFits:
    """Fit every gene.

    Parameters
    ----------
    unspliced, spliced
        Averages, shape (n_cells, n_genes).
    mean
        Matrix that averages over the neighbours of a cell and the cell, all with the same weight.
    profile
        Fit the shape of the curve (`two_phase_profile`); False: scVelo's schedule.

    Returns
    -------
    `TwoPhaseFits`.
    """
    u, s = (np.ascontiguousarray(values.T, dtype=np.float64) for values in (unspliced, spliced))
    g, n = u.shape
    graph = _averages(mean)
    loss, likely, variance, ratio = (np.full(g, np.nan) for _ in range(4))
    t, tau_on, tau_off = (np.full((g, n), np.nan, np.float32) for _ in range(3))
    out = TwoPhaseFits(np.full((g, 5), np.nan), loss, likely, variance, ratio, np.ones((g, 2)), t, tau_on, tau_off)
    # Each schedule compiles for many seconds when first used.
    if profile:
        few = np.arange(0, n, max(1, n // SCANNED))
        few_graph = graph if len(few) == n else _averages(sparse.csr_matrix(mean[few][:, few]))
        in_threads(lambda first, last: _by_profile(u, s, graph, few, few_graph, out, first, last), g)
    else:
        in_threads(lambda first, last: _by_reference(u, s, graph, out, first, last), g)
    return out


def _averages(mean):
    """Return a matrix of equal weights in each row as compiled code takes it."""
    size = np.diff(mean.indptr)
    return mean.indptr.astype(np.int64), mean.indices.astype(np.int32), 1.0 / np.maximum(size, 1)


@njit(cache=True, nogil=True, error_model="numpy")
def _by_profile(u, s, graph, few, few_graph, out, first, last):  # pragma: no cover  (compiled)
    n = u.shape[1]
    work, few_work = np.empty((N_ROWS + 2, n)), np.empty((N_ROWS + 2, len(few)))
    for g in range(first, last):
        rates, _, _, state = _begin(u[g][few], s[g][few], few_graph, few_work)[1]
        if np.isfinite(state[0]):
            gene, kept = prepare(u[g], s[g], graph), (rates, np.zeros(n), np.zeros(n, np.int64), state)
            ratio = profile_fit(gene, kept, work)
            told = close_gaps(gene, kept, ratio, work)
            _record(out, g, gene, kept, ratio, told, work)


@njit(cache=True, nogil=True, error_model="numpy")
def _by_reference(u, s, graph, out, first, last):  # pragma: no cover  (compiled)
    work = np.empty((N_ROWS + 2, u.shape[1]))
    for g in range(first, last):
        gene, kept = _begin(u[g], s[g], graph, work)
        if np.isfinite(kept[3][0]):
            ratio = reference_schedule(gene, kept, work)
            _, _, weights, sd, _, smooth = gene
            told, spare = np.empty_like(kept[1]), np.empty_like(kept[2])
            assign(u[g], s[g], weights, sd, graph, smooth, kept[0], FLAGS[1], ratio, True, work, told, spare)
            _record(out, g, gene, kept, ratio, kept[1], work)


@njit(cache=True, nogil=True, error_model="numpy")
def _begin(u, s, graph, work):  # pragma: no cover  (compiled)
    """Return the gene and what is kept of its fit so far; the loss is infinite where too few cells count."""
    gene = prepare(u, s, graph)
    t, on, state = np.zeros(len(u)), np.zeros(len(u), np.int64), np.array([np.inf, 0.0, 0.0])
    weights, sd = gene[2], gene[3]
    if weights.sum() <= 2:
        return gene, (np.ones(5), t, on, state)
    kept = (start(u, s, weights, sd), t, on, state)
    state[0] = assign(u, s, weights, sd, graph, gene[5], kept[0], FLAGS[0], np.nan, True, work, t, on)
    scan_scaling(gene, kept, work)
    return gene, kept


@njit(cache=True, nogil=True, error_model="numpy")
def _record(out, g, gene, kept, ratio, told, work):  # pragma: no cover  (compiled)
    rates_out, loss, value, variance, ratio_out, sd_out, t_out, on_out, off_out = out
    u, s, weights, sd = gene[:4]
    rates, t, _, state = kept
    for i in range(len(u)):
        t_out[g, i], on_out[g, i], off_out[g, i] = told[i], work[ON_TAU, i], work[OFF_TAU, i]
    rates_out[g] = rates
    loss[g], ratio_out[g] = state[0], ratio
    sd_out[g, 0], sd_out[g, 1] = sd
    value[g], variance[g] = likelihood(u, s, weights, sd, rates, ratio, t, work)
