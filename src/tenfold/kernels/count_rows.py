"""One row of a count likelihood at a time: link, dense part, non-zero counts.

A row and its buffers stay in the cache. `dense` routines fill value and gradient of every entry as if its count were
zero; `observed` routines overwrite the entries of non-zero counts. Gradients are with respect to the log of the mean
(`g`), of theta (`th`) and to the dropout logit (`pi`). Dense routines add nothing up, so that every loop vectorises and
a huge entry that is overwritten later leaves no rounding error behind.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np
from numba import njit

from tenfold.kernels.count_reference import MAX_LOG_MEAN, MAX_LOG_THETA, MIN_LOG_THETA
from tenfold.kernels.rising import LOG_FACTORIAL, N_SMALL, rising_large, rising_small
from tenfold.kernels.vectormath import ELEMENT, LOOP, ROW, exp, log, log1p, row_max

SOFTMAX, EXP, SOFTPLUS = 0, 1, 2

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_TOP = np.float32(MAX_LOG_MEAN)
_MIN_LOG_THETA, _MAX_LOG_THETA = np.float32(MIN_LOG_THETA), np.float32(MAX_LOG_THETA)
_C3, _C4, _C5 = np.float32(2 / 3), np.float32(3 / 4), np.float32(4 / 5)
_SERIES = np.float32(0.02)
_LOW = np.float32(-15.0)


@njit(**ROW)
def link_row(link, h, log_size, unit, log_unit, slope):
    """Fill the mean per `scale` and its logarithm per `shift`; return scale, shift and the sum of the unit means.

    Mean = unit * scale, log mean = log_unit + shift. `slope` is the derivative of the log mean (softplus only).
    """
    size = min(log_size, _TOP)
    if link == SOFTMAX:
        top = row_max(h)
        for j in range(h.shape[0]):
            unit[j] = exp(h[j] - top)
            log_unit[j] = h[j] - top
        total = row_sum(unit)
        return exp(size) / total, size - log(total), total
    if link == EXP:
        for j in range(h.shape[0]):
            at = h[j] + size
            at = _TOP if at > _TOP else at
            unit[j] = exp(at)
            log_unit[j] = at
        return _ONE, _ZERO, row_sum(unit)
    for j in range(h.shape[0]):
        a = exp(-abs(h[j]))
        mean = (h[j] if h[j] > _ZERO else _ZERO) + log1p(a)
        unit[j] = mean
        log_unit[j] = h[j] - _HALF * a if h[j] < _LOW else log(mean)
        slope[j] = (_ONE if h[j] > _ZERO else a) / ((_ONE + a) * mean)
    return exp(size), size, row_sum(unit)


@njit(**ROW)
def unlink_row(link, g, total_g, unit, total_unit, slope, weight):
    """Turn the gradient of the log means into that of the logits, in place, times `weight`."""
    if link == SOFTMAX:
        share = total_g / total_unit
        for j in range(g.shape[0]):
            g[j] = (g[j] - unit[j] * share) * weight
    elif link == EXP:
        for j in range(g.shape[0]):
            g[j] = g[j] * weight
    else:
        for j in range(g.shape[0]):
            g[j] = g[j] * slope[j] * weight


@njit(**LOOP)
def row_sum(row):
    """Sum of a float32 row."""
    total = _ZERO
    for j in range(row.shape[0]):
        total += row[j]
    return total


@njit(**ROW)
def add_row(total, row, weight):
    """Add `row` times `weight` to `total`."""
    for j in range(row.shape[0]):
        total[j] += row[j] * weight


@njit(**ROW)
def scale_row(row, weight):
    """Multiply `row` by `weight`."""
    for j in range(row.shape[0]):
        row[j] *= weight


@njit(**ROW)
def theta_row(log_theta, theta, inverse):
    """Fill theta and its inverse from log theta, held to its range."""
    for j in range(log_theta.shape[0]):
        at = log_theta[j]
        at = _MIN_LOG_THETA if at < _MIN_LOG_THETA else at
        at = _MAX_LOG_THETA if at > _MAX_LOG_THETA else at
        theta[j] = exp(at)
        inverse[j] = _ONE / theta[j]


@njit(**ELEMENT)
def _curvature(u, q, r):
    """log(1 + u) - u / (1 + u); for small u by its series, since the difference cancels."""
    small = u * u * (_HALF - u * (_C3 - u * (_C4 - u * _C5)))
    return small if u < _SERIES else q - u * r


@njit(**ROW)
def nb_dense(unit, scale, theta, inverse, val, g, th):
    """Negative binomial at a count of zero: theta log(1 + mean / theta)."""
    for j in range(unit.shape[0]):
        mean = unit[j] * scale
        u = mean * inverse[j]
        w = _ONE + u
        r = _ONE / w
        q = log(w) + (u - (w - _ONE)) * r  # log1p(u), sharing the quotient
        val[j] = theta[j] * q
        g[j] = mean * r
        th[j] = theta[j] * _curvature(u, q, r)


@njit(**ROW)
def inflate_dense(dropout, nb, weight, val, g, th, pi):
    """Zero-inflated negative binomial at a count of zero, from that of the negative binomial (`nb`, `g`, `th`).

    `pi` takes `weight` at once, since no later step needs it bare.
    """
    for j in range(dropout.shape[0]):
        t = exp(-dropout[j])
        extra = _ONE / (_ONE + t)
        kept = t * extra
        zero = exp(-nb[j])
        z = extra + kept * zero
        inverse = _ONE / z
        share = kept * zero * inverse  # of the negative binomial among the zeros
        val[j] = -log(z)
        g[j] = g[j] * share
        th[j] = th[j] * share
        pi[j] = -extra * kept * (_ONE - zero) * inverse * weight


@njit(**LOOP)
def nb_observed(
    x_row, columns, unit, scale, log_unit, shift, theta, inverse, tables, slopes, offset, nb, val, g, th
):  # fmt: skip
    """Negative binomial at non-zero counts. `nb` is the dense value; `val` may be the same array.

    Gene j has the column ``offset + j`` of the tables; counts beyond the tables' rows take sums of their own.
    """
    for k in range(x_row.shape[0]):
        x = x_row[k]
        if x <= _ZERO:
            continue
        j = columns[k]
        count = int(x)
        if x < N_SMALL and count == x:
            if count < tables.shape[0]:
                rising, slope = tables[count, offset + j], slopes[count, offset + j]
            else:
                exact = rising_small(count, np.float64(theta[j]))
                rising, slope = np.float32(exact[0]), np.float32(exact[1])
            mean = unit[j] * scale
            u = mean * inverse[j]
            r = _ONE / (_ONE + u)
            q = nb[j] * inverse[j]
            val[j] = nb[j] + x * (q - (log_unit[j] + shift)) - rising
            g[j] = r * (mean - x)
            th[j] = theta[j] * _curvature(u, q, r) + (slope - x * u * r)
        else:
            val[j], g[j], th[j] = _nb_large(
                np.float64(x), np.float64(log_unit[j]) + np.float64(shift), np.float64(theta[j])
            )


@njit(error_model="numpy", nogil=True, cache=True)
def _nb_large(x, log_mean, theta):
    """Value and gradients at a large count in float64: terms of size x log(mean) cancel."""
    rising, slope = rising_large(x, theta)
    u = math.exp(log_mean) / theta
    r = 1.0 / (1.0 + u)
    q = math.log1p(u)
    value = theta * q + x * (q - log_mean) - rising
    th = theta * (q - u * r) + slope - x * u * r
    return np.float32(value), np.float32(r * (theta * u - x)), np.float32(th)


@njit(**ROW)
def inflate_observed(x_row, columns, dropout, weight, val, pi, cost, chance):
    """Add what zero inflation costs a non-zero count: -log(1 - p).

    The logits are gathered into a buffer first: exp and log vectorise there, at a third of the time.
    """
    n = 0
    for k in range(x_row.shape[0]):
        chance[n] = dropout[columns[k]]
        n += x_row[k] > _ZERO
    for k in range(n):
        logit = chance[k]
        a = exp(-abs(logit))
        above = _ONE + a
        inverse = _ONE / above
        cost[k] = (logit if logit > _ZERO else _ZERO) + (log(above) + (a - (above - _ONE)) * inverse)
        chance[k] = (_ONE if logit > _ZERO else a) * inverse * weight
    n = 0
    for k in range(x_row.shape[0]):
        if x_row[k] > _ZERO:
            val[columns[k]] += cost[n]
            pi[columns[k]] = chance[n]
            n += 1


@njit(**ROW)
def poisson_dense(unit, scale, val, g):
    """Poisson at a count of zero, and Bernoulli where nothing was detected: the mean."""
    for j in range(unit.shape[0]):
        val[j] = unit[j] * scale
        g[j] = unit[j] * scale


@njit(error_model="numpy", nogil=True, cache=True)
def poisson_observed(x_row, columns, log_unit, shift, val, g):
    """Poisson at non-zero counts: mean - x log(mean) + log x!."""
    for k in range(x_row.shape[0]):
        x = x_row[k]
        if x <= _ZERO:
            continue
        j = columns[k]
        count = int(x)
        if x < N_SMALL and count == x:
            val[j] += LOG_FACTORIAL[count] - x * (log_unit[j] + shift)
            g[j] -= x
        else:
            val[j], g[j] = _poisson_large(np.float64(x), np.float64(log_unit[j]) + np.float64(shift))


@njit(error_model="numpy", nogil=True, cache=True)
def _poisson_large(x, log_mean):
    mean = math.exp(log_mean)
    return np.float32(mean - x * log_mean + math.lgamma(x + 1.0)), np.float32(mean - x)


@njit(error_model="numpy", nogil=True, cache=True)
def bernoulli_observed(x_row, columns, log_unit, shift, val, g):
    """Detected entries: -log(1 - exp(-mean))."""
    for k in range(x_row.shape[0]):
        if x_row[k] > 0.0:
            j = columns[k]
            log_mean = np.float64(log_unit[j]) + np.float64(shift)
            mean = math.exp(log_mean)
            val[j] = -math.log(-math.expm1(-mean)) if mean > 1e-12 else -log_mean
            g[j] = -mean / math.expm1(mean) if mean > 1e-12 else -1.0


@njit(error_model="numpy", nogil=True, cache=True)
def multinomial_row(x_row, columns, unit, total, log_unit, g):
    """Multinomial given the total count of the cell; fills `g` and returns the value."""
    n = 0.0
    value = 0.0
    log_total = math.log(total)
    for k in range(x_row.shape[0]):
        x = np.float64(x_row[k])
        if x > 0.0:
            n += x
            whole = x < N_SMALL and int(x) == x
            factorial = LOG_FACTORIAL[int(x)] if whole else math.lgamma(x + 1.0)
            value += factorial - x * (np.float64(log_unit[columns[k]]) - log_total)
    poisson_dense(unit, np.float32(n / total), g, g)
    for k in range(x_row.shape[0]):
        if x_row[k] > 0.0:
            g[columns[k]] -= x_row[k]
    return np.float32(value - math.lgamma(n + 1.0))
