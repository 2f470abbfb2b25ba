"""Units and normal variables of every label and cell: what is computed for each of them, in one pass each."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np
from numba import njit

from tenfold.kernels.vectormath import LOOP

_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


@njit(**LOOP)
def rectify(x, of_labels, words, dropout, h):
    """Fill ``h`` with what ReLU leaves of `x` and the label's part, label by label; rows of `x` come over and over.

    Of `words`, random 16-bit numbers, those below the share `dropout` silence units; the others are scaled up. `words`
    of no rows stand for no dropout.
    """
    n_rows, width = h.shape
    n_cells = n_rows // of_labels.shape[0]
    scale, least = np.float32(1.0 / (1.0 - dropout)), np.int32(round(dropout * 65536.0))
    for i in range(n_rows):
        source, label = i % x.shape[0], i // n_cells
        for j in range(width):
            y = x[source, j] + of_labels[label, j]
            h[i, j] = y if y > _ZERO else _ZERO
        if words.shape[0]:
            for j in range(width):
                h[i, j] = h[i, j] * scale if np.int32(words[i, j]) >= least else _ZERO


@njit(**LOOP)
def rectify_backward(upstream, h, dropout, of_cells, of_labels):
    """Turn the gradient of ``h`` into that of what ReLU was given, in place, and add it up over labels and cells."""
    n_rows, width = h.shape
    n_cells = of_cells.shape[0]
    scale = np.float32(1.0 / (1.0 - dropout))
    of_cells[:] = _ZERO
    of_labels[:] = _ZERO
    for i in range(n_rows):
        cell, label = i % n_cells, i // n_cells
        for j in range(width):
            # A unit that ReLU or dropout silenced is exactly 0.
            grad = upstream[i, j] * scale if h[i, j] > _ZERO else _ZERO
            upstream[i, j] = grad
            of_cells[cell, j] += grad
            of_labels[label, j] += grad


@njit(**LOOP)
def draw_forward(heads, noise, least, variance, z, kl):
    """Fill variance and draw from mean and log variance, (n, 2 width), and the KL of each row from N(0, I)."""
    n, width = z.shape
    for i in range(n):
        total = np.float32(0.0)
        for j in range(width):
            mean = heads[i, j]
            v = math.exp(heads[i, width + j]) + least
            variance[i, j] = v
            z[i, j] = mean + math.sqrt(v) * noise[i, j]
            total += _HALF * (mean * mean + v - math.log(v) - _ONE)
        kl[i] = total


@njit(**LOOP)
def draw_backward(grad_z, grad_kl, heads, noise, least, variance, grad_heads):
    """Turn the gradients of draws and of the KL of each row into that of mean and log variance."""
    n, width = grad_z.shape
    for i in range(n):
        weight = grad_kl[i]
        for j in range(width):
            v = variance[i, j]
            grad_heads[i, j] = grad_z[i, j] + weight * heads[i, j]
            grad_v = _HALF * (grad_z[i, j] * noise[i, j] / np.sqrt(v) + weight * (_ONE - _ONE / v))
            grad_heads[i, width + j] = grad_v * (v - least)


@njit(**LOOP)
def density_forward(heads, z, density):
    """Fill the log density of cells, (n_cells, width), under the mean and log variance of each label and cell."""
    n_cells, width = z.shape
    constant = np.float32(math.log(2.0 * math.pi))
    for i in range(heads.shape[0]):
        cell, total = i % n_cells, np.float32(0.0)
        for j in range(width):
            apart, log_variance = z[cell, j] - heads[i, j], heads[i, width + j]
            total += apart * apart * math.exp(-log_variance) + log_variance + constant
        density[i] = -_HALF * total


@njit(**LOOP)
def density_backward(grad, heads, z, grad_heads, grad_z):
    """Turn the gradient of each density into that of mean and log variance, and add up that of the cells."""
    n_cells, width = z.shape
    for i in range(heads.shape[0]):
        cell, weight = i % n_cells, grad[i]
        for j in range(width):
            apart, inverse = z[cell, j] - heads[i, j], np.float32(math.exp(-heads[i, width + j]))
            slope = weight * apart * inverse
            grad_heads[i, j] = slope
            grad_heads[i, width + j] = _HALF * (slope * apart - weight)
            grad_z[cell, j] -= slope
