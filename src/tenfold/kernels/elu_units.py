"""Batch norm, ELU and dropout in one pass each way, and the squared error of what a decoder makes with ELU.

PyTorch takes a pass over memory for each of a dozen steps; here a row is dealt with while it is in the cache.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
import torch
from numba import njit

from tenfold.kernels.vectormath import LOOP, exp

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
#: For no dropout.
NO_BYTES = np.empty((0, 0), np.uint8)


def random_bytes(n: int, width: int, share: float) -> np.ndarray:
    """Draw bytes from PyTorch's generator for `kept`, shape (n, width), uint8; no rows where nothing is silenced."""
    if not share:
        return NO_BYTES
    drawn = torch.empty(-(-n * width // 8), dtype=torch.int64).random_(-(2**63), None)
    return drawn.numpy().view(np.uint8)[: n * width].reshape(n, width)


def kept(share: float) -> tuple[np.int32, np.float32]:
    """Return how many of 256 values of a byte leave a unit as it is, and what those units are multiplied with."""
    values = max(1, round((1 - share) * 256))
    return np.int32(values), np.float32(256 / values)


@njit(**LOOP)
def elu_units_forward(a, gamma, beta, noise, values, scale, eps, momentum, running_mean, running_variance, standard,
                      inverse, h):  # fmt: skip
    """Fill `h` with ``elu(gamma * standard + beta)``, `standard` being `a` normalised over its rows; then dropout.

    `inverse` takes one over the standard deviation; running moments move on.
    """
    n, width = a.shape
    mean = np.zeros(width, np.float32)
    variance = np.zeros(width, np.float32)
    for i in range(n):
        for j in range(width):
            mean[j] += a[i, j]
    share = _ONE / np.float32(n)
    for j in range(width):
        mean[j] *= share
    for i in range(n):
        for j in range(width):
            apart = a[i, j] - mean[j]
            variance[j] += apart * apart
    unbiased = _ONE / np.float32(n - 1)
    for j in range(width):
        running_mean[j] += momentum * (mean[j] - running_mean[j])
        running_variance[j] += momentum * (variance[j] * unbiased - running_variance[j])
        inverse[j] = _ONE / np.sqrt(variance[j] * share + eps)
    for i in range(n):
        for j in range(width):
            standard[i, j] = (a[i, j] - mean[j]) * inverse[j]
            h[i, j] = _elu(gamma[j] * standard[i, j] + beta[j])
        if noise.shape[0]:
            for j in range(width):
                h[i, j] = h[i, j] * scale if np.int32(noise[i, j]) < values else _ZERO


@njit(**LOOP)
def elu_units_backward(upstream, h, standard, inverse, gamma, noise, values, scale, grad_gamma, grad_beta, grad_a):
    """Turn the gradient of `h` into those of `gamma`, `beta` and the input of `elu_units_forward`."""
    n, width = h.shape
    least = _ONE / scale
    for j in range(width):
        grad_gamma[j] = _ZERO
        grad_beta[j] = _ZERO
    for i in range(n):
        if noise.shape[0]:
            for j in range(width):
                y = h[i, j] * least
                slope = _ONE if y > _ZERO else y + _ONE
                grad_a[i, j] = upstream[i, j] * slope * scale if np.int32(noise[i, j]) < values else _ZERO
        else:
            for j in range(width):
                y = h[i, j]
                grad_a[i, j] = upstream[i, j] * (_ONE if y > _ZERO else y + _ONE)
        for j in range(width):
            grad_beta[j] += grad_a[i, j]
            grad_gamma[j] += grad_a[i, j] * standard[i, j]
    share = _ONE / np.float32(n)
    for i in range(n):
        for j in range(width):
            rest = grad_a[i, j] - share * (grad_beta[j] + standard[i, j] * grad_gamma[j])
            grad_a[i, j] = gamma[j] * inverse[j] * rest


@njit(**LOOP)
def elu_apart(output, noise, values, scale, x, indptr, indices, entries, error):
    """Turn rows before the ELU into half the gradient of their squared error, which `error` takes.

    The error is that of ``elu(output)``, after dropout, to the rows `x`; where `x` has no rows, to rows in CSR form.
    """
    n, width = output.shape
    made, slope = np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(n):
        row = output[i]
        for j in range(width):
            made[j] = _elu(row[j])
            slope[j] = _ONE if row[j] > _ZERO else made[j] + _ONE
        if noise.shape[0]:
            for j in range(width):
                factor = scale if np.int32(noise[i, j]) < values else _ZERO
                made[j] *= factor
                slope[j] *= factor
        if x.shape[0]:
            for j in range(width):
                made[j] -= x[i, j]
        else:
            for k in range(indptr[i], indptr[i + 1]):
                made[indices[k]] -= entries[k]
        total = _ZERO
        for j in range(width):
            total += made[j] * made[j]
            row[j] = slope[j] * made[j]
        error[i] = total


@njit(**{**LOOP, "forceinline": True})
def _elu(y):
    return y if y > _ZERO else exp(y) - _ONE
