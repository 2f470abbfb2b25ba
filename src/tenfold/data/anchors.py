"""What the anchor methods do before they look for anchors: batches and their order, equal depth, shared components."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import linalg, sparse

from tenfold.errors import DataError, ParameterError, closest
from tenfold.kernels.anchors import Pairs
from tenfold.kernels.knn import knn
from tenfold.types import Codes

MergeOrder = Literal["data", "auto"] | list[str]

BLOCK = 2048
_FEW_PAIRED = 0.05
_FAR_APART = 1.8  # see pair_distance
_ROWS_FOR_DISTANCE = 1000
_GENES_FOR_DEPTH = 50


class BatchPCA(NamedTuple):
    """Components in which every batch has the same weight.

    Attributes
    ----------
    embedding
        (n_cells, d), float32.
    loadings
        Of all genes, (n_genes, d), float32; those of the genes that the components are made of are orthonormal.
    centre
        Unweighted mean of the means of the batches, (n_genes,), float32.
    """

    embedding: np.ndarray
    loadings: np.ndarray
    centre: np.ndarray


def cells_of_batches(batch: Codes, fewest: int, method: str, parameter: str | None = None) -> list[np.ndarray]:
    """Return the rows of each batch.

    Raises
    ------
    DataError
        A batch has fewer than `fewest` cells, the value of the hyper-parameter named `parameter` if it is one's.
    """
    members = [np.flatnonzero(batch.values == b) for b in range(len(batch.names))]
    for name, cells in zip(batch.names, members, strict=True):
        if len(cells) < max(fewest, 2):
            noun = "cell" if len(cells) == 1 else "cells"
            few = f"{method}: batch '{name}' has {len(cells)} {noun}, too few"
            if parameter is None:
                raise DataError(
                    f"{few}: it needs {fewest}. Merge the batch with a similar one, or leave its cells out."
                )
            raise DataError(
                f"{few} to find {parameter}={fewest} neighbours in it. Lower {parameter}, merge the batch with a "
                "similar one, or leave its cells out."
            )
    return members


def order_of_batches(order: MergeOrder, names: list[str], method: str) -> list[int]:
    """Return the batches in the order in which they are merged; that of the data for ``"data"`` and ``"auto"``.

    Raises
    ------
    ParameterError
        A list that does not name every batch once.
    """
    if isinstance(order, str):
        return list(range(len(names)))
    for name in order:
        if name not in names:
            raise ParameterError(
                f"{method}: merge_order names '{name}', which is not a batch.{closest(name, names)} "
                f"Batches are: {', '.join(names)}."
            )
    if sorted(order) != sorted(names):
        raise ParameterError(
            f"{method}: merge_order must name each of the {len(names)} batches once: {', '.join(names)}."
        )
    return [names.index(name) for name in order]


def pair_distance(left: np.ndarray, right: np.ndarray, pairs: Pairs, k: int) -> float:
    """Return how far apart paired cells are: their median distance over that to the k-th neighbour on the right side.

    Give coordinates from which the batch vector has been removed. In simulated batches that share their types it was
    0.9 without, and up to 1.7 with a strong batch effect; in batches without a common type 1.4 to 2.3.
    """
    if not len(pairs.left):
        return np.inf
    rows = np.unique(pairs.right)
    rows = rows[:: -(-len(rows) // _ROWS_FOR_DISTANCE)]
    _, own = knn(right[rows], right, min(k + 1, len(right)))
    apart = np.linalg.norm(left[pairs.left] - right[pairs.right], axis=1)
    return float(np.median(apart) / max(np.median(own[:, -1]), 1e-30))


def warn_of_poor_pairs(method: str, merges: list[dict[str, Any]]) -> None:
    """Warn where hardly any cell of a merge has a partner, or partners are far apart: the sets may share no type.

    Parameters
    ----------
    merges
        ``left`` and ``right`` names, shares ``paired_left`` and ``paired_right``; and ``pair_distance`` where measured.
    """
    poor = []
    for merge in merges:
        share = min(merge["paired_left"], merge["paired_right"])
        distance = merge.get("pair_distance", 0.0)
        if share < _FEW_PAIRED or distance > _FAR_APART:
            name = f"{' + '.join(merge['left'])} with {' + '.join(merge['right'])}"
            poor.append(f"{name} ({share:.0%} of cells paired" + (f", {distance:.1f} apart)" if distance else ")"))
    if poor:
        warnings.warn(
            f"{method}: mutual nearest neighbours are few (under {_FEW_PAIRED:.0%} of cells) or far apart (over "
            f"{_FAR_APART} times the distance of neighbours in one batch) in {'; '.join(poor)}. These batches may "
            "share no cell type; anchors then join types that are not the same. Look at the types that pair before "
            "you trust the merge, or integrate only batches that share types.",
            stacklevel=3,
        )


def check_genes_vary(matrix: sparse.csr_matrix, method: str) -> None:
    """Refuse a selection of genes in which no gene, or no two cells, differ."""
    highest, lowest = matrix.max(axis=0).toarray().ravel(), matrix.min(axis=0).toarray().ravel()
    if int((highest > lowest).sum()) < 3:
        raise DataError(
            f"{method}: fewer than 3 of the {matrix.shape[1]} selected genes vary, so there is nothing to match cells "
            "by. Check that the matrix holds all genes, or raise n_top_genes."
        )


def depth_matched(counts: sparse.csr_matrix, batch: np.ndarray) -> sparse.csr_matrix:
    """Log(1 + x) of counts scaled to the depth of the shallowest batch.

    Size factors are library sizes over the mean of their batch; then every batch is scaled down to the shallowest, see
    `depth_ratios`.

    Parameters
    ----------
    counts
        Cells × genes, CSR, no empty cell.
    batch
        Codes, (n_cells,).

    Returns
    -------
    CSR, float32; shares the index arrays of `counts`.
    """
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    depth = np.bincount(batch, totals) / np.bincount(batch)
    factors = totals / depth[batch]
    ratios = depth_ratios(batch_means(counts, batch, 1 / factors))
    shallowest = ratios.min(axis=0).argmin()
    factors /= ratios[batch, shallowest]
    values = counts.data / np.repeat(factors, np.diff(counts.indptr))
    return sparse.csr_matrix((np.log1p(values).astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def depth_ratios(profiles: np.ndarray) -> np.ndarray:
    """Return how much deeper the second of two batches is: the median ratio of its average counts to the first's.

    Genes count whose average in the two batches, each brought to their mean depth, is at least 1; were these fewer than
    50, the 50 highest.

    Parameters
    ----------
    profiles
        Average counts of each batch, (n_batches, n_genes).

    Returns
    -------
    (n_batches, n_batches), 1 on the diagonal.
    """
    sums, ratios = profiles.sum(axis=1), np.ones((len(profiles),) * 2)
    for a, b in combinations(range(len(profiles)), 2):
        average = (profiles[a] / sums[a] + profiles[b] / sums[b]) * (sums[a] + sums[b]) / 4
        least = min(1.0, np.sort(average)[::-1][min(_GENES_FOR_DEPTH, len(average)) - 1])
        used = (average >= least) & (average > 0)
        for one, two in ((a, b), (b, a)):
            with np.errstate(divide="ignore"):
                ratio = np.median(profiles[two, used] / profiles[one, used])
            ratios[one, two] = ratio if 0 < ratio < np.inf else sums[two] / sums[one]
    return ratios


def batch_means(matrix: sparse.csr_matrix, batch: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the mean of each gene in each batch, cells times `weights`, (n_batches, n_genes), float64."""
    weights = np.ones(len(batch)) if weights is None else weights
    weights = weights / np.bincount(batch)[batch]
    member = sparse.csr_matrix((weights, (batch, np.arange(len(batch)))), shape=(int(batch.max()) + 1, len(batch)))
    return (member @ matrix).toarray()


def cosine_normalised(matrix: sparse.csr_matrix, genes: np.ndarray) -> sparse.csr_matrix:
    """Scale each cell to length 1 over the columns `genes`; all columns are returned, a cell without any is zero."""
    length = np.sqrt(np.asarray(matrix[:, genes].power(2).sum(axis=1), dtype=np.float64)).ravel()
    scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    values = (matrix.data * np.repeat(scale, np.diff(matrix.indptr))).astype(np.float32)
    return sparse.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def multibatch_pca(matrix: sparse.csr_matrix, batch: np.ndarray, genes: np.ndarray, n_components: int) -> BatchPCA:
    """Principal components to which every batch contributes alike, whatever its size.

    Cells are centred by the mean of the batch means; a batch's scatter matrix is divided by its number of cells.

    Parameters
    ----------
    matrix
        Cells × all genes, CSR.
    batch
        Codes, (n_cells,).
    genes
        Columns that the components are made of; the loadings of the others follow from the coordinates.
    n_components
        Lowered to what cells and genes allow.
    """
    chosen, weight = matrix[:, genes], 1 / np.bincount(batch)[batch]
    centre = batch_means(matrix, batch).mean(axis=0)
    scatter = np.zeros((len(genes), len(genes)))
    for start in range(0, len(batch), BLOCK):
        rows = slice(start, start + BLOCK)
        block = chosen[rows].toarray()
        block -= centre[genes].astype(np.float32)
        block *= np.sqrt(weight[rows, None]).astype(np.float32)
        scatter += block.T @ block
    values, vectors = _leading(scatter, min(n_components, len(batch) - 1, len(genes)))
    embedding = chosen @ vectors - centre[genes] @ vectors
    weighted = embedding * weight[:, None]
    loadings = (matrix.T @ weighted - np.outer(centre, weighted.sum(axis=0))) / values
    loadings[genes] = vectors
    return BatchPCA(*(part.astype(np.float32) for part in (embedding, loadings, centre)))


def components(matrix: np.ndarray, n_components: int) -> np.ndarray:
    """Return the leading principal components of a dense matrix, (n_cells, at most n_components), float32."""
    centre = matrix.mean(axis=0, dtype=np.float64).astype(matrix.dtype)
    scatter = np.zeros((matrix.shape[1], matrix.shape[1]))
    for start in range(0, len(matrix), BLOCK):
        block = matrix[start : start + BLOCK] - centre
        scatter += block.T @ block
    _, vectors = _leading(scatter, min(n_components, len(matrix) - 1, matrix.shape[1]))
    return np.asarray(matrix @ vectors.astype(np.float32) - centre @ vectors.astype(np.float32))


def _leading(scatter: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues, largest first, and eigenvectors whose largest entry is positive; none without variance."""
    last = len(scatter) - 1
    values, vectors = linalg.eigh(scatter, subset_by_index=(last - n_components + 1, last), overwrite_a=True)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > 1e-10 * values[0]
    values, vectors = values[keep], vectors[:, keep]
    largest = np.abs(vectors).argmax(axis=0)
    return values, vectors * np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
