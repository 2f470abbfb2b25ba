"""What several velocity methods agree on, and where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tenfold import metrics
from tenfold.errors import DataError
from tenfold.velocity_models.base import VelocityMethod

#: Cosine between two methods above which they agree on a cell.
AGREE = 0.3


class Consensus(NamedTuple):
    """Joint view of several methods.

    Attributes
    ----------
    direction
        Mean of the unit displacements that the methods expect, shape (n_cells, g), over genes that all have fitted.
    disagreement
        1 less the length of `direction`, shape (n_cells,): 0 where all methods agree, near 1 where they contradict.
    agreement
        Mean over cells of the cosine between the velocities of each two methods, shape (n_methods, n_methods).
    agreed
        Cells of which two thirds of the pairs of methods agree (cosine above 0.3), shape (n_cells,), bool.
    genes
        Names of the genes of `direction`.
    """

    direction: np.ndarray
    disagreement: np.ndarray
    agreement: np.ndarray
    agreed: np.ndarray
    genes: np.ndarray


def consensus(models: Sequence[VelocityMethod]) -> Consensus:
    """Join fitted methods: the direction that they share in each cell, and how much they disagree.

    A direction that methods share may still be one that all of them find in permuted counts.

    Parameters
    ----------
    models
        Two or more fitted velocity methods, of the same cells.

    Raises
    ------
    DataError
        Fewer than two, of other cells, or without two genes in common.
    """
    if len(models) < 2 or len({model.cells_ for model in models}) > 1:
        raise DataError("A consensus takes two or more methods that were fitted on the same cells.")
    trusted = [model.columns_[model.trusted_] for model in models]
    fitted = set(models[0].columns_).intersection(*(model.columns_ for model in models[1:]))
    if len(fitted) < 2:
        raise DataError("The methods have fitted fewer than two genes in common; give them the same filters.")
    columns = np.array(sorted(fitted))
    steps = []
    for model in models:
        position = model.spliced_[:, np.searchsorted(model.columns_, columns)]
        steps.append(model.transitions() @ position - position)
    direction, disagreement = metrics.consensus_direction(steps)
    agreement, pairs = np.eye(len(models)), []
    for i in range(len(models)):
        for j in range(i + 1, len(models)):
            shared = np.intersect1d(trusted[i], trusted[j])
            if len(shared) > 1:
                cosine = metrics.velocity_agreement(
                    models[i].velocity()[:, shared], models[j].velocity()[:, shared]
                )  # fmt: skip
                pairs.append(cosine > AGREE)
                agreement[i, j] = agreement[j, i] = cosine.mean()
            else:
                agreement[i, j] = agreement[j, i] = np.nan
    agreed = np.mean(pairs, axis=0) >= 2 / 3 if pairs else np.zeros(len(direction), dtype=bool)
    names = models[0].genes_[np.searchsorted(models[0].columns_, columns)]
    return Consensus(direction, disagreement, agreement, agreed, names)
