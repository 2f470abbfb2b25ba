"""From scores and controls of spatial domains to an order and a recommendation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tenfold.domains._trial import HEADS
from tenfold.task import Assessment, Control, Recommendation

#: What a method has to beat.
YARDSTICK = "smooth_pca"
_WITHOUT = ("marker_moran", "contiguity_gain", "seed_agreement")
_WORDS = {
    "ari": "agreement with the layers (ARI, number of domains given)",
    "ari_refined": "after the majority vote",
    "ari_unknown": "number of domains not given",
    "marker_moran": "Moran's I of markers",
    "contiguity_gain": "contiguity beyond that on shuffled positions",
    "seed_agreement": "agreement of seeds",
}
_CRITICISM = (
    "Without annotated layers nothing tells right domains from wrong ones: markers are chosen by the domains they "
    "judge, contiguity comes with averaging, and seeds may agree on what is wrong."
)


def ranked(scores: pd.DataFrame, controls: dict[str, list[Control]]) -> list[dict[str, Any]]:
    """Return methods from best to worst: by ARI with annotated layers where there are any, median over seeds."""
    main = scores[~scores["group"].str.contains(":")]
    medians = main.groupby(["method", "metric"])["value"].median().unstack()
    if not len(medians):
        return []
    labelled = "ari" in medians and medians["ari"].notna().any()
    parts = medians.reindex(columns=list(_WORDS))
    overall = medians["ari"] if labelled else medians.reindex(columns=list(_WITHOUT)).mean(axis=1)
    overall = overall.dropna()
    failed = {name: [c.title for c in controls.get(name, []) if c.verdict == "fail"] for name in overall.index}
    return [
        {
            "method": name,
            "overall": float(overall[name]),
            "reasons": [
                *_reasons(parts.loc[name]), *_unbeaten(name, medians, overall, labelled),
                *(f"failed: {title}" for title in failed[name]),
            ],
            "uses_labels": False,
        }
        for name in sorted(overall.index, key=lambda name: -overall[name])
    ]  # fmt: skip


def recommended(ranking: list[dict[str, Any]], assessment: Assessment) -> Recommendation:
    """Return what to run: the best method, or the baseline where the best does not beat it with the same head."""
    if not ranking:
        return Recommendation(None, "No method finished, so nothing can be recommended.", [])
    if assessment.verdict == "no spatial structure":
        sentence = "No method can be recommended: expression does not depend on where cells lie."
        return Recommendation(None, sentence, [assessment.sentence])
    best = ranking[0]
    labelled = any(reason.startswith(_WORDS["ari"]) for reason in best["reasons"])
    reasons = [*best["reasons"], "Ranked by ARI before refinement, with each method's own head." if labelled
               else _CRITICISM]  # fmt: skip
    baseline = next((entry for entry in ranking if entry["method"] == YARDSTICK), None)
    if baseline and best is not baseline and any("does not beat" in reason for reason in best["reasons"]):
        sentence = f"Stay with {title(YARDSTICK)}: {title(best['method'])} scores higher only by its head."
        return Recommendation(YARDSTICK, sentence, [*baseline["reasons"], *reasons])
    if best is baseline:
        return Recommendation(YARDSTICK, f"No method beats {title(YARDSTICK)} on this tissue; stay with it.", reasons)
    words = "agrees best with the layers" if labelled else "looks best without annotation, which is weak evidence"
    return Recommendation(best["method"], f"Use {title(best['method'])}: it {words}.", reasons)


def _unbeaten(name: str, medians: pd.DataFrame, overall: pd.Series, labelled: bool) -> list[str]:
    """Say so where a method is not above the baseline with any head that both were clustered by."""
    if name == YARDSTICK or YARDSTICK not in overall.index:
        return []
    if not labelled:
        gain = overall[name] - overall[YARDSTICK]
        return [] if gain > 0 else [f"does not beat {title(YARDSTICK)} ({gain:+.2f})"]
    found = []
    row, base = medians.loc[name], medians.loc[YARDSTICK]
    heads = [head for head in HEADS if np.isfinite(row.get(f"ari_{head}", np.nan))]
    # A method without an embedding has no head to share: it stands against the baseline as it comes.
    columns = [f"ari_{head}" for head in heads] or ["ari"]
    if all(row[column] <= base[column] for column in columns):
        pairs = ", ".join(
            f"{column.removeprefix('ari_') if heads else 'ARI'} {row[column]:.2f} against {base[column]:.2f}"
            for column in columns
        )
        found.append(f"does not beat {title(YARDSTICK)} with any shared head ({pairs})")
    elif row["ari"] > base["ari"] and heads:
        own = next((c for c in columns if row[c] == row["ari"]), None)
        if own is not None and row[own] <= base[own]:
            found.append(
                f"does not beat {title(YARDSTICK)} with its own head ({own.removeprefix('ari_')}: {row[own]:.2f} "
                f"against {base[own]:.2f})"
            )
    return found


def _reasons(row: pd.Series) -> list[str]:
    return [f"{_WORDS[name]}: {value:.2f}" for name, value in row.items() if np.isfinite(value)]


def title(name: str) -> str:
    """Return the title of a method, as the report's tables show it."""
    from tenfold import catalog

    return catalog.find("domains", name).info.title if name in catalog.names("domains") else name
