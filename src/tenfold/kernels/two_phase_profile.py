"""The two-phase splicing model fitted to one gene by its shape: four parameters, times eliminated.

The time unit is free, so the curve in the plane of u and s has four parameters only: the heights of u and s at the
steady state, r = gamma / beta, and theta = beta × time of the switch. Cells are binned in that plane, and the squared
distances of bins normal to the curve are minimised by Levenberg's and Marquardt's steps from three starts. What is best
on all cells, with phases chosen together with neighbours, is kept.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit

from tenfold.kernels.time_gaps import compress
from tenfold.kernels.two_phase import (
    ALPHA,
    BETA,
    GAMMA,
    N_ROWS,
    OFF_TAU,
    ON_TAU,
    SCALING,
    SPARE,
    SWITCH,
    choose_phase,
    distances,
    nearest,
    settle,
    state_after,
)

_GRID = 24
_POINTS = 40
_FINE = 96
_STEPS = 14
_LONGEST_STEP = 0.7
#: Share of the second phase, in its slower exponential, at which the curve ends.
_END = 0.004
_PASSED = 4.6
_ROUNDS = 3


@njit(cache=True, nogil=True, error_model="numpy")
def binned(u, s, weights, phase):  # pragma: no cover  (compiled)
    """Gather cells in a grid.

    `phase` is that of each cell: 0 first, 1 second, 2 either, 3 to be left out.

    Returns
    -------
    Mean u and s, number of cells, and phase of the occupied bins, shape (n_bins, 4).
    """
    sums = np.zeros((3 * _GRID * _GRID, 4))
    top_u, top_s = u[weights].max(), s[weights].max()
    for i in range(len(u)):
        if weights[i] and phase[i] < 3:
            a = min(int(u[i] / top_u * _GRID), _GRID - 1)
            b = min(int(s[i] / top_s * _GRID), _GRID - 1)
            place = (phase[i] * _GRID + a) * _GRID + b
            sums[place, 0] += u[i]
            sums[place, 1] += s[i]
            sums[place, 2] += 1
            sums[place, 3] = phase[i]
    sums = sums[sums[:, 2] > 0]
    sums[:, 0] /= sums[:, 2]
    sums[:, 1] /= sums[:, 2]
    return sums


@njit(cache=True, nogil=True, error_model="numpy")
def _curve(r, theta, n):  # pragma: no cover  (compiled)
    """Return n points of each phase at unit heights: phase time, u, s, du/dt, ds/dt, and u, s by theta; (2 n, 7)."""
    out = np.empty((2 * n, 7))
    slow = min(r, 1.0)
    u0, s0 = state_after(theta, 0.0, 0.0, 1.0, 1.0, r)
    low = np.exp(-slow * theta)
    for k in range(n):
        t = -np.log(1 - (1 - low) * k / (n - 1)) / slow
        u, s = state_after(t, 0.0, 0.0, 1.0, 1.0, r)
        out[k] = t, u, s, 1 - u, u - r * s, 0.0, 0.0
        t = -np.log(1 - (1 - _END) * k / (n - 1)) / slow
        eu, es = np.exp(-t), np.exp(-r * t)
        lag = (es - eu) / (r - 1)
        u, s = u0 * eu, s0 * es - u0 * lag
        out[n + k] = t, u, s, -u, u - r * s, (1 - u0) * eu, (u0 - r * s0) * es - (1 - u0) * lag
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _normal_equations(bins, sd, shape, ratio, pull):  # pragma: no cover  (compiled)
    """Return the cost, the matrix and the right side of a step in the logarithms of the four parameters."""
    high_u, high_s, r, theta = np.exp(shape)
    curve, moved = _curve(r, theta, _POINTS), _curve(r * 1.0001, theta, _POINTS)
    a, b = high_u / sd[0], high_s / sd[1]
    points_u, points_s = a * curve[:, 1], b * curve[:, 2]
    cost, matrix, side = 0.0, np.zeros((4, 4)), np.zeros(4)
    j = np.empty(4)
    for i in range(len(bins)):
        x, y, count = bins[i, 0] / sd[0], bins[i, 1] / sd[1], bins[i, 2]
        best, k = np.inf, 0
        first = _POINTS if bins[i, 3] == 1 else 0
        for p in range(first, _POINTS if bins[i, 3] == 0 else 2 * _POINTS):
            d = (x - points_u[p]) * (x - points_u[p]) + (y - points_s[p]) * (y - points_s[p])
            if d < best:
                best, k = d, p
        du, ds = x - points_u[k], y - points_s[k]
        by_r, to_u, to_s = b * (moved[k, 2] - curve[k, 2]) * 1e4, a * curve[k, 5] * theta, b * curve[k, 6] * theta
        along_u, along_s = a * curve[k, 3], b * curve[k, 4]
        length = np.sqrt(along_u * along_u + along_s * along_s)
        inner = k % _POINTS != 0 and k % _POINTS != _POINTS - 1 and length > 0
        for part in range(1 if inner else 2):
            if inner:  # only what is normal to the curve: the time takes up the rest
                across_u, across_s = -along_s / length, along_u / length
            else:
                across_u, across_s = 1.0 - part, 0.0 + part
            e = across_u * du + across_s * ds
            j[0], j[1] = across_u * points_u[k], across_s * points_s[k]
            j[2], j[3] = across_s * by_r, across_u * to_u + across_s * to_s
            cost += count * e * e
            for p in range(4):
                side[p] += count * j[p] * e
                for q in range(p + 1):
                    matrix[p, q] += count * j[p] * j[q]
    for p in range(4):
        for q in range(p):
            matrix[q, p] = matrix[p, q]
    cost += pull * (r - ratio) ** 2
    side[2] -= pull * r * (r - ratio)
    matrix[2, 2] += pull * r * r
    return cost, matrix, side


@njit(cache=True, nogil=True, error_model="numpy")
def _descend(bins, sd, shape, ratio, pull):  # pragma: no cover  (compiled)
    """Minimise the binned cost from one start; returns the shape (logarithms) and its cost."""
    now = shape.copy()
    cost, matrix, side = _normal_equations(bins, sd, now, ratio, pull)
    damping = 1e-2
    for _ in range(_STEPS):
        damped = matrix.copy()
        for p in range(4):
            damped[p, p] = damped[p, p] * (1 + damping) + 1e-9 * (1 + matrix[0, 0])
        step = np.linalg.solve(damped, side)
        trial = now + np.minimum(np.maximum(step, -_LONGEST_STEP), _LONGEST_STEP)
        if abs(np.exp(trial[2]) - 1) < 1e-4:
            trial[2] = 1e-4
        trial[3] = min(trial[3], np.log(_PASSED / min(1.0, np.exp(trial[2]))))
        new, new_matrix, new_side = _normal_equations(bins, sd, trial, ratio, pull)
        if new < cost:
            small = cost - new < 1e-4 * cost
            now, cost, matrix, side = trial, new, new_matrix, new_side
            damping *= 0.3
            if small:
                break
        else:
            damping *= 5
            if damping > 1e4:
                break
    return now, cost


@njit(cache=True, nogil=True, error_model="numpy")
def _orthogonal(gene, rates, ratio, work, t, on):  # pragma: no cover  (compiled)
    """As `two_phase.assign`, with times of the nearest point of the curve in standard deviations."""
    u, s, weights, sd, graph, smooth = gene
    alpha, beta, gamma, switch, scaling = rates
    curve = _curve(gamma / beta, switch * beta, _FINE)
    a, b = alpha / beta * scaling / sd[0], alpha / beta / sd[1]
    u0, s0 = state_after(switch, 0.0, 0.0, alpha, beta, gamma)
    points_u, points_s = a * curve[:, 1], b * curve[:, 2]
    scaled_u, scaled_s = u / sd[0], s / sd[1]
    for phase in range(2):
        first = phase * _FINE
        nearest(scaled_u, scaled_s, 1.0, points_u[first : first + _FINE], points_s[first : first + _FINE], work[SPARE])
        row = ON_TAU if phase == 0 else OFF_TAU
        end = switch if phase == 0 else np.inf
        for i in range(len(u)):
            k = first + int(work[SPARE, i])
            along_u, along_s = a * curve[k, 3], b * curve[k, 4]
            length = along_u**2 + along_s**2
            move = 0.0
            if length > 0:
                move = ((scaled_u[i] - points_u[k]) * along_u + (scaled_s[i] - points_s[k]) * along_s) / length
            before = curve[k, 0] - curve[max(k - 1, first), 0]
            after = curve[min(k + 1, first + _FINE - 1), 0] - curve[k, 0]
            tau = (curve[k, 0] + min(max(move, -before), after)) / beta
            work[row, i] = min(max(tau, 0.0), end)
            if phase == 0:
                work[row + 1, i], work[row + 2, i] = state_after(work[row, i], 0.0, 0.0, alpha, beta, gamma)
            else:
                work[row + 1, i], work[row + 2, i] = state_after(work[row, i], u0, s0, 0.0, beta, gamma)
    distances(u, s, scaling, sd, work)
    return settle(u, s, weights, sd, graph, smooth, rates, u0, s0, ratio, work, t, on)


@njit(cache=True, nogil=True, error_model="numpy")
def _rates_of(shape):  # pragma: no cover  (compiled)
    high_u, high_s, r, theta = np.exp(shape)
    return np.array([high_s, 1.0, r, theta, high_u / high_s])


@njit(cache=True, nogil=True, error_model="numpy")
def _starts(bins, rates):  # pragma: no cover  (compiled)
    """Return three shapes to start from: scVelo's start, a late and an early switch."""
    r = rates[GAMMA] / rates[BETA]
    if abs(r - 1) < 1e-4:
        r = 1.0001
    out = np.empty((3, 4))
    high = rates[ALPHA] / rates[BETA]
    theta = max(rates[SWITCH] * rates[BETA], 1e-2)
    out[0] = high * rates[SCALING], high, r, min(theta, _PASSED / min(r, 1.0))
    for k, length in enumerate((3.0, 0.8)):
        theta = length / np.sqrt(min(r, 1.0))
        curve = _curve(r, theta, _POINTS)
        out[k + 1] = bins[:, 0].max() / curve[:, 1].max(), bins[:, 1].max() / curve[:, 2].max(), r, theta
    return np.log(out)


@njit(cache=True, nogil=True, error_model="numpy")
def profile_fit(gene, kept, work):  # pragma: no cover  (compiled)
    """Fit the shape from the rates in `kept`, after scVelo's scans; returns the ratio that the loss pulled to.

    The kept loss is that of projected times; the kept times are closed up where they leave gaps, as scVelo does.
    """
    u, s, weights, sd = gene[:4]
    rates, t, on, state = kept
    ratio = rates[GAMMA] / rates[BETA]
    bins = binned(u, s, weights, np.full(len(u), 2))
    pull = (s[weights] ** 2).sum() / sd[1] ** 2
    starts = _starts(bins, rates)
    shapes, costs = np.empty((3, 4)), np.empty(3)
    for k in range(3):
        shapes[k], costs[k] = _descend(bins, sd, starts[k], ratio, pull)
    order = np.argsort(costs)
    candidates = np.empty((3, 5))
    candidates[0] = _rates_of(starts[0])
    candidates[1] = _rates_of(shapes[order[0]])
    n = 2
    for k in order[1:]:
        if n == 2 and np.abs(shapes[k] - shapes[order[0]]).max() > 0.05:
            candidates[n] = _rates_of(shapes[k])
            n += 1
    state[0] = np.inf
    t_new, on_new = np.empty_like(t), np.empty_like(on)
    for k in range(n):
        loss = _orthogonal(gene, candidates[k], ratio, work, t_new, on_new)
        if loss < state[0]:
            rates[:], t[:], on[:], state[0] = candidates[k], t_new, on_new, loss
    for _ in range(_ROUNDS):
        if not _refine(gene, kept, ratio, pull, work):
            break
    _shorten(gene, kept, ratio, work)
    return ratio


@njit(cache=True, nogil=True, error_model="numpy")
def _refine(gene, kept, ratio, pull, work):  # pragma: no cover  (compiled)
    """Descend once more with the phase of every cell as its neighbours chose it; returns whether the loss fell."""
    u, s, weights, sd = gene[:4]
    rates, t, on, state = kept
    phase = 1 - on
    for i in range(len(t)):
        if t[i] == 0 and on[i] == 1:  # switched off: no parameter moves it
            phase[i] = 3
    bins = binned(u, s, weights, phase)
    if len(bins) < 5:
        return False
    shape = _descend(bins, sd, _starts(bins, rates)[0], ratio, pull)[0]
    new, t_new, on_new = _rates_of(shape), np.empty_like(t), np.empty_like(on)
    loss = _orthogonal(gene, new, ratio, work, t_new, on_new)
    if loss < state[0]:
        rates[:], t[:], on[:], state[0] = new, t_new, on_new, loss
        return True
    return False


@njit(cache=True, nogil=True, error_model="numpy")
def _shorten(gene, kept, ratio, work):  # pragma: no cover  (compiled)
    """End the first phase with its last cell where that costs at most 1 %."""
    rates, t, on, state = kept
    end = 0.0
    for i in range(len(t)):
        if on[i] == 1 and t[i] > end:
            end = t[i]
    if 0 < end < rates[SWITCH]:
        other = rates.copy()
        other[SWITCH] = end
        t_new, on_new = np.empty_like(t), np.empty_like(on)
        loss = _orthogonal(gene, other, ratio, work, t_new, on_new)
        if loss * 0.99 <= state[0]:
            rates[:], t[:], on[:], state[0] = other, t_new, on_new, loss


@njit(cache=True, nogil=True, error_model="numpy")
def close_gaps(gene, kept, ratio, work):  # pragma: no cover  (compiled)
    """Fill `work` with times of both phases whose wide gaps are closed, and return those of the chosen phases."""
    rates = kept[0]
    t, on = np.empty_like(kept[1]), np.empty_like(kept[2])
    _orthogonal(gene, rates, ratio, work, t, on)
    steady = np.empty(len(t), np.bool_)
    for i in range(len(t)):
        own = work[ON_TAU, i] if on[i] == 1 else work[OFF_TAU, i] + rates[SWITCH]
        steady[i] = t[i] != own
    phase = np.empty_like(on)
    choose_phase(gene[4], work, phase)
    compress(work[ON_TAU], work[OFF_TAU], phase, work[N_ROWS:])
    for i in range(len(t)):
        if not steady[i]:
            t[i] = work[ON_TAU, i] if on[i] == 1 else work[OFF_TAU, i] + rates[SWITCH]
    return t
