"""Ranking of integration methods on the user's data, and what is recommended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tenfold.task import Assessment, Control, Recommendation

#: Marks a control that was left out because of its cost, in the control's numbers.
LEFT_OUT = {"left_out": True}
_WITH_LABELS = ("recovered_neighbors", "bio", "batch")
_WITHOUT = ("recovered_neighbors", "within_batch_neighbors", "ilisi")
#: Judges corrected values, which few methods give and which the ranking is not about.
_OF_SOME_METHODS = {"expression_kept"}
_NAMES = {
    "recovered_neighbors": "true neighbours recovered under a planted batch effect",
    "bio": "cell types kept apart (mean of the unscaled bio scores that every method has)",
    "batch": "batches mixed (mean of the unscaled batch scores that every method has)",
    "within_batch_neighbors": "neighbours within batches kept",
    "ilisi": "batches mixed (iLISI)",
}


def rank(
    scores: pd.DataFrame,
    controls: dict[str, list[Control]],
    assessment: Assessment,
    sees_labels: set[str],
    baseline: str,
) -> tuple[list[dict[str, Any]], Recommendation]:
    """Return methods from best to worst, and the recommendation.

    The order is that of the mean of: planted effect recovered, biology kept, batches mixed. A method that failed a
    control comes after all that did not, and methods that were given the labels come last of all. A control that was
    left out for some of the methods counts for none.
    """
    parts = _parts(scores)
    counted = _counted(controls)
    failed = {
        name: [c.title for c in controls.get(name, []) if c.verdict == "fail" and c.name in counted]
        for name in parts.index
    }
    order = sorted(
        parts.index,
        key=lambda name: (name in sees_labels, bool(failed[name]) and name != baseline, -parts.loc[name, "overall"]),
    )
    ranking = [
        {
            "method": name,
            "overall": float(parts.loc[name, "overall"]),
            "reasons": _reasons(parts.loc[name], failed[name]),
            "uses_labels": name in sees_labels,
        }
        for name in order
    ]
    blind = [name for name in order if name not in sees_labels]
    recommendation = _recommendation(blind, parts, failed, assessment, baseline)
    apart = [_title(name) for name in order if name in sees_labels]
    if apart and recommendation.method is not None:
        recommendation.reasons.append(
            f"Ranked apart, since they were given the labels that they are scored on: {', '.join(apart)}."
        )
    return ranking, recommendation


def _counted(controls: dict[str, list[Control]]) -> set[str]:
    """Names of the controls that no method was spared."""
    found = {control.name for own in controls.values() for control in own}
    spared = {control.name for own in controls.values() for control in own if control.numbers.get("left_out")}
    return found - spared - _OF_SOME_METHODS


def _recommendation(
    order: list[str], parts: pd.DataFrame, failed: dict[str, list[str]], assessment: Assessment, baseline: str
) -> Recommendation:
    if not order:
        return Recommendation(None, "No method finished, so nothing can be recommended.", [])
    best = order[0]
    reasons = _reasons(parts.loc[best], failed[best])
    reasons.append("Ranked by the mean of these shares; a method that failed a control goes last.")
    if assessment.verdict == "not advised":
        sentence = f"Integration not advised; stay with {_title(baseline)}."
        return Recommendation(baseline, sentence, [assessment.sentence, *reasons])
    if assessment.verdict == "confounded":
        sentence = "No method can be recommended: batch and biology cannot be told apart."
        return Recommendation(None, sentence, [assessment.sentence])
    if best == baseline:
        return Recommendation(best, _stay(order, parts, failed, baseline), reasons)
    if failed[best]:
        causes = [f"{_title(name)}: {', '.join(failed[name])}" for name in order if failed[name]]
        return Recommendation(None, "Every method failed a control on these data; none is recommended.", causes)
    gain = parts.loc[best, "overall"] - parts["overall"].get(baseline, np.nan)
    if np.isfinite(gain):
        reasons.insert(0, f"Overall {gain:+.2f} against {_title(baseline)} (no integration).")
    return Recommendation(best, f"Use {_title(best)} on these data.", reasons)


def _stay(order: list[str], parts: pd.DataFrame, failed: dict[str, list[str]], baseline: str) -> str:
    """Say why the uncorrected data are to be kept: nothing scored higher, or what did failed a control."""
    base = _title(baseline)
    higher = [name for name in order if parts.loc[name, "overall"] > parts.loc[baseline, "overall"]]
    if not higher:
        return f"No method did better than {base} without correction; stay with it."
    causes = "; ".join(f"{_title(name)} ({', '.join(failed[name]).lower()})" for name in higher)
    return (
        f"Stay with {base}, uncorrected, for now: the methods that scored higher failed a control on these data: "
        f"{causes}."
    )


def _title(name: str) -> str:
    """Return the title of a method, as the report's tables show it."""
    from tenfold import catalog

    return catalog.find("integrate", name).info.title if name in catalog.names("integrate") else name


def _parts(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method: the parts of the ranking, and their mean as ``overall``.

    Biology and batches are means over the metrics that every method has, since a graph (BBKNN) has fewer than an
    embedding, and few methods give corrected expression.
    """
    main = scores[scores["group"].isin(["bio", "batch", "control"])]
    means = main.groupby(["method", "metric"])["value"].mean().unstack()
    shared = means.columns[means.notna().all()]
    grouped = main[main["group"].isin(["bio", "batch"]) & main["metric"].isin(shared)]
    table = means.join(grouped.groupby(["method", "group"])["value"].mean().unstack())
    wanted = _WITH_LABELS if "bio" in table and table["bio"].notna().any() else _WITHOUT
    parts = table.reindex(columns=list(wanted))
    parts["overall"] = parts.mean(axis=1)
    return parts.dropna(subset=["overall"])


def _reasons(row: pd.Series, failed: list[str]) -> list[str]:
    reasons = [f"{_NAMES[name]}: {value:.2f}" for name, value in row.items() if name in _NAMES and np.isfinite(value)]
    return [*reasons, *(f"failed: {title}" for title in failed)]
