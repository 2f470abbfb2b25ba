"""SingleR: correlation with labelled cells on marker genes, repeated among the labels that are close."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.calibration import Calibration
from tenfold.annotators.similarity import as_probabilities
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError
from tenfold.kernels.sparse_ranks import shifted_ranks
from tenfold.method import MethodInfo, param

#: Cells whose correlations with all labelled cells are held at a time.
BLOCK = 1024


class _Judged(NamedTuple):
    """What is found of each cell: score of each label, the label chosen, and its lead over the median score."""

    scores: np.ndarray
    best: np.ndarray
    lead: np.ndarray


class SingleR(AnnotatorMethod):
    """Labels by Spearman's correlation with labelled cells on the genes in which labels differ.

    Markers of each pair of labels are the genes whose medians differ most, up to 500 × (2/3)^log₂(labels). A label's
    score is a high quantile of the correlations with its cells. Labels within `fine_tune` of the best are compared
    again on the markers among them alone, until one is left or none drops out.

    **Use it** with references of other technologies, bulk profiles included: only ranks within a cell count.

    **Do not use it** with counts so sparse that the median of nearly every gene is zero; few markers are left then.
    `n_mads` prunes by the other cells of the same label, so a label wrong for all its cells is not pruned.

    **Cost**: cells × labelled cells × markers.

    **Writes** ``obs["singler_label"]``, ``obs["singler_confidence"]``, ``obsm["singler_probabilities"]``.

    Parameters
    ----------
    quantile
        Of the correlations with the cells of a label.
    fine_tune
        Labels this close to the best score are compared again; 0 leaves the first scores as they are.
    n_markers
        Genes for each pair of labels, each way; ``None`` for the number above.
    n_mads
        Cells whose lead over the median score is so many median deviations below the median lead of their label are
        "Unknown"; ``None`` rejects none.
    n_top_genes
        Variable genes to learn from; ``None`` takes all.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.
    seed
        Of held-out cells.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.SingleR().fit(adata[:500].copy(), labels="cell_type")
    >>> model.predict(adata[500:].copy()).shape
    (200,)

    References
    ----------
    Aran et al. (2019), doi 10.1038/s41590-018-0276-y.
    """

    info = MethodInfo(
        title="SingleR",
        tasks=("annotate",),
        family="classical",
        year=2019,
        doi="10.1038/s41590-018-0276-y",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="usable",
        sees_labels=True,
        advice="For references of another technology, since only ranks within a cell count.",
    )

    quantile: float = param(0.8, low=0.0, high=1.0)
    fine_tune: float = param(0.05, low=0.0, high=1.0)
    n_markers: int | None = param(None, low=1)
    n_mads: float | None = param(None, low=0.0)
    seed: int = param(0, low=0)

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        n_labels = len(self.labels_)
        medians = np.array([np.median(x[codes == code].toarray(), axis=0) for code in range(n_labels)])
        n = self.n_markers or max(1, round(500 * (2 / 3) ** np.log2(n_labels)))
        self.markers_ = np.full((n_labels, n_labels, min(n, x.shape[1])), -1, dtype=np.int32)
        for one in range(n_labels):
            for other in range(n_labels):
                more = medians[one] - medians[other]
                order = np.argsort(-more, kind="stable")[: self.markers_.shape[2]]
                order = order[more[order] > 0]
                self.markers_[one, other, : len(order)] = order
        if (self.markers_ < 0).all():
            raise DataError(
                "No gene has different medians in any two labels: the counts are too sparse for SingleR's markers. "
                "Use svm or logistic, or sum cells of a label to pseudo-bulk first."
            )
        self.known_, self.codes_ = x, codes

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        found = self._judged(x, np.zeros(x.shape[1], dtype=bool))
        return as_probabilities(found.scores, found.best)

    def _label(self, data: Inputs) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._judged(x, missing) for x, missing in self._cells(data)]
        found = _Judged(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        probabilities = Calibration(**self.calibration_).tempered(as_probabilities(found.scores, found.best))
        return probabilities, self._kept(found)

    def _kept(self, found: _Judged) -> np.ndarray:
        """Return which cells are not pruned, shape (n_cells,)."""
        kept = np.ones(len(found.best), dtype=bool)
        if self.n_mads is not None:
            for code in np.unique(found.best):
                own = found.best == code
                lead = found.lead[own]
                deviation = 1.4826 * np.median(np.abs(lead - np.median(lead)))  # R's mad
                kept[own] = lead >= np.median(lead) - self.n_mads * deviation
        return kept

    def _judged(self, x: sparse.csr_matrix, missing: np.ndarray) -> _Judged:
        everything = np.arange(len(self.labels_))
        known: dict[bytes, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        scores = self._scores(x, everything, missing, known)
        best = scores.argmax(axis=1)
        if self.fine_tune > 0:
            self._tune(x, scores, best, missing, known)
        lead = scores[np.arange(len(best)), best] - np.median(scores, axis=1)
        return _Judged(scores, best, lead)

    def _tune(
        self, x: sparse.csr_matrix, scores: np.ndarray, best: np.ndarray, missing: np.ndarray, known: dict
    ) -> None:
        """Compare close labels again and put the outcome into `best`; cells with the same close labels go together."""
        close = scores >= scores.max(axis=1, keepdims=True) - self.fine_tune
        n_close = close.sum(axis=1)
        rows = np.flatnonzero((n_close > 1) & (n_close < scores.shape[1]))
        while len(rows):
            patterns, which = np.unique(close[rows], axis=0, return_inverse=True)
            again = []
            for number, pattern in enumerate(patterns):
                labels, cells = np.flatnonzero(pattern), rows[which.ravel() == number]
                found = self._scores(x[cells], labels, missing, known)
                best[cells] = labels[found.argmax(axis=1)]
                near = found >= found.max(axis=1, keepdims=True) - self.fine_tune
                close[cells] = False
                close[np.ix_(cells, labels)] = near
                left = near.sum(axis=1)
                again.append(cells[(left > 1) & (left < len(labels))])
            rows = np.sort(np.concatenate(again))

    def _scores(self, x: sparse.csr_matrix, labels: np.ndarray, missing: np.ndarray, known: dict) -> np.ndarray:
        """Return the score of these labels for each cell on the markers among them, shape (n_cells, len(labels))."""
        key = labels.tobytes()
        if key not in known:
            among = self.markers_[np.ix_(labels, labels)]
            columns = np.unique(among[among >= 0])
            columns = columns[~missing[columns]]
            cells = np.flatnonzero(np.isin(self.codes_, labels))
            known[key] = (columns, _standard_ranks(self.known_[cells][:, columns]), self.codes_[cells])
        columns, reference, codes = known[key]
        scores = np.zeros((x.shape[0], len(labels)))
        for start in range(0, x.shape[0], BLOCK):
            rows = slice(start, start + BLOCK)
            similar = _standard_ranks(x[rows][:, columns]) @ reference.T
            for place, label in enumerate(labels):
                scores[rows, place] = np.quantile(similar[:, codes == label], self.quantile, axis=1)
        return scores


def _standard_ranks(x: sparse.csr_matrix) -> np.ndarray:
    """Return ranks within rows, centred and of length 1, shape (n_rows, n_columns), float32."""
    ranks = shifted_ranks(sparse.csr_matrix(x)).toarray()
    if ranks.shape[1]:
        ranks -= ranks.mean(axis=1, keepdims=True)
    return ranks / np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12)
