"""Controls of velocity: is it confident where there is none, and does it stand fewer counts?"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from anndata import AnnData

from tenfold import metrics
from tenfold.data.inputs import Inputs
from tenfold.data.stress import downsample_depth
from tenfold.data.velocity import layers_of
from tenfold.task import Control, Score, Verdict
from tenfold.velocity._nulls import LEAST_EXCESS, WORDS, NullModels, null_models, own_roles
from tenfold.velocity_models.base import VelocityMethod

#: Cosine to the velocity from all counts above which a cell's direction counts as kept.
KEPT = 0.5
RULE = (
    "Where directions between groups are known: no evidence unless they score above all permuted counts. Else: no "
    f"evidence where coherence exceeds that of the strongest null by less than {LEAST_EXCESS}."
)


def null_control(
    make: Callable[[int], VelocityMethod], adata: AnnData, roles: dict[str, str], seed: int, repeats: int
) -> tuple[Control, list[Score]]:
    """Fit to counts whose unspliced part was permuted: what coherence and direction are left?"""
    found = null_models(make, adata, roles, seed, repeats)
    verdict, sentence = judged(found)
    rule = f"{RULE} {repeats} permutations of each kind."
    scores = [
        Score("control", "excess_coherence", found.excess),
        Score("control", "null_coherence", found.mean(found.strongest)),
        Score("control", "velocity_genes", found.real.genes),
        Score("control", "null_velocity_genes", found.most_genes),
    ]
    if found.direction_beyond is not None:
        scores.append(Score("control", "null_cbdir", float(found.directions.max())))
    return Control("null_models", "Permuted unspliced counts", verdict, sentence, rule, found.numbers()), scores


def judged(found: NullModels) -> tuple[Verdict, str]:
    """Return the verdict on null models and the sentence that a biologist reads."""
    strongest = found.mean(found.strongest)
    what = (
        f"velocities of neighbours agree to {found.real.coherence:.2f}, and to {strongest:.2f} with unspliced counts "
        f"permuted {WORDS[found.strongest]} (excess coherence {found.excess:+.2f}); {found.real.genes:,} genes have "
        f"dynamics, against {found.most_genes:,} at most in permuted counts"
    )
    beyond = found.direction_beyond
    if beyond is not None:
        low, high = found.directions.min(), found.directions.max()
        what += f"; the known direction scores {found.real.direction:+.2f}, permuted counts {low:+.2f} to {high:+.2f}"
    if not found.evidence:
        why = "Not in the known direction" if beyond is False else "As confident without velocity as with it"
        return "fail", f"{why}: {what}. Its confidence is no evidence."
    if found.excess < LEAST_EXCESS:
        return "warn", f"In the known direction, but confident of permuted counts, too: {what}."
    return "pass", f"More coherent than permuted counts: {what}."


def fewer_counts(
    make: Callable[[int], VelocityMethod], adata: AnnData, roles: dict[str, str], seed: int
) -> tuple[Control, list[Score]]:
    """Fit to half of the counts of each cell: are the velocities the same?"""
    full = make(seed)
    layers = layers_of(Inputs(adata, own_roles(full, roles)), full.max_unspliced)
    thinned = adata.copy()
    for role, counts, share in (("spliced", layers.spliced, 0), ("unspliced", layers.unspliced, 1)):
        thinned.layers[roles.get(role, role)] = downsample_depth(counts, 0.5, seed + share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        full.fit(adata, progress=False, **own_roles(full, roles))
        other = make(seed)
        other.fit(thinned, progress=False, **own_roles(other, roles))
    shared = np.intersect1d(full.columns_[full.trusted_], other.columns_[other.trusted_])
    if len(shared) < 2:
        value = 0.0
    else:
        value = float(np.mean(metrics.velocity_agreement(full.velocity()[:, shared], other.velocity()[:, shared])))
    verdict: Verdict = "pass" if value >= KEPT else "warn"
    sentence = (
        f"With half of the counts the velocity of a cell has a cosine of {value:.2f} to that with all, over "
        f"{len(shared):,} shared genes."
    )
    rule = f"Mean cosine of genes scaled to unit spread; warn below {KEPT}."
    return Control("fewer_counts", "Half of the counts", verdict, sentence, rule, {"cosine": value}), [
        Score("control", "stability", value)
    ]
