"""How annotation is judged: on batches and types left out; within batches only under a banner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold import metrics
from tenfold.annotate import _controls
from tenfold.annotate._ranking import ranked, recommended
from tenfold.annotate._scores import DESCRIBED, confidence_scores
from tenfold.annotate._trial import CONTROL_CELLS, JUDGED_CELLS, Answer, Trial, again, sample_cells
from tenfold.data import check, graph, splits
from tenfold.method import Annotator, Method
from tenfold.task import Assessment, ComparedTask, Control, Recommendation, Score

FEWEST_BATCHES = 5
FOLDS = 3


class Annotation(ComparedTask):
    """Annotation of cell types: labels of batches, and of types, that the method was not fitted on."""

    name = "annotate"
    baseline = "majority"
    companions = ("knn", "logistic", "svm")
    recommended = ("knn", "logistic", "svm", "random_forest", "singler")
    needs = ("labels",)
    accepts = ("batch", "layer")

    def assess(self, adata: AnnData, roles: dict[str, str], seed: int) -> Assessment:
        """Say what these data can tell of an annotator."""
        codes = check.categories(adata, roles["labels"], "labels")
        n_batches = 0 if "batch" not in roles else len(check.categories(adata, roles["batch"], "batch").names)
        numbers: dict[str, Any] = {"labels": len(codes.names), "batches": n_batches}
        rule = "Numbers for a new batch need two batches or more, and a donor or sample for each."
        if n_batches < 2:
            sentence = (
                "Without two batches nothing can be said of how labels carry over to new samples; no such number is "
                "shown. What is shown is optimistic: cells of the same sample stand on both sides. Name the column of "
                "samples or donors with batch=, or judge on another data set."
            )
            if splits.barcode_groups(adata) is not None:
                sentence += (
                    " The names of the cells hold numbers of libraries: obs['library'] = "
                    "tf.data.splits.barcode_groups(adata) makes a column of them."
                )
            return Assessment("optimistic numbers only", sentence, rule, numbers)
        split = splits.leave_batch_out(adata, roles["batch"], roles["labels"], seed)
        unseen = sorted({label for fold in split for label in fold.unseen})
        sentence = f"Each of {n_batches} batches is labelled by a method fitted on the others."
        if unseen:
            numbers["labels in one batch"] = len(unseen)
            sentence += f" In one batch only, so that no method can know them there: {', '.join(unseen)}."
        return Assessment("can be judged on new batches", sentence, rule, numbers)

    def evaluate(self, method: Method, adata: AnnData, roles: dict[str, str], seed: int) -> list[Score]:
        """Refit the method on every fold, and score what it says of the cells left out."""
        trial = Trial(again(method, seed), roles["labels"], roles.get("batch"))
        cells = sample_cells(adata, roles["labels"], JUDGED_CELLS, seed)
        scores: list[Score] = []
        if _several(cells, trial.batch):
            assert trial.batch is not None
            split = splits.leave_batch_out(cells, trial.batch, trial.labels, seed)
            answers = [trial.ask(cells, fold) for fold in split]
            scores += _transfer(answers, cells, trial)
            scores += confidence_scores(answers)
        few = sample_cells(cells, roles["labels"], CONTROL_CELLS, seed)
        # Cells of the same batches on both sides, and the batches told: as papers do it.
        within = [trial.ask(few, fold) for fold in splits.random_cv(few, trial.labels, FOLDS, seed)]
        truth, told = _joined(within)
        scores += [
            Score("optimistic", "within_accuracy", metrics.accuracy(truth, told, _unknown(within))),
            Score("optimistic", "within_macro_f1", metrics.macro_f1(truth, told, _unknown(within))),
        ]
        if not _several(cells, trial.batch):
            interval = metrics.bootstrap_interval(metrics.accuracy, truth, told, repeats=200, seed=seed)
            scores.append(Score("optimistic", "within_half_width", interval.half_width))
            scores += confidence_scores(within)
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
        """Run the controls; one that cannot be run on these data says why instead of ending the run."""
        few = sample_cells(adata, roles["labels"], CONTROL_CELLS, seed)
        batch = roles.get("batch") if _several(few, roles.get("batch")) else None
        trial = Trial(lambda: make(seed), roles["labels"], batch)
        runs = (
            ("novel_type", "A new type", _controls.novel_type),
            ("permuted_labels", "Permuted labels", _controls.permuted_labels),
            ("fewer_counts", "Fewer counts", _controls.fewer_counts),
        )
        done = []
        for name, title, run in runs:
            try:
                done.append(run(trial, few, seed))
            except Exception as error:  # a method may break on a control's few cells; that is a finding
                sentence = f"Could not be run: {error}"
                done.append((Control(name, title, "not run", sentence, "Needs the method to run on the control."), []))
        return done

    def display(self, method: Method, shown: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a UMAP layout of the probabilities of the cells `shown`: who is taken for whom."""
        assert isinstance(method, Annotator)
        points = np.sqrt(method.probabilities().to_numpy()[shown]).astype(np.float32)
        # Cells that are told with certainty would all lie on one spot.
        points += np.random.default_rng(seed).normal(scale=0.02, size=points.shape).astype(np.float32)
        connectivities = graph.neighbor_graph(points, min(15, len(points) - 1)).connectivities
        return graph.layout(connectivities, points, seed=seed), None

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the description of every metric, those on new batches and types first."""
        return DESCRIBED

    def rank(
        self, scores: pd.DataFrame, controls: dict[str, list[Control]], assessment: Assessment, sees_labels: set[str]
    ) -> tuple[list[dict[str, Any]], Recommendation]:
        """Rank by macro F1 on batches left out and AUROC of types left out; failed controls go last."""
        ranking = ranked(scores, controls)
        return ranking, recommended(ranking, controls, assessment)


def _several(adata: AnnData, batch: str | None) -> bool:
    return batch is not None and len(check.categories(adata, batch, "batch").names) > 1


def _unknown(answers: list[Answer]) -> str:
    return str(type(answers[0].method).UNKNOWN)


def _joined(answers: list[Answer]) -> tuple[np.ndarray, np.ndarray]:
    """Return true and predicted labels of the cells whose label the method can know, over all folds."""
    parts = [(answer.truth[answer.known], answer.told[answer.known]) for answer in answers]
    truth, told = (np.concatenate(part) for part in zip(*parts, strict=True))
    return truth, told


def _transfer(answers: list[Answer], adata: AnnData, trial: Trial) -> list[Score]:
    """Score labels of batches left out; a label that no other batch has is left out of these scores."""
    truth, told = _joined(answers)
    unknown = _unknown(answers)
    cells = np.concatenate([answer.cells[answer.known] for answer in answers])
    batch = adata.obs[trial.batch].astype(str).to_numpy()[cells]
    # Few batches give no interval; that of cells is too narrow, which the description says.
    group = batch if len(np.unique(batch)) >= FEWEST_BATCHES else None
    interval = metrics.bootstrap_interval(
        lambda a, b: metrics.accuracy(a, b, unknown), truth, told, group=group, repeats=200
    )
    found = {
        "transfer_macro_f1": metrics.macro_f1(truth, told, unknown),
        "transfer_accuracy": interval.value,
        "transfer_half_width": interval.half_width,
        "transfer_median_f1": metrics.median_f1(truth, told, unknown),
        "transfer_balanced": metrics.balanced_accuracy(truth, told, unknown),
        "transfer_rejected": metrics.rejected_share(told, unknown),
        "transfer_selective": metrics.selective_accuracy(truth, told, unknown),
    }
    scores = [Score("transfer", name, value) for name, value in found.items()]
    table = metrics.label_scores(truth, told, unknown)
    scores += [Score(f"label:{label}", "transfer_macro_f1", value) for label, value in table["f1"].items()]
    for name in np.unique(batch):
        own = batch == name
        value = metrics.accuracy(truth[own], told[own], unknown)
        scores.append(Score(f"batch:{name}", "transfer_accuracy", value))
    return scores


TASK = Annotation()
