"""Batch norm, ReLU and dropout in one pass, and what a variational autoencoder has between its large products.

For networks whose layers are so small that starting an operation costs as much as carrying it out.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from tenfold.kernels.vectormath import LOOP

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


class Normed(NamedTuple):
    """The norm of a layer as compiled code takes it."""

    gamma: np.ndarray
    beta: np.ndarray
    running_mean: np.ndarray
    running_variance: np.ndarray
    dropout: float
    eps: float
    momentum: float


class Units(NamedTuple):
    """What a layer with a norm makes of its linear map `a`: see `normed_forward`."""

    a: np.ndarray
    standard: np.ndarray
    inverse: np.ndarray
    h: np.ndarray


class Latent(NamedTuple):
    """The latent variable of some cells: mean and log variance side by side, noise, variance and draw."""

    heads: np.ndarray
    noise: np.ndarray
    variance: np.ndarray
    z: np.ndarray


class MiddleGradients(NamedTuple):
    """Gradients of what `middle_forward` takes: weights in the order of the network, then the two linear maps."""

    gamma: np.ndarray
    beta: np.ndarray
    w_heads: np.ndarray
    b_heads: np.ndarray
    w: np.ndarray
    gamma_2: np.ndarray
    beta_2: np.ndarray
    a: np.ndarray
    a_2: np.ndarray


def units(n: int, width: int) -> Units:
    """Return memory for the units of a layer, (n, width)."""
    a, standard, h = (np.empty((n, width), np.float32) for _ in range(3))
    return Units(a, standard, np.empty(width, np.float32), h)


def latent(n: int, width: int) -> Latent:
    """Return memory for a latent variable, (n, width)."""
    noise, variance, z = (np.empty((n, width), np.float32) for _ in range(3))
    return Latent(np.empty((n, 2 * width), np.float32), noise, variance, z)


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


@njit(**LOOP)
def middle_forward(first, norm, words, w_heads, b_heads, least, latent, w, second, norm_2, words_2):
    """Go from the linear map of the encoder's layer, ``first.a``, to the units of the decoder's, ``second.h``.

    ``latent.noise`` is given, ``second.a`` holds what the decoder is told beside the latent variable. Returns the mean
    KL from N(0, I).
    """
    _normed(first, norm, words)
    latent.heads[:] = b_heads
    _add_product_of_transpose(first.h, w_heads, latent.heads)
    kl = latent_forward(latent.heads, latent.noise, least, latent.variance, latent.z)
    _add_product(latent.z, w, second.a)
    _normed(second, norm_2, words_2)
    return kl


@njit(**LOOP)
def middle_backward(upstream, first, norm, w_heads, least, latent, kl_weight, w, second, norm_2, grads):
    """Fill the gradients from that of ``second.h``, `upstream`."""
    _normed_back(upstream, second, norm_2, grads.gamma_2, grads.beta_2, grads.a_2)
    grads.w[:] = _ZERO
    _add_transposed_product(latent.z, grads.a_2, grads.w)
    grad_z = np.zeros_like(latent.z)
    _add_product_of_transpose(grads.a_2, w, grad_z)
    grad_heads = np.empty_like(latent.heads)
    latent_backward(grad_z, latent.heads, latent.noise, least, latent.variance, kl_weight, grad_heads)
    grads.b_heads[:] = _ZERO
    for i in range(grad_heads.shape[0]):
        for j in range(grad_heads.shape[1]):
            grads.b_heads[j] += grad_heads[i, j]
    grads.w_heads[:] = _ZERO
    _add_transposed_product(grad_heads, first.h, grads.w_heads)
    grad_h = np.zeros_like(first.h)
    _add_product(grad_heads, w_heads, grad_h)
    _normed_back(grad_h, first, norm, grads.gamma, grads.beta, grads.a)


@njit(**LOOP)
def _normed_back(upstream, layer, norm, grad_gamma, grad_beta, grad_a):
    scale = np.float32(1.0 / (1.0 - norm.dropout))
    normed_backward(upstream, layer.h, layer.standard, layer.inverse, norm.gamma, scale, grad_gamma, grad_beta, grad_a)


@njit(**LOOP)
def _normed(layer, norm, words):
    normed_forward(
        layer.a, norm.gamma, norm.beta, words, norm.dropout, norm.eps, norm.momentum, norm.running_mean,
        norm.running_variance, layer.standard, layer.inverse, layer.h,
    )  # fmt: skip


@njit(**LOOP)
def _add_product(x, matrix, out):
    """``out += x @ matrix``."""
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            factor = x[i, k]
            for j in range(out.shape[1]):
                out[i, j] += factor * matrix[k, j]


@njit(**LOOP)
def _add_product_of_transpose(x, matrix, out):
    """``out += x @ matrix.T``."""
    for i in range(x.shape[0]):
        for k in range(matrix.shape[0]):
            total = _ZERO
            for j in range(x.shape[1]):
                total += x[i, j] * matrix[k, j]
            out[i, k] += total


@njit(**LOOP)
def _add_transposed_product(x, matrix, out):
    """``out += x.T @ matrix``."""
    for i in range(x.shape[0]):
        for k in range(x.shape[1]):
            factor = x[i, k]
            for j in range(out.shape[1]):
                out[k, j] += factor * matrix[i, j]
