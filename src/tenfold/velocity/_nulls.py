"""What a method makes of counts without velocity, beside what it makes of the real ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from anndata import AnnData

from tenfold import metrics
from tenfold.data import check
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import layers_of
from tenfold.data.velocity_nulls import permuted
from tenfold.errors import DataError, ParameterError
from tenfold.types import Codes
from tenfold.velocity_models.base import VelocityMethod

#: Cells on which null models are run.
MOST_CELLS = 3000
#: Permutations of each kind.
REPEATS, REPEATS_THOROUGH = 3, 10
#: Excess coherence below which there is no evidence of velocity.
LEAST_EXCESS = 0.1
#: What each kind of null destroys, in words.
WORDS = {"cells": "over cells", "genes": "over genes", "groups": "within groups"}
Pairs = list[tuple[str, str]]


@dataclass
class Measured:
    """What one fit shows: mean confidence, trusted genes, and direction across known boundaries (NaN if not known)."""

    coherence: float
    genes: int
    direction: float


@dataclass
class NullModels:
    """The real fit and the fits on permuted counts, by kind."""

    real: Measured
    nulls: dict[str, list[Measured]] = field(default_factory=dict)

    def mean(self, kind: str) -> float:
        """Return the mean coherence of one kind of null."""
        return float(np.mean([one.coherence for one in self.nulls[kind]]))

    @property
    def strongest(self) -> str:
        """Kind of null with the highest coherence among those that leave nothing of the kinetics."""
        return max((kind for kind in self.nulls if kind != "groups"), key=self.mean)

    @property
    def excess(self) -> float:
        """Coherence beyond that of the strongest null."""
        return self.real.coherence - self.mean(self.strongest)

    @property
    def directions(self) -> np.ndarray:
        """Direction across known boundaries in all nulls but those within groups, whose groups still differ."""
        values = [one.direction for kind, many in self.nulls.items() if kind != "groups" for one in many]
        return np.array([value for value in values if np.isfinite(value)])

    @property
    def direction_beyond(self) -> bool | None:
        """Whether the real direction is above all of the nulls' (95 % where there are many); None if not known."""
        if not np.isfinite(self.real.direction) or len(self.directions) == 0:
            return None
        return bool(self.real.direction > np.quantile(self.directions, 0.975 if len(self.directions) >= 20 else 1.0))

    @property
    def evidence(self) -> bool:
        """Whether there is more than in counts without velocity; a known direction says more than coherence does.

        Averages over neighbours make coherence high in every null: exact simulations exceed theirs by 0.02 only.
        """
        beyond = self.direction_beyond
        return self.excess >= LEAST_EXCESS if beyond is None else beyond

    @property
    def most_genes(self) -> int:
        """Trusted genes in the null with most of them, of those that leave nothing of the kinetics."""
        return max(one.genes for kind, many in self.nulls.items() if kind != "groups" for one in many)

    def numbers(self) -> dict[str, Any]:
        """Return plain numbers for the report."""
        found: dict[str, Any] = {
            "coherence": self.real.coherence, "excess coherence": self.excess, "trusted genes": self.real.genes,
            "direction": self.real.direction,
        }  # fmt: skip
        for kind, many in self.nulls.items():
            found[f"coherence, permuted {WORDS[kind]}"] = [one.coherence for one in many]
            found[f"trusted genes, permuted {WORDS[kind]}"] = [one.genes for one in many]
            found[f"direction, permuted {WORDS[kind]}"] = [one.direction for one in many]
        return found


def pairs_of(transitions: str | None) -> Pairs:
    """Read ``"A > B, B > C"``.

    Raises
    ------
    ParameterError
        It is not of this form.
    """
    if not transitions:
        return []
    pairs = [tuple(name.strip() for name in part.split(">")) for part in transitions.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ParameterError(f"transitions='{transitions}' is not valid; write it as 'A > B, B > C'.")
    return [(first, second) for first, second in pairs]


def labels_of(adata: AnnData, roles: dict[str, str]) -> Codes | None:
    """Return the labels of the cells, or None where none were given."""
    return check.categories(adata, roles["labels"], "labels") if "labels" in roles else None


def direction(method: VelocityMethod, labels: Codes | None, pairs: Pairs) -> dict[tuple[str, str], tuple[float, int]]:
    """Return the direction across each known boundary in the space of trusted genes, and its number of cells."""
    if labels is None or not pairs:
        return {}
    own = method.trusted_
    names = np.asarray(labels.names, dtype=object)[labels.values]
    return metrics.cross_boundary_direction(
        method.spliced_[:, own], method.velocity_[:, own], method.neighbors_, names, pairs
    )


def fewer_cells(adata: AnnData, seed: int) -> AnnData:
    """Return at most `MOST_CELLS` cells, drawn at random."""
    if adata.n_obs <= MOST_CELLS:
        return adata
    return adata[np.sort(np.random.default_rng(seed).choice(adata.n_obs, MOST_CELLS, replace=False))].copy()


def own_roles(method: VelocityMethod, roles: dict[str, str]) -> dict[str, str]:
    """Return the roles that a velocity method takes."""
    return {role: key for role, key in roles.items() if role in method.info.accepts}


def null_models(
    make: Callable[[int], VelocityMethod], adata: AnnData, roles: dict[str, str], seed: int, repeats: int
) -> NullModels:
    """Fit a method to real counts and to permuted ones, on the genes that pass its filters on the real ones."""
    first = quietly_fitted(make(seed), adata, roles)
    kept = adata[:, first.columns_].copy()
    labels, pairs = labels_of(adata, roles), pairs_of(roles.get("transitions"))

    def again() -> VelocityMethod:
        method = make(seed)
        method.n_top_genes, method.min_shared_counts = None, 1
        return method

    found = NullModels(_measured(quietly_fitted(again(), kept, roles), labels, pairs))
    unspliced = layers_of(Inputs(kept, own_roles(first, roles)), first.max_unspliced, sampled=False).unspliced
    for kind in ("cells", "genes", *(["groups"] if labels is not None else [])):
        found.nulls[kind] = []
        for repeat in range(repeats):
            kept.layers[roles.get("unspliced", "unspliced")] = permuted(unspliced, kind, labels, seed + repeat)
            try:
                one = _measured(quietly_fitted(again(), kept, roles), labels, pairs)
            except DataError:  # nothing in it moves: as a null should be
                one = Measured(0.0, 0, float("nan"))
            found.nulls[kind].append(one)
    return found


def quietly_fitted(method: VelocityMethod, adata: AnnData, roles: dict[str, str]) -> VelocityMethod:
    """Fit a method to changed counts, of which the user need not be warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return method.fit(adata, progress=False, **own_roles(method, roles))


def _measured(method: VelocityMethod, labels: Codes | None, pairs: Pairs) -> Measured:
    crossed = [value for value, cells in direction(method, labels, pairs).values() if cells]
    return Measured(
        float(method.confidence().mean()),
        int(method.trusted_.sum()),
        float(np.mean(crossed)) if crossed else float("nan"),
    )
