"""From scores and controls of annotators to an order and a recommendation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tenfold.task import Assessment, Control, Recommendation

#: What a method has to beat.
YARDSTICK = "logistic"
_WITH_BATCHES = ("transfer_macro_f1", "novel")
_WITHOUT = ("within_macro_f1", "novel")
_NOVEL = ["novel_auroc", "novel_by_confidence"]
_WORDS = {
    "transfer_macro_f1": "macro F1 on batches left out",
    "transfer_accuracy": "accuracy on batches left out",
    "within_macro_f1": "macro F1 within batches (optimistic)",
    "novel": "a type left out told from known ones (AUROC of novelty or confidence, whichever is better)",
}


def ranked(scores: pd.DataFrame, controls: dict[str, list[Control]]) -> list[dict[str, Any]]:
    """Return methods from best to worst: macro F1 on new batches and AUROC of new types; failed controls go last."""
    main = scores[~scores["group"].str.contains(":")]
    means = main.groupby(["method", "metric"])["value"].mean().unstack()
    wanted = _WITH_BATCHES if "transfer_macro_f1" in means else _WITHOUT
    means["novel"] = means.reindex(columns=_NOVEL).max(axis=1)
    parts = means.reindex(columns=list(wanted))
    parts["overall"] = parts.mean(axis=1)
    parts = parts.dropna(subset=[wanted[0]])
    leaks = {name: [c.title for c in controls.get(name, []) if c.verdict == "fail"] for name in parts.index}
    order = sorted(parts.index, key=lambda name: ("Permuted labels" in leaks[name], -parts.loc[name, "overall"]))
    return [
        {
            "method": name,
            "overall": float(parts.loc[name, "overall"]),
            "reasons": [*_reasons(parts.loc[name]), *_benefit(name, means), *(f"failed: {t}" for t in leaks[name])],
            # Labels of the cells that are judged are shown to no method.
            "uses_labels": False,
        }
        for name in order
    ]


def recommended(
    ranking: list[dict[str, Any]], controls: dict[str, list[Control]], assessment: Assessment
) -> Recommendation:
    """Return what to run; where no batch was left out, with that said first."""
    sound = [entry for entry in ranking if "failed: Permuted labels" not in entry["reasons"]]
    if not sound:
        return Recommendation(None, "No method finished without a leak, so nothing can be recommended.", [])
    best = sound[0]
    name = _title(best["method"])
    reasons = [*best["reasons"], "Ranked by the mean of macro F1 and AUROC of new types."]
    no_benefit = any("no evidence of benefit" in reason for reason in best["reasons"])
    if assessment.verdict == "optimistic numbers only":
        sentence = f"Within these cells {name} does best; for new samples nothing can be recommended without a batch."
        return Recommendation(best["method"], sentence, [assessment.sentence, *reasons])
    if no_benefit and any(entry["method"] == YARDSTICK for entry in sound):
        sentence = f"{name} scores highest, but not beyond doubt: {_title(YARDSTICK)} does as well on new batches."
        return Recommendation(best["method"], sentence, reasons)
    return Recommendation(best["method"], f"Use {name} on cells like these.", reasons)


def _benefit(name: str, means: pd.DataFrame) -> list[str]:
    """Say so where accuracy does not exceed that of logistic regression by more than the half-width of its interval."""
    kind = "transfer" if "transfer_accuracy" in means else "within"
    value, width = f"{kind}_accuracy", f"{kind}_half_width"
    if name == YARDSTICK or YARDSTICK not in means.index or width not in means:
        return []
    gain, doubt = means.loc[name, value] - means.loc[YARDSTICK, value], means.loc[name, width]
    if not np.isfinite(gain) or gain > doubt:
        return []
    return [f"no evidence of benefit over {_title(YARDSTICK)} (accuracy {gain:+.3f}, ± {doubt:.3f})"]


def _reasons(row: pd.Series) -> list[str]:
    return [f"{_WORDS[name]}: {value:.2f}" for name, value in row.items() if name in _WORDS and np.isfinite(value)]


def _title(name: str) -> str:
    from tenfold import catalog

    return catalog.find("annotate", name).info.title if name in catalog.names("annotate") else name
