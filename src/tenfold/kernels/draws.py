"""Draws from distributions that NumPy does not have: generalised inverse Gaussian, Wishart, Gaussian by precision."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit
from scipy.linalg import solve_triangular


@njit(cache=True, nogil=True)
def _psi(x, alpha, p):  # pragma: no cover - compiled
    return -alpha * (np.cosh(x) - 1) - p * (np.exp(x) - x - 1)


@njit(cache=True, nogil=True)
def _slope(x, alpha, p):  # pragma: no cover - compiled
    return -alpha * np.sinh(x) - p * (np.exp(x) - 1)


@njit(cache=True, nogil=True)
def inverse_gaussian(p, a, b, rng):  # pragma: no cover - compiled
    """Draw from the generalised inverse Gaussian: density proportional to x^(p - 1) exp(-(a x + b / x) / 2).

    By rejection from a log-concave envelope of log x.

    Parameters
    ----------
    p
        Any number.
    a, b
        Positive.
    rng
        NumPy generator.

    References
    ----------
    Devroye (2014), doi 10.1007/s11222-012-9367-z.
    """
    omega, power = np.sqrt(a * b), abs(p)
    alpha = np.sqrt(omega**2 + power**2) - power
    right, left = -_psi(1.0, alpha, power), -_psi(-1.0, alpha, power)
    t = 1.0
    if right > 2:
        t = np.sqrt(2 / (alpha + power))
    elif right < 0.5:
        t = np.log(4 / (alpha + 2 * power))
    s = 1.0
    if left > 2:
        s = np.sqrt(4 / (alpha * np.cosh(1.0) + power))
    elif left < 0.5:
        s = np.log(1 + 1 / alpha + np.sqrt(1 / alpha**2 + 2 / alpha))
        if power > 0:
            s = min(1 / power, s)
    eta, zeta = -_psi(t, alpha, power), -_slope(t, alpha, power)
    theta, xi = -_psi(-s, alpha, power), _slope(-s, alpha, power)
    tail, head = 1 / zeta, 1 / xi
    t_flat, s_flat = t - tail * eta, s - head * theta
    flat = t_flat + s_flat
    while True:
        u, v, w = rng.random(), rng.random(), rng.random()
        if u < flat / (flat + tail + head):
            x, envelope = -s_flat + flat * v, 0.0
        elif u < (flat + tail) / (flat + tail + head):
            x = t_flat - tail * np.log(v)
            envelope = -eta - zeta * (x - t)
        else:
            x = -s_flat + head * np.log(v)
            envelope = -theta + xi * (x + s)
        if np.log(w) + envelope <= _psi(x, alpha, power):
            break
    ratio = power / omega
    y = (ratio + np.sqrt(1 + ratio**2)) * np.exp(x)
    return (1 / y if p < 0 else y) * np.sqrt(b / a)


def wishart(freedom: float, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw from the Wishart distribution of mean freedom × the inverse of `scale`.

    Parameters
    ----------
    freedom
        Degrees of freedom, more than d - 1.
    scale
        Inverse of the scale matrix, (d, d): a prior scatter plus that of the data.
    rng
        NumPy generator.

    Returns
    -------
    A precision matrix, (d, d): its inverse is inverse-Wishart of `freedom` and `scale`.
    """
    d = len(scale)
    bartlett = np.tril(rng.standard_normal((d, d)), -1)
    bartlett[np.diag_indices(d)] = np.sqrt(rng.chisquare(freedom - np.arange(d)))
    # scale = L Lᵀ, so L⁻ᵀ is a square root of its inverse.
    root = solve_triangular(np.linalg.cholesky(scale), bartlett, lower=True, trans="T")
    return root @ root.T


def gaussian(precision: np.ndarray, shift: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw Gaussians of mean precision⁻¹ shift, many at once.

    Parameters
    ----------
    precision
        Shape (n, d, d).
    shift
        Shape (n, d).
    rng
        NumPy generator.

    Returns
    -------
    Shape (n, d).
    """
    lower = np.linalg.cholesky(precision)
    half = np.linalg.solve(lower, shift[..., None]) + rng.standard_normal((*shift.shape, 1))
    return np.linalg.solve(lower.swapaxes(1, 2), half)[..., 0]
