"""Contrasts of rows of cosines: their values and what their gradients need, in one pass."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit

from tenfold.kernels.vectormath import LOOP, exp

_ZERO = np.float32(0.0)


@njit(**LOOP)
def told_apart_rows(logits, start, highest, value):
    """Turn logits into the gradient, by them, of the cross-entropy of the own column, which `value` takes.

    The own column of the first row is `start`, that of the next one more; `highest` is at least the largest logit.
    """
    for i in range(logits.shape[0]):
        row = logits[i]
        own, total = row[start + i] - highest, _ZERO
        for j in range(row.shape[0]):
            row[j] = exp(row[j] - highest)
            total += row[j]
        value[i] = np.log(total) - own
        share = np.float32(1.0) / total
        for j in range(row.shape[0]):
            row[j] *= share
        row[start + i] -= np.float32(1.0)


@njit(**LOOP)
def undecided_rows(logits, highest, value):
    """Turn logits into the gradient, by them, of the entropy of their softmax, which `value` takes."""
    apart = np.empty(logits.shape[1], np.float32)
    for i in range(logits.shape[0]):
        row = logits[i]
        total, weighted = _ZERO, _ZERO
        for j in range(row.shape[0]):
            apart[j] = row[j] - highest
            row[j] = exp(apart[j])
            total += row[j]
            weighted += row[j] * apart[j]
        mean, share = weighted / total, np.float32(1.0) / total
        value[i] = np.log(total) - mean
        for j in range(row.shape[0]):
            row[j] *= share * (mean - apart[j])
