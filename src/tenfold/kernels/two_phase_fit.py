"""The two-phase splicing model fitted to one gene by scVelo's own schedule, compiled.

Start from quantiles, scans of the scaling, then rounds of the simplex algorithm of one iteration each; a step is taken
only where the loss falls. Times are explicit first, then those of the nearest point of the curve.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit

from tenfold.kernels.two_phase import (
    ALPHA,
    BETA,
    FLAGS,
    GAMMA,
    ON_S,
    ON_U,
    SCALING,
    SWITCH,
    assign,
    loss_at,
    residuals,
    time_of_u,
)
from tenfold.kernels.two_phase_start import bimodality, percentile


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(u, s):  # pragma: no cover  (compiled)
    """Return the cells that count: u and s positive and not above their 99th percentile."""
    weights = (u > 0) & (s > 0)
    if weights.sum() > 2:
        top_u, top_s = percentile(u[weights], 99), percentile(s[weights], 99)
        weights &= (u <= top_u) & (s <= top_s)
    return weights


@njit(cache=True, nogil=True, error_model="numpy")
def smoothed_moments(u, s, graph):  # pragma: no cover  (compiled)
    """Return u, u², s and s² averaged over neighbours, shape (4, n_cells)."""
    pointers, columns, share = graph
    out = np.zeros((4, len(u)))
    for i in range(len(u)):
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        for k in range(pointers[i], pointers[i + 1]):
            x, y = u[columns[k]], s[columns[k]]
            a, b, c, d = a + x, b + x * x, c + y, d + y * y
        out[0, i], out[1, i], out[2, i], out[3, i] = a * share[i], b * share[i], c * share[i], d * share[i]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def start(u, s, weights, sd):  # pragma: no cover  (compiled)
    """Return rates from quantiles: the ratio of the highest cells, and the levels that they have reached."""
    scaling = sd[0] / sd[1]
    x, y = u[weights] / scaling, s[weights]
    top_s, top_u = y >= percentile(y, 98), x >= percentile(x, 98)
    gamma = (x[top_s] * y[top_s]).sum() / (y[top_s] ** 2).sum() + 1e-6
    if gamma < 0.05 / scaling:
        gamma *= 1.2
    elif gamma > 1.5 / scaling:
        gamma /= 1.2
    beta, level_u, level_s = 1.0, x[top_s | top_u].mean(), y[top_s].mean()
    alpha = level_u * beta
    p_u, mode_u = bimodality(x)
    p_s, _ = bimodality(y)
    if max(p_u, p_s) < 1e-3:
        level_u = (level_u + mode_u) / 2
        alpha = gamma * level_s
        beta = alpha / level_u
    rates = np.array([alpha, beta, gamma, 0.0, scaling])
    if gamma >= beta:
        rates[SWITCH] = time_of_u(level_u, 0.0, alpha, beta)
    else:
        part = beta / (gamma - beta)
        level = alpha / gamma - part * (alpha / beta)
        x_end = min(max((level_s - part * level_u - level) / -level, 1e-6), 1 - 1e-6)
        rates[SWITCH] = -np.log(x_end) / gamma
    return rates


@njit(cache=True, nogil=True, error_model="numpy")
def try_rates(gene, new, projection, adjust, ratio, kept, work):  # pragma: no cover  (compiled)
    """Take new rates if the loss falls, and shorten the first phase to its last cell where that costs little.

    `kept` is (rates, times, phases, state). The state is the loss; the rule (0 explicit, 1 projection) by which the
    kept times were assigned, which are not computed again where it is the rule asked for; and whether a shorter first
    phase was refused already for the kept rates.
    """
    u, s, weights, sd, graph, smooth = gene
    rates, t, on, state = kept
    t_new, on_new = np.empty_like(t), np.empty_like(on)
    before = state[0]
    now = new.copy()
    loss = assign(u, s, weights, sd, graph, smooth, now, projection, ratio, True, work, t_new, on_new)
    better = loss < before
    if adjust and (on == 1).any():
        refused = not better
        if not better:
            now = rates.copy()
            if state[1] == projection:
                if state[2] == 1:
                    return False
                loss, t_new, on_new = before, t.copy(), on.copy()
            else:
                loss = assign(u, s, weights, sd, graph, smooth, now, projection, ratio, True, work, t_new, on_new)
        end = 0.0
        for i in range(len(u)):
            if on[i] == 1 and t_new[i] > end:
                end = t_new[i]
        if 0 < end < now[SWITCH]:
            end += t_new.max() / len(u) * (t_new == now[SWITCH]).sum()
            other = now.copy()
            other[SWITCH] = end
            t_other, on_other = np.empty_like(t), np.empty_like(on)
            loss_other = assign(
                u, s, weights, sd, graph, smooth, other, projection, ratio, True, work, t_other, on_other
            )
            height = 1 - np.exp(-now[BETA] * now[SWITCH])
            shorter = 1 - np.exp(-now[BETA] * end)
            if loss_other * 0.99 <= min(loss, before) or height * 0.99 < shorter:
                now, loss, better, refused = other, loss_other, True, False
                t_new, on_new = t_other, on_other
        state[2] = 1.0 if refused and state[1] == projection else 0.0
    if better:
        state[2] = 0.0
        rates[:] = now
        t[:] = t_new
        on[:] = on_new
        state[0], state[1] = loss, 1.0 if projection else 0.0
    return better


@njit(cache=True, nogil=True, error_model="numpy")
def _mse(gene, which, values, fixed, projection, ratio, kept, work):  # pragma: no cover  (compiled)
    u, s, weights, sd, graph, smooth = gene
    new = kept[0].copy()
    for k in range(len(which)):
        if not (which[k] == SWITCH and values[k] == 0):
            new[which[k]] = values[k]
    if fixed:
        return loss_at(u, s, weights, sd, new, ratio, kept[1], work) / weights.sum()
    t, on = np.empty_like(kept[1]), np.empty_like(kept[2])
    return assign(u, s, weights, sd, graph, smooth, new, projection, ratio, True, work, t, on) / weights.sum()


@njit(cache=True, nogil=True, error_model="numpy")
def _simplex(gene, which, tolerance, fixed, projection, ratio, kept, work):  # pragma: no cover  (compiled)
    """One iteration of Nelder and Mead's algorithm, which is what SciPy does where two are asked for; returns rates."""
    rates, n = kept[0], len(which)
    points, values = np.empty((n + 1, n)), np.empty(n + 1)
    for j in range(n + 1):
        for k in range(n):
            points[j, k] = rates[which[k]]
        if j > 0:
            points[j, j - 1] = points[j, j - 1] * 1.05 if points[j, j - 1] != 0 else 0.00025
        if j == 0 and not fixed and kept[3][1] == projection:
            values[j] = kept[3][0] / gene[2].sum()
        else:
            values[j] = _mse(gene, which, points[j], fixed, projection, ratio, kept, work)
    order = np.argsort(values)
    points, values = points[order], values[order]
    if np.abs(points[1:] - points[0]).max() > tolerance or np.abs(values[1:] - values[0]).max() > tolerance:
        centre = points[:-1].sum(axis=0) / n
        away = 2 * centre - points[-1]
        f_away = _mse(gene, which, away, fixed, projection, ratio, kept, work)
        shrink = False
        if f_away < values[0]:
            far = 3 * centre - 2 * points[-1]
            f_far = _mse(gene, which, far, fixed, projection, ratio, kept, work)
            if f_far < f_away:
                points[-1], values[-1] = far, f_far
            else:
                points[-1], values[-1] = away, f_away
        elif f_away < values[-2]:
            points[-1], values[-1] = away, f_away
        else:
            beyond = f_away < values[-1]
            half = 1.5 * centre - 0.5 * points[-1] if beyond else 0.5 * centre + 0.5 * points[-1]
            f_half = _mse(gene, which, half, fixed, projection, ratio, kept, work)
            if (f_half <= f_away) if beyond else (f_half < values[-1]):
                points[-1], values[-1] = half, f_half
            else:
                shrink = True
        if shrink:
            for j in range(1, n + 1):
                points[j] = points[0] + 0.5 * (points[j] - points[0])
                values[j] = _mse(gene, which, points[j], fixed, projection, ratio, kept, work)
    best = points[values.argmin()]
    new = rates.copy()
    for k in range(n):
        if not (which[k] == SWITCH and best[k] == 0):
            new[which[k]] = best[k]
    return new


@njit(cache=True, nogil=True, error_model="numpy")
def scan_scaling(gene, kept, work):  # pragma: no cover  (compiled)
    """Try scalings around the first one, 50 and then 10 % to both sides; keep what lowers the loss."""
    rates = kept[0]
    for sight in (0.5, 0.1):
        middle = rates[SCALING]
        for k in range(4):
            z = middle * (1 + sight * (2 * k / 3 - 1))
            new = rates.copy()
            new[BETA], new[SCALING] = rates[BETA] / rates[SCALING] * z, z
            try_rates(gene, new, FLAGS[0], FLAGS[1], np.nan, kept, work)


@njit(cache=True, nogil=True, error_model="numpy")
def reference_schedule(gene, kept, work):  # pragma: no cover  (compiled)
    """Run scVelo's rounds from the rates in `kept`; returns the ratio that the loss pulled to."""
    no, yes = FLAGS[0], FLAGS[1]
    rates = kept[0]
    ratio = rates[GAMMA] / rates[BETA]
    middle = rates[ALPHA]
    for k in range(5):
        new = rates.copy()
        new[ALPHA] = middle * (1 + (k / 2 - 1) / 10)
        try_rates(gene, new, no, yes, ratio, kept, work)
    rounds = (
        (np.array([SWITCH, ALPHA]), 1e-4), (np.array([SWITCH, BETA, SCALING]), 1e-4), (np.array([ALPHA, GAMMA]), 1e-2),
        (np.array([SWITCH]), 1e-4), (np.array([SWITCH, ALPHA, BETA, GAMMA]), 1e-2),
    )  # fmt: skip
    for which, tolerance in rounds:
        new = _simplex(gene, which, tolerance, no, no, ratio, kept, work)
        try_rates(gene, new, no, yes, ratio, kept, work)
    try_rates(gene, rates.copy(), yes, no, ratio, kept, work)
    new = _simplex(gene, np.array([SWITCH, ALPHA, BETA, GAMMA]), 1e-2, yes, yes, ratio, kept, work)
    try_rates(gene, new, yes, yes, ratio, kept, work)
    try_rates(gene, rates.copy(), yes, yes, ratio, kept, work)
    return ratio


@njit(cache=True, nogil=True, error_model="numpy")
def likelihood(u, s, weights, sd, rates, ratio, t, work):  # pragma: no cover  (compiled)
    """Return scVelo's likelihood of the cells above a third of both maxima, and the variance of distances."""
    residuals(u, s, sd, rates, t, work)
    pull = (rates[GAMMA] / rates[BETA] - ratio) / sd[1]
    top_u, top_s = u[weights].max() / 3, s[weights].max() / 3
    n, total, signed, plain, plain_signed = 0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(u)):
        if weights[i] and u[i] > top_u and s[i] > top_s:
            d = work[ON_U, i] ** 2 + work[ON_S, i] ** 2
            sign = np.sign(work[ON_S, i])
            n, plain, plain_signed = n + 1, plain + d, plain_signed + sign * np.sqrt(d)
            d += (pull * s[i]) ** 2
            total, signed = total + d, signed + sign * np.sqrt(d)
    if n == 0:
        return np.nan, np.nan
    variance = total / n - (signed / n) ** 2
    variance = variance if variance != 0 else 1.0
    size = max(n - 0.01 * len(u), 2.0)
    value = np.exp(-0.5 / size * total / variance) / np.sqrt(2 * np.pi * variance)
    return value, plain / n - (plain_signed / n) ** 2


@njit(cache=True, nogil=True, error_model="numpy")
def prepare(u, s, graph):  # pragma: no cover  (compiled)
    """Return all that a fit needs of a gene: (u, s, weights, sd, graph, averages)."""
    weights = weigh(u, s)
    sd_u, sd_s = u[weights].std(), s[weights].std()
    if sd_u == 0 or sd_s == 0 or np.isnan(sd_u):
        sd_u, sd_s = 1.0, 1.0
    return u, s, weights, (sd_u, sd_s), graph, smoothed_moments(u, s, graph)
