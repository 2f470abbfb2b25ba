"""Spliced and unspliced counts: checked, filtered, normalised, and averaged over neighbours."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from tenfold.data import check, preprocess
from tenfold.data.counts import canonical, counts_layer
from tenfold.data.graph import NeighborGraph, neighbor_graph
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import averaging
from tenfold.errors import DataError, KeyMissingError, NotCountsError, closest
from tenfold.kernels.neighbor_means import neighbor_means

#: Share of unspliced counts below which a warning is due: droplet protocols give 10 to 30 %.
LEAST_UNSPLICED = 0.05


class Layers(NamedTuple):
    """Spliced and unspliced counts of all genes, each CSR, float32, shape (n_cells, n_genes)."""

    spliced: sparse.csr_matrix
    unspliced: sparse.csr_matrix


class Moments(NamedTuple):
    """What velocity methods start from; g genes passed the filter.

    Attributes
    ----------
    columns
        Columns of the g genes in the data, sorted.
    spliced, unspliced
        Normalised counts averaged over each cell and its neighbours (Ms, Mu), shape (n_cells, g), float32.
    counts
        The layers of all genes.
    normalized
        Whether each layer was divided by its own totals.
    mean
        Matrix that averages over a cell and its neighbours, (n_cells, n_cells), CSR, float32; rows sum to 1.
    graph
        Neighbours and their weights.
    neighbors
        Nearest cells of each cell, itself left out, shape (n_cells, k), int32.
    """

    columns: np.ndarray
    spliced: np.ndarray
    unspliced: np.ndarray
    counts: Layers
    normalized: bool
    mean: sparse.csr_matrix
    graph: NeighborGraph
    neighbors: np.ndarray

    @property
    def layers(self) -> Layers:
        """The normalised counts of the g genes; made when asked for, since they take as much memory as the data."""
        return _own(self.counts, self.columns, self.normalized)

    def second(self, genes: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Return the averages of s² and of s·u, each (n_cells, g), float32; of some of the g genes where given."""
        s, u = _own(self.counts, self.columns[genes], self.normalized)
        return neighbor_means(self.mean, s.multiply(s).tocsr()), neighbor_means(self.mean, s.multiply(u).tocsr())


def layers_of(data: Inputs, most_unspliced: float = 0.5, sampled: bool = True) -> Layers:
    """Take and check the spliced and unspliced counts of the cells of a fit.

    Parameters
    ----------
    data
        Checked inputs; roles ``spliced`` and ``unspliced`` name the layers (defaults ``"spliced"``, ``"unspliced"``).
    most_unspliced
        Share of unspliced among all counts above which the layers are taken for swapped.
    sampled
        Warn where entries are not whole numbers, as counts are.

    Raises
    ------
    KeyMissingError
        A layer is missing.
    NotCountsError
        Negative, missing or infinite entries.
    DataError
        The two layers are the same, are swapped, spliced holds the total, or there are no unspliced counts.

    Warns
    -----
    UserWarning
        Few counts are unspliced, or entries are not whole numbers.
    """
    names = {role: str(data.roles.get(role, role)) for role in ("spliced", "unspliced")}
    found = Layers(*(_layer(data.adata, role, name, sampled) for role, name in names.items()))
    _refuse_confused(found, names, most_unspliced)
    return found


def _layer(adata: Any, role: str, name: str, sampled: bool) -> sparse.csr_matrix:
    if name not in adata.layers:
        have = f"It has {', '.join(map(repr, adata.layers))}." if len(adata.layers) else "It has no layers."
        raise KeyMissingError(
            f"There are no {role} counts: the data have no layer '{name}'.{closest(name, list(adata.layers))} {have} "
            f"Name the layer with {role}=. A count matrix alone cannot be split: count the reads again with velocyto, "
            "kallisto-bustools, alevin-fry or STARsolo (Velocyto), and read that output with tenfold.data.read."
        )
    matrix = canonical(counts_layer(adata, name))
    values = matrix.data
    if not np.isfinite(values).all() or (len(values) and values.min() < 0):
        bad = "missing (NaN) or infinite" if not np.isfinite(values).all() else "negative"
        raise NotCountsError(f"Layer '{name}' has {bad} entries; give the raw {role} counts.")
    if sampled and not np.array_equal(values, np.rint(values)):
        warnings.warn(
            f"Layer '{name}' does not hold whole numbers. It is taken for estimated counts, as alevin-fry gives them; "
            "if it was normalised before, give the raw counts.",
            stacklevel=5,
        )
    return matrix.astype(np.float32, copy=False)


def _refuse_confused(layers: Layers, names: dict[str, str], most: float) -> None:
    """Refuse layers that hold something else than their names say."""
    spliced, unspliced = layers
    n_u, n_s = float(unspliced.sum(dtype=np.float64)), float(spliced.sum(dtype=np.float64))
    if n_u == 0 or n_s == 0:
        empty = names["unspliced" if n_u == 0 else "spliced"]
        raise DataError(f"Layer '{empty}' has no counts at all; without them there is no velocity.")
    if spliced.shape == unspliced.shape and (spliced != unspliced).nnz == 0:
        raise DataError(
            f"Layers '{names['spliced']}' and '{names['unspliced']}' hold the same numbers; one was copied from the "
            "other. Read the output of the counting tool again."
        )
    share = n_u / (n_u + n_s)
    # Introns and exons are counted apart: where a gene has intronic counts it often has fewer exonic ones in the cell.
    below = (unspliced - unspliced.minimum(spliced)).nnz
    if unspliced.nnz > 100 and below == 0:
        raise DataError(
            f"Wherever there are unspliced counts there are at least as many in layer '{names['spliced']}': it holds "
            "the total, not the spliced counts. Take the unspliced counts off: adata.layers['spliced'] = "
            f"adata.layers['{names['spliced']}'] - adata.layers['{names['unspliced']}']."
        )
    if share > most:
        raise DataError(
            f"{100 * share:.0f} % of the counts are unspliced. The layers are probably swapped: exchange spliced= and "
            "unspliced=. Nuclei, which hold little spliced RNA, can have so many: for these raise max_unspliced."
        )
    if share < LEAST_UNSPLICED:
        warnings.warn(
            f"Only {100 * share:.1f} % of the counts are unspliced (10 to 30 % is usual): velocities will be mostly "
            "noise. Were introns in the index that reads were aligned to?",
            stacklevel=5,
        )


def shared_counts(layers: Layers) -> np.ndarray:
    """Return the counts of each gene, spliced and unspliced, in cells that have both, shape (n_genes,)."""
    spliced, unspliced = layers
    both = spliced.astype(bool).multiply(unspliced.astype(bool))
    return np.asarray((spliced + unspliced).multiply(both).sum(axis=0, dtype=np.float64)).ravel()


def size_normalised(matrix: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    """Divide each cell by its total relative to the median cell; a cell without counts stays as it is."""
    factors = totals / (np.median(totals) or 1.0)
    scale = 1 / np.where(factors > 0, factors, 1.0)
    return sparse.csr_matrix(sparse.diags_array(scale.astype(np.float32)) @ matrix)


def size_medians(data: Inputs) -> np.ndarray:
    """Return the median totals of spliced and of unspliced counts, which cells are normalised to, shape (2,)."""
    return np.array([
        np.median(np.asarray(layer.sum(axis=1, dtype=np.float64)).ravel()) for layer in layers_of(data, 1.0, False)
    ])  # fmt: skip


def moments_of(
    data: Inputs,
    *,
    n_top_genes: int | None = 2000,
    min_shared_counts: int = 20,
    n_components: int = 30,
    n_neighbors: int = 30,
    max_unspliced: float = 0.5,
    normalize: bool = True,
    mutual: bool = True,
    columns: np.ndarray | None = None,
) -> Moments:
    """Filter genes, normalise both layers, find neighbours and average over them.

    Parameters
    ----------
    data
        Checked inputs. Counts in X (or ``layer``) choose variable genes and, without ``use_rep``, neighbours.
    n_top_genes
        Variable genes among those with enough counts; ``None`` for all of these.
    min_shared_counts
        Least counts of a gene, spliced and unspliced together, in cells that have both.
    n_components
        Principal components of log-expression in which neighbours are searched.
    n_neighbors
        Neighbours of a cell, itself counted.
    max_unspliced
        See `layers_of`.
    normalize
        Divide each layer by its own totals. False for data without sampling, such as exact simulations.
    mutual
        Average over cells that either is a neighbour of; False: over a cell's own neighbours only.
    columns
        Genes to take, in this order, instead of filtering.

    Raises
    ------
    DataError
        Fewer than two genes have enough counts in both layers, or there are fewer cells than neighbours.
    """
    check.check_neighbors(data.n_cells, n_neighbors)
    layers = layers_of(data, max_unspliced, normalize)
    genes = _genes(data, layers, n_top_genes, min_shared_counts) if columns is None else columns
    embedding = _embedding(data, genes, n_components)
    graph = neighbor_graph(embedding, n_neighbors)
    edges = graph.connectivities if mutual else graph.distances
    ones = sparse.csr_matrix((np.ones(edges.nnz, np.float32), edges.indices, edges.indptr), shape=edges.shape)
    mean = averaging(ones)
    neighbors = graph.distances.indices.reshape(data.n_cells, -1).astype(np.int32)
    spliced, unspliced = (neighbor_means(mean, _chosen(layer, genes, normalize)) for layer in layers)
    return Moments(genes, spliced, unspliced, layers, normalize, mean, graph, neighbors)


def _own(layers: Layers, genes: np.ndarray, normalize: bool) -> Layers:
    return Layers(*(_chosen(layer, genes, normalize) for layer in layers))


def _chosen(layer: sparse.csr_matrix, genes: np.ndarray, normalize: bool) -> sparse.csr_matrix:
    own = layer[:, genes]
    return size_normalised(own, np.asarray(layer.sum(axis=1, dtype=np.float64)).ravel()) if normalize else own


def _genes(data: Inputs, layers: Layers, n_top_genes: int | None, least: int) -> np.ndarray:
    kept = np.flatnonzero(shared_counts(layers) >= least)
    if len(kept) < 2:
        per_cell = float(np.median(np.asarray(layers.unspliced.sum(axis=1)).ravel()))
        raise DataError(
            f"Too few unspliced counts: {len(kept)} of {data.n_genes:,} genes have {least} counts in cells with both "
            f"spliced and unspliced RNA (the median cell has {per_cell:,.0f} unspliced counts). Lower "
            "min_shared_counts, take more cells, or check how unspliced reads were counted."
        )
    if n_top_genes is None or n_top_genes >= len(kept):
        return kept
    return kept[preprocess.highly_variable_genes(data.counts[:, kept], n_top_genes, data.batch)]


def _embedding(data: Inputs, genes: np.ndarray, n_components: int) -> np.ndarray:
    if "use_rep" in data.roles:
        return check.representation(data.adata, data.roles["use_rep"])
    totals = np.asarray(data.counts.sum(axis=1, dtype=np.float64)).ravel()
    lognorm = preprocess.normalize_log1p(data.counts[:, genes], float(np.median(totals)), totals)
    if min(lognorm.shape) < 3:
        raise DataError(f"{lognorm.shape[1]} genes passed the filters; at least 3 are needed to find neighbours.")
    return preprocess.pca(lognorm, n_components).embedding
