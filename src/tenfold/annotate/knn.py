"""Nearest labelled cells in principal components: the plainest annotator."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.calibration import smoothed
from tenfold.data import check
from tenfold.data.preprocess import pca
from tenfold.kernels.knn import knn
from tenfold.method import MethodInfo, param


class KNN(AnnotatorMethod):
    """Labels by a vote of the nearest labelled cells, in principal components of the labelled cells.

    The components are those of the labelled cells; cells to label are placed on them. The share of votes is the
    probability, made honest by one temperature. Labelled cells that are asked about vote for themselves as well.

    **Use it** as a baseline that shows what neighbours alone can tell, and on a corrected embedding's behalf.

    **Do not use it** across batches without correction, or for labels with fewer cells than half the neighbours: they
    are outvoted. A linear model is better on the same reference.

    **Cost**: exact search of cells × labelled cells up to 100,000 labelled cells, approximate above.

    **Writes** ``obs["knn_label"]``, ``obs["knn_confidence"]``, ``obsm["knn_probabilities"]``.

    Parameters
    ----------
    n_neighbors
        Labelled cells that vote.
    weights
        ``"uniform"``: one vote each. ``"distance"``: the nearer weighs more, 1 / distance.
    n_components
        Principal components.
    n_top_genes
        Variable genes to learn from; ``None`` takes all.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves shares of votes as they are.
    seed
        Of held-out cells and of the approximate search.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.KNN().fit(adata[:500].copy(), labels="cell_type")
    >>> model.predict(adata[500:].copy()).shape
    (200,)

    References
    ----------
    Cover & Hart (1967), doi 10.1109/TIT.1967.1053964.
    """

    info = MethodInfo(
        title="Nearest neighbours",
        tasks=("annotate",),
        family="classical",
        year=1967,
        doi="10.1109/TIT.1967.1053964",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="usable",
        sees_labels=True,
        advice="The plainest baseline; a linear model is better on the same reference.",
    )

    n_neighbors: int = param(15, low=1)
    weights: Literal["uniform", "distance"] = "uniform"
    n_components: int = param(50, low=2)
    seed: int = param(0, low=0)

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        check.check_neighbors(x.shape[0], min(self.n_neighbors, x.shape[0]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="n_components")  # fewer cells or genes have fewer
            found = pca(x, self.n_components, self.seed)
        self.components_, self.means_ = found.components, found.mean
        self.points_, self.codes_ = found.embedding, codes

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return self._judge(x, np.zeros(len(self.genes_), dtype=bool))[0]

    def _judge(self, x: sparse.csr_matrix, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A missing gene is taken as expressed at its mean, which adds nothing to any component.
        centre = self.components_[:, ~missing] @ self.means_[~missing]
        points = x @ self.components_.T - centre
        k = min(self.n_neighbors, len(self.points_))
        near, distance = knn(np.asarray(points, dtype=np.float32), self.points_, k, seed=self.seed)
        votes = np.ones(near.shape)
        if self.weights == "distance":
            votes = 1 / np.maximum(distance.astype(np.float64), 1e-6)
        shares = np.zeros((len(near), len(self.labels_)))
        np.add.at(shares, (np.arange(len(near))[:, None], self.codes_[near]), votes)
        shares /= shares.sum(axis=1, keepdims=True)
        return smoothed(shares, k), np.ones(len(near), dtype=bool)
