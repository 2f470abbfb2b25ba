"""Trajectory conservation: whether cells follow in the same order after integration."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import sparse

from tenfold.errors import DataError
from tenfold.metrics._checks import groups

_DIMENSIONS = 3  # of the diffusion map, that vote for the first cell


def trajectory(
    connectivities: sparse.spmatrix, pseudotime: np.ndarray, labels: np.ndarray, batch: np.ndarray | None = None
) -> float:
    """Trajectory conservation: rank correlation of a reference pseudotime with one computed on the integrated graph.

    Diffusion pseudotime on the graph of the cells that have a reference, from the cell of the earliest label that is
    most extreme in the diffusion map; ``(Spearman + 1) / 2``. From 0 (reversed) over 0.5 (no relation) to 1; high is
    good. 0 where no cell of the earliest label is in the graph's largest component. One linear order is asked for:
    branches that are swapped do not show, and the reference is itself the result of a method.

    Parameters
    ----------
    connectivities
        Weights of the integrated neighbour graph, sparse, shape (n, n).
    pseudotime
        Reference, shape (n,); NaN where a cell has none.
    labels
        Label of every cell, shape (n,): the trajectory starts in the one with the smallest mean pseudotime.
    batch
        Where given, the mean of the correlations within batches counts; shape (n,).

    Raises
    ------
    DataError
        Lengths differ, or fewer than 10 cells have a reference.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8; Haghverdi et al., Nature Methods 2016,
    doi:10.1038/nmeth.3971.
    """
    reference = np.asarray(pseudotime, dtype=np.float64)
    n = connectivities.shape[0]
    if reference.shape != (n,):
        raise DataError(f"`pseudotime` must hold one number for each of the {n} cells; its shape is {reference.shape}.")
    timed = np.flatnonzero(np.isfinite(reference))
    if len(timed) < 10:
        raise DataError(f"Only {len(timed)} cells have a reference pseudotime; at least 10 are needed.")
    graph = sparse.csr_matrix(connectivities)[timed][:, timed]
    reference, label = reference[timed], groups(labels, "labels", n).codes[timed]
    found = _pseudotime(graph, reference, label)
    if found is None:
        return 0.0
    own = np.zeros(len(timed), dtype=int) if batch is None else groups(batch, "batch", n).codes[timed]
    each = [_spearman(reference[own == code], found[own == code]) for code in np.unique(own)]
    each = [value for value in each if np.isfinite(value)]
    return float((np.mean(each) + 1) / 2) if each else 0.0


def _pseudotime(graph: sparse.csr_matrix, reference: np.ndarray, label: np.ndarray) -> np.ndarray | None:
    """Return diffusion pseudotime, 0 outside the largest component; None where the trajectory cannot start in it."""
    import scanpy as sc
    from anndata import AnnData
    from scipy.sparse.csgraph import connected_components

    component = connected_components(graph, directed=False)[1]
    inside = np.flatnonzero(component == np.bincount(component).argmax())
    levels = np.unique(label)
    start = levels[np.argmin([reference[label == level].mean() for level in levels])]
    first = np.flatnonzero(label[inside] == start)
    if len(first) == 0 or len(inside) < 5:
        return None
    cells = AnnData(sparse.csr_matrix((len(inside), 1), dtype=np.float32))
    cells.obsp["connectivities"] = cells.obsp["distances"] = graph[inside][:, inside].astype(np.float32)
    cells.uns["neighbors"] = {
        "connectivities_key": "connectivities", "distances_key": "distances", "params": {"n_neighbors": 15},
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.diffmap(cells, n_comps=min(15, len(inside) - 2))
        cells.uns["iroot"] = int(first[_most_extreme(cells.obsm["X_diffmap"], first)])
        sc.tl.dpt(cells)
    found = np.zeros(len(label))
    time = cells.obs["dpt_pseudotime"].to_numpy()
    found[inside] = np.where(time > 1, 0.0, np.nan_to_num(time))
    return found


def _most_extreme(coordinates: np.ndarray, first: np.ndarray) -> int:
    """Return which of the cells `first` is at the end of most dimensions, on the side where these cells lie."""
    votes = np.zeros(len(first), dtype=int)
    for values in coordinates.T[:_DIMENSIONS]:
        own = values[first]
        votes[own.argmin() if own.mean() < values.mean() else own.argmax()] += 1
    return int(votes.argmax())


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import rankdata

    a, b = rankdata(first), rankdata(second)
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and a.std() > 0 and b.std() > 0 else float("nan")
