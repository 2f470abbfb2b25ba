"""The base of methods that learn labels from log-normalised expression and label any other cells."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.annotators.calibration import Calibration, held_out
from tenfold.annotators.confidence import Confident
from tenfold.data.bar import Bar
from tenfold.data.counts import counts_layer
from tenfold.data.genes import GeneMatch, match_genes
from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import normalize_log1p
from tenfold.data.streamed import cell_sums, row_chunks
from tenfold.errors import DataError
from tenfold.method import Method, param

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Cells whose counts tell data from others with the same names of cells ("cell_1", ...).
LOOKED_AT = 100
#: Roles that cells to label have under the same names as the fitted ones.
_OF_ANY_CELLS = ("layer", "clusters")


class AnnotatorMethod(Method, Confident):
    """A method that implements ``_train`` and ``_score`` on log-normalised expression; all else is here.

    Labels come from the fitted cells, ``fit(adata, labels=...)``, or from others,
    ``fit(adata, reference=..., labels=...)``, of which only the genes that `adata` has are used.

    Part of the labelled cells is held out first. What a model trained without them says of them is its calibration:
    one temperature that makes its probabilities honest, and the scores on which `predict_sets` rests. Then the method
    is trained again on all of them.

    The fitted state is ``genes_`` (what the model reads), ``labels_`` (names), ``calibration_`` (a `Calibration` as a
    dict), ``detector_`` (a `Detector` likewise), ``found_`` and ``told_`` (probabilities and labels of the fitted
    cells), ``depths_`` (counts of some) and what ``_train`` keeps.
    """

    n_top_genes: int | None = param(None, low=10)
    calibration: float = param(0.2, low=0.0, high=0.5)

    # ---- what a method implements ------------------------------------------------------------------------------------

    @abstractmethod
    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        """Learn from log-expression, shape (n_cells, n_genes), CSR, float32, and label numbers, shape (n_cells,).

        Every label of ``labels_`` has a cell at least.
        """

    @abstractmethod
    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        """Return the uncalibrated probability of each label for each cell, shape (n_cells, n_labels)."""

    def _judge(self, x: sparse.csr_matrix, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what `_score` does, and of which cells the method dares to tell the label, shape (n_cells,), bool.

        `missing` marks genes that the data lack, shape (n_genes,); their columns are empty. Methods that can do better
        than to take them as not expressed, or that reject cells for more than their probabilities, override this.
        """
        return self._score(x), np.ones(x.shape[0], dtype=bool)

    def _logged(self, counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
        """Return what the method reads of counts; `totals` are sums over all genes of the data, shape (n_cells,)."""
        return normalize_log1p(counts, totals=totals)

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        source = data.reference or data
        labels = source.labels
        assert labels is not None
        self.genes_ = self._genes(data, source)
        self.labels_ = np.array(labels.names, dtype=object)
        sizes, codes = np.bincount(labels.values), labels.values.astype(np.int64)
        if sizes.min() == 1:
            warnings.warn(
                f"Label '{labels.names[sizes.argmin()]}' has a single cell; nothing can be learnt of how its cells "
                "differ. Merge it with another label, or leave it out.",
                stacklevel=2,
            )
        match = match_genes(source.adata.var_names, self.genes_)
        x = sparse.vstack(list(self._chunks(source, match, show=False)), format="csr")
        groups = None if source.batch is None else source.batch.values
        self._learn(x, codes, groups)
        self._watch(source, codes, groups)
        self.found_, self.told_ = self._tell(data)
        self.depths_ = self._depths(data.adata, data.roles.get("layer"))

    def _learn(self, x: sparse.csr_matrix, codes: np.ndarray, groups: np.ndarray | None) -> None:
        """Train without the held-out cells, calibrate on them, train on all."""
        held = held_out(codes, groups, self.calibration, getattr(self, "seed", 0))
        if held.any():
            self._train(x[~held], codes[~held])
            found = Calibration.of(self._score(x[held]), codes[held], None if groups is None else groups[held])
        else:
            found = Calibration.none(len(self.labels_))
        self.calibration_ = found._asdict()
        self._train(x, codes)

    def _genes(self, data: Inputs, source: Inputs) -> np.ndarray:
        """Return the genes to learn from: those that the cells to label have too, the most variable of them."""
        names = source.gene_names
        shared = np.arange(len(names))
        if source is not data:
            shared = match_genes(data.adata.var_names, names).places
        if self.n_top_genes is None or self.n_top_genes >= len(shared):
            return names[shared]
        chosen = self._informative_genes(source, self.n_top_genes)
        chosen = chosen[np.isin(chosen, shared)]
        if not len(chosen):
            raise DataError("None of the reference's variable genes are in the data to label; raise n_top_genes.")
        return names[chosen]

    def _informative_genes(self, source: Inputs, n_genes: int) -> np.ndarray:
        """Return the sorted columns of genes to learn from; methods that choose in another way override this."""
        return source.variable_genes(n_genes)

    # ---- labels of cells ---------------------------------------------------------------------------------------------

    def probabilities(self, adata: AnnData | None = None) -> pd.DataFrame:
        """Return the calibrated probability of each label for each cell.

        Parameters
        ----------
        adata
            Cells to label, raw counts, in memory or backed by a file; ``None`` for the fitted ones. Genes are found by
            name; missing ones count as not expressed, with a warning where many are missing.

        Returns
        -------
        One row a cell, one column a label, float32.

        Raises
        ------
        DataError
            Hardly any of the fitted genes are there.
        """
        return self._annotated(adata)[0]

    def _annotated(self, adata: AnnData | None) -> tuple[pd.DataFrame, np.ndarray]:
        import pandas as pd

        self._check_fitted()
        if adata is None:
            return pd.DataFrame(self.found_, columns=self.labels_), self.told_
        found, told = self._tell(self._inputs(adata))
        return pd.DataFrame(found, index=adata.obs_names, columns=self.labels_), told

    def _inputs(self, adata: AnnData) -> Inputs:
        return Inputs(adata, {role: self.roles_[role] for role in _OF_ANY_CELLS if role in self.roles_})

    def _knows(self, adata: AnnData) -> bool:
        return super()._knows(adata) and np.array_equal(self.depths_, self._depths(adata, self.roles_.get("layer")))

    @staticmethod
    def _depths(adata: AnnData, layer: str | None) -> np.ndarray:
        some = counts_layer(adata[:LOOKED_AT], layer)
        return np.asarray(some.sum(axis=1, dtype=np.float64)).ravel()

    def _tell(self, data: Inputs) -> tuple[np.ndarray, np.ndarray]:
        """Return the calibrated probabilities and the label of each cell."""
        import pandas as pd

        found, sure = self._label(data)
        labels = self._decide(pd.DataFrame(found, columns=self.labels_))
        return found, np.where(sure, labels, self.UNKNOWN)

    def _label(self, data: Inputs) -> tuple[np.ndarray, np.ndarray]:
        calibration = Calibration(**self.calibration_)
        parts = [self._judge(x, missing) for x, missing in self._cells(data)]
        scores, sure = (np.concatenate(part) for part in zip(*parts, strict=True))
        return calibration.tempered(scores), sure

    def _cells(self, data: Inputs) -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
        """Iterate over chunks of cells to label, each with the mask of genes that the data lack."""
        match = match_genes(data.adata.var_names, self.genes_)
        missing = np.ones(len(self.genes_), dtype=bool)
        missing[match.places] = False
        for x in self._chunks(data, match):
            yield x, missing

    def _chunks(self, data: Inputs, match: GeneMatch, show: bool = True) -> Iterator[sparse.csr_matrix]:
        """Iterate over the cells as the method reads them: chunks of (n_cells, n_genes), missing genes empty."""
        whole: Any = data.counts_on_disk
        totals = cell_sums(data.counts if whole is None else whole)
        counts = data.counts_of(match.columns)
        bar = Bar(f"{self.info.title}: cells", data.n_cells, show and data.run.progress)
        try:
            for rows, chunk in row_chunks(counts, "labelling cells"):
                yield self._logged(match.widened(chunk), totals[rows])
                bar.show(rows.stop)
        finally:
            bar.close()
