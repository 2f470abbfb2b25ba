"""Seurat's integration with anchors found by canonical correlation of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tenfold.data import seurat
from tenfold.errors import DataError
from tenfold.integrate._seurat import SeuratAnchors
from tenfold.kernels.anchors import Pairs
from tenfold.kernels.knn import knn
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from scipy import sparse

#: Fewest genes that two batches are compared by.
FEWEST_GENES = 3


class SeuratCCA(SeuratAnchors):
    """Joint principal components and log-expression, corrected by anchors in the space of canonical correlation.

    For each pair of batches, genes that vary in both are scaled within the batch and then cells over genes; the leading
    singular vectors of the cells × cells products place both in one space. Mutual nearest neighbours there are anchors;
    those that are not near in expression are dropped, the rest scored by how much the neighbours of both cells overlap.
    Batches are merged along a tree, the larger being the reference, each cell moving by a weighted average over the
    anchors near it. The embedding is corrected as by ``IntegrateLayers`` of version 5, the expression by the same
    weights.

    **Use it** under strong batch effects (technologies, species) where batches share most types.

    **Do not use it** where batches hold different types or one condition each: it aligns what correlates most and
    over-corrects more readily than `seurat_rpca` or Harmony; unique types of two batches are paired with one another,
    and the cells that move lose a third of their variance in our checks. Corrected expression is for display: test on
    counts.

    **Cost**: linear in cells but for the search of neighbours: half a minute of processor time for 30,000 cells in 4
    batches; the products of genes are summed once a batch (once a pair, where other genes vary), the cells × cells
    matrix is never formed. The number of pairs of batches grows quadratically. `write` stores a dense layer, 4 bytes ×
    cells × genes: for large data take ``embed()`` or ``correct(genes=...)`` instead.

    **Writes** ``obsm["X_seurat_cca"]`` and ``layers["seurat_cca"]`` (all genes).

    Parameters
    ----------
    n_neighbors
        Neighbours in the other batch of which mutual ones are anchors (``k.anchor``).
    k_filter
        An anchor stays if its second cell is among this many nearest of its first by expression; 0 keeps all.
    max_features
        Genes of the filter: those with the largest loadings.
    k_score
        Neighbours within and across batches whose overlap scores an anchor.
    k_weight
        Anchor cells, and anchors, that are averaged for a cell; lowered, with a warning, where there are fewer.
    sd_weight
        Larger makes the average less local.
    n_components
        Canonical vectors, and joint principal components.
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
    >>> cca = tf.integrate.SeuratCCA(n_components=20).fit(adata, batch="batch")
    >>> cca.embed().shape, cca.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 20), (700, 2))

    References
    ----------
    Stuart et al. (2019), doi 10.1016/j.cell.2019.05.031; Butler et al. (2018), doi 10.1038/nbt.4096.
    """

    info = MethodInfo(
        title="Seurat CCA",
        tasks=("integrate",),
        family="classical",
        year=2019,
        doi="10.1016/j.cell.2019.05.031",
        needs=("batch",),
        gives=("embedding", "expression"),
        stochastic=False,
        readiness="caution",
        advice="For strong batch effects between batches of the same types; it over-corrects where types differ.",
    )

    n_neighbors: int = param(5, low=1)
    k_filter: int = param(200, low=0)
    max_features: int = param(200, low=2)
    k_score: int = param(30, low=1)
    k_weight: int = param(100, low=1)
    sd_weight: float = param(1.0, low=1e-6)
    n_components: int = param(30, low=2)
    n_top_genes: int = param(2000, low=10, high=4000)

    def _prepare(self, parts: list[sparse.csr_matrix]) -> None:
        self._parts = parts
        self._varies = [seurat.Scaled(part, by_cell=False).factor > 0 for part in parts]
        self._known: dict[int, tuple[np.ndarray, seurat.Scaled, np.ndarray]] = {}

    def _scaled(self, batch: int, genes: np.ndarray) -> tuple[seurat.Scaled, np.ndarray]:
        """Return the scaled cells of a batch, and the root of their products of genes, kept for the next partner."""
        if batch not in self._known or not np.array_equal(self._known[batch][0], genes):
            scaled = seurat.Scaled(self._parts[batch][:, genes], by_cell=True)
            self._known[batch] = genes, scaled, seurat.root(scaled.gram())
        return self._known[batch][1:]

    def _search(self, a: int, b: int, k: int) -> seurat.Lists:
        self._genes = np.flatnonzero(self._varies[a] & self._varies[b])
        if len(self._genes) < FEWEST_GENES:
            raise DataError(
                f"Seurat CCA: fewer than {FEWEST_GENES} of the selected genes vary in both of two batches, so there is "
                "nothing to match cells by. Leave a batch of few or empty cells out, or raise n_top_genes."
            )
        (of_a, root_a), (of_b, root_b) = (self._scaled(batch, self._genes) for batch in (a, b))
        loadings_a, loadings_b = seurat.canonical_loadings(root_a, root_b, self.n_components)
        self._vectors = of_a.times(loadings_a), of_b.times(loadings_b)
        one, two = (seurat.unit_rows(vectors) for vectors in self._vectors)
        k_one, k_two = min(k, len(one)), min(k, len(two))
        return seurat.Lists(
            aa=knn(one, k=k_one)[0], ab=knn(one, two, k_two)[0], bb=knn(two, k=k_two)[0], ba=knn(two, one, k_one)[0]
        )

    def _kept(self, pairs: Pairs, a: int, b: int) -> np.ndarray:
        if not self.k_filter:
            return super()._kept(pairs, a, b)
        loadings = sum(
            seurat.Scaled(self._parts[batch][:, self._genes], by_cell=False).products_with(vectors)
            for batch, vectors in zip((a, b), self._vectors, strict=True)
        )
        genes = self._genes[seurat.leading_genes(loadings, self.max_features)]
        return seurat.near_in_expression(self._parts[a], self._parts[b], pairs, genes, self.k_filter)

    def _release(self) -> None:
        del self._parts, self._varies, self._known, self._genes, self._vectors
