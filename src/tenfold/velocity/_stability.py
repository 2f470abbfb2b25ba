"""Whether velocities stay what they are with fewer counts, cells or genes, and with other numbers of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from anndata import AnnData

from tenfold import metrics
from tenfold.data.inputs import Inputs
from tenfold.data.stress import downsample_depth, gene_dropout
from tenfold.data.velocity import layers_of
from tenfold.task import Control, Score, Verdict
from tenfold.velocity._nulls import own_roles, quietly_fitted
from tenfold.velocity_models.base import VelocityMethod

#: Cosine to the velocity from all counts above which a cell's direction counts as kept.
KEPT = 0.5
#: Draws of cells, and of genes.
DRAWS = 5
Make = Callable[[int], VelocityMethod]


class Change(NamedTuple):
    """What a fit is given in place of all: the cells `rows` of the data, or other counts, or other neighbours."""

    words: str
    adata: AnnData
    rows: np.ndarray
    n_neighbors: int | None = None


def fewer_counts(make: Make, adata: AnnData, roles: dict[str, str], seed: int) -> tuple[Control, list[Score]]:
    """Fit to half of the counts of each cell: are the velocities the same?"""
    full = quietly_fitted(make(seed), adata, roles)
    change = _thinned(full, adata, roles, 0.5, seed)
    value, n_shared = _kept(full, make(seed), change, roles)
    verdict: Verdict = "pass" if value >= KEPT else "warn"
    sentence = (
        f"With half of the counts the velocity of a cell has a cosine of {value:.2f} to that with all, over "
        f"{n_shared:,} shared genes."
    )
    rule = f"Mean cosine of genes scaled to unit spread; warn below {KEPT}."
    return Control("fewer_counts", "Half of the counts", verdict, sentence, rule, {"cosine": value}), [
        Score("control", "stability", value)
    ]


def changes(make: Make, adata: AnnData, roles: dict[str, str], seed: int) -> tuple[Control, list[Score]]:
    """Fit to parts of the cells, counts and genes, and with half and twice the neighbours."""
    full = quietly_fitted(make(seed), adata, roles)
    found: dict[str, list[float]] = {}
    for change in _changes(full, adata, roles, seed):
        found.setdefault(change.words, []).append(_kept(full, make(seed), change, roles)[0])
    means = {words: float(np.mean(values)) for words, values in found.items()}
    least = min(means, key=means.__getitem__)
    verdict: Verdict = "pass" if means[least] >= KEPT else "warn"
    told = ", ".join(f"{value:.2f} with {words}" for words, value in means.items())
    sentence = f"The velocity of a cell has a cosine to that of the whole fit of {told}."
    rule = f"Mean cosine of genes scaled to unit spread, {DRAWS} draws of cells and of genes; warn below {KEPT}."
    return Control(
        "changes", "Fewer cells, counts and genes, other neighbours", verdict, sentence, rule, dict(found)
    ), [Score("control", "least_stability", means[least])]


def _changes(full: VelocityMethod, adata: AnnData, roles: dict[str, str], seed: int) -> Iterator[Change]:
    rng, everyone = np.random.default_rng(seed), np.arange(adata.n_obs)
    for share in (0.8, 0.5):
        for _ in range(DRAWS):
            rows = np.sort(rng.choice(adata.n_obs, round(share * adata.n_obs), replace=False))
            yield Change(f"{share:.0%} of the cells", adata[rows].copy(), rows)
    for share in (0.5, 0.25):
        yield _thinned(full, adata, roles, share, seed)
    for draw in range(DRAWS):
        yield Change("70% of the genes", adata[:, gene_dropout(adata.n_vars, 0.3, seed + draw)].copy(), everyone)
    pooled = full._pooled(adata.n_obs)
    for words, k in (("half of the neighbours", max(3, pooled // 2)), ("twice the neighbours", 2 * pooled)):
        yield Change(words, adata, everyone, k)


def _thinned(full: VelocityMethod, adata: AnnData, roles: dict[str, str], share: float, seed: int) -> Change:
    layers = layers_of(Inputs(adata, own_roles(full, roles)), full.max_unspliced)
    thinned = adata.copy()
    for role, counts, more in (("spliced", layers.spliced, 0), ("unspliced", layers.unspliced, 1)):
        thinned.layers[roles.get(role, role)] = downsample_depth(counts, share, seed + more)
    return Change(f"{share:.0%} of the counts", thinned, np.arange(adata.n_obs))


def _kept(full: VelocityMethod, other: VelocityMethod, change: Change, roles: dict[str, str]) -> tuple[float, int]:
    """Return the mean cosine of velocities after a change with those before, and the number of genes it rests on."""
    if change.n_neighbors is not None:
        other.n_neighbors = change.n_neighbors
    quietly_fitted(other, change.adata, roles)
    genes, of_full, of_other = np.intersect1d(
        full.genes_[full.trusted_], other.genes_[other.trusted_], return_indices=True
    )
    if len(genes) < 2:
        return 0.0, len(genes)
    before = full.velocity_[:, full.trusted_][change.rows][:, of_full]
    after = other.velocity_[:, other.trusted_][:, of_other]
    return float(np.mean(metrics.velocity_agreement(before, after))), len(genes)
