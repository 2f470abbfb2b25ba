"""Cells in PCA space with known types and batches, for the evidence on Harmony and BBKNN."""

from __future__ import annotations

import numpy as np


def simulate(n: int, n_batches: int, effect: float, seed: int = 0, d: int = 50, n_types: int = 15):
    """Return coordinates (n, d) float32, batch and type of every cell.

    Types and cells are Gaussian, with a standard deviation that falls along the dimensions as in a PCA. Every batch
    is moved by a Gaussian offset of standard deviation `effect` in every dimension. The last type occurs in batch 0
    only and has a close twin, the type before it, which occurs in all.
    """
    rng = np.random.default_rng(seed)
    spread = 1 / np.sqrt(1 + np.arange(d))
    centres = 3 * rng.normal(size=(n_types, d)) * spread
    centres[-1] = centres[-2] + rng.normal(size=d) * spread
    types, batch = rng.integers(n_types, size=n), rng.integers(n_batches, size=n)
    elsewhere = (types == n_types - 1) & (batch != 0)
    types[elsewhere] = rng.integers(n_types - 1, size=elsewhere.sum())
    offset = effect * rng.normal(size=(n_batches, d))
    cells = centres[types] + offset[batch] + rng.normal(size=(n, d)) * spread
    return cells.astype(np.float32), batch, types
