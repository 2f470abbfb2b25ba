"""The most frequent label for every cell: what an annotator must beat to be of any use."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.method import MethodInfo


class Majority(AnnotatorMethod):
    """Every cell gets the reference's most frequent label; the probabilities are the frequencies of the labels.

    **Use it** as the floor of a comparison: its accuracy is what nothing but the proportions of types gives.

    **Do not use it** to label cells.

    **Cost**: none.

    **Writes** ``obs["majority_label"]``, ``obs["majority_confidence"]``, ``obsm["majority_probabilities"]``.

    Parameters
    ----------
    n_top_genes
        Of no effect on labels; genes that novelty reads are among these.
    calibration
        Share of the labelled cells held out to calibrate.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> set(tf.annotate.Majority().fit(adata, labels="cell_type").predict())
    {'Dendritic'}

    References
    ----------
    Hastie, Tibshirani, Friedman (2009), doi 10.1007/978-0-387-84858-7.
    """

    info = MethodInfo(
        title="Majority class",
        tasks=("annotate",),
        family="baseline",
        year=2009,
        doi="10.1007/978-0-387-84858-7",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="caution",
        stochastic=False,
        sees_labels=True,
        advice="A floor for comparisons, not for use.",
    )

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        sizes = np.bincount(codes, minlength=len(self.labels_))
        self.frequencies_ = sizes / sizes.sum()

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return np.tile(self.frequencies_, (x.shape[0], 1))
