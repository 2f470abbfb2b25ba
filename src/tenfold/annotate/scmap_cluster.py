"""scmap-cluster: cells are compared with the median profile of each label, in three ways that must agree."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.similarity import as_probabilities
from tenfold.data.dropout_genes import dropout_genes
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError
from tenfold.kernels.sparse_linear import csr_product
from tenfold.kernels.sparse_ranks import correlations, shifted_ranks
from tenfold.method import MethodInfo, param

#: Fewer shared features than this say nothing.
FEWEST = 10


class ScmapCluster(AnnotatorMethod):
    """Labels by the most similar profile: cosine, Pearson's and Spearman's correlation vote.

    Features are genes that are missing from more labelled cells than their mean explains. A label's profile is the
    median of its cells. The label for which two of the three similarities are highest wins, with the largest of these
    as its score; where all three differ, or the score is below `threshold`, the cell is "Unknown".

    **Use it** for its rule, which can be checked by eye and which rejects cells that are like no label.

    **Do not use it** for recall: of blood cells of known types it left three quarters unlabelled; 94 % of the labels
    that it did give were right. The median of sparse counts is zero for most genes; labels whose whole profile is zero
    can never be given, and a warning names them. ``centre="mean"``, which is not in the publication, keeps them.

    **Cost**: linear in cells × features; no training to speak of.

    **Writes** ``obs["scmap_cluster_label"]``, ``obs["scmap_cluster_confidence"]``,
    ``obsm["scmap_cluster_probabilities"]``.

    Parameters
    ----------
    threshold
        Smallest score of a cell that gets a label.
    centre
        ``"median"`` or ``"mean"`` of a label's cells.
    n_top_genes
        Features; ``None`` takes all genes.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.
    seed
        Of held-out cells.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.ScmapCluster().fit(adata[:500].copy(), labels="cell_type")
    >>> model.predict(adata[500:].copy()).shape
    (200,)

    References
    ----------
    Kiselev, Yiu, Hemberg (2018), doi 10.1038/nmeth.4644.
    """

    info = MethodInfo(
        title="scmap-cluster",
        tasks=("annotate",),
        family="classical",
        year=2018,
        doi="10.1038/nmeth.4644",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="usable",
        sees_labels=True,
        advice="A plain rule with rejection; it leaves many cells unlabelled.",
    )

    n_top_genes: int | None = param(500, low=10)
    threshold: float = param(0.7, low=-1.0, high=1.0)
    centre: Literal["median", "mean"] = "median"
    seed: int = param(0, low=0)

    def _informative_genes(self, source: Inputs, n_genes: int) -> np.ndarray:
        on_disk = source.counts_on_disk
        return dropout_genes(source.counts if on_disk is None else on_disk, n_genes)

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        middle = np.median if self.centre == "median" else np.mean
        found = [middle(x[codes == code].toarray(), axis=0) for code in range(len(self.labels_))]
        self.profiles_ = np.array(found, dtype=np.float32)
        empty = self.labels_[~self.profiles_.any(axis=1)]
        if len(empty) == len(self.labels_):
            raise DataError("The median profile of every label is zero: the counts are too sparse. Set centre='mean'.")
        if len(empty):
            warnings.warn(
                f"The median profile of {', '.join(map(str, empty))} is zero everywhere: no cell can get such a label. "
                "Set centre='mean'.",
                stacklevel=2,
            )

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return self._judge(x, np.zeros(x.shape[1], dtype=bool))[0]

    def _judge(self, x: sparse.csr_matrix, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if np.count_nonzero(~missing) < min(FEWEST, len(missing)):
            raise DataError(
                f"The data have {np.count_nonzero(~missing)} of the {len(missing)} features, and {FEWEST} are needed."
            )
        if missing.any():
            x = x[:, ~missing]
        similarities = _similarities(x, self.profiles_[:, ~missing])
        named, score = _vote(similarities)
        mean = np.mean(np.where(np.isnan(similarities), -1.0, similarities), axis=0)
        return as_probabilities(mean, named), (named >= 0) & (score >= self.threshold)


def _similarities(x: sparse.csr_matrix, profiles: np.ndarray) -> np.ndarray:
    """Return cosine, Pearson's and Spearman's, shape (3, n_cells, n_labels); NaN where there is none."""
    from scipy.stats import rankdata

    norms = np.sqrt(np.asarray(x.multiply(x).sum(axis=1, dtype=np.float64)).ravel())
    sizes = np.linalg.norm(profiles.astype(np.float64), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = csr_product(x, profiles.T) / norms[:, None] / sizes
    return np.stack([
        np.where(np.isfinite(cosine), cosine, np.nan),
        correlations(x, profiles.astype(np.float64)),
        correlations(shifted_ranks(x), rankdata(profiles, axis=1)),
    ])  # fmt: skip


def _vote(similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label that two of three name, -1 for none, and the largest similarity of those that name it."""
    filled = np.where(np.isnan(similarities), -np.inf, similarities)
    named, best = filled.argmax(axis=2), filled.max(axis=2)
    votes = (named[:, None] == named[None]).sum(axis=1)  # how many agree with each of the three
    leader = votes.argmax(axis=0)
    cells = np.arange(named.shape[1])
    winner = named[leader, cells]
    score = np.where(named == winner, best, -np.inf).max(axis=0)
    agreed = (votes.max(axis=0) >= 2) & np.isfinite(best).all(axis=0)
    return np.where(agreed, winner, -1), score
