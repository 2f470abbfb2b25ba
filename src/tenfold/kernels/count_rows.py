"""One row of a count likelihood at a time: link, every entry, what only non-zero counts have.

A row and its buffers stay in the cache. Gradients are with respect to the log of the mean (`g`), of theta (`th`) and to
the dropout logit (`pi`). The negative binomial is evaluated at all entries in one loop that vectorises, from a dense
row of the counts; counts too large or not whole are left out of it, so that no huge entry leaves a rounding error
behind, and are added one by one in float64.
"""

# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"
from __future__ import annotations

import math

import numpy as np
from numba import njit

from tenfold.kernels.count_reference import MAX_LOG_MEAN, MAX_LOG_THETA, MIN_LOG_THETA
from tenfold.kernels.rising import LOG_FACTORIAL, N_SMALL, rising_large, rising_small
from tenfold.kernels.vectormath import ELEMENT, LOOP, ROW, exp, log, log1p, narrow, row_max, wide

SOFTMAX, EXP, SOFTPLUS = 0, 1, 2

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_TOP = np.float32(MAX_LOG_MEAN)
_MIN_LOG_THETA, _MAX_LOG_THETA = np.float32(MIN_LOG_THETA), np.float32(MAX_LOG_THETA)
_C3, _C4, _C5 = np.float32(2 / 3), np.float32(3 / 4), np.float32(4 / 5)
_SERIES = np.float32(0.02)
_LOW = np.float32(-15.0)


@njit(**ROW)
def link_row(link, logits, bias, log_size, unit, log_unit, slope):
    """Fill the mean per `scale` and its logarithm per `shift`; return scale, shift and the sum of the unit means.

    Mean = unit * scale, log mean = log_unit + shift. `bias` may be empty; `slope` is the derivative of the log mean
    (softplus only).
    """
    size = min(log_size, _TOP)
    if bias.shape[0]:
        for j in range(logits.shape[0]):
            log_unit[j] = wide(logits[j]) + bias[j]
    else:
        for j in range(logits.shape[0]):
            log_unit[j] = wide(logits[j])
    if link == SOFTMAX:
        total = _exponentials(log_unit, row_max(log_unit), unit)
        return exp(size) / total, size - log(total), total
    if link == EXP:
        for j in range(logits.shape[0]):
            at = log_unit[j] + size
            at = _TOP if at > _TOP else at
            unit[j] = exp(at)
            log_unit[j] = at
        return _ONE, _ZERO, row_sum(unit)
    for j in range(logits.shape[0]):
        h = log_unit[j]
        a = exp(-abs(h))
        mean = (h if h > _ZERO else _ZERO) + log1p(a)
        unit[j] = mean
        log_unit[j] = h - _HALF * a if h < _LOW else log(mean)
        slope[j] = (_ONE if h > _ZERO else a) / ((_ONE + a) * mean)
    return exp(size), size, row_sum(unit)


@njit(**LOOP)
def _exponentials(row, top, out):
    """Lower a row by `top`, and fill and sum up the exponentials."""
    total = _ZERO
    for j in range(row.shape[0]):
        at = row[j] - top
        e = exp(at)
        row[j] = at
        out[j] = e
        total += e
    return total


@njit(**ROW)
def unlink_row(link, g, total_g, unit, total_unit, slope, weight, out, column_sums):
    """Write the gradient of the logits, from that of the log means and times `weight`; add it to the sums of columns.

    `column_sums` may be empty.
    """
    share = total_g / total_unit
    if link == SOFTMAX:
        for j in range(g.shape[0]):
            g[j] = (g[j] - unit[j] * share) * weight
    elif link == EXP:
        for j in range(g.shape[0]):
            g[j] = g[j] * weight
    else:
        for j in range(g.shape[0]):
            g[j] = g[j] * slope[j] * weight
    for j in range(column_sums.shape[0]):
        column_sums[j] += g[j]
    write_row(g, out)


@njit(**ROW)
def write_row(row, out):
    """Copy a row, to bfloat16 if `out` holds its bits."""
    for j in range(row.shape[0]):
        out[j] = narrow(row[j], out[j])


@njit(**LOOP)
def row_sum(row):
    """Sum of a float32 row."""
    total = _ZERO
    for j in range(row.shape[0]):
        total += row[j]
    return total


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


@njit(**ELEMENT)
def _nb_entry(x, mean, log_mean, theta, inverse):
    """Value and gradients of the negative binomial at a count, but for what `rising` adds from a count of 2 on."""
    u = mean * inverse
    w = _ONE + u
    r = _ONE / w
    q = log(w) + (u - (w - _ONE)) * r  # log1p(u), sharing the quotient
    fit = x * log_mean if x > _ZERO else _ZERO  # the log mean of a cell of size 0 is infinite
    return (theta + x) * q - fit, r * (mean - x), theta * _curvature(u, q, r) - x * u * r


@njit(**ROW)
def spread(x_row, columns, dense):
    """Write counts into a dense row of zeros, -1 for those that `_nb_entry` is not for; return how many these are."""
    n_large = 0
    for k in range(x_row.shape[0]):
        x = x_row[k]
        small = _is_small(x)
        dense[np.uint64(columns[k])] = max(x, _ZERO) if small else -_ONE
        n_large += not small
    return n_large


@njit(**ELEMENT)
def _is_small(x):
    return x < np.float32(N_SMALL) and np.float32(np.int32(x)) == x


@njit(**LOOP)
def nb_row(dense, unit, scale, log_unit, shift, theta, inverse, weight, g, th):
    """Negative binomial; returns the sums of values and of `g`.

    `th` is added to, times `weight`. `dense` holds the counts and is set to zero.
    """
    value, total_g = _ZERO, _ZERO
    for j in range(unit.shape[0]):
        x = dense[j]
        val, g_j, th_j = _nb_entry(x, unit[j] * scale, log_unit[j] + shift, theta[j], inverse[j])
        here = x >= _ZERO
        g_j = g_j if here else _ZERO
        value += val if here else _ZERO
        total_g += g_j
        g[j] = g_j
        th[j] += (th_j if here else _ZERO) * weight
        dense[j] = _ZERO
    return value, total_g


@njit(**ROW)
def zinb_row(dense, unit, scale, log_unit, shift, theta, inverse, dropout, weight, g, th, pi, val, own):
    """Zero-inflated negative binomial, as `nb_row`; `pi` is filled, times `weight`. `val` and `own` are buffers."""
    for j in range(unit.shape[0]):  # in two loops, since one for all runs out of registers
        val[j], g[j], own[j] = _nb_entry(dense[j], unit[j] * scale, log_unit[j] + shift, theta[j], inverse[j])
    for j in range(unit.shape[0]):
        x = dense[j]
        cost, share, pi_j = _inflated(x, val[j], wide(dropout[j]))
        here = x >= _ZERO
        val[j] = cost if here else _ZERO
        g[j] = g[j] * share if here else _ZERO
        th[j] += (own[j] * share if here else _ZERO) * weight
        pi[j] = pi_j * weight
        dense[j] = _ZERO
    return row_sum(val), row_sum(g)


@njit(**ELEMENT)
def _inflated(x, nb, logit):
    """Value with zero inflation, share of the negative binomial in its gradients, and gradient of the logit."""
    t = exp(-abs(logit))
    larger = _ONE / (_ONE + t)
    extra = larger if logit > _ZERO else t * larger
    kept = t * larger if logit > _ZERO else larger
    zero = exp(-nb)
    z = extra + kept * zero
    inverse = _ONE / z
    observed = x != _ZERO
    log_z = log(_ONE + t if observed else z)
    value = nb + (logit if logit > _ZERO else _ZERO) + log_z if observed else -log_z
    share = _ONE if observed else kept * zero * inverse
    pi = extra if observed else -extra * kept * (_ONE - zero) * inverse
    return value, share, pi


@njit(error_model="numpy", nogil=True, cache=True)
def add_rising(x_row, columns, theta, tables, slopes, offset, weight, th):
    """Add what gamma functions contribute to `th`, times `weight`, at small counts; return what to take off the value.

    Gene j has the column ``offset + j`` of the tables; without tables, each count takes sums of its own.
    """
    total = _ZERO
    for k in range(x_row.shape[0]):
        x = x_row[k]
        if not _is_small(x) or x <= _ZERO:
            continue
        count, j = np.uint64(np.int32(x)), np.uint64(columns[k])
        if tables.shape[0]:
            total += tables[count, np.uint64(offset) + j]
            th[j] += slopes[count, np.uint64(offset) + j] * weight
        else:
            rising, slope = rising_small(count, np.float64(theta[j]))
            total += np.float32(rising)
            th[j] += np.float32(slope) * weight
    return total


@njit(error_model="numpy", nogil=True, cache=True)
def add_large(x_row, columns, log_unit, shift, theta, weight, g, th):
    """Negative binomial at the counts that are left out elsewhere; returns the sums of values and of `g`."""
    value, total_g = 0.0, 0.0
    for k in range(x_row.shape[0]):
        if not _is_small(x_row[k]):
            j = columns[k]
            log_mean = np.float64(log_unit[j]) + np.float64(shift)
            val, g_j, th_j = _nb_large(np.float64(x_row[k]), log_mean, np.float64(theta[j]))
            value += val
            total_g += g_j
            g[j] = g_j
            th[j] += np.float32(th_j) * weight
    return np.float32(value), np.float32(total_g)


@njit(error_model="numpy", nogil=True, cache=True)
def _nb_large(x, log_mean, theta):
    """Value and gradients at a large count in float64: terms of size x log(mean) cancel."""
    rising, slope = rising_large(x, theta)
    u = math.exp(log_mean) / theta
    r = 1.0 / (1.0 + u)
    q = math.log1p(u)
    value = theta * q + x * (q - log_mean) - rising
    th = theta * (q - u * r) + slope - x * u * r
    return value, r * (theta * u - x), th


@njit(error_model="numpy", nogil=True, cache=True)
def inflate_large(x_row, columns, dropout, weight, pi):
    """Fill `pi` at the counts that `zinb_row` left out, and return what zero inflation costs them: -log(1 - p)."""
    cost = 0.0
    for k in range(x_row.shape[0]):
        if not _is_small(x_row[k]):
            logit = wide(dropout[columns[k]])
            t = math.exp(-abs(logit))
            cost += max(logit, 0.0) + math.log1p(t)
            chance = (1.0 if logit > 0.0 else t) / (1.0 + t)
            pi[columns[k]] = np.float32(chance) * weight
    return np.float32(cost)


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
