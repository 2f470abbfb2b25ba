"""What the scores of velocity mean, and the order and recommendation that follow from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tenfold.task import Assessment, Control, Recommendation


def _described(
    title: str, group: str, span: tuple[float, float | None], good: str, warning: str, formula: str,
    headline: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return {
        "title": title, "group": group, "range": list(span), "good": good, "headline": headline, "warning": warning,
        "formula": formula,
    }  # fmt: skip


DESCRIBED: dict[str, dict[str, Any]] = {
    "excess_coherence": _described(
        "Excess coherence", "control", (-1, 1), "high",
        "Below 0.1 the method is as confident of counts without velocity.",
        "coherence less that of the strongest null (unspliced counts permuted over cells, or over genes)", True,
    ),
    "cbdir": _described(
        "Known direction", "velocity", (-1, 1), "high",
        "To be read beside the same score of permuted counts: differences between groups alone can make it positive.",
        "mean cosine of velocity with the displacement to neighbours in the next group, in gene space", True,
    ),
    "null_cbdir": _described(
        "Known direction, permuted", "control", (-1, 1), "", "", "the highest value of cbdir in permuted counts", True,
    ),
    "time_order": _described(
        "Order in time", "velocity", (-1, 1), "high",
        "The beginning is chosen by the model; a wrong one turns the sign.", "Spearman of time and reference", True,
    ),
    "coherence": _described(
        "Coherence", "velocity", (0, 1), "", "High for any data, since counts were averaged over neighbours.",
        "mean correlation of velocities of neighbours (scVelo's confidence)",
    ),
    "null_coherence": _described(
        "Coherence, permuted", "control", (0, 1), "", "", "coherence of the strongest null",
    ),
    "iccoh": _described(
        "Coherence in groups", "velocity", (-1, 1), "", "As coherence.",
        "mean cosine of velocities of neighbours of one group (ICCoh)",
    ),
    "velocity_genes": _described(
        "Genes with dynamics", "control", (0, None), "", "", "genes that the method trusts",
    ),
    "null_velocity_genes": _described(
        "Genes with dynamics, permuted", "control", (0, None), "low", "", "most genes trusted in permuted counts",
    ),
    "agreement": _described(
        "Agreement", "velocity", (-1, 1), "", "With scVelo's stochastic model, which may be wrong itself.",
        "mean cosine of velocities, genes scaled to unit spread",
    ),
    "agreeing_cells": _described(
        "Cells that agree", "velocity", (0, 1), "", "", "share of cells with a cosine above 0.3",
    ),
    "stability": _described(
        "Half of the counts", "control", (-1, 1), "high", "Smooth velocities are stable, right or wrong.",
        "mean cosine of velocities from half of the counts with those from all",
    ),
    "least_stability": _described(
        "Least stable change", "control", (-1, 1), "high", "Smooth velocities are stable, right or wrong.",
        "mean cosine with velocities from all, under the change of cells, counts, genes or neighbours that moves most",
    ),
}  # fmt: skip
_WORDS = {
    "excess_coherence": "excess coherence over permuted counts",
    "cbdir": "known direction",
    "null_cbdir": "the same in permuted counts, at most",
    "time_order": "order in time",
}


def ranked(scores: pd.DataFrame, controls: dict[str, list[Control]]) -> list[dict[str, Any]]:
    """Return methods from best to worst; those that failed the null models go last.

    The order is that of excess coherence, averaged, where directions are known, with what they score beyond permuted
    counts.
    """
    main = scores[~scores["group"].str.contains(":")]
    means = main.groupby(["method", "metric"])["value"].mean().unstack()
    parts = pd.DataFrame({"coherence": means.get("excess_coherence", pd.Series(np.nan, index=means.index))})
    if {"cbdir", "null_cbdir"} <= set(means):
        parts["direction"] = means["cbdir"] - means["null_cbdir"]
    overall = parts.mean(axis=1)
    failed = {
        name: [c.title for c in controls.get(name, []) if c.verdict == "fail"] for name in means.index
    }  # fmt: skip
    order = sorted(means.index, key=lambda name: (bool(failed[name]), -np.nan_to_num(overall[name], nan=-1)))
    return [
        {
            "method": name,
            "overall": float(overall[name]),
            "reasons": [
                *(f"{words}: {means.loc[name, metric]:.2f}" for metric, words in _WORDS.items()
                  if metric in means and np.isfinite(means.loc[name, metric])),
                *(f"failed: {title}" for title in failed[name]),
            ],
            "uses_labels": False,
        }
        for name in order
    ]  # fmt: skip


def recommended(ranking: list[dict[str, Any]], assessment: Assessment, baselines: tuple[str, ...]) -> Recommendation:
    """Return what to run, or that nothing is to be concluded from velocities of these data."""
    real = [entry for entry in ranking if entry["method"] not in baselines]
    sound = [entry for entry in real if not any(reason.startswith("failed") for reason in entry["reasons"])]
    if not real:
        return Recommendation(None, "No method finished, so nothing can be recommended.", [])
    if assessment.verdict == "no evidence of velocity":
        also = [f"{_title(entry['method'])} passed its null models." for entry in sound]
        return Recommendation(
            None, "No evidence of velocity in these data: do not conclude anything from arrows.",
            [assessment.sentence, *also],
        )  # fmt: skip
    if not sound:
        return Recommendation(
            None, "Every method is as confident of permuted counts; none is recommended.", [assessment.sentence]
        )
    best = sound[0]
    reasons = [
        *best["reasons"],
        "Ranked by excess over permuted counts; failed null models go last.",
    ]
    return Recommendation(best["method"], f"Use {_title(best['method'])} on these data.", reasons)


def _title(name: str) -> str:
    from tenfold import catalog

    return catalog.find("velocity", name).info.title if name in catalog.names("velocity") else name
