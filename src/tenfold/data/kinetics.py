"""Splicing kinetics in closed form: transcription, splicing and degradation at constant rates."""

from __future__ import annotations

import numpy as np

Values = np.ndarray | float


def unspliced_after(t: np.ndarray, u0: Values, alpha: Values, beta: Values) -> np.ndarray:
    """Return unspliced RNA a time `t` after it was `u0`: du/dt = alpha - beta u. Arguments broadcast."""
    left = np.exp(-beta * t)
    return u0 * left + alpha / beta * (1 - left)


def spliced_after(t: np.ndarray, u0: Values, s0: Values, alpha: Values, beta: Values, gamma: Values) -> np.ndarray:
    """Return spliced RNA a time `t` after (u0, s0): ds/dt = beta u - gamma s; also where gamma is beta."""
    left, gap = np.exp(-gamma * t), np.abs(gamma - beta)
    small = gap * t < 1e-6
    # From the slower rate, so that no exponential grows: whichever of the two it is, the lag is the same.
    lag = np.where(small, -t, np.expm1(-gap * t) / np.where(small, 1.0, gap)) * np.exp(-np.minimum(beta, gamma) * t)
    return s0 * left + alpha / gamma * (1 - left) + (alpha - beta * u0) * lag


def two_phases(
    t: np.ndarray, switch: np.ndarray, alpha: np.ndarray, beta: np.ndarray, gamma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return u and s of a gene that is transcribed from 0 to `switch` and not after; it starts without RNA.

    Parameters
    ----------
    t
        Times, e.g. of shape (n_cells, 1).
    switch, alpha, beta, gamma
        Of each gene, e.g. of shape (n_genes,).

    Returns
    -------
    Unspliced and spliced, of the broadcast shape.
    """
    on = np.minimum(t, switch)
    u, s = unspliced_after(on, 0.0, alpha, beta), spliced_after(on, 0.0, 0.0, alpha, beta, gamma)
    off = np.maximum(t - switch, 0)
    return unspliced_after(off, u, 0.0, beta), spliced_after(off, u, s, 0.0, beta, gamma)
