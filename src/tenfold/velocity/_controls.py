"""The control of null models: is a method confident where there is no velocity?"""

from __future__ import annotations

from collections.abc import Callable

from anndata import AnnData

from tenfold.task import Control, Score, Verdict
from tenfold.velocity._nulls import LEAST_EXCESS, WORDS, NullModels, null_models
from tenfold.velocity_models.base import VelocityMethod

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
