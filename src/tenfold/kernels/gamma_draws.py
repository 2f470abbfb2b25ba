"""Gamma variates as smooth functions of a normal and a uniform number, and the gamma functions of their shape.

A variate of shape a is one of shape a + 1 times a power 1 / a of a uniform number. The logarithm of the former, as a
function of a normal number n of the same rank and of x = 1 / sqrt(a + 1), is close to log(a + 1) + x times a
polynomial: within 0.001 for n from -3 to 3 and any a. It has a derivative by a for every n, so that networks whose
output is the shape are trained through draws, without the rejections and the implicit derivatives of PyTorch's own.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit
from scipy.special import gammainccinv, gammaincinv, ndtr

from tenfold.kernels.vectormath import ELEMENT, log

#: Powers of x and of n in the polynomial.
_POWERS_X, _POWERS_N = 6, 9
_HALF, _ONE, _THREE = np.float32(0.5), np.float32(1.0), np.float32(3.0)
#: Of the asymptotic series, with (1/2) log(2 pi).
_LOG_ROOT, _12TH, _360TH, _120TH, _6TH, _30TH = map(
    np.float32, (0.5 * np.log(2 * np.pi), 1 / 12, 1 / 360, 1 / 120, 1 / 6, 1 / 30)
)


def _fitted() -> tuple[tuple[np.float32, ...], ...]:
    """Fit the polynomial to quantiles of the gamma distribution by least squares, most to those that are drawn most."""
    x = np.maximum(0.5 + 0.5 * np.cos(np.pi * (np.arange(60) + 0.5) / 60), 0.02)[:, None]
    n = 5.2 * np.cos(np.pi * (np.arange(121) + 0.5) / 121)
    shape = 1 / x**2
    drawn = np.where(n < 0, gammaincinv(shape, ndtr(n)), gammainccinv(shape, ndtr(-n)))
    terms = [x**i * n**j for i in range(_POWERS_X) for j in range(_POWERS_N)]
    weight = np.broadcast_to(np.exp(-(n**2) / 8), drawn.shape)
    design = np.stack([(term * weight).ravel() for term in terms], axis=1)
    found = np.linalg.lstsq(design, (np.log(drawn / shape) / x * weight).ravel(), rcond=None)[0]
    return tuple(tuple(map(np.float32, row)) for row in found.reshape(_POWERS_X, _POWERS_N))


#: Coefficients, a row a power of x; constants for the compiler.
COEFFICIENTS = _fitted()
_C0, _C1, _C2, _C3, _C4, _C5 = COEFFICIENTS


@njit(**ELEMENT)
def _of_normal(c, n):
    return (((((((c[8] * n + c[7]) * n + c[6]) * n + c[5]) * n + c[4]) * n + c[3]) * n + c[2]) * n + c[1]) * n + c[0]


@njit(**ELEMENT)
def log_variate(a, normal):
    """Return the log of a gamma variate of shape a + 1, and its derivative by a."""
    b = a + _ONE
    x = _ONE / np.sqrt(b)
    p0, p1, p2 = _of_normal(_C0, normal), _of_normal(_C1, normal), _of_normal(_C2, normal)
    p3, p4, p5 = _of_normal(_C3, normal), _of_normal(_C4, normal), _of_normal(_C5, normal)
    h = ((((p5 * x + p4) * x + p3) * x + p2) * x + p1) * x + p0
    slope = (((np.float32(5.0) * p5 * x + np.float32(4.0) * p4) * x + _THREE * p3) * x + np.float32(2.0) * p2) * x + p1
    return log(b) + x * h, (_ONE - _HALF * x * (h + x * slope)) / b


@njit(**ELEMENT)
def gamma_functions(a):
    """Return log gamma, digamma and trigamma of a > 0: four steps up, then the asymptotic series."""
    product = a * (a + _ONE) * (a + np.float32(2.0)) * (a + _THREE)
    # Derivatives of a (a + 1) (a + 2) (a + 3) = a⁴ + 6 a³ + 11 a² + 6 a.
    first = ((np.float32(4.0) * a + np.float32(18.0)) * a + np.float32(22.0)) * a + np.float32(6.0)
    second = (np.float32(12.0) * a + np.float32(36.0)) * a + np.float32(22.0)
    inverse, y = _ONE / product, a + np.float32(4.0)
    steps = first * inverse
    r, log_y = _ONE / y, log(y)
    rr = r * r
    log_gamma = (y - _HALF) * log_y - y + _LOG_ROOT + r * (_12TH - _360TH * rr) - log(product)
    digamma = log_y - r * (_HALF + r * (_12TH - rr * _120TH)) - steps
    trigamma = r * (_ONE + r * (_HALF + r * (_6TH - rr * _30TH))) + steps * steps - second * inverse
    return log_gamma, digamma, trigamma
