"""Scanorama: all batches matched with one another at once, and stitched to panoramas in the order of their overlap."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.data import anchors as shared
from tenfold.data import preprocess
from tenfold.data.inputs import Inputs
from tenfold.data.panorama import match_batches, plan
from tenfold.kernels.anchors import Pairs, gaussian_smooth, shifts_at_pairs
from tenfold.method import Corrector, FixedEmbedder, Method, MethodInfo, param

if TYPE_CHECKING:
    pass

_UNDERFLOW = -745.0  # logarithm of the smallest weight that is not zero in float64


class Scanorama(Method, FixedEmbedder, Corrector):
    """Stitched principal components, and corrected expression of cosine-normalised cells.

    Log-normalised cells are scaled to length 1 over the variable genes, then reduced to components of all cells. Each
    batch looks for neighbours among all other batches together, so that a batch pulls only where it is the closest;
    pairs of batches in which more than `alpha` of the cells of either are paired are stitched, the best first, each
    cell moving by a Gaussian average of the shifts of paired cells. Batches that match nothing stay where they are.
    The matching is that of the original with its exact search.

    **Use it** for many batches of partly different composition: no order of merges has to be chosen.

    **Do not use it** where small differences within a type matter: the average is local, and takes them for batch
    effects. Two batches without a common type can still pass `alpha`, as nearest neighbours always exist: look at
    `alignment_`. The expression is on the scale of cosine-normalised cells and may be negative: not for tests of
    differential expression.

    **Cost**: quadratic in cells, a city-block distance for each pair of cells in different batches: 10,000 cells take
    some 5 seconds of processor time, 100,000 minutes. Memory is linear in cells; `write` stores a dense layer, 4
    bytes × cells × genes: for large data take ``embed()`` or ``correct(genes=...)`` instead.

    **Writes** ``obsm["X_scanorama"]`` and ``layers["scanorama"]`` (all genes).

    Parameters
    ----------
    n_neighbors
        Neighbours among the other batches, of which mutual ones become pairs.
    sigma
        Weights are exp(-sigma / 2 × d²): larger makes the average more local, despite the name.
    alpha
        Least share of cells with a partner, in the batch where it is larger, for two batches to be stitched.
    n_components
        Number of components.
    n_top_genes
        Number of variable genes; ``None`` takes all.

    Attributes
    ----------
    embedding_, start_
        Coordinates after and before stitching, (n_cells, n_components), float32.
    alignment_
        Share of paired cells of two batches, the larger of both sides, (n_batches, n_batches).
    panoramas_
        Names of the batches that were stitched together, a list a panorama.
    merges_
        One dict a step: names of the batches ``moved`` and of those they were moved to (``reference``), the number of
        ``pairs``, and their rows (``moved_rows``, ``reference_rows``).

    Raises
    ------
    DataError
        A batch with fewer cells than `n_neighbors`, or fewer than 3 varying genes.

    Warns
    -----
    UserWarning
        A batch was not stitched to any other.

    Notes
    -----
    The original finds neighbours approximately by default, and takes the weights for the expression from distances
    among genes; here one set of weights, that of the components, moves both.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> scanorama = tf.integrate.Scanorama(n_components=50).fit(adata, batch="batch")
    >>> scanorama.embed().shape, scanorama.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 50), (700, 2))

    References
    ----------
    Hie, Bryson, Berger (2019), doi 10.1038/s41587-019-0113-3.
    """

    info = MethodInfo(
        title="Scanorama",
        tasks=("integrate",),
        family="classical",
        year=2019,
        doi="10.1038/s41587-019-0113-3",
        needs=("batch",),
        gives=("embedding", "expression"),
        stochastic=False,
        readiness="usable",
        advice="For many batches that overlap only in part; check which of them were stitched.",
    )

    n_neighbors: int = param(20, low=1)
    sigma: float = param(15.0, low=1e-6)
    alpha: float = param(0.1, low=0.0, high=1.0)
    n_components: int = param(100, low=2)
    n_top_genes: int | None = param(2000, low=10)

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        members = shared.cells_of_batches(data.batch, self.n_neighbors, "Scanorama", "n_neighbors")
        genes = data.variable_genes(self.n_top_genes)
        shared.check_genes_vary(data.lognorm[:, genes], "Scanorama")
        self.genes_, self.expression_ = data.gene_names, shared.cosine_normalised(data.lognorm, genes)
        self._stitch(preprocess.pca(self.expression_[:, genes], self.n_components).embedding, members, data.batch.names)
        alone = [panorama[0] for panorama in self.panoramas_ if len(panorama) == 1]
        if alone:
            warnings.warn(
                f"Scanorama: {', '.join(alone)} matched no other batch by more than alpha={self.alpha:g} of its cells "
                "and stay where they are. They may share no cell type with the others; if they should, lower alpha or "
                "raise n_neighbors.",
                stacklevel=2,
            )

    def _stitch(self, start: np.ndarray, members: list[np.ndarray], names: list[str]) -> None:
        """Match and stitch coordinates `start`, (n_cells, d)."""
        matches, self.alignment_ = match_batches(start, members, self.n_neighbors)
        steps, panoramas = plan(self.alignment_, [len(cells) for cells in members], self.alpha)
        self.panoramas_ = [[names[b] for b in panorama] for panorama in panoramas]
        self.merges_: list[dict[str, Any]] = []
        for step in steps:
            moved_rows, reference_rows = [], []
            for a, b in step.links:
                first, second = matches[min(a, b), max(a, b)]
                moved_rows.append(first if a < b else second)
                reference_rows.append(second if a < b else first)
            self.merges_.append({
                "moved": [names[b] for b in step.moved], "reference": [names[b] for b in step.reference],
                "pairs": sum(map(len, moved_rows)), "cells": np.concatenate([members[b] for b in step.moved]),
                "moved_rows": np.concatenate(moved_rows), "reference_rows": np.concatenate(reference_rows),
            })  # fmt: skip
        self.start_ = start
        self.embedding_ = self._moved(np.empty((len(start), 0), dtype=np.float32))[:, : start.shape[1]]

    def _moved(self, values: np.ndarray) -> np.ndarray:
        """Carry out the steps on the coordinates and on `values` beside them, (n_cells, v); both side by side."""
        width = self.start_.shape[1]
        table = np.hstack([self.start_, values])
        for merge in self.merges_:
            pairs = Pairs(merge["reference_rows"], merge["moved_rows"])
            rows, shifts = shifts_at_pairs(table, table, pairs)
            counts = np.unique(pairs.right, return_counts=True)[1]
            cells, at = merge["cells"], table[rows, :width]
            table[cells] += gaussian_smooth(
                table[cells, :width], at, shifts, self.sigma / 2, log_weight=np.log(counts), smallest=_UNDERFLOW
            )
        return table

    def _corrected(self, columns: np.ndarray) -> np.ndarray:
        values = self.expression_[:, columns].toarray()
        return np.ascontiguousarray(self._moved(values)[:, self.start_.shape[1] :])
