"""Seurat's integration with anchors found by reciprocal principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

from tenfold.data import seurat
from tenfold.integrate._seurat import SeuratAnchors
from tenfold.kernels.knn import knn
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from scipy import sparse


class SeuratRPCA(SeuratAnchors):
    """Joint principal components and log-expression, corrected by anchors found in each other's components.

    Each batch has components of its own scaled genes. Two batches are compared in both: neighbours of a cell of a in b
    are sought in b's components, into which a is projected, and the other way round; a cell without a counterpart is
    seldom among the neighbours in both. Mutual ones are anchors, scored by how much the neighbours of both cells
    overlap. Batches are merged along a tree, the larger being the reference, each cell moving by a weighted average
    over the anchors near it. The embedding is corrected as by ``IntegrateLayers`` of version 5, the expression by the
    same weights.

    **Use it** where batches are alike in technology and may hold different types: it moves less than `seurat_cca`.

    **Do not use it** under strong batch effects, where the components of one batch say little about another: few
    anchors remain. Not where one condition fills one batch. Corrected expression is for display: test on counts.

    **Cost**: linear in cells but for the search of neighbours: about 9 seconds of processor time for 30,000 cells in 4
    batches. The number of pairs of batches grows quadratically. `write` stores a dense layer, 4 bytes × cells ×
    genes: for large data take ``embed()`` or ``correct(genes=...)`` instead.

    **Writes** ``obsm["X_seurat_rpca"]`` and ``layers["seurat_rpca"]`` (all genes).

    Parameters
    ----------
    n_neighbors
        Neighbours in the other batch of which mutual ones are anchors (``k.anchor``); raise to 20 to mix more.
    k_score
        Neighbours within and across batches whose overlap scores an anchor.
    k_weight
        Anchor cells, and anchors, that are averaged for a cell; lowered, with a warning, where there are fewer.
    sd_weight
        Larger makes the average less local.
    n_components
        Components of each batch, and joint ones.
    n_top_genes
        Variable genes in which anchors are found. All genes are corrected.

    Attributes
    ----------
    embedding_, start_
        Joint components after and before correction, (n_cells, n_components), float32.
    anchor_counts_
        Anchors between two batches, (n_batches, n_batches).
    merges_
        One dict a merge: names of the reference (``left``) and of the query (``right``), number of ``pairs``, shares of
        cells with an anchor (``paired_left``, ``paired_right``), rows and ``score`` of the anchors (``left_rows``,
        ``right_rows``), ``cells`` that moved and their ``weights``.

    Raises
    ------
    DataError
        A batch with fewer cells than `n_neighbors`, or fewer than 3 varying genes.

    Warns
    -----
    UserWarning
        Fewer anchors than `k_weight`, or hardly any cells with one.

    Notes
    -----
    Neighbours are exact up to 100,000 cells a batch; Seurat's are approximate. With exact ones, and the same joint
    components, anchors, scores and corrected components are those of Seurat 4.3 (``evidence/seurat_parity.py``).
    Weights are taken from distances in the joint components, which come from log-expression with the genes' own
    variances.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> rpca = tf.integrate.SeuratRPCA(n_components=20).fit(adata, batch="batch")
    >>> rpca.embed().shape, rpca.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 20), (700, 2))

    References
    ----------
    Hao et al. (2021), doi 10.1016/j.cell.2021.04.048; Stuart et al. (2019), doi 10.1016/j.cell.2019.05.031.
    """

    info = MethodInfo(
        title="Seurat RPCA",
        tasks=("integrate",),
        family="classical",
        year=2021,
        doi="10.1016/j.cell.2021.04.048",
        needs=("batch",),
        gives=("embedding", "expression"),
        stochastic=False,
        readiness="usable",
        advice="For batches of one technology that may hold different types; it corrects less than Seurat CCA.",
    )

    n_neighbors: int = param(5, low=1)
    k_score: int = param(30, low=1)
    k_weight: int = param(100, low=1)
    sd_weight: float = param(1.0, low=1e-6)
    n_components: int = param(30, low=2)
    n_top_genes: int = param(2000, low=10, high=4000)

    def _prepare(self, parts: list[sparse.csr_matrix]) -> None:
        scaled = [seurat.Scaled(part, by_cell=False) for part in parts]
        loadings = [self._components(batch) for batch in scaled]
        stops = np.cumsum([part.shape[1] for part in loadings])[:-1]
        # [a][b]: cells of a in the components of b.
        self._placed = [np.split(batch.times(np.hstack(loadings)), stops, axis=1) for batch in scaled]
        k = max(self.n_neighbors, self.k_score)
        self._own = []
        for b, places in enumerate(self._placed):
            self._own.append(knn(places[b], k=min(k, len(places[b])))[0])

    def _components(self, scaled: seurat.Scaled) -> np.ndarray:
        """Return the loadings of the leading components of a batch, (p, d)."""
        gram = scaled.gram()
        d = min(self.n_components, scaled.matrix.shape[0] - 1, len(gram))
        _, vectors = linalg.eigh(gram, subset_by_index=(len(gram) - d, len(gram) - 1), overwrite_a=True)
        return vectors[:, ::-1]

    def _search(self, a: int, b: int, k: int) -> seurat.Lists:
        return seurat.Lists(self._own[a], self._across(a, b, k), self._own[b], self._across(b, a, k))

    def _across(self, query: int, ref: int, k: int) -> np.ndarray:
        """Return `k` neighbours of each query cell among the cells of `ref`, in the components of `ref`."""
        one, two = self._placed[query][ref], self._placed[ref][ref]
        deviation = np.maximum(np.concatenate([one, two]).std(axis=0, ddof=1), 1e-12)
        return knn(seurat.unit_rows(one / deviation), seurat.unit_rows(two / deviation), min(k, len(two)))[0]

    def _release(self) -> None:
        del self._placed, self._own
