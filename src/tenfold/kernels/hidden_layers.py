"""Batch norm, ReLU and dropout in one pass, and the latent variable of a variational autoencoder; both ways.

For networks whose layers are so small that starting an operation costs as much as carrying it out.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit

from tenfold.kernels.vectormath import LOOP

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


def random_words(n: int, width: int) -> np.ndarray:
    """Draw uniform 16-bit numbers from PyTorch's generator, shape (n, width), uint16."""
    drawn = torch.empty(-(-n * width // 4), dtype=torch.int64).random_(-(2**63), None)
    return drawn.numpy().view(np.uint16)[: n * width].reshape(n, width)


@njit(**LOOP)
def normed_forward(
    a, gamma, beta, words, dropout, eps, momentum, running_mean, running_variance, standard, inverse, h
):  # fmt: skip
    """Fill `h` with ``relu(gamma * standard + beta)``, `standard` being `a` normalised over its rows.

    Of `words`, random 16-bit numbers, those below the share `dropout` silence units; the others are scaled up. `words`
    of no rows stand for no dropout. `inverse` takes one over the standard deviation; running moments move on.
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
    scale, least = np.float32(1.0 / (1.0 - dropout)), np.int32(round(dropout * 65536.0))
    for i in range(n):
        for j in range(width):
            standard[i, j] = (a[i, j] - mean[j]) * inverse[j]
            y = gamma[j] * standard[i, j] + beta[j]
            h[i, j] = y if y > _ZERO else _ZERO
        if words.shape[0]:
            for j in range(width):
                h[i, j] = h[i, j] * scale if np.int32(words[i, j]) >= least else _ZERO


@njit(**LOOP)
def normed_backward(upstream, h, standard, inverse, gamma, scale, grad_gamma, grad_beta, grad_a):
    """Turn the gradient of `h` into those of `gamma`, `beta` and the input of `normed_forward`.

    `scale` is what dropout multiplies the units that it leaves by.
    """
    n, width = h.shape
    for j in range(width):
        grad_gamma[j] = _ZERO
        grad_beta[j] = _ZERO
    for i in range(n):
        for j in range(width):
            # A unit that ReLU or dropout silenced is exactly 0.
            grad = upstream[i, j] * scale if h[i, j] > _ZERO else _ZERO
            grad_a[i, j] = grad
            grad_beta[j] += grad
            grad_gamma[j] += grad * standard[i, j]
    share = _ONE / np.float32(n)
    for i in range(n):
        for j in range(width):
            rest = grad_a[i, j] - share * (grad_beta[j] + standard[i, j] * grad_gamma[j])
            grad_a[i, j] = gamma[j] * inverse[j] * rest


@njit(**LOOP)
def latent_forward(heads, noise, least, variance, z):
    """Fill variance and draw of the latent variable from its mean and log variance; return the mean KL from N(0, I)."""
    n, width = z.shape
    kl = 0.0
    for i in range(n):
        for j in range(width):
            mean = heads[i, j]
            v = math.exp(heads[i, width + j]) + least
            variance[i, j] = v
            z[i, j] = mean + math.sqrt(v) * noise[i, j]
            kl += 0.5 * (mean * mean + v - math.log(v) - 1.0)
    return kl / n


@njit(**LOOP)
def latent_backward(grad_z, heads, noise, least, variance, kl_weight, grad_heads):
    """Turn the gradient of the draw, and of `kl_weight` times the mean KL, into that of mean and log variance."""
    n, width = grad_z.shape
    weight = np.float32(kl_weight / n)
    for i in range(n):
        for j in range(width):
            v = variance[i, j]
            grad_heads[i, j] = grad_z[i, j] + weight * heads[i, j]
            grad_v = _HALF * (grad_z[i, j] * noise[i, j] / np.sqrt(v) + weight * (_ONE - _ONE / v))
            grad_heads[i, width + j] = grad_v * (v - least)
