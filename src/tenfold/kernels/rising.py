"""Gamma-function terms of the negative binomial, without cancellation at any dispersion.

log(Gamma(x + theta) / Gamma(theta)) = x log(theta) + T(x), with T(x) = log(1 + 1/theta) + ... + log(1 + (x-1)/theta).
T stays accurate where differences of log-gamma lose every digit (theta = 1e7 in float32), and tends to 0, the Poisson
limit. Its derivative is theta dT/dtheta = -D(x), with D(x) = 1/(theta + 1) + 2/(theta + 2) + ... + (x-1)/(theta + x-1).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np
from numba import njit

from tenfold.kernels.vectormath import ROW, log, log1p

#: Counts below it take finite sums; nearly all non-zero counts of single cells do.
N_SMALL = 16
#: log x! of the small counts.
LOG_FACTORIAL = np.array([math.lgamma(x + 1) for x in range(N_SMALL)])

_SHIFT = 16  # Stirling's series is taken at theta + 16, where four terms leave an error below 1e-13


@njit(error_model="numpy", nogil=True, cache=True)
def rising_small(x, theta):
    """Return T(x) - log x! and D(x) for an integer x below `N_SMALL`, as float64."""
    product = 1.0  # at theta = 1e-6 it stays below 1e97
    slope = 0.0
    for j in range(1, x):
        product *= 1.0 + j / theta
        slope += j / (theta + j)
    return math.log(product) - LOG_FACTORIAL[x], slope


@njit(error_model="numpy", nogil=True, cache=True)
def rising_large(x, theta):
    """Return T(x) - log x! and D(x) for any real x > 0, as float64, by Stirling's series at theta + 16."""
    a = theta + _SHIFT
    product = 1.0
    slope = 0.0
    for j in range(_SHIFT):
        product *= 1.0 + x / (theta + j)
        slope += x / ((theta + j) * (x + theta + j))
    growth = math.log1p(x / a)
    value = x * math.log1p(_SHIFT / theta) + (x + a - 0.5) * growth - x + _stirling(x + a) - _stirling(a)
    slope += growth + _digamma_tail(x + a) - _digamma_tail(a)
    return value - math.log(product) - math.lgamma(x + 1.0), x - theta * slope


@njit(error_model="numpy", nogil=True, cache=True)
def _stirling(z):
    """Log Gamma(z) minus (z - 1/2) log z - z + log(2 pi)/2, for z >= 16."""
    s = 1.0 / (z * z)
    return (1.0 / 12.0 - s * (1.0 / 360.0 - s * (1.0 / 1260.0 - s / 1680.0))) / z


@njit(error_model="numpy", nogil=True, cache=True)
def _digamma_tail(z):
    """Digamma(z) minus log z, for z >= 16."""
    s = 1.0 / (z * z)
    return -0.5 / z - s * (1.0 / 12.0 - s * (1.0 / 120.0 - s * (1.0 / 252.0 - s / 240.0)))


@njit(**ROW)
def fill_tables(theta, inverse, values, slopes):
    """Write T(x) - log x! and D(x) of x = 0, 1, ... into rows of `values` and `slopes`, one column an entry of theta.

    theta and its inverse have the shape (n,), float32; the tables (n_counts, n), or (0, n) to write nothing.
    """
    for x in range(min(values.shape[0], 2)):
        values[x] = np.float32(0.0)
        slopes[x] = np.float32(0.0)
    for x in range(2, values.shape[0]):
        last = np.float32(x - 1)
        log_x = log(np.float32(x))
        before, after = values[x - 1], values[x]
        slope_before, slope_after = slopes[x - 1], slopes[x]
        for j in range(theta.shape[0]):
            after[j] = before[j] + (log1p(last * inverse[j]) - log_x)
            slope_after[j] = slope_before[j] + last / (theta[j] + last)
