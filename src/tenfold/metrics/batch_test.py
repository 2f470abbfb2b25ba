"""kBET: a test whether the batches around each cell are those of its label."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.errors import ParameterError
from tenfold.metrics._checks import groups, points
from tenfold.metrics._within import Cells, LabelCells, label_cells
from tenfold.metrics.neighborhoods import Neighbors, neighbors

MOST_NEIGHBORS = 71  # 70, and the cell itself
_FEWEST, _DIFFUSION_NEIGHBORS = 10, 50


def kbet(
    cells: Cells, labels: np.ndarray, batch: np.ndarray, alpha: float = 0.05, diffusion: bool = False, seed: int = 0
) -> float:
    """Test for batch effects by nearest neighbours (kBET), inside each label, as an acceptance rate.

    A cell is accepted when the batch counts among its k0 nearest cells of the same label, itself counted too, agree
    with the label's batch shares by a chi-squared test at level `alpha`; k0 is a quarter of the mean number of cells
    per batch, between 10 and 70. The mean over labels of the share of accepted cells: from 0 (separate) to about
    ``1 - alpha`` (mixed), at most 1. High is good. It is by far the strictest metric of mixing, often near 0 where
    clusters look mixed, and it depends on k0 and so on the number of cells: compare methods, not data sets.

    Parameters
    ----------
    cells
        Embedding, shape (n, d), or connectivities of a graph, sparse, shape (n, n).
    labels, batch
        Groups, shape (n,).
    alpha
        Level of the test.
    diffusion
        ``False``: the true nearest cells of the label. ``True``: as scib-metrics does, the nearest in 100 diffusion
        components of the label's part of the neighbour graph (50 neighbours for an embedding); slow, for comparison
        with published values.
    seed
        Of the approximate search above 100,000 cells of a label.

    Raises
    ------
    DataError
        No label has 10 cells and two batches.
    ParameterError
        `alpha` outside (0, 1).

    References
    ----------
    Büttner et al., Nature Methods 2019, doi:10.1038/s41592-018-0254-1; per label: Luecken et al., Nature Methods 2022,
    doi:10.1038/s41592-021-01336-8.
    """
    return float(np.mean(list(kbet_per_label(cells, labels, batch, alpha, diffusion, seed).values())))


def kbet_per_label(
    cells: Cells, labels: np.ndarray, batch: np.ndarray, alpha: float = 0.05, diffusion: bool = False, seed: int = 0
) -> dict:
    """Return the acceptance rate of each label that has 10 cells and two batches; parameters as in `kbet`."""
    if not 0 < alpha < 1:
        raise ParameterError(f"`alpha` must lie between 0 and 1, not {alpha}.")
    if not diffusion:
        return label_acceptance(label_cells(cells, labels, batch, MOST_NEIGHBORS, seed), alpha)
    graph = _graph(cells)
    inside = label_cells(graph, labels, batch, 2)
    return {part.level: _diffused(graph[part.members][:, part.members], part.batch.codes, alpha) for part in inside}


def label_acceptance(inside: list[LabelCells], alpha: float = 0.05) -> dict:
    """Return the share of accepted cells by label, from neighbours inside labels."""
    return {
        part.level: _acceptance(part.near.indices[:, : _size(part.batch.codes) + 1], part.batch.codes, alpha)
        for part in inside
    }


def _size(batch: np.ndarray) -> int:
    quarter = int(np.bincount(batch).mean() // 4)
    return min(70, max(_FEWEST, quarter))


def _acceptance(near: np.ndarray, batch: np.ndarray, alpha: float) -> float:
    from scipy.special import chdtri

    sizes = np.bincount(batch)
    n, k = near.shape
    place = np.arange(n)[:, None] * len(sizes) + batch[np.maximum(near, 0)]
    counts = np.bincount(place.ravel(), weights=(near >= 0).ravel(), minlength=n * len(sizes)).reshape(n, -1)
    expected = k * sizes / sizes.sum()
    statistic = ((counts - expected) ** 2 / expected).sum(axis=1)
    complete = (near >= 0).all(axis=1)  # a cell in a fragment of its label's graph is not mixed
    return float(((statistic <= chdtri(len(sizes) - 1, alpha)) & complete).mean())


def _graph(cells: Cells) -> sparse.csr_matrix:
    if sparse.issparse(cells):
        return sparse.csr_matrix(cells)
    from tenfold.kernels.fuzzy import fuzzy_graph

    found: Neighbors = neighbors(points(cells), _DIFFUSION_NEIGHBORS)
    return fuzzy_graph(found.indices, found.distances)


def _diffused(graph: sparse.csr_matrix, batch: np.ndarray, alpha: float) -> float:
    """Acceptance among neighbours in diffusion space; 0 where the label's graph is in too many small pieces."""
    from scipy.sparse.csgraph import connected_components

    k0 = _size(batch)
    n_parts, part = connected_components(graph, directed=False)
    if n_parts > 1:
        large = np.flatnonzero(np.bincount(part)[part] >= 3 * k0)
        if len(large) < 0.75 * len(batch):
            return 0.0
        graph, batch = graph[large][:, large], groups(batch[large], "batch").codes
    near = neighbors(_diffusion_map(graph), k0 + 1).indices
    return 1.0 if len(np.unique(batch)) == 1 else _acceptance(near, batch, alpha)


def _diffusion_map(graph: sparse.csr_matrix, n_components: int = 100) -> np.ndarray:
    """Return diffusion coordinates over all times, shape (n, n_components); density is divided out first."""
    from scipy.sparse.linalg import eigsh

    n = graph.shape[0]
    density = sparse.diags_array(1 / np.asarray(graph.sum(axis=0)).ravel())
    kernel = (density @ graph @ density).astype(np.float64)
    root = sparse.diags_array(1 / np.sqrt(np.asarray(kernel.sum(axis=0)).ravel()))
    start = np.random.default_rng(0).standard_normal(n)
    values, vectors = eigsh(root @ kernel @ root, k=min(n - 1, n_components), which="LM", v0=start)
    values = values.astype(np.float32) + np.float32(1e-8)
    steps = np.where(values == 1, 1, values / np.where(values == 1, 1, 1 - values))
    return vectors.astype(np.float32) * steps
