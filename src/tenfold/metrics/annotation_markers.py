"""Whether cells with a label express what is known to mark it: a check that needs no true labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

from tenfold.errors import DataError
from tenfold.metrics._checks import groups
from tenfold.metrics.annotation_confidence import novel_auroc

MOST_MARKERS = 5


def marker_auroc(
    expression: sparse.csr_matrix | np.ndarray,
    genes: Sequence[str] | np.ndarray,
    predicted: np.ndarray,
    markers: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Chance that a cell with a label expresses a marker of it more highly than a cell without it, by label.

    Mean over the first five markers that are among the genes of their AUROC, cells with the label against all others.
    From 0 to 1; 0.5 is chance; NaN for a label that no cell, or every cell, has. High is good. It says whether labels
    make sense, not whether they are right: markers shared by related types are high in all of them.

    Parameters
    ----------
    expression
        Normalised expression, cells × genes.
    genes
        Names of its columns.
    predicted
        Label of every cell, shape (n,).
    markers
        Marker genes by label, the best first. Labels without markers, or with none among the genes, are left out.

    Raises
    ------
    DataError
        No marker is among the genes.

    References
    ----------
    Fawcett (2006), doi:10.1016/j.patrec.2005.10.010 (AUROC).
    """
    told = groups(np.asarray(predicted).astype(str), "predicted", expression.shape[0])
    place = {str(name): column for column, name in enumerate(genes)}
    found = {}
    for label, names in markers.items():
        columns = [place[name] for name in names if name in place][:MOST_MARKERS]
        if columns:
            own = told.codes == (told.levels.index(label) if label in told.levels else -1)
            found[label] = float(np.mean([novel_auroc(own, _column(expression, column)) for column in columns]))
    if not found:
        raise DataError("None of the markers is among the genes; are both names of the same kind?")
    return found


def _column(expression: sparse.csr_matrix | np.ndarray, column: int) -> np.ndarray:
    if isinstance(expression, np.ndarray):
        return expression[:, column].astype(np.float64)
    return np.asarray(expression[:, [column]].toarray(), dtype=np.float64).ravel()
