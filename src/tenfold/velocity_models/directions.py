"""How sure a posterior is: spread of directions over draws, and errors of permuted cells against the cells' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import ttest_ind

from tenfold.data import velocity_graph
from tenfold.kernels.velocity_graph import neighbor_cosines
from tenfold.types import Codes

if TYPE_CHECKING:
    import pandas as pd


def directional_spread(draws: np.ndarray) -> pd.DataFrame:
    """Return how far draws of a vector are from their mean in direction, one row a cell.

    Parameters
    ----------
    draws
        Shape (n_draws, n_cells, n_genes).

    Returns
    -------
    ``cosine_mean``, ``cosine_variance`` and ``cosine_range`` (5 to 95 %) of the correlation over genes with the mean
    of draws, ``angle_variance`` and ``angle_range`` of its angle in radians.
    """
    import pandas as pd

    def unit(vectors: np.ndarray) -> np.ndarray:
        apart = vectors - vectors.mean(axis=-1, keepdims=True)
        return apart / np.maximum(np.linalg.norm(apart, axis=-1, keepdims=True), 1e-12)

    middle = unit(draws.mean(axis=0))
    cosine = np.stack([np.clip((unit(draw) * middle).sum(axis=1), -1, 1) for draw in draws]).astype(np.float64)
    angle = np.arccos(cosine)

    def span(values: np.ndarray) -> np.ndarray:
        low, high = np.percentile(values, [5, 95], axis=0)
        return high - low

    return pd.DataFrame({
        "cosine_mean": cosine.mean(axis=0), "cosine_variance": cosine.var(axis=0), "cosine_range": span(cosine),
        "angle_variance": angle.var(axis=0), "angle_range": span(angle),
    })  # fmt: skip


def neighbors_ahead(expression: np.ndarray, velocity: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Return the expected expression after one move along the velocity graph, shape (n_cells, n_genes), float32.

    Parameters
    ----------
    expression, velocity
        Shape (n_cells, n_genes), float32.
    neighbors
        Of each cell, (n_cells, k).
    """
    cosines = neighbor_cosines(np.ascontiguousarray(expression), np.ascontiguousarray(velocity), neighbors)
    return velocity_graph.transition_matrix(cosines) @ expression


def permuted_within(x: np.ndarray, groups: Codes, seed: int) -> np.ndarray:
    """Permute every column of `x` by itself among the cells of each group."""
    rng, out = np.random.default_rng(seed), x.copy()
    for code in range(len(groups.names)):
        cells = np.flatnonzero(groups.values == code)
        out[cells] = rng.permuted(x[cells], axis=0)
    return out


def excess_error(permuted: np.ndarray, own: np.ndarray, groups: Codes, genes: np.ndarray, most: int) -> pd.DataFrame:
    """Return the t statistic of errors of permuted cells against the cells' own.

    Parameters
    ----------
    permuted, own
        Errors, shape (n_cells, n_genes).
    groups
        Of the cells.
    genes
        Names of the columns.
    most
        Cells of a group that are looked at, the first.

    Returns
    -------
    Genes × groups with at least two cells, and ``"highest"``.
    """
    import pandas as pd

    found = {}
    for code, name in enumerate(groups.names):
        cells = np.flatnonzero(groups.values == code)[:most]
        if len(cells) > 1:
            found[name] = ttest_ind(permuted[cells], own[cells], axis=0).statistic
    table = pd.DataFrame(found, index=pd.Index(genes))
    return table.assign(highest=table.max(axis=1))
