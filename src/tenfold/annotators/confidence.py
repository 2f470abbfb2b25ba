"""Verbs that every annotator shares: sets that hold the true label, and cells of types that the reference lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tenfold.annotators.calibration import Calibration, held_out
from tenfold.annotators.novelty import Detector
from tenfold.annotators.sets import MONITORED, Asked, PredictionSets, SetMethod, prediction_sets
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError
from tenfold.method import Annotator

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: With fewer cells or genes nothing can be said of novelty.
FEWEST = 4


class Confident(Annotator):
    """An annotator that held out part of its labelled cells: ``calibration_``, and ``detector_``, a `Detector`."""

    def predict_sets(
        self,
        adata: AnnData | None = None,
        alpha: float = 0.1,
        method: SetMethod = "lac",
        key_added: str | None = None,
        seed: int = 0,
    ) -> PredictionSets:
        """Return for each cell a set of labels that misses the true one in at most a share `alpha` of cells.

        The thresholds come from the labelled cells that were held out when this annotator was calibrated. The promise
        is for cells that could be exchanged for those; where they could not, a warning says so. The annotator has been
        trained again on all cells since, so the promise is not strict (a few points are lost where probabilities
        sharpen with more cells). Where it must be, keep labelled cells apart and use `tenfold.annotate.conformalize`.

        Parameters
        ----------
        adata
            Cells to label, raw counts; ``None`` for the fitted ones, whose sets are too small if it learnt from them.
        alpha
            Share of sets that may miss the true label.
        method
            ``"lac"``: the smallest sets; rare labels may be missed far more often than `alpha`. ``"aps"``,
            ``"raps"``: larger sets where the annotator is unsure; hardly ever empty. ``"mondrian"``: at most `alpha`
            for the cells of each label; labels with few calibration cells are in every set. ``"clustered"``: a
            compromise for many labels, which share thresholds where their scores are alike. ``"group"``: for cells of
            a new batch, with whole batches held out (fit with ``batch=``). ``"weighted"``: for cells that differ from
            the reference in what types or states are frequent.
        key_added
            Write ``obs["<key_added>_set"]`` and ``obs["<key_added>_set_size"]`` into `adata`.
        seed
            Of the random part of ``"aps"`` and ``"raps"``, and of the cells looked at for shift.

        Returns
        -------
        `PredictionSets`: ``contains`` (cells × labels), ``labels`` (``"a|b|c"``), ``sizes``, ``notes``, ``by_cluster``.

        Raises
        ------
        DataError
            Nothing was held out, or the method needs groups or cells that are not there.

        Warns
        -----
        UserWarning
            The cells are not like the calibration cells (Kolmogorov-Smirnov test of novelty, p < 0.01).
        """
        found = self.probabilities(adata)
        detector = self._detector()
        asked = Asked(found, seed)
        if adata is not None and detector is not None:
            mask = None if method == "weighted" else looked_at(len(found), seed)
            asked = Asked(found, seed, detector.embed(self._inputs(adata), mask), detector.calibration)
        sets = prediction_sets(self._calibration_for(adata), detector, asked, alpha, method)
        if key_added is not None and adata is not None:
            sets.write(adata, key_added)
        return sets

    def novelty(self, adata: AnnData, fdr: float = 0.1) -> pd.DataFrame:
        """Return how unlike the reference each cell is, and which are called new at a false discovery rate.

        Two scores are compared with those of held-out labelled cells: the mean distance to the ten nearest reference
        cells in 50 principal components, in units of what is usual for the type that the cell looks like, which finds
        distinct new types; and the energy of a logistic regression of the labels on them (Liu et al. 2020, doi
        10.48550/arXiv.2010.03759), which finds subtle ones. Neither is confidence: a distinct new type can have higher
        confidence than known cells.

        Parameters
        ----------
        adata
            Cells, raw counts.
        fdr
            Share of the cells called new that may be known ones (Benjamini-Hochberg), as long as the known cells could
            be exchanged for those held out. A new batch makes known cells novel too: give ``batch=`` when fitting.

        Returns
        -------
        One row a cell: ``distance``, ``energy``; ``pvalue_distance``, ``pvalue_energy``; ``score``, the larger of
        1 - p of the two, and its own ``pvalue``; ``qvalue``; ``novel`` (bool).

        Raises
        ------
        DataError
            Nothing was held out when the annotator was fitted.
        """
        self._check_fitted()  # type: ignore[attr-defined]  # of Method
        detector = self._detector()
        if detector is None:
            raise DataError(
                "This annotator keeps no cells of its reference (too few, or a model that another tool trained), so it "
                "cannot say what is new. Use tenfold.annotate.conformalize with labelled cells."
            )
        return detector.novelty(detector.embed(self._inputs(adata)), fdr).set_axis(adata.obs_names, axis=0)

    def _watch(self, source: Inputs, codes: np.ndarray, groups: np.ndarray | None) -> None:
        """Learn what known cells look like, from those that were not held out."""
        held = held_out(codes, groups, self.calibration, getattr(self, "seed", 0))  # type: ignore[attr-defined]
        self._watch_all_but(source, codes, held)

    def _watch_all_but(self, source: Inputs, codes: np.ndarray, held: np.ndarray) -> None:
        """Learn what known cells look like from those that are not `held`; codes below 0 have no label."""
        enough = min((~held & (codes >= 0)).sum(), source.n_genes) >= FEWEST
        self.detector_ = Detector.of(source, codes, held)._asdict() if enough else None

    def _calibration_for(self, adata: AnnData | None) -> Calibration:
        """Return what held-out cells say of the probabilities of these cells."""
        return Calibration(**self.calibration_)  # type: ignore[attr-defined]  # fitted state

    def _detector(self) -> Detector | None:
        return None if self.detector_ is None else Detector(**self.detector_)

    def _inputs(self, adata: AnnData) -> Inputs:
        """Return checked inputs of cells to label, with the roles that these have like the fitted ones."""
        roles = self.roles_  # type: ignore[attr-defined]  # of Method
        return Inputs(adata, {"layer": roles["layer"]} if "layer" in roles else {})


def looked_at(n_cells: int, seed: int) -> np.ndarray | None:
    """Return a mask of the cells by which shift is judged; ``None`` for all."""
    if n_cells <= MONITORED:
        return None
    mask = np.zeros(n_cells, dtype=bool)
    mask[np.random.default_rng(seed).choice(n_cells, MONITORED, replace=False)] = True
    return mask
