"""The two-phase splicing model fitted to many genes side by side."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from scipy import sparse

from tenfold.kernels.threads import in_threads
from tenfold.kernels.two_phase import N_ROWS, OFF_TAU, ON_TAU, assign
from tenfold.kernels.two_phase_fit import likelihood, prepare, reference_schedule, scan_scaling, start
from tenfold.kernels.two_phase_profile import close_gaps, profile_fit


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
    size = np.diff(mean.indptr)
    graph = (mean.indptr.astype(np.int64), mean.indices.astype(np.int32), 1.0 / np.maximum(size, 1))
    loss, likely, variance, ratio = (np.full(g, np.nan) for _ in range(4))
    t, tau_on, tau_off = (np.full((g, n), np.nan, np.float32) for _ in range(3))
    out = TwoPhaseFits(np.full((g, 5), np.nan), loss, likely, variance, ratio, np.ones((g, 2)), t, tau_on, tau_off)
    in_threads(lambda first, last: _fit_range(u, s, graph, profile, out, first, last), g)
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _fit_range(u, s, graph, profile, out, first, last):  # pragma: no cover  (compiled)
    rates_out, loss, value, variance, ratio_out, sd_out, t_out, on_out, off_out = out
    n = u.shape[1]
    work = np.empty((N_ROWS + 2, n))
    for g in range(first, last):
        gene = prepare(u[g], s[g], graph)
        weights, sd = gene[2], gene[3]
        if weights.sum() <= 2:
            continue
        rates = start(u[g], s[g], weights, sd)
        t, on, state = np.empty(n), np.empty(n, np.int64), np.zeros(3)
        state[0] = assign(u[g], s[g], weights, sd, graph, gene[5], rates, False, np.nan, True, work, t, on)
        kept = (rates, t, on, state)
        scan_scaling(gene, kept, work)
        if profile:
            ratio = profile_fit(gene, kept, work)
            told = close_gaps(gene, kept, ratio, work)
        else:
            ratio = reference_schedule(gene, kept, work)
            told, spare = np.empty(n), np.empty(n, np.int64)
            assign(u[g], s[g], weights, sd, graph, gene[5], rates, True, ratio, True, work, told, spare)
            told[:] = t
        for i in range(n):
            t_out[g, i], on_out[g, i], off_out[g, i] = told[i], work[ON_TAU, i], work[OFF_TAU, i]
        rates_out[g] = rates
        loss[g], ratio_out[g] = state[0], ratio
        sd_out[g, 0], sd_out[g, 1] = sd
        value[g], variance[g] = likelihood(u[g], s[g], weights, sd, rates, ratio, t, work)
