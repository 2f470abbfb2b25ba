"""Whether a cell is of a type that the reference does not have: two scores, a p-value, calls with a bounded error.

Confidence does not tell: a distinct new type can be labelled with higher confidence than known cells. Distance from the
reference finds distinct types and misses subtle ones, energy the other way round; so both are asked. Types differ in
how far apart their cells lie, so distance is measured in units of what is usual for the type that a cell looks like.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

from tenfold.data import preprocess
from tenfold.data.genes import match_genes
from tenfold.data.inputs import Inputs
from tenfold.data.streamed import cell_sums, row_chunks
from tenfold.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: Reference cells that are kept, genes that are read, principal components.
MOST_CELLS, MOST_GENES, COMPONENTS = 10_000, 2000, 50
#: Nearest reference cells whose mean distance counts.
NEIGHBORS = 10


def one_class_pvalues(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Return (1 + number of calibration scores at least as large) / (n + 1) for each score.

    Parameters
    ----------
    scores
        Novelty of each cell, large is novel, shape (n_cells,).
    calibration
        Novelty of cells that are not new, shape (n,).

    Returns
    -------
    Shape (n_cells,); uniform or larger for cells that are like those of the calibration.

    References
    ----------
    Bates et al. (2023), doi 10.1214/22-AOS2244.
    """
    as_large = len(calibration) - np.searchsorted(np.sort(calibration), scores, side="left")
    return (1 + as_large) / (len(calibration) + 1)


def benjamini_hochberg(pvalues: np.ndarray) -> np.ndarray:
    """Return the q-value of each p-value: the false discovery rate of calling it and all smaller ones, shape (n,).

    References
    ----------
    Benjamini & Hochberg (1995), doi 10.1111/j.2517-6161.1995.tb02031.x.
    """
    order = np.argsort(pvalues)[::-1]
    scaled = pvalues[order] * len(pvalues) / np.arange(len(pvalues), 0, -1)
    found = np.empty(len(pvalues))
    found[order] = np.minimum(np.minimum.accumulate(scaled), 1)
    return found


class Detector(NamedTuple):
    """What tells a new type from known ones; plain arrays, so that it is saved with the annotator.

    Attributes
    ----------
    genes
        Names of the genes that it reads, shape (n_genes,).
    depth
        Counts that each cell is scaled to before the logarithm: the reference's median. With more, the noise of shallow
        cells would make them look far from everything.
    mean, components
        Of the principal components of the reference's log-expression, shapes (n_genes,) and (n_components, n_genes).
    cells
        Reference cells in these components, shape (n_reference, n_components), float32.
    planes, offsets
        Of a logistic regression of the labels on the components, (n_labels, n_components) and (n_labels,).
    spread
        Distance that is usual among reference cells which look like each label, shape (n_labels,).
    calibration
        Cells that are known not to be new, in these components, shape (n_calibration, n_components).
    """

    genes: np.ndarray
    depth: float
    mean: np.ndarray
    components: np.ndarray
    cells: np.ndarray
    planes: np.ndarray
    offsets: np.ndarray
    spread: np.ndarray
    calibration: np.ndarray

    @classmethod
    def of(cls, data: Inputs, codes: np.ndarray, held: np.ndarray, seed: int = 0) -> Detector:
        """Learn from labelled cells, and calibrate on those that are `held` out, a mask of shape (n_cells,).

        Cells whose code is below 0 have no label; nothing is learnt from them.
        """
        rows = _sampled(np.flatnonzero(~held & (codes >= 0)), codes, seed)
        whole: Any = data.counts_on_disk
        depth = float(np.median(cell_sums(data.counts if whole is None else whole)))
        everything = _expression(data, data.gene_names, depth, np.isin(np.arange(data.n_cells), rows))
        squares = everything.copy()
        squares.data **= 2
        spread = np.asarray(squares.mean(axis=0) - np.square(everything.mean(axis=0))).ravel()
        columns = np.sort(np.argsort(-spread, kind="stable")[:MOST_GENES])
        x = everything[:, columns]
        found = preprocess.pca(x, min(COMPONENTS, min(x.shape) - 1), seed)
        planes, offsets = _regression(found.embedding, codes[rows], int(codes.max()) + 1)
        names = data.gene_names[columns]
        fresh = cls(
            names, depth, found.mean, found.components, found.embedding, planes, offsets,
            np.ones(len(planes)), np.zeros((0, len(found.components)), np.float32),
        )  # fmt: skip
        fresh = fresh._replace(spread=fresh._usual())
        return fresh.calibrated(fresh.embed(data, held)) if held.any() else fresh

    def calibrated(self, embedded: np.ndarray) -> Detector:
        """Return the same detector with other calibration cells, given in its components."""
        return self._replace(calibration=embedded)

    def embed(self, data: Inputs, mask: np.ndarray | None = None) -> np.ndarray:
        """Return cells in the components, (n_cells or cells in the mask, n_components), float32."""
        x = _expression(data, self.genes, self.depth, mask)
        return np.asarray(x @ self.components.T - self.mean @ self.components.T, dtype=np.float32)

    def scores(self, embedded: np.ndarray) -> np.ndarray:
        """Return distance and energy of cells, shape (n_cells, 2); large is novel.

        Mean distance to the `NEIGHBORS` nearest reference cells, divided by what is usual for the label that the cell
        looks like; minus log of the sum of exponentials of the scores of the labels.
        """
        from tenfold.kernels.knn import knn

        _, distances = knn(embedded, self.cells, min(NEIGHBORS, len(self.cells)))
        logits = self._logits(embedded)
        far = distances.mean(axis=1, dtype=np.float64) / self.spread[logits.argmax(axis=1)]
        return np.stack([far, -logsumexp(logits, axis=1)], axis=1)

    def _logits(self, embedded: np.ndarray) -> np.ndarray:
        return embedded.astype(np.float64) @ self.planes.T + self.offsets

    def _usual(self) -> np.ndarray:
        """Return the geometric mean over reference cells which look like each label of their distance to others."""
        from tenfold.kernels.knn import knn

        k = min(NEIGHBORS, len(self.cells) - 1)
        _, distances = knn(self.cells, None, k + 1)
        own = np.log(np.maximum(distances[:, 1:].mean(axis=1, dtype=np.float64), 1e-12))
        label = self._logits(self.cells).argmax(axis=1)
        sizes = np.bincount(label, minlength=len(self.planes))
        sums = np.bincount(label, weights=own, minlength=len(self.planes))
        return np.exp(np.where(sizes > 0, sums / np.maximum(sizes, 1), own.mean()))

    def novelty(self, embedded: np.ndarray, fdr: float = 0.1) -> pd.DataFrame:
        """Return scores, p-values and calls; see `AnnotatorMethod.novelty` for the columns."""
        import pandas as pd

        if not len(self.calibration):
            raise DataError(
                "Nothing was held out when this annotator was fitted (calibration=0), so that novelty has no scale. "
                "Fit it with calibration=0.2, or use tenfold.annotate.conformalize with labelled cells."
            )
        known, asked = self.scores(self.calibration), self.scores(embedded)
        known_p = np.stack([one_class_pvalues(known[:, i], known[:, i]) for i in range(2)], axis=1)
        asked_p = np.stack([one_class_pvalues(asked[:, i], known[:, i]) for i in range(2)], axis=1)
        # The smaller of two p-values is no p-value; how small it is among calibration cells is one.
        score = (1 - asked_p).max(axis=1)
        pvalue = one_class_pvalues(score, (1 - known_p).max(axis=1))
        q = benjamini_hochberg(pvalue)
        return pd.DataFrame({
            "distance": asked[:, 0], "energy": asked[:, 1], "pvalue_distance": asked_p[:, 0],
            "pvalue_energy": asked_p[:, 1], "score": score, "pvalue": pvalue, "qvalue": q, "novel": q <= fdr,
        })  # fmt: skip


def _expression(data: Inputs, genes: np.ndarray, depth: float, mask: np.ndarray | None) -> sparse.csr_matrix:
    """Return log(1 + counts per `depth`) of genes by name, of the cells in the mask; missing genes are empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the annotator has said already that genes are missing
        match = match_genes(data.adata.var_names, genes)
    whole: Any = data.counts_on_disk
    factor = (depth / np.maximum(cell_sums(data.counts if whole is None else whole), 1)).astype(np.float32)
    parts = []
    in_memory = whole is None
    for rows, chunk in row_chunks(data.counts if in_memory else data.counts_of(match.columns), "reading cells"):
        taken = np.arange(chunk.shape[0]) if mask is None else np.flatnonzero(mask[rows])
        part = match.widened(chunk[taken][:, match.columns] if in_memory else chunk[taken])
        values = np.log1p(part.data * np.repeat(factor[rows][taken], np.diff(part.indptr)))
        parts.append(sparse.csr_matrix((values, part.indices, part.indptr), part.shape))
    return sparse.vstack(parts, format="csr")


def _sampled(rows: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """Return at most `MOST_CELLS` of the rows, ascending: all of rare labels, as many as fit of each frequent one."""
    if len(rows) <= MOST_CELLS:
        return rows
    shuffled = np.random.default_rng(seed).permutation(rows)
    order = np.argsort(codes[shuffled], kind="stable")
    sizes = np.bincount(codes[rows])
    place = np.empty(len(rows), dtype=np.int64)  # of each cell within its label
    place[order] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(shuffled[np.argsort(place, kind="stable")[:MOST_CELLS]])


def _regression(embedded: np.ndarray, codes: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and offsets of a multinomial logistic regression; labels without cells get no weight."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    planes, offsets = np.zeros((n_labels, embedded.shape[1])), np.full(n_labels, -np.inf)
    seen = np.unique(codes)
    if len(seen) < 2:
        offsets[seen] = 0.0
        return planes, offsets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine = LogisticRegression(max_iter=300).fit(embedded.astype(np.float64), codes)
    # With two labels a single row stands for the difference of the two.
    weights, bias = machine.coef_, machine.intercept_
    if len(seen) == 2:
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    planes[seen], offsets[seen] = weights, bias
    return planes, offsets
