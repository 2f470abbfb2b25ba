"""Prediction sets and novelty for any annotator, calibrated on labelled cells that it was not trained on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold import catalog
from tenfold.annotators.calibration import Calibration
from tenfold.annotators.confidence import looked_at
from tenfold.annotators.novelty import Detector
from tenfold.annotators.sets import Asked, PredictionSets, SetMethod, prediction_sets
from tenfold.data import check
from tenfold.data.inputs import Inputs
from tenfold.data.store import read_folder, write_folder
from tenfold.errors import DataError, FileFormatError
from tenfold.method import Annotator, Method

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Of the cells by which empirical coverage is measured.
FOLDS = 5
FEWEST_CELLS = 20


class Conformal:
    """An annotator with the calibration that `conformalize` made.

    Attributes
    ----------
    annotator
        The fitted annotator.
    calibration, detector, embedded
        What is known of the calibration cells; `embedded` are their coordinates by the detector.
    alpha, method
        Of `predict_sets` where it is not told otherwise.
    coverage
        Share of calibration cells whose set holds their label, each with thresholds from the other cells (five folds;
        whole groups where there are some).
    """

    def __init__(
        self, annotator: Any, calibration: Calibration, detector: Detector | None, embedded: np.ndarray | None,
        settings: dict[str, Any],
    ) -> None:  # fmt: skip
        self.annotator, self.calibration, self.detector, self.embedded = annotator, calibration, detector, embedded
        self.alpha: float = settings["alpha"]
        self.method: SetMethod = settings["method"]
        self.layer: str | None = settings["layer"]
        self.labels: list[str] = settings["labels"]
        self.coverage: float = settings["coverage"]

    def predict_sets(
        self, adata: AnnData, alpha: float | None = None, method: SetMethod | None = None, seed: int = 0
    ) -> PredictionSets:
        """Return for each cell a set of labels that misses the true one in at most a share `alpha` of cells.

        Parameters
        ----------
        adata
            Cells to label, raw counts.
        alpha, method
            ``None`` for those given to `conformalize`; see `AnnotatorMethod.predict_sets`.
        seed
            Of the random part of ``"aps"`` and ``"raps"``.
        """
        found = self.annotator.probabilities(adata).set_axis(adata.obs_names, axis=0)
        chosen = method or self.method
        asked = Asked(found, seed)
        if self.detector is not None:
            mask = None if chosen == "weighted" else looked_at(len(found), seed)
            asked = Asked(found, seed, self.detector.embed(self._reading(adata), mask), self.embedded)
        return prediction_sets(self.calibration, self.detector, asked, alpha or self.alpha, chosen)

    def novelty(self, adata: AnnData, fdr: float = 0.1) -> pd.DataFrame:
        """Return how unlike the known cells each cell is; see `AnnotatorMethod.novelty`."""
        if self.detector is None:
            raise DataError(f"Fewer than {FEWEST_CELLS} calibration cells cannot say what is new.")
        return self.detector.novelty(self.detector.embed(self._reading(adata)), fdr).set_axis(adata.obs_names, axis=0)

    def write(self, adata: AnnData, key: str | None = None) -> None:
        """Write sets and novelty into `adata`.

        ``obs["<m>_set"]`` (``"a|b|c"``), ``obs["<m>_set_size"]``, ``obs["<m>_pvalue_novel"]``, and
        ``uns["<m>_conformal"]``: alpha, method, thresholds and calibration cells by label, coverage, notes.

        Parameters
        ----------
        adata
            Cells to label.
        key
            Name to write under; ``None`` for the annotator's.
        """
        key = key or str(self.annotator.roles_.get("key_added", self.annotator.name()))
        sets = self.predict_sets(adata)
        sets.write(adata, key)
        if self.detector is not None:
            adata.obs[f"{key}_pvalue_novel"] = self.novelty(adata)["pvalue"]
        adata.uns[f"{key}_conformal"] = {
            "alpha": sets.alpha,
            "method": sets.method,
            "labels": np.array(self.labels, dtype=object),
            "thresholds": sets.thresholds.to_numpy(),
            "n_calibration": sets.n_calibration.to_numpy(),
            "coverage": self.coverage,
            "notes": "\n".join(sets.notes),
        }

    def save(self, folder: str | Path) -> Path:
        """Save annotator and calibration to `folder` as safetensors and JSON.

        Raises
        ------
        FileFormatError
            If `folder` exists and holds something else.
        """
        folder = Path(folder)
        settings = {name: getattr(self, name) for name in ("alpha", "method", "layer", "labels", "coverage")}
        state = {
            "calibration": self.calibration._asdict(),
            "detector": None if self.detector is None else self.detector._asdict(),
            "embedded": self.embedded,
        }
        write_folder(folder, {"conformal": settings}, state)
        self.annotator.save(folder / "annotator")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Conformal:
        """Load what `save` wrote. Nothing is unpickled.

        Raises
        ------
        FileFormatError
            If the folder holds something else, or is damaged.
        """
        folder = Path(folder)
        head, state = read_folder(folder)
        if "conformal" not in head:
            raise FileFormatError(f"'{folder}' holds a method, not what conformalize made; use tenfold.load.")
        detector = None if state["detector"] is None else Detector(**state["detector"])
        annotator = catalog.load(folder / "annotator")
        return cls(annotator, Calibration(**state["calibration"]), detector, state["embedded"], head["conformal"])

    def _reading(self, adata: AnnData) -> Inputs:
        return Inputs(adata, {} if self.layer is None else {"layer": self.layer})


def conformalize(
    annotator: Method,
    calibration_cells: AnnData,
    *,
    labels: str,
    alpha: float = 0.1,
    method: SetMethod = "lac",
    group: str | None = None,
    seed: int = 0,
) -> Conformal:
    """Calibrate any fitted annotator on labelled cells that it has not seen, for sets that keep their promise.

    It needs nothing of the annotator but `probabilities`, so that it works for every one, scANVI included.

    Parameters
    ----------
    annotator
        A fitted annotator.
    calibration_cells
        Labelled cells, raw counts. None of them may have been in the training. Cells with labels that the annotator
        does not know are left out, with a warning.
    labels
        obs column with their labels.
    alpha
        Share of sets that may miss the true label.
    method
        How thresholds are found; see `AnnotatorMethod.predict_sets`.
    group
        obs column with their donors or batches, for ``method="group"`` and honest coverage.
    seed
        Of folds, and of the cells that show an annotator without a detector of its own what known cells look like.

    Returns
    -------
    `Conformal`, with ``predict_sets``, ``novelty``, ``write``, ``save`` and ``load``.

    Raises
    ------
    DataError
        No calibration cell has a label that the annotator knows.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.SVM().fit(adata[:350].copy(), labels="cell_type")
    >>> sure = tf.annotate.conformalize(model, adata[350:600].copy(), labels="cell_type", method="aps")
    >>> sure.predict_sets(adata[600:].copy()).sizes.shape
    (100,)

    References
    ----------
    Angelopoulos & Bates (2023), doi 10.1561/2200000101.
    """
    if not isinstance(annotator, Annotator):
        raise DataError(f"{annotator.info.title} gives no probabilities of labels: conformalize takes an annotator.")
    annotator._check_fitted()
    column = check.categories(calibration_cells, labels, "labels")
    found = annotator.probabilities(calibration_cells)
    known = [str(name) for name in found.columns]
    codes = np.array([known.index(name) if name in known else -1 for name in column.names], np.int64)[column.values]
    usable = _usable(codes, column.names, known)
    cells = calibration_cells[usable].copy()
    groups = np.zeros(0, np.int64)
    if group is not None:
        groups = check.categories(cells, group, "batch").values.astype(np.int64)
    layer = annotator.roles_.get("layer")
    data = Inputs(cells, {} if layer is None else {"layer": layer})
    calibration = Calibration(1.0, found.to_numpy(dtype=np.float32)[usable], codes[usable], groups)
    detector, embedded = _detector(annotator, data, calibration.codes, seed)
    settings = {"alpha": alpha, "method": method, "layer": layer, "labels": known}
    settings["coverage"] = _coverage(calibration, found.columns, alpha, method, seed)
    return Conformal(annotator, calibration, detector, embedded, settings)


def _usable(codes: np.ndarray, names: list[str], known: list[str]) -> np.ndarray:
    usable = codes >= 0
    if not usable.any():
        raise DataError(
            f"The annotator knows none of the labels of the calibration cells (they have e.g. '{names[0]}', it knows "
            f"e.g. '{known[0]}'). Name the obs column with the same labels as in the training."
        )
    if not usable.all():
        strange = [name for name in names if name not in known]
        warnings.warn(
            f"{int((~usable).sum()):,} calibration cells are left out: the annotator does not know "
            f"{', '.join(strange)}.",
            stacklevel=3,
        )
    return usable


def _detector(
    annotator: Any, data: Inputs, codes: np.ndarray, seed: int
) -> tuple[Detector | None, np.ndarray | None]:  # fmt: skip
    """Return a detector calibrated on the cells, and their coordinates.

    An annotator without one of its own has one that learns from half of the cells and is calibrated on the others.
    """
    own = getattr(annotator, "detector_", None)
    if own is not None:
        detector = Detector(**own)
        embedded = detector.embed(data)
        return detector.calibrated(embedded), embedded
    if data.n_cells < FEWEST_CELLS:
        return None, None
    held = np.random.default_rng(seed).permutation(np.arange(data.n_cells) % 2 == 0)
    detector = Detector.of(data, codes, held, seed)
    return detector, detector.embed(data)


def _coverage(calibration: Calibration, labels: pd.Index, alpha: float, method: SetMethod, seed: int) -> float:
    """Return the share of calibration cells whose set, by thresholds from other cells, holds their label."""
    import pandas as pd

    n = len(calibration.codes)
    if method == "weighted" or n < 2 * FOLDS:
        return float("nan")
    rng = np.random.default_rng(seed)
    if len(calibration.groups):
        levels, of_cell = np.unique(calibration.groups, return_inverse=True)
        fold = (rng.permutation(len(levels)) % min(FOLDS, len(levels)))[of_cell]
    else:
        fold = rng.permutation(n) % FOLDS
    hits = np.zeros(n, dtype=bool)
    for number in np.unique(fold):
        out = fold == number
        if out.all():
            return float("nan")
        groups = calibration.groups[~out] if len(calibration.groups) else calibration.groups
        rest = Calibration(1.0, calibration.probabilities[~out], calibration.codes[~out], groups)
        asked = Asked(pd.DataFrame(calibration.probabilities[out], columns=labels), seed)
        sets = prediction_sets(rest, None, asked, alpha, method).contains.to_numpy()
        hits[out] = sets[np.arange(int(out.sum())), calibration.codes[out]]
    return float(hits.mean())
