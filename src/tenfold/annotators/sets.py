"""Prediction sets of cells from an annotator's probabilities and its calibration, by any of the conformal methods."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from tenfold.annotators import conformal
from tenfold.annotators.calibration import Calibration
from tenfold.annotators.novelty import Detector
from tenfold.errors import DataError, ParameterError, closest

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from tenfold.annotators.ontology import Ontology

SetMethod = Literal["lac", "aps", "raps", "mondrian", "clustered", "group", "weighted"]
#: Below this p-value the cells to label are not like the calibration cells.
DOUBTFUL = 0.01
#: Cells that are looked at to tell.
MONITORED = 2000
#: How a cell is shown that no label fits.
EMPTY = "(none)"


@dataclass(frozen=True)
class PredictionSets:
    """Which labels each cell may have.

    Attributes
    ----------
    contains
        One row a cell, one column a label, bool.
    alpha, method
        Share of sets that may miss the true label, and how the thresholds were found.
    thresholds
        Largest score of a label in a set, by label; infinite for a label that is in every set. With
        ``method="weighted"`` the median over cells.
    n_calibration
        Calibration cells by label.
    effective_size
        How many equally weighted calibration cells would tell as much; less than all with ``method="weighted"``.
    shift
        Largest difference between the novelty of these cells and of the calibration cells, and its p-value; ``None``
        where it was not looked at.
    notes
        What a reader of the sets must know.
    """

    contains: pd.DataFrame
    alpha: float
    method: str
    thresholds: pd.Series
    n_calibration: pd.Series
    effective_size: float
    shift: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> np.ndarray:
        """Labels in each cell's set, shape (n_cells,); 0 where none fits, a sign of a new type or a doublet."""
        return self.contains.to_numpy().sum(axis=1)

    @property
    def labels(self) -> np.ndarray:
        """Each cell's set as ``"a|b|c"``, shape (n_cells,)."""
        return named(self.contains.to_numpy(), list(self.contains.columns))

    def rolled_up(self, ontology: Ontology) -> np.ndarray:
        """Return one term a cell: the deepest one above all labels of its set, with the set: ``"T cell {CD4, CD8}"``.

        Parameters
        ----------
        ontology
            As `tenfold.annotate.read_obo` reads it. Sets with a label that is no term of it stay ``"a|b"``.
        """
        found = {}
        for joined in np.unique(self.labels):
            labels = joined.split("|")
            above = None if len(labels) == 1 else ontology.common_ancestor(labels)
            found[joined] = joined if above is None else f"{above} {{{', '.join(labels)}}}"
        return np.array([found[joined] for joined in self.labels], dtype=object)

    def by_cluster(self, clusters: np.ndarray, beta: float = 0.1) -> pd.Series:
        """Return the set of each cluster of cells: labels in the sets of at least 1 - `beta` of its cells.

        Parameters
        ----------
        clusters
            Cluster of each cell, shape (n_cells,).
        beta
            Share of a cluster's cells that may disagree.
        """
        import pandas as pd

        codes, levels = pd.factorize(np.asarray(clusters).astype(str), sort=True)
        if len(codes) != len(self.contains):
            raise DataError(
                f"{len(codes):,} clusters for {len(self.contains):,} cells were given; one a cell is needed."
            )
        found = conformal.cluster_sets(self.contains.to_numpy(), codes, len(levels), beta)
        return pd.Series(named(found, list(self.contains.columns)), index=levels)

    def write(self, adata: AnnData, key: str) -> None:
        """Write ``obs["<key>_set"]`` and ``obs["<key>_set_size"]``."""
        import pandas as pd

        adata.obs[f"{key}_set"] = pd.Categorical(self.labels)
        adata.obs[f"{key}_set_size"] = self.sizes.astype(np.int32)


class Asked(NamedTuple):
    """Cells to label.

    Attributes
    ----------
    probabilities
        One row a cell.
    seed
        Of what is random.
    embedded
        Coordinates by the detector of some of them, or of all for weights; ``None`` where it was not asked.
    calibrated
        Coordinates of the calibration cells, for weights.
    """

    probabilities: pd.DataFrame
    seed: int
    embedded: np.ndarray | None = None
    calibrated: np.ndarray | None = None


def named(contains: np.ndarray, labels: list[str]) -> np.ndarray:
    """Return each set as ``"a|b|c"``; every distinct set is joined once."""
    distinct, places = np.unique(contains, axis=0, return_inverse=True)
    names = ["|".join(label for label, inside in zip(labels, row, strict=True) if inside) or EMPTY for row in distinct]
    return np.array(names, dtype=object)[places.ravel()]


def prediction_sets(
    calibration: Calibration, detector: Detector | None, asked: Asked, alpha: float, method: SetMethod
) -> PredictionSets:
    """Return the sets of cells.

    Parameters
    ----------
    calibration, detector
        What is known of cells that were held out.
    asked
        The cells.
    alpha, method
        See `AnnotatorMethod.predict_sets`.
    """
    import pandas as pd

    if method not in get_args(SetMethod):
        raise ParameterError(
            f"There are no prediction sets by '{method}'.{closest(method, get_args(SetMethod))} Methods are: "
            f"{', '.join(get_args(SetMethod))}."
        )
    if not len(calibration.codes):
        raise DataError(
            "This annotator knows of no cells that it was not trained on (calibration=0, markers, or a model that "
            "another tool trained), so that its sets could promise nothing. Fit it on labelled cells with "
            "calibration=0.2, or use tenfold.annotate.conformalize with labelled cells."
        )
    labels = asked.probabilities.columns
    found = thresholds_of(calibration, asked, alpha, method)
    scores = _scores(asked.probabilities.to_numpy(), method, uniforms_of(asked.probabilities.index, asked.seed))
    notes = list(found.notes)
    moved = None
    if asked.embedded is not None and detector is not None and len(detector.calibration):
        moved = _monitored(detector, asked.embedded, asked.seed)
        if moved[1] < DOUBTFUL and method not in ("weighted", "group"):
            notes.append(
                f"These cells are not like the calibration cells (largest difference of novelty {moved[0]:.2f}, p = "
                f"{moved[1]:.1g}): another batch, other proportions or new types. The sets no longer promise to miss "
                f"at most {alpha:.0%}; see method='weighted' and 'group', and novelty()."
            )
            warnings.warn(notes[-1], stacklevel=3)
    counts = np.bincount(calibration.codes, minlength=len(labels))
    return PredictionSets(
        contains=pd.DataFrame(scores <= found.values, index=asked.probabilities.index, columns=labels),
        alpha=alpha, method=method,
        thresholds=pd.Series(np.broadcast_to(np.median(found.values, axis=0), len(labels)).copy(), index=labels),
        n_calibration=pd.Series(counts, index=labels), effective_size=found.effective_size, shift=moved, notes=notes,
    )  # fmt: skip


class Thresholds(NamedTuple):
    """Thresholds of shape (n_cells or 1, n_labels or 1), with what is to be said of them."""

    values: np.ndarray
    effective_size: float
    notes: list[str]


def thresholds_of(calibration: Calibration, asked: Asked, alpha: float, method: SetMethod) -> Thresholds:
    """Return the thresholds of a method."""
    codes, n_labels = calibration.codes, calibration.probabilities.shape[1]
    drawn = np.random.default_rng(asked.seed).random(len(codes))
    scores = _scores(calibration.probabilities, method, drawn)[np.arange(len(codes)), codes]
    if method == "mondrian":
        values = conformal.class_thresholds(scores, codes, n_labels, alpha)
        notes = _rare(values, asked.probabilities.columns, alpha)
    elif method == "clustered":
        values, grouping = conformal.clustered_thresholds(scores, codes, n_labels, alpha, asked.seed)
        alone = grouping.max() < 0
        notes = ["Too few calibration cells to group labels; all have the same threshold."] if alone else []
    elif method == "group":
        return _by_group(scores, calibration.groups, alpha)
    elif method == "weighted":
        return _weighted(scores, asked, alpha)
    else:
        values, notes = np.array([conformal.threshold(scores, alpha)]), []
        if np.isinf(values[0]):
            notes = [f"{len(codes)} calibration cells are too few for alpha={alpha}: every set holds all labels."]
    return Thresholds(values[None, :], float(len(codes)), notes)


def _scores(probabilities: np.ndarray, method: str, uniforms: np.ndarray) -> np.ndarray:
    return conformal.nonconformity(probabilities, method if method in ("aps", "raps") else "lac", uniforms)


def uniforms_of(names: pd.Index, seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each cell that depends on its name and the seed, not on the cells beside it."""
    import pandas as pd

    hashed = pd.util.hash_array(np.asarray(names.astype(str), dtype=object), hash_key=f"{seed:016d}"[-16:])
    return hashed.astype(np.float64) / 2.0**64


def _rare(values: np.ndarray, labels: pd.Index, alpha: float) -> list[str]:
    rare = [str(label) for label, value in zip(labels, values, strict=True) if np.isinf(value)]
    if not rare:
        return []
    few = int(np.ceil(1 / alpha - 1e-9)) - 1
    return [f"In every set, for they have fewer than {few} calibration cells: {', '.join(rare)}."]


def _by_group(scores: np.ndarray, groups: np.ndarray, alpha: float) -> Thresholds:
    if not len(groups):
        raise DataError(
            "method='group' needs calibration cells of several batches or donors. Fit the annotator with batch=... and "
            "three batches or more, or give group=... to tenfold.annotate.conformalize."
        )
    value, promised = conformal.group_threshold(scores, groups, alpha)
    notes = []
    if not promised:
        n_groups, needed = len(np.unique(groups)), int(np.ceil(1 / alpha - 1e-9)) - 1
        notes = [
            f"{n_groups} calibration groups are fewer than the {needed} that alpha={alpha} needs: the threshold is the "
            "largest of the groups' own, and promises nothing for a new group."
        ]
    return Thresholds(np.array([[value]]), float(len(np.unique(groups))), notes)


def _weighted(scores: np.ndarray, asked: Asked, alpha: float) -> Thresholds:
    if asked.embedded is None or asked.calibrated is None:
        raise DataError("method='weighted' compares cells with the calibration cells: give the cells, adata=...")
    weights, own = conformal.density_ratio(asked.calibrated, asked.embedded, asked.seed)
    size = conformal.effective_size(weights)
    notes = [f"Weights leave {size:,.0f} effective calibration cells of {len(scores):,}."]
    if size < 1 / alpha:
        notes.append("These are too few: the cells have hardly anything in common with the calibration cells.")
    return Thresholds(conformal.weighted_thresholds(scores, weights, own, alpha)[:, None], size, notes)


def _monitored(detector: Detector, embedded: np.ndarray, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)

    def some(cells: np.ndarray) -> np.ndarray:
        if len(cells) > MONITORED:
            cells = cells[rng.choice(len(cells), MONITORED, replace=False)]
        return detector.scores(cells)[:, 0]

    return conformal.shift(some(detector.calibration), some(embedded))
