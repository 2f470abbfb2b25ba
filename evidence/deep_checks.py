"""What the acceptance scripts of deep integrators share: removed types, unequal proportions, neighbours of one type."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from tenfold.integrate._neighbors import nearest


def purity(embedding: np.ndarray, labels: np.ndarray, label: str) -> float:
    """Return the share of the 15 nearest neighbours of a type's cells that are of the type."""
    own = labels == label
    return float(own[nearest(embedding)[own]].mean())


def other_batch(embedding: np.ndarray, batch: np.ndarray) -> float:
    """Return the share of the 15 nearest neighbours of all cells that are of another batch."""
    return float((batch[nearest(embedding)] != batch[:, None]).mean())


def without_type(adata: AnnData, label: str) -> tuple[AnnData, AnnData]:
    """Return the cells without a type in all batches but the one with most of it, and that batch alone."""
    labels, batch = adata.obs["cell_type"].astype(str), adata.obs["batch"].astype(str)
    home = batch[labels == label].value_counts().index[0]
    kept = adata[((labels != label) | (batch == home)).to_numpy()].copy()
    return kept, kept[(kept.obs["batch"].astype(str) == home).to_numpy()].copy()


def frequent_types(adata: AnnData, n: int) -> list[str]:
    """Return the labels with most cells."""
    return list(adata.obs["cell_type"].astype(str).value_counts().index[:n])


def unequal(adata: AnnData, first: str, second: str, ratio: int = 10) -> AnnData:
    """Thin one type in the first batch and another in the second to a tenth."""
    labels, batch = adata.obs["cell_type"].astype(str), adata.obs["batch"].astype(str)
    names = sorted(batch.unique())
    keep = np.ones(adata.n_obs, dtype=bool)
    for name, label in zip(names, (first, second), strict=False):
        rows = np.flatnonzero((batch == name) & (labels == label))
        keep[np.random.default_rng(0).permutation(rows)[len(rows) // ratio :]] = False
    return adata[keep].copy()


def worst(values: dict[Any, float]) -> float:
    """Return the smallest."""
    return min(values.values())
