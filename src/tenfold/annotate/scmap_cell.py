"""scmap-cell: the label on which the most similar labelled cells agree."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.product_quantisation import Quantised
from tenfold.annotators.similarity import as_probabilities
from tenfold.data.dropout_genes import dropout_genes
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError
from tenfold.kernels.knn import knn
from tenfold.method import MethodInfo, param

FEWEST = 10


class ScmapCell(AnnotatorMethod):
    """Labels by the most similar labelled cells, in cosine similarity of chosen genes.

    Features are genes that are missing from more labelled cells than their mean explains. The `n_voters` most similar
    labelled cells must all have the same label, and the best similarity must exceed `threshold`; other cells are
    "Unknown". The publication finds similar cells approximately, by product quantisation; here the search is exact
    unless asked otherwise, and faster that way below a million labelled cells.

    **Use it** where cells are to be found, not only labels: small groups inside a label are seen.

    **Do not use it** for recall: where labels overlap, neighbours disagree and most cells stay unlabelled.

    **Cost**: cells × labelled cells × features.

    **Writes** ``obs["scmap_cell_label"]``, ``obs["scmap_cell_confidence"]``, ``obsm["scmap_cell_probabilities"]``.

    Parameters
    ----------
    n_neighbors
        Similar cells whose labels make the probabilities.
    n_voters
        The most similar of them, which must agree.
    threshold
        The best similarity must exceed this.
    search
        ``"exact"``, or ``"quantised"`` as published: features in parts of 10 genes in their order, cells in each part
        replaced by the nearest of √n_cells centres.
    n_top_genes
        Features; ``None`` takes all genes.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.
    seed
        Of centres and held-out cells.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.ScmapCell().fit(adata[:500].copy(), labels="cell_type")
    >>> model.predict(adata[500:].copy()).shape
    (200,)

    References
    ----------
    Kiselev, Yiu, Hemberg (2018), doi 10.1038/nmeth.4644.
    """

    info = MethodInfo(
        title="scmap-cell",
        tasks=("annotate",),
        family="classical",
        year=2018,
        doi="10.1038/nmeth.4644",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="usable",
        sees_labels=True,
        advice="Neighbours that must agree; it leaves many cells unlabelled.",
    )

    n_top_genes: int | None = param(500, low=10)
    n_neighbors: int = param(10, low=1)
    n_voters: int = param(3, low=1)
    threshold: float = param(0.5, low=-1.0, high=1.0)
    search: Literal["exact", "quantised"] = "exact"
    seed: int = param(0, low=0)

    def _informative_genes(self, source: Inputs, n_genes: int) -> np.ndarray:
        on_disk = source.counts_on_disk
        return dropout_genes(source.counts if on_disk is None else on_disk, n_genes)

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        self.points_, self.codes_ = _unit(x.toarray()), codes
        self.index_ = None
        if self.search == "quantised":
            self.index_ = Quantised.of(self.points_, self.seed)._asdict()

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return self._judge(x, np.zeros(x.shape[1], dtype=bool))[0]

    def _judge(self, x: sparse.csr_matrix, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shared = np.count_nonzero(~missing)
        if shared < min(FEWEST, len(missing)):
            raise DataError(f"The data have {shared} of the {len(missing)} features, and {FEWEST} are needed.")
        near, similarity = self._nearest(x.toarray(), missing)
        codes = self.codes_[near]
        voters = codes[:, : self.n_voters]
        sure = (voters == voters[:, :1]).all(axis=1) & (similarity[:, 0] > self.threshold)
        by_label = np.full((len(codes), len(self.labels_)), -1.0)
        np.maximum.at(by_label, (np.arange(len(codes))[:, None], codes), similarity)
        return as_probabilities(by_label, codes[:, 0]), sure

    def _nearest(self, cells: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the most similar labelled cells and the cosine similarities, best first."""
        k = min(max(self.n_neighbors, self.n_voters), len(self.points_))
        if self.index_ is not None:
            return Quantised(**self.index_).search(_unit(cells), missing, k)
        points = self.points_
        if missing.any():
            points, cells = _unit(points[:, ~missing]), cells[:, ~missing]
        # Of vectors of length 1 the nearest is the most similar; a cell without any feature is at 1 from all of them.
        near, distance = knn(_unit(cells), points, k, exact=True)
        empty = ~cells.any(axis=1)
        return near, np.where(empty[:, None], -1.0, 1 - distance.astype(np.float64) ** 2 / 2)


def _unit(cells: np.ndarray) -> np.ndarray:
    return (cells / np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)).astype(np.float32)
