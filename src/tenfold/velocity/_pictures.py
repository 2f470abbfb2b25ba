"""What the report draws of velocities: arrows in the layout, and those of the same method without velocity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from anndata import AnnData

from tenfold.data import velocity_graph
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import layers_of
from tenfold.data.velocity_nulls import permuted
from tenfold.velocity._nulls import MOST_CELLS, own_roles, quietly_fitted
from tenfold.velocity_models.base import VelocityMethod


def arrows(fitted: VelocityMethod, cells: np.ndarray, layout: np.ndarray) -> np.ndarray:
    """Return an arrow in a layout for each of the `cells` that it shows, shape (len(cells), 2)."""
    return velocity_graph.project(fitted.cosines_[cells][:, cells].tocsr(), layout)


def arrows_of_null(
    make: Callable[[int], VelocityMethod], fitted: VelocityMethod, adata: AnnData, roles: dict[str, str],
    cells: np.ndarray, layout: np.ndarray, seed: int,
) -> np.ndarray:  # fmt: skip
    """Return the arrows of the method after its genes' unspliced counts were dealt out anew to cells.

    Returns
    -------
    Shape (len(cells), 2): NaN for cells that were left out, since null models are fitted to `MOST_CELLS` at most.

    Raises
    ------
    DataError
        Nothing moves in the permuted counts.
    """
    few = np.sort(np.random.default_rng(seed).permutation(len(cells))[:MOST_CELLS])
    adata = adata[cells[few], fitted.columns_].copy()
    method = make(seed)
    method.n_top_genes, method.min_shared_counts = None, 1
    taken = own_roles(method, roles)
    unspliced = layers_of(Inputs(adata, taken), method.max_unspliced, sampled=False).unspliced
    adata.layers[roles.get("unspliced", "unspliced")] = permuted(unspliced, "cells", None, seed)
    quietly_fitted(method, adata, roles)
    out = np.full((len(cells), 2), np.nan, np.float32)
    out[few] = method.project(layout[few])
    return out
