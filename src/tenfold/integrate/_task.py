"""How integration is judged: scores, controls, ranking and recommendation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold.data import check, graph
from tenfold.data.inputs import Inputs
from tenfold.integrate import _controls
from tenfold.integrate._assess import assess
from tenfold.integrate._neighbors import Representation
from tenfold.integrate._trial import Trial, largest_batch
from tenfold.method import Method
from tenfold.metrics.suite import METRICS, integration_metrics
from tenfold.task import Assessment, ComparedTask, Control, Recommendation, Score

_CONTROL_METRICS = {
    "recovered_neighbors": {
        "title": "Recovered neighbours",
        "group": "control",
        "range": [0, 1],
        "good": "high",
        "headline": True,
        "warning": "Truth is neighbours in PCs of untouched cells, which favours methods that work on PCs.",
    },
    "null_batch_loss": {
        "title": "Null-batch loss",
        "group": "control",
        "range": [0, 1],
        "good": "low",
        "headline": True,
        "warning": "Neighbours lost when a batch that does not exist is removed; below 0 is chance.",
    },
    "within_batch_neighbors": {
        "title": "Neighbours kept within batches",
        "group": "control",
        "range": [0, 1],
        "good": "high",
        "headline": False,
        "warning": "Compared with PCs of each batch; models with a latent space of their own always score lower.",
    },
    "removed_type_purity": {
        "title": "Purity of a removed type",
        "group": "control",
        "range": [0, 1],
        "good": "high",
        "headline": False,
        "warning": None,
    },
}
_RANKED_WITH_LABELS = ("recovered_neighbors", "bio", "batch")
_RANKED_WITHOUT = ("recovered_neighbors", "within_batch_neighbors", "ilisi")


class Integration(ComparedTask):
    """Integration of batches: an uncorrected baseline, real batches scored, known effects planted."""

    name = "integrate"
    baseline = "pca"
    recommended = ("pca", "harmony", "combat", "bbknn", "scvi")
    needs = ("batch",)
    accepts = ("labels", "layer", "use_rep", "categorical_covariates", "continuous_covariates")

    def assess(self, adata: AnnData, roles: dict[str, str], seed: int) -> Assessment:
        """D5: is there a batch effect, and could it be biology?"""
        return assess(adata, roles, seed)

    def evaluate(self, method: Method, adata: AnnData, roles: dict[str, str], seed: int) -> list[Score]:
        """Score the embedding or graph of a fitted method; metrics that need labels only where they are given."""
        result = Representation.of(method)
        data = Inputs(adata, {"batch": roles["batch"]})
        labels = check.categories(adata, roles["labels"], "labels") if "labels" in roles else None
        found = integration_metrics(
            embedding=result.embedding,
            graph=result.connectivities,
            labels=None if labels is None else labels.values,
            batch=data.batch_or_one.values,
            before=data.pca(50, 2000).embedding,
            seed=seed,
        )
        scores = []
        for score in found:
            scores.append(Score(score.group, score.metric, score.value))
            if labels is not None:
                scores += [
                    Score(f"label:{labels.names[int(code)]}", score.metric, value)
                    for code, value in score.per_label.items()
                ]
        return scores

    def controls(
        self, make: Callable[[int], Method], fitted: Method, adata: AnnData, roles: dict[str, str], seed: int
    ) -> list[tuple[Control, list[Score]]]:
        """Run D6, D1, D2 and D4; a control that cannot be run on these data says why instead of ending the run."""
        batch, labels = roles["batch"], roles.get("labels")
        trial = Trial(make, labels)
        small = largest_batch(adata, batch, seed)
        runs: list[tuple[str, str, Callable[[], tuple[Control, list[Score]]]]] = [
            ("planted_effect", "Planted batch effect", lambda: _controls.planted_effect(trial, small, seed)),
            ("null_batch", "Null batch", lambda: _controls.null_batch(trial, small, seed)),
            ("within_batch", "Neighbours within batches",
             lambda: _controls.within_batch(fitted, adata, batch, seed)),
        ]  # fmt: skip
        if labels is not None:
            runs.append(("removed_type", "Removed cell type",
                         lambda: _controls.removed_type(trial, adata, batch, labels, seed)))  # fmt: skip
        done = []
        for name, title, run in runs:
            try:
                done.append(run())
            except Exception as error:  # a method may break on a control's few cells; that is a finding
                sentence = f"Could not be run: {error}"
                done.append((Control(name, title, "not run", sentence, "Needs the method to run on the control."), []))
        return done

    def display(self, method: Method, shown: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a UMAP layout of the cells `shown`, and the embedding of all cells where there is one."""
        result = Representation.of(method)
        if result.embedding is not None:
            points = result.embedding[shown]
            connectivities = graph.neighbor_graph(points, min(15, len(points) - 1)).connectivities
            return graph.layout(connectivities, points, seed=seed), result.embedding
        assert result.connectivities is not None
        return graph.layout(result.connectivities[shown][:, shown].tocsr(), None, seed=seed), None

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the description of every metric, control metrics first."""
        described = {name: asdict(info) for name, info in METRICS.items()}
        return {**_CONTROL_METRICS, **described}

    def rank(
        self, scores: pd.DataFrame, controls: dict[str, list[Control]], assessment: Assessment, sees_labels: set[str]
    ) -> tuple[list[dict[str, Any]], Recommendation]:
        """Rank by the mean of a planted effect recovered, biology kept and batches mixed; failed controls go last."""
        parts = _ranked_parts(scores)
        failed = {m: [c.title for c in controls.get(m, []) if c.verdict == "fail"] for m in parts.index}
        order = sorted(
            parts.index,
            key=lambda m: (m in sees_labels, bool(failed[m]) and m != self.baseline, -parts.loc[m, "overall"]),
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
        return ranking, self._recommend(order, parts, failed, assessment)

    def _recommend(
        self, order: list[str], parts: pd.DataFrame, failed: dict[str, list[str]], assessment: Assessment
    ) -> Recommendation:
        if not order:
            return Recommendation(None, "No method finished, so nothing can be recommended.", [])
        best = order[0]
        reasons = _reasons(parts.loc[best], failed[best])
        reasons.append("Ranked by the mean of these shares; a method that failed a control goes last.")
        if assessment.verdict == "not advised":
            sentence = f"Integration not advised; stay with {_title(self.baseline)}."
            return Recommendation(self.baseline, sentence, [assessment.sentence, *reasons])
        if assessment.verdict == "confounded":
            return Recommendation(None, "No method can be recommended: batch and biology cannot be told apart.",
                                  [assessment.sentence])  # fmt: skip
        if best == self.baseline:
            return Recommendation(best, self._stay(order, parts, failed), reasons)
        if failed[best]:
            causes = [f"{_title(name)}: {', '.join(failed[name])}" for name in order if failed[name]]
            return Recommendation(None, "Every method failed a control on these data; none is recommended.", causes)
        gain = parts.loc[best, "overall"] - parts["overall"].get(self.baseline, np.nan)
        if np.isfinite(gain):
            reasons.insert(0, f"Overall {gain:+.2f} against {_title(self.baseline)} (no integration).")
        return Recommendation(best, f"Use {_title(best)} on these data.", reasons)

    def _stay(self, order: list[str], parts: pd.DataFrame, failed: dict[str, list[str]]) -> str:
        """Say why the uncorrected data are to be kept: nothing scored higher, or what did failed a control."""
        base = _title(self.baseline)
        higher = [name for name in order if parts.loc[name, "overall"] > parts.loc[self.baseline, "overall"]]
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


def _ranked_parts(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method: the parts of the ranking, and their mean as ``overall``.

    Biology and batches are means over the metrics that every method has, since a graph (BBKNN) has fewer than an
    embedding.
    """
    main = scores[scores["group"].isin(["bio", "batch", "control"])]
    means = main.groupby(["method", "metric"])["value"].mean().unstack()
    shared = means.columns[means.notna().all()]
    grouped = main[main["group"].isin(["bio", "batch"]) & main["metric"].isin(shared)]
    table = means.join(grouped.groupby(["method", "group"])["value"].mean().unstack())
    wanted = _RANKED_WITH_LABELS if "bio" in table and table["bio"].notna().any() else _RANKED_WITHOUT
    parts = table.reindex(columns=list(wanted))
    parts["overall"] = parts.mean(axis=1)
    return parts.dropna(subset=["overall"])


_NAMES = {
    "recovered_neighbors": "true neighbours recovered under a planted batch effect",
    "bio": "cell types kept apart (mean of the unscaled bio scores that every method has)",
    "batch": "batches mixed (mean of the unscaled batch scores that every method has)",
    "within_batch_neighbors": "neighbours within batches kept",
    "ilisi": "batches mixed (iLISI)",
}


def _reasons(row: pd.Series, failed: list[str]) -> list[str]:
    reasons = [f"{_NAMES[name]}: {value:.2f}" for name, value in row.items() if name in _NAMES and np.isfinite(value)]
    return [*reasons, *(f"failed: {title}" for title in failed)]


TASK = Integration()
