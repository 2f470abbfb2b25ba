"""From similarities to probabilities, where a rule of its own has named the label."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

#: Similarities, between -1 and 1, are told apart by differences of a few hundredths.
SHARPNESS = 20.0


def as_probabilities(similarity: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Return probabilities of labels by their similarity, of which the label that is named has the highest.

    Parameters
    ----------
    similarity
        Shape (n_cells, n_labels); NaN or minus infinity where a label cannot be compared.
    named
        Label that each cell is given, -1 for none, shape (n_cells,).

    Returns
    -------
    Shape (n_cells, n_labels), float64. Where another label is more similar, the two change places.
    """
    filled = np.where(np.isfinite(similarity), similarity, -1.0)
    found = softmax(SHARPNESS * filled, axis=1)
    rows = np.flatnonzero(named >= 0)
    best, own = found[rows].argmax(axis=1), named[rows]
    high, low = found[rows, best].copy(), found[rows, own].copy()
    found[rows, best], found[rows, own] = low, high
    return found
