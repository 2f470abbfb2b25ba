"""MNN correct: expression of batches merged along Gaussian averages of shifts between mutual nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.data import anchors as shared
from tenfold.data.inputs import Inputs
from tenfold.kernels.anchors import Pairs, gaussian_log_density, gaussian_smooth, mutual_pairs, shifts_at_pairs
from tenfold.method import Corrector, FixedEmbedder, Method, MethodInfo, param

if TYPE_CHECKING:
    from scipy import sparse

_BLOCK_ENTRIES = 1 << 22


class MNN(Method, FixedEmbedder, Corrector):
    """Corrected expression of cosine-normalised cells, and its principal components.

    Counts are brought to the depth of the shallowest batch, log-transformed and cosine-normalised. The first batch is
    the reference; every further one is matched to all before it by mutual nearest neighbours among the variable
    genes. Each of its cells moves by an average of the shifts of the paired cells with Gaussian weights, divided by
    the density of paired cells; with `var_adjust`, far enough that cells at the same quantile along the shift meet.
    This is ``mnnCorrect`` of the authors' R package, with exact neighbours and one growing reference.

    **Use it** where corrected values of single genes are wanted and `fastmnn`, which is faster and steadier, does not
    give enough of them.

    **Do not use it** as a first choice: in Antonsson & Melsted (2025) MNN altered data without a batch effect most of
    all methods, so differences that it shows may be its own. Not where two batches may share no type: the nearest
    types are merged all the same. The values are on the scale of cosine-normalised cells and may be negative: not for
    tests of differential expression. The result depends on the order of merges.

    **Cost**: quadratic in cells, and in memory 4 bytes × cells × selected genes: 10,000 cells in 4 batches take
    some 11 seconds of processor time, 100,000 many minutes. `correct` and `write` repeat the smoothing for the genes
    that are asked for.

    **Writes** ``obsm["X_mnn"]`` (components of the corrected variable genes) and ``layers["mnn"]`` (all genes).

    Parameters
    ----------
    n_neighbors
        Neighbours on each side, of which mutual ones become pairs.
    sigma
        Width of the Gaussian: weights are exp(-d² / sigma), so it is a squared length. Cells have length 1.
    var_adjust
        Lengthen each cell's shift to where the reference has the quantile that the cell has in its own batch, along
        the direction of the shift. Never shortens.
    merge_order
        ``"data"``: as the batches are ordered in the data; the first is the reference. A list of all batch names. Or
        ``"auto"``: the two batches with the most pairs first, then always the one with the most pairs with those.
    n_components
        Number of components of the corrected variable genes.
    n_top_genes
        Number of variable genes in which cells are matched. All genes are corrected.

    Attributes
    ----------
    embedding_
        Components, (n_cells, n_components), float32.
    merges_
        One dict a merge: names on the ``left`` and ``right``, number of ``pairs``, share of cells on either side that
        have one (``paired_left``, ``paired_right``), rows of the pairs (``left_rows``, ``right_rows``) and of
        the ``cells`` that moved.
    scale_
        Factor by which each cell's shift was lengthened, (n_cells,), float32; 1 in the first batch.

    Raises
    ------
    DataError
        A batch with fewer cells than `n_neighbors`, or fewer than 3 varying genes.
    ParameterError
        `merge_order` does not name every batch once.

    Warns
    -----
    UserWarning
        Hardly any cells of a merge have a partner.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> mnn = tf.integrate.MNN(n_components=30, n_top_genes=500).fit(adata, batch="batch")
    >>> mnn.embed().shape, mnn.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 30), (700, 2))

    References
    ----------
    Haghverdi et al. (2018), doi 10.1038/nbt.4091; ``mnnCorrect`` in the R package batchelor.
    Antonsson, Melsted (2025), Genome Research 35:1832 (calibration).
    """

    info = MethodInfo(
        title="MNN",
        tasks=("integrate",),
        family="classical",
        year=2018,
        doi="10.1038/nbt.4091",
        needs=("batch",),
        gives=("embedding", "expression"),
        stochastic=False,
        readiness="caution",
        advice="Corrected genes by mutual nearest neighbours; it altered data without a batch effect most of all.",
    )

    n_neighbors: int = param(20, low=1)
    sigma: float = param(0.1, low=1e-6)
    var_adjust: bool = True
    merge_order: shared.MergeOrder = "data"
    n_components: int = param(50, low=2)
    n_top_genes: int = param(2000, low=10, high=4000)

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        members = shared.cells_of_batches(data.batch, self.n_neighbors, "MNN", "n_neighbors")
        names = data.batch.names
        order = shared.order_of_batches(self.merge_order, names, "MNN")
        selected = data.variable_genes(self.n_top_genes)
        expression = shared.depth_matched(data.counts, data.batch.values)
        shared.check_genes_vary(expression[:, selected], "MNN")
        self.expression_ = shared.cosine_normalised(expression, selected)
        self.genes_, self.selected_ = data.gene_names, selected
        space = self.expression_[:, selected].toarray()
        self.scale_ = np.ones(data.n_cells, dtype=np.float32)
        self.merges_: list[dict[str, Any]] = []
        if self.merge_order == "auto":
            order = self._first_two(space, members)
        done, waiting = order[:1], order[1:]
        while waiting:
            reference = np.concatenate([members[b] for b in done])
            b, pairs = self._next(space, reference, [(b, members[b]) for b in waiting])
            self._join(space, reference, members[b], pairs)
            self.merges_[-1].update(left=[names[i] for i in done], right=[names[b]])
            done, waiting = [*done, b], [i for i in waiting if i != b]
        self.embedding_ = shared.components(space, self.n_components)
        shared.warn_of_poor_pairs("MNN", self.merges_)

    def _first_two(self, space: np.ndarray, members: list[np.ndarray]) -> list[int]:
        """Return all batches, the two with the most pairs first."""
        k, n = self.n_neighbors, len(members)
        counts = {
            (a, b): len(mutual_pairs(space[members[a]], space[members[b]], k, k).left)
            for a in range(n)
            for b in range(a + 1, n)
        }
        first = max(counts, key=lambda pair: counts[pair])
        return [*first, *(b for b in range(n) if b not in first)]

    def _next(
        self, space: np.ndarray, reference: np.ndarray, waiting: list[tuple[int, np.ndarray]]
    ) -> tuple[int, Pairs]:
        """Return the batch to merge now, and its pairs with the reference."""
        k = self.n_neighbors
        if self.merge_order != "auto" or not self.merges_:
            waiting = waiting[:1]
        found = [(b, mutual_pairs(space[reference], space[cells], k, k)) for b, cells in waiting]
        return max(found, key=lambda entry: len(entry[1].left))

    def _join(self, space: np.ndarray, reference: np.ndarray, cells: np.ndarray, pairs: Pairs) -> None:
        """Move the cells of a batch in `space`, (n_cells, n_selected), in place, and keep what `correct` needs."""
        left, right = space[reference], space[cells]
        shift = self._shift(right, pairs, left, right)
        scale = np.ones(len(cells), dtype=np.float32)
        if self.var_adjust:
            scale = shift_scale(left, right, shift, self.sigma)
        space[cells] = right + scale[:, None] * shift
        self.scale_[cells] = scale
        self.merges_.append({
            "pairs": len(pairs.left), "paired_left": len(np.unique(pairs.left)) / len(left),
            "paired_right": len(np.unique(pairs.right)) / len(right),
            "left_rows": reference[pairs.left], "right_rows": cells[pairs.right], "cells": cells,
        })  # fmt: skip

    def _shift(self, points: np.ndarray, pairs: Pairs, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the shift of every cell of a batch; `points` gives the weights, `left` and `right` the values."""
        rows, shifts = shifts_at_pairs(left, right, pairs)
        density = gaussian_log_density(points[rows], 1 / self.sigma)
        return gaussian_smooth(points, points[rows], shifts, 1 / self.sigma, log_weight=-density)

    def _corrected(self, columns: np.ndarray) -> np.ndarray:
        values = self.expression_[:, columns].toarray()
        place = np.empty(len(values), dtype=np.int64)
        selected: sparse.csr_matrix = self.expression_[:, self.selected_]
        for merge in self.merges_:
            cells = merge["cells"]
            place[cells] = np.arange(len(cells))
            left, group = np.unique(merge["left_rows"], return_inverse=True)
            pairs = Pairs(group, place[merge["right_rows"]])
            # A batch is still where it was measured when it is merged, so the weights need nothing but the data.
            shift = self._shift(selected[cells].toarray(), pairs, values[left], values[cells])
            values[cells] += self.scale_[cells, None] * shift
        return values


def shift_scale(left: np.ndarray, right: np.ndarray, shift: np.ndarray, sigma: float) -> np.ndarray:
    """Return how much longer each right cell's shift must be to keep its quantile along the shift; at least 1.

    Cells of both sides are projected on the direction of the shift, with weights exp(-d² / sigma) of their distance
    to the line through the cell. The cell's weighted quantile in its own batch is looked up among the left cells.

    Parameters
    ----------
    left, right
        Coordinates, (n_left, d) and (n_right, d).
    shift
        Of the right cells, (n_right, d).
    sigma
        Squared width.

    Returns
    -------
    (n_right,), float32.
    """
    length = np.linalg.norm(shift, axis=1)
    direction = shift / np.maximum(length, 1e-30)[:, None]
    scale = np.ones(len(right), dtype=np.float32)
    step = max(1, _BLOCK_ENTRIES // (len(left) + len(right)))
    for start in range(0, len(right), step):
        rows = slice(start, start + step)
        own, weight = _along(right, right[rows], direction[rows], sigma)
        at = np.einsum("ij,ij->i", right[rows], direction[rows])
        # A cell is not below itself by rounding.
        own[np.arange(len(at)), np.arange(start, start + len(at))] = at
        quantile = np.where(own <= at[:, None], weight, 0).sum(axis=1) / weight.sum(axis=1)
        there, weight = _along(left, right[rows], direction[rows], sigma)
        order = there.argsort(axis=1)
        reached = np.take_along_axis(weight, order, axis=1).cumsum(axis=1)
        first = (reached < (quantile * reached[:, -1])[:, None]).sum(axis=1).clip(max=len(left) - 1)
        target = there[np.arange(len(at)), order[np.arange(len(at)), first]]
        moved = length[rows] > 0
        scale[rows][moved] = np.maximum(1, (target - at)[moved] / length[rows][moved])
    return scale


def _along(cells: np.ndarray, origin: np.ndarray, direction: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the projection of all cells on each line, and their weights by the distance to it; (n_lines, n_cells).

    Weights are relative to the cell nearest to the line, so that a line far from all cells has some.
    """
    projected = direction @ cells.T
    squares = (origin**2).sum(axis=1)[:, None] - 2 * origin @ cells.T + (cells**2).sum(axis=1)
    from_foot = projected - np.einsum("ij,ij->i", origin, direction)[:, None]
    distance = np.maximum(squares - from_foot**2, 0)
    return projected, np.exp(-(distance - distance.min(axis=1, keepdims=True)) / sigma, dtype=np.float64)
