"""What the metrics take that look beyond labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse


class Corrected(NamedTuple):
    """Expression of some cells and genes before and after correction.

    Attributes
    ----------
    before, after
        Log-normalised expression, shape (m, genes), sparse or dense.
    cells
        Which of the n cells these are, shape (m,).
    """

    before: np.ndarray | sparse.spmatrix
    after: np.ndarray | sparse.spmatrix
    cells: np.ndarray


@dataclass(frozen=True)
class Beyond:
    """What the metrics need that look beyond labels; a metric is left out where what it needs is None.

    Attributes
    ----------
    before
        Log-normalised expression before integration, shape (n, genes), sparse or dense.
    phases
        Scores of the S and the G2/M phase, shape (n, 2); from `tenfold.data.cell_cycle.phase_scores`.
    corrected
        For methods that correct expression.
    pseudotime
        Reference pseudotime, shape (n,); NaN where a cell has none.
    """

    before: np.ndarray | sparse.spmatrix | None = None
    phases: np.ndarray | None = None
    corrected: Corrected | None = None
    pseudotime: np.ndarray | None = None
