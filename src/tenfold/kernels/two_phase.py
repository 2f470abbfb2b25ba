"""One gene of the two-phase splicing model: times of its cells under given rates, by scVelo's rules, and their loss.

A gene is transcribed at rate alpha up to the time t_ and not after; splicing has the rate beta, degradation gamma;
unspliced counts are divided by `scaling` first. Rates come as an array ``(alpha, beta, gamma, t_, scaling)``.

A time that follows from x = exp(-beta tau) leaves only exp(-gamma tau) to compute, so that a trial costs two logarithms
and two exponentials a cell, besides the averages over neighbours.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit

from tenfold.kernels.time_gaps import compress

ALPHA, BETA, GAMMA, SWITCH, SCALING = range(5)
#: Rows of the workspace of a gene, each one number a cell.
ON_TAU, ON_U, ON_S, ON_D, OFF_TAU, OFF_U, OFF_S, OFF_D, MIXED, SPARE, N_ROWS = range(11)
#: False and True for calls between compiled functions: Numba compiles the callee anew for each literal it is given.
FLAGS = np.array([False, True])
_EPS = 1e-6
_BOX = 16


@njit(cache=True, nogil=True, error_model="numpy")
def state_after(tau, u0, s0, alpha, beta, gamma):  # pragma: no cover  (compiled)
    """Return unspliced and spliced RNA a time `tau` after (u0, s0)."""
    eu, es = np.exp(-beta * tau), np.exp(-gamma * tau)
    u = u0 * eu + alpha / beta * (1 - eu)
    return u, s0 * es + alpha / gamma * (1 - es) + (alpha - beta * u0) / (gamma - beta) * (es - eu)


@njit(cache=True, nogil=True, error_model="numpy")
def _logarithm(x):  # pragma: no cover  (compiled)
    return np.log(min(max(x, _EPS), 1 - _EPS))


@njit(cache=True, nogil=True, error_model="numpy")
def time_of_u(u, u0, alpha, beta):  # pragma: no cover  (compiled)
    """Return the time after which unspliced RNA is `u`, from `u0` on."""
    return -_logarithm((u - alpha / beta) / (u0 - alpha / beta)) / beta


@njit(cache=True, nogil=True, error_model="numpy")
def _decays(u, s, u0, s0, alpha, beta, gamma):  # pragma: no cover  (compiled)
    """Return tau, exp(-beta tau) and exp(-gamma tau) of a cell at (u, s) that was at (u0, s0).

    The time is that of u, or of a mixture of both where gamma < beta.
    """
    if gamma >= beta:
        level = alpha / beta
        x = min(max((u - level) / (u0 - level), _EPS), 1 - _EPS)
        tau = -np.log(x) / beta
        return tau, x, np.exp(-gamma * tau)
    part = beta / (gamma - beta)
    level = alpha / gamma - part * (alpha / beta)
    x = min(max((s - part * u - level) / (s0 - part * u0 - level), _EPS), 1 - _EPS)
    tau = -np.log(x) / gamma
    return tau, np.exp(-beta * tau), x


@njit(cache=True, nogil=True, error_model="numpy")
def _explicit(u, s, rates, u0, s0, work):  # pragma: no cover  (compiled)
    """Fill the times of both phases, and exp(-beta tau) and exp(-gamma tau) in the rows of u and s."""
    alpha, beta, gamma, switch, scaling = rates
    at_switch = np.exp(-beta * switch), np.exp(-gamma * switch)
    last = 0.0
    for i in range(len(u)):
        v = u[i] / scaling
        tau, eu, es = _decays(v, s[i], 0.0, 0.0, alpha, beta, gamma)
        if tau > switch:
            tau, eu, es = switch, at_switch[0], at_switch[1]
        work[ON_TAU, i], work[ON_U, i], work[ON_S, i] = tau, eu, es
        tau, eu, es = _decays(v, s[i], u0, s0, 0.0, beta, gamma)
        work[OFF_TAU, i], work[OFF_U, i], work[OFF_S, i] = tau, eu, es
        if s[i] > 0 and tau > last:
            last = tau
    for i in range(len(u)):
        if work[OFF_TAU, i] > last:
            work[OFF_TAU, i] = last
            work[OFF_U, i], work[OFF_S, i] = np.exp(-beta * last), np.exp(-gamma * last)


@njit(cache=True, nogil=True, error_model="numpy")
def _projected(u, s, rates, u0, s0, work):  # pragma: no cover  (compiled)
    """As `_explicit`, but times of the nearest of evenly spaced points on each phase (unweighted distance)."""
    alpha, beta, gamma, switch, scaling = rates
    least = np.inf
    for i in range(len(u)):
        if s[i] > 0 and u[i] < least:
            least = u[i]
    number = min(max(len(u) // 5, 200), 500)
    for phase in range(2):
        end = switch if phase == 0 else -_logarithm(least / scaling / u0) / beta
        first = phase  # the second phase begins with its second point
        n = number - first
        taus, us, ss = np.empty(n), np.empty(n), np.empty(n)
        for k in range(n):
            taus[k] = end * (k + first) / (number - 1)
            if phase == 0:
                us[k], ss[k] = state_after(taus[k], 0.0, 0.0, alpha, beta, gamma)
            else:
                us[k], ss[k] = state_after(taus[k], u0, s0, 0.0, beta, gamma)
        row = ON_TAU if phase == 0 else OFF_TAU
        nearest(u, s, scaling, us, ss, work[SPARE])
        for i in range(len(u)):
            tau = taus[int(work[SPARE, i])]
            work[row, i] = tau
            work[row + 1, i], work[row + 2, i] = np.exp(-beta * tau), np.exp(-gamma * tau)


@njit(cache=True, nogil=True, error_model="numpy")
def nearest(u, s, scaling, us, ss, found):  # pragma: no cover  (compiled)
    """Find the nearest of the points (us, ss) for each cell: boxes around sixteen points, nearest box first."""
    n = len(us)
    boxes = (n + _BOX - 1) // _BOX
    edges = np.empty((boxes, 4))
    for b in range(boxes):
        part = slice(b * _BOX, min((b + 1) * _BOX, n))
        edges[b] = us[part].min(), us[part].max(), ss[part].min(), ss[part].max()
    bound = np.empty(boxes)
    for i in range(len(u)):
        x, y = u[i] / scaling, s[i]
        closest = 0
        for b in range(boxes):
            dx = max(max(edges[b, 0] - x, x - edges[b, 1]), 0.0)
            dy = max(max(edges[b, 2] - y, y - edges[b, 3]), 0.0)
            bound[b] = dx * dx + dy * dy
            if bound[b] < bound[closest]:
                closest = b
        best, place = np.inf, 0
        for turn in range(boxes + 1):
            b = closest if turn == 0 else turn - 1
            if turn > 0 and (b == closest or bound[b] > best):
                continue
            for k in range(b * _BOX, min((b + 1) * _BOX, n)):
                d = (us[k] - x) ** 2 + (ss[k] - y) ** 2
                if d < best or (d == best and k < place):
                    best, place = d, k
        found[i] = place


@njit(cache=True, nogil=True, error_model="numpy")
def _states(rates, u0, s0, work):  # pragma: no cover  (compiled)
    """Turn exp(-beta tau) and exp(-gamma tau) into u and s, in place, in both phases."""
    alpha, beta, gamma = rates[ALPHA], rates[BETA], rates[GAMMA]
    part = 1 / (gamma - beta)
    for i in range(work.shape[1]):
        eu, es = work[ON_U, i], work[ON_S, i]
        work[ON_U, i] = alpha / beta * (1 - eu)
        work[ON_S, i] = alpha / gamma * (1 - es) + alpha * part * (es - eu)
        eu, es = work[OFF_U, i], work[OFF_S, i]
        work[OFF_U, i] = u0 * eu
        work[OFF_S, i] = s0 * es - beta * u0 * part * (es - eu)


@njit(cache=True, nogil=True, error_model="numpy")
def distances(u, s, scaling, sd, work):  # pragma: no cover  (compiled)
    """Fill the squared distance of each cell to its point in both phases, in standard deviations."""
    for i in range(len(u)):
        for row in (ON_U, OFF_U):
            du, ds = (u[i] - work[row, i] * scaling) / sd[0], (s[i] - work[row + 1, i]) / sd[1]
            work[row + 2, i] = du * du + ds * ds


@njit(cache=True, nogil=True, error_model="numpy")
def choose_phase(graph, work, on):  # pragma: no cover  (compiled)
    """Fill 1 where the first phase is nearer than the second on average over neighbours."""
    pointers, columns, _ = graph
    for i in range(len(on)):
        work[SPARE, i] = work[OFF_D, i] - work[ON_D, i]
    for i in range(len(on)):
        difference = 0.0
        for k in range(pointers[i], pointers[i + 1]):
            difference += work[SPARE, columns[k]]
        on[i] = 1 if difference > 0 else 0


@njit(cache=True, nogil=True, error_model="numpy")
def assign(u, s, weights, sd, graph, smooth, rates, projection, ratio, compressing, work, t, on):
    """Give every cell a time and a phase, and return the loss over weighted cells.

    Parameters
    ----------
    u, s
        Averages of the gene, shape (n_cells,), float64.
    weights
        Cells that count in the loss, bool.
    sd
        Standard deviations of u and s.
    graph
        ``indptr``, ``indices`` of neighbours (the cell itself among them) and 1 / their number.
    smooth
        u, u², s and s² averaged over the graph, shape (4, n_cells).
    rates
        See the module.
    projection
        Nearest points of the curve where gamma > beta; otherwise times are explicit.
    ratio
        gamma / beta that the loss pulls to; NaN for none.
    compressing
        Close wide gaps between times, as scVelo does before it computes the loss.
    work
        (N_ROWS + 2, n_cells); times of both phases are left in it.
    t, on
        Filled: time, and 1 for the first phase.
    """
    alpha, beta, gamma, switch, scaling = rates
    u0, s0 = state_after(switch, 0.0, 0.0, alpha, beta, gamma)
    if projection and beta < gamma:
        _projected(u, s, rates, u0, s0, work)
    else:
        _explicit(u, s, rates, u0, s0, work)
    _states(rates, u0, s0, work)
    distances(u, s, scaling, sd, work)
    n = len(u)
    if compressing:
        choose_phase(graph, work, on)
        for i in range(n):
            work[SPARE, i] = work[ON_TAU, i] if on[i] == 1 else work[OFF_TAU, i]
        if compress(work[ON_TAU], work[OFF_TAU], on, work[N_ROWS:]):
            for i in range(n):
                if on[i] == 1 and work[ON_TAU, i] != work[SPARE, i]:
                    work[ON_U, i], work[ON_S, i] = state_after(work[ON_TAU, i], 0.0, 0.0, alpha, beta, gamma)
                elif on[i] == 0 and work[OFF_TAU, i] != work[SPARE, i]:
                    work[OFF_U, i], work[OFF_S, i] = state_after(work[OFF_TAU, i], u0, s0, 0.0, beta, gamma)
            distances(u, s, scaling, sd, work)
    return settle(u, s, weights, sd, graph, smooth, rates, u0, s0, ratio, work, t, on)


@njit(cache=True, nogil=True, error_model="numpy")
def settle(u, s, weights, sd, graph, smooth, rates, u0, s0, ratio, work, t, on):  # pragma: no cover  (compiled)
    """Choose among both phases and their steady states by averaged distances, and sum the loss."""
    alpha, beta, gamma, switch, scaling = rates
    pointers, columns, share = graph
    high_u, high_s = alpha / beta * scaling, alpha / gamma
    var_u, var_s = sd[0] * sd[0], sd[1] * sd[1]
    pull = 0.0 if np.isnan(ratio) else (gamma / beta - ratio) / sd[1]
    loss = 0.0
    for i in range(len(u)):
        off, rising = 0.0, 0.0
        for k in range(pointers[i], pointers[i + 1]):
            off += work[OFF_D, columns[k]]
            rising += work[ON_D, columns[k]]
        off, rising = off * share[i], rising * share[i]
        zero = smooth[1, i] / var_u + smooth[3, i] / var_s
        full = (smooth[1, i] - 2 * high_u * smooth[0, i] + high_u * high_u) / var_u
        full += (smooth[3, i] - 2 * high_s * smooth[2, i] + high_s * high_s) / var_s
        least = min(min(off, rising), min(zero, full))
        if off == least:
            t[i], on[i], d = work[OFF_TAU, i] + switch, 0, work[OFF_D, i]
        elif rising == least:
            t[i], on[i], d = work[ON_TAU, i], 1, work[ON_D, i]
        elif zero == least:
            t[i], on[i], d = 0.0, 1, u[i] * u[i] / var_u + s[i] * s[i] / var_s
        else:
            t[i], on[i], d = switch, 0, (u[i] - u0 * scaling) ** 2 / var_u + (s[i] - s0) ** 2 / var_s
        if weights[i]:
            loss += d + (pull * s[i]) ** 2
    return loss


@njit(cache=True, nogil=True, error_model="numpy")
def residuals(u, s, sd, rates, t, work):  # pragma: no cover  (compiled)
    """Fill the differences of model and cell at times `t`, in standard deviations, into ON_U and ON_S of `work`."""
    alpha, beta, gamma, switch, scaling = rates
    u0, s0 = state_after(switch, 0.0, 0.0, alpha, beta, gamma)
    for i in range(len(u)):
        if t[i] < switch:
            a, b = state_after(t[i], 0.0, 0.0, alpha, beta, gamma)
        else:
            a, b = state_after(t[i] - switch, u0, s0, 0.0, beta, gamma)
        work[ON_U, i], work[ON_S, i] = (a * scaling - u[i]) / sd[0], (b - s[i]) / sd[1]


@njit(cache=True, nogil=True, error_model="numpy")
def loss_at(u, s, weights, sd, rates, ratio, t, work):  # pragma: no cover  (compiled)
    """Return the loss over weighted cells with times kept."""
    residuals(u, s, sd, rates, t, work)
    pull = 0.0 if np.isnan(ratio) else (rates[GAMMA] / rates[BETA] - ratio) / sd[1]
    loss = 0.0
    for i in range(len(u)):
        if weights[i]:
            loss += work[ON_U, i] ** 2 + work[ON_S, i] ** 2 + (pull * s[i]) ** 2
    return loss
