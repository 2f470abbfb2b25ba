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
from tenfold.integrate import _controls, _expression, _null, _types
from tenfold.integrate._assess import assess
from tenfold.integrate._beyond import beyond_labels
from tenfold.integrate._neighbors import Representation
from tenfold.integrate._ranking import LEFT_OUT, rank
from tenfold.integrate._trial import Trial, largest_batch
from tenfold.method import Corrector, Method
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
    "correlations_kept": {
        "title": "Gene correlations kept",
        "group": "control",
        "range": [-1, 1],
        "good": "high",
        "headline": False,
        "warning": "Low where corrected values are smooth; any linear correction of each gene keeps all of them.",
    },
    "fold_changes_kept": {
        "title": "Fold changes kept",
        "group": "control",
        "range": [-1, 1],
        "good": "high",
        "headline": False,
        "warning": "Ranks of clear markers within batches; says nothing of differences invented elsewhere.",
    },
    "removed_type_purity": {
        "title": "Purity of a removed type",
        "group": "control",
        "range": [0, 1],
        "good": "high",
        "headline": False,
        "warning": "A mean over types; the verdict is that of the worst one.",
    },
    "apart_without_common_type": {
        "title": "Apart without common type",
        "group": "control",
        "range": [0, 1],
        "good": "high",
        "headline": False,
        "warning": "High without any correction too: read it beside a planted effect that is removed.",
    },
    "unequal_purity": {
        "title": "Purity at unequal proportions",
        "group": "control",
        "range": [0, 1],
        "good": "high",
        "headline": False,
        "warning": "Depends on how distinct the labels are; the verdict compares with the balanced run.",
    },
}
_Outcome = tuple[Control, list[Score]]


class Integration(ComparedTask):
    """Integration of batches: an uncorrected baseline, real batches scored, known effects planted."""

    name = "integrate"
    baseline = "pca"
    recommended = ("pca", "harmony", "combat", "bbknn", "scvi")
    needs = ("batch",)
    accepts = ("labels", "layer", "use_rep", "pseudotime", "categorical_covariates", "continuous_covariates")

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
            beyond=beyond_labels(method, data, adata, roles, seed),
            seed=seed,
        )
        scores = []
        for score in found:
            scores.append(Score(score.group, score.metric, score.value))
            if score.error is not None:
                scores.append(Score("spread:cells", score.metric, score.error))
            if labels is not None:
                scores += [
                    Score(f"label:{labels.names[int(code)]}", score.metric, value)
                    for code, value in score.per_label.items()
                ]
            batches = data.batch_or_one.names
            scores += [Score(f"batch:{batches[int(b)]}", score.metric, v) for b, v in score.per_batch.items()]
        return scores

    def controls(
        self,
        make: Callable[[int], Method],
        fitted: Method,
        adata: AnnData,
        roles: dict[str, str],
        seed: int,
        thorough: bool = False,
    ) -> list[tuple[Control, list[Score]]]:
        """Run D6, D1, D4, D7, D2 and D3; a control that cannot be run on these data says why instead of ending the run.

        Trained models are refitted less often unless `thorough`: one split in D1, three types in D2, no second seed in
        D4; and D3 and the extreme of D2 are left out.
        """
        batch, labels = roles["batch"], roles.get("labels")
        trial = Trial(make, labels, thorough)
        small = largest_batch(adata, batch, seed)
        runs: dict[tuple[str, str], Callable[[], _Outcome]] = {
            ("planted_effect", "Planted batch effect"): lambda: _controls.planted_effect(trial, small, seed),
            ("null_batch", "Null batch"): lambda: _null.null_batch(trial, small, seed),
            ("within_batch", "Neighbours within batches"):
                lambda: _controls.within_batch(trial, fitted, adata, batch, seed),
        }  # fmt: skip
        if isinstance(fitted, Corrector):
            runs["expression_kept", _expression.TITLE] = lambda: _expression.expression_kept(
                fitted, adata, batch, labels, seed
            )
        if labels is not None:
            runs["removed_type", "Removed cell type"] = lambda: _types.removed_type(trial, adata, batch, labels, seed)
            for name, title, control in (
                ("no_common_type", "No common type", _types.no_common_type),
                ("unequal_proportions", "Unequal proportions", _types.unequal_proportions),
            ):
                runs[name, title] = lambda name=name, title=title, control=control: (
                    _left_out(name, title) if trial.sparing else control(trial, adata, batch, labels, seed)
                )
        done = []
        for (name, title), run in runs.items():
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
        return rank(scores, controls, assessment, sees_labels, self.baseline)


def _left_out(name: str, title: str) -> _Outcome:
    """Return the outcome of a control that costs too much by default."""
    sentence = 'Left out, because it trains the model again: ask for it with controls="all" (--all-controls).'
    return Control(name, title, "not run", sentence, "Run by default for methods that are not trained.", LEFT_OUT), []


TASK = Integration()
