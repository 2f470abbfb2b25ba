"""The response of cell types to a treatment, in latent space and gene by gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold.errors import DataError, ParameterError, closest


class Perturbation(NamedTuple):
    """What `SCGen.predict_perturbation` returns.

    Attributes
    ----------
    cells
        Predicted cells over the modelled genes, log(1 + counts per 10,000) in X.
    delta
        The shift in latent space, shape (n_latent,).
    means
        Mean expression of each modelled gene: ``predicted``, and the two baselines that it has to beat, ``control`` and
        ``control_plus_shift`` (the average shift of the other types, gene by gene).
    """

    cells: AnnData
    delta: np.ndarray
    means: pd.DataFrame


@dataclass(frozen=True)
class Responses:
    """Means of every type and condition.

    Attributes
    ----------
    labels, batches
        Names of types and conditions.
    latent, genes
        Means of latent variables and of expression, (n_types, n_conditions, n_dimensions); NaN where there are no
        cells.
    """

    labels: list[str]
    batches: list[str]
    latent: np.ndarray
    genes: np.ndarray

    def batch(self, name: str) -> int:
        """Return the number of a condition."""
        return _position(name, self.batches, "condition")

    def label(self, name: str) -> int:
        """Return the number of a type."""
        return _position(name, self.labels, "type")

    def shifts(
        self, control: int, stimulated: int, target: int, types: list[str] | None, as_reference: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean difference of two conditions, types weighted equally, in latent space and in each gene.

        Parameters
        ----------
        control, stimulated
            Numbers of the conditions.
        target
            Number of the type to leave out; -1 for none.
        types
            Names of the types to use; ``None`` for all that are in both conditions.
        as_reference
            Use all types of each condition.
        """
        seen = ~np.isnan(self.genes[:, :, 0])
        before, after = seen[:, control], seen[:, stimulated]
        if not as_reference:
            both = before & after
            if types is None and target >= 0:
                both[target] = False
            before = after = both
        if types is not None:
            chosen = np.isin(np.arange(len(self.labels)), [self.label(name) for name in types])
            before, after = before & chosen, after & chosen
        if not (before.any() and after.any()):
            raise DataError(
                f"No type that a response could be learnt from is in both '{self.batches[control]}' and "
                f"'{self.batches[stimulated]}'. Give labels with the same names in both conditions."
            )

        def shift(means: np.ndarray) -> np.ndarray:
            return means[after, stimulated].mean(axis=0) - means[before, control].mean(axis=0)

        return shift(self.latent), shift(self.genes)


def predicted(
    expression: np.ndarray, obs: Any, genes: np.ndarray, before: np.ndarray, shifts: tuple[np.ndarray, np.ndarray]
) -> Perturbation:
    """Put a prediction together: expression of cells over some genes, their mean `before`, and the shifts."""
    table = pd.DataFrame(obs).copy()
    table.index = table.index.astype(str)
    names = pd.Index(genes.astype(str))
    means = {"predicted": expression.mean(axis=0), "control": before, "control_plus_shift": before + shifts[1]}
    cells = AnnData(expression, obs=table, var=pd.DataFrame(index=names))
    return Perturbation(cells, shifts[0], pd.DataFrame(means, index=names))


def _position(name: str, known: list[str], what: str) -> int:
    if str(name) not in known:
        raise ParameterError(f"There is no {what} '{name}'.{closest(name, known)} There are: {', '.join(known)}.")
    return known.index(str(name))
