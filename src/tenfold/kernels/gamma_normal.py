"""Mixtures of a normal and a gamma distribution, one a row, by expectation and maximisation; shared among threads."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from tenfold.kernels.threads import in_threads

_LARGEST_SHAPE = 150.0
_SMALLEST_VARIANCE = 1e-11
_USUAL_RATE = 3.0  # where the gamma part is empty
FEWEST_VALUES = 5


def gamma_normal(
    pointers: np.ndarray, values: np.ndarray, first: np.ndarray, tolerance: float = 1e-7, most_steps: int = 10_000
) -> np.ndarray:
    """Fit ``rho N(mu, sigma²) + (1 - rho) Gamma(shape, rate)`` to the values of each row.

    The rate is set from the shape of the step before and the shape from the new rate, at most 150, as in the reference
    implementation; a row ends when no parameter changes by more than `tolerance`. Long steps are taken where they make
    the values more likely (SQUAREM), for plain ones need thousands.

    Parameters
    ----------
    pointers
        Where each row starts in `values`, (n_rows + 1,), int64.
    values
        Positive, (n_values,).
    first
        First guess of the probability that a value is of the normal part, (n_values,).
    tolerance, most_steps
        When to end.

    Returns
    -------
    rho, mu, sigma, shape and rate of each row, (n_rows, 5), float64; NaN for a row of fewer than 5 values, or
    whose normal part empties.
    """
    x, z = np.ascontiguousarray(values, dtype=np.float64), np.array(first, dtype=np.float64)
    logs, found = np.log(x), np.full((len(pointers) - 1, 5), np.nan)
    in_threads(lambda start, stop: _rows(pointers, x, logs, z, tolerance, most_steps, start, stop, found), len(found))
    return found


@njit(error_model="numpy", nogil=True, cache=True)
def _rows(pointers, x, logs, z, tolerance, most_steps, start, stop, found):
    for row in range(start, stop):
        own = slice(pointers[row], pointers[row + 1])
        if pointers[row + 1] - pointers[row] >= FEWEST_VALUES:
            fitted = _fit(x[own], logs[own], z[own], tolerance, most_steps)
            for k in range(5):  # loops throughout: each expression of whole arrays takes a second to compile
                found[row, k] = fitted[k]


@njit(error_model="numpy", nogil=True, cache=True)
def _fit(x, logs, z, tolerance, most_steps):
    """Take two plain steps and then a long one along both, until a plain step changes nothing any more."""
    if z.sum() == 0:
        z[0] = 1.0
    now, one, two, far = np.empty(5), np.empty(5), np.empty(5), np.empty(5)
    _maximise(x, logs, z, 1.0, now)
    for _ in range(most_steps // 3):
        _step(x, logs, z, now, one)
        moves = False  # also where the normal part has emptied, and its mean is undefined
        for k in range(5):
            moves |= abs(one[k] - now[k]) > tolerance
        if not moves:
            now = one
            break
        likelihood = _step(x, logs, z, one, two)
        leap = _extrapolated(now, one, two)
        # A leap that makes the values less likely than a plain step would is not taken: it can end in a flat corner.
        if _step(x, logs, z, leap, far) >= likelihood:
            now, far = far, now
        else:
            now, two = two, now
    now[2] = math.sqrt(now[2])
    return now


@njit(error_model="numpy", nogil=True, cache=True)
def _extrapolated(zero, one, two):
    """Return the squared extrapolation on free scales: logit rho, mu, and logarithms of the others."""
    free = np.empty((3, 5))
    for i, state in enumerate((zero, one, two)):
        rho = min(max(state[0], 1e-12), 1 - 1e-12)
        free[i, 0], free[i, 1] = math.log(rho / (1 - rho)), state[1]
        for k in range(2, 5):
            free[i, k] = math.log(state[k])
    squared_step, squared_bend = 0.0, 0.0
    for k in range(5):
        squared_step += (free[1, k] - free[0, k]) ** 2
        squared_bend += (free[2, k] - 2 * free[1, k] + free[0, k]) ** 2
    length = math.sqrt(squared_step / squared_bend) if squared_bend > 0 else 1.0
    if not length > 1:
        return two
    found = np.empty(5)
    for k in range(5):
        bend = free[2, k] - 2 * free[1, k] + free[0, k]
        found[k] = free[0, k] + 2 * length * (free[1, k] - free[0, k]) + length * length * bend
    found[0] = 1 / (1 + math.exp(-found[0]))
    usable = True
    for k in range(5):
        if k >= 2:
            found[k] = math.exp(found[k])
        usable &= math.isfinite(found[k])
    # A leap out of the range that plain steps can reach is not taken.
    inside = 1e-9 < found[0] < 1 - 1e-9 and found[3] <= _LARGEST_SHAPE and found[2] > _SMALLEST_VARIANCE
    return found if usable and inside else two


@njit(error_model="numpy", nogil=True, cache=True)
def _step(x, logs, z, state, new):
    """Write the parameters that follow on `state`: rho, mu, variance, shape, rate; return its log-likelihood."""
    rho, mu, variance, shape, rate = state
    normal = math.log(rho) - 0.5 * math.log(2 * math.pi * variance)
    gamma = math.log(1 - rho) + shape * math.log(rate) - math.lgamma(shape)
    likelihood = 0.0
    for i in range(x.shape[0]):
        one = normal - (x[i] - mu) ** 2 / (2 * variance)
        other = gamma + (shape - 1) * logs[i] - rate * x[i]
        if one > other:
            small = math.exp(other - one)
            z[i] = 1 / (1 + small)
            likelihood += one + math.log(1 + small)
        else:
            small = math.exp(one - other)
            z[i] = small / (1 + small)
            likelihood += other + math.log(1 + small)
    _maximise(x, logs, z, shape, new)
    return likelihood


@njit(error_model="numpy", nogil=True, cache=True)
def _maximise(x, logs, z, shape, new):
    n, weight, first, second, rest, rest_log = x.shape[0], 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        weight += z[i]
        first += z[i] * x[i]
        rest += (1 - z[i]) * x[i]
        rest_log += (1 - z[i]) * logs[i]
    mu = first / weight
    for i in range(n):
        second += z[i] * (x[i] - mu) ** 2
    variance = second / weight
    if not variance > _SMALLEST_VARIANCE:
        variance = _SMALLEST_VARIANCE
    rate = shape * (n - weight) / rest
    if not (rate > 0 and rate < np.inf):
        rate = _USUAL_RATE
    shape = inverse_digamma(math.log(rate) + rest_log / (n - weight)) if n > weight else _LARGEST_SHAPE
    if not shape <= _LARGEST_SHAPE:
        shape = _LARGEST_SHAPE
    new[0], new[1], new[2], new[3], new[4] = weight / n, mu, variance, shape, rate


@njit(error_model="numpy", nogil=True, cache=True)
def inverse_digamma(y):
    """Solve digamma(x) = y for x > 0 by Newton's method; from Minka's starting value five steps are exact."""
    x = math.exp(y) + 0.5 if y >= -2.22 else -1 / (y + 0.5772156649015329)
    for _ in range(5):
        digamma, trigamma = _polygamma(x)
        x -= (digamma - y) / trigamma
    return x


@njit(error_model="numpy", nogil=True, cache=True)
def _polygamma(x):
    """Digamma and trigamma: shifted up to 8 and expanded there."""
    digamma, trigamma = 0.0, 0.0
    while x < 8:
        digamma -= 1 / x
        trigamma += 1 / (x * x)
        x += 1
    s = 1 / (x * x)
    digamma += math.log(x) - 0.5 / x - s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))
    trigamma += 1 / x + s / 2 + s / x * (1 / 6 - s * (1 / 30 - s * (1 / 42 - s / 30)))
    return digamma, trigamma
