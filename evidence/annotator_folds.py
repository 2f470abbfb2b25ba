"""What the acceptance scripts of annotators share: the five folds of section 4.4 of their sheet, beside two baselines.

The 700 bundled cells of one donor with noisy labels say whether a method is wired up right, and nothing of how well it
would label your cells.
"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
from annotation_protocol import cells
from recording import record, sha256
from sklearn.model_selection import StratifiedKFold

import tenfold as tf
from tenfold import metrics

#: Deep annotators land here; far above, something has leaked.
LOWEST, HIGHEST = 0.78, 0.87
#: How far above the most frequent label an accuracy may be by chance.
SLACK = 0.03
BASELINES: dict[str, dict[str, Any]] = {"svm": {}, "logistic": {"voting": "off"}}
DATASET = "pbmc68k_reduced"


def folds(truth: np.ndarray) -> list:
    return list(StratifiedKFold(5, shuffle=True, random_state=0).split(truth, truth))


def told(name: str, parameters: dict[str, Any], permuted: bool = False) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the pooled labels that each fold's cells got while the method saw them without labels, truth, digest."""
    adata, x, truth = cells()
    found = np.empty(len(truth), dtype=object)
    for train, test in folds(truth):
        reference = adata[train].copy()
        if permuted:
            reference.obs["cell_type"] = np.random.default_rng(0).permutation(truth[train])
        query = ad.AnnData(adata.X[test], obs=adata.obs.iloc[test][[]].copy(), var=adata.var.copy())
        model = tf.method("annotate", name, **parameters)
        found[test] = model.fit(query, reference=reference, labels="cell_type", progress=False).predict()
    return found.astype(str), truth, sha256(x.data)


def beside_baselines(
    name: str, parameters: dict[str, Any] | None = None, below: float | None = None
) -> list[dict[str, Any]]:
    """Records of accuracy and macro F1 beside the SVM's and logistic regression's, and with permuted labels.

    With `below`, accuracy passes where it is at most so much below logistic regression's; else in the range of deep
    annotators. Other scores are shown and have nothing to pass.
    """
    rows, scores = [], {"accuracy": metrics.accuracy, "macro F1": metrics.macro_f1}
    mine, truth, digest = told(name, parameters or {})
    for other, settings in BASELINES.items():
        theirs = told(other, settings)[0]
        for metric, score in scores.items():
            value, reference = score(truth, mine), score(truth, theirs)
            judged = metric == "accuracy" and (below is None or other == "logistic")
            claim, passed, tolerance = f"beside {other}", True, None
            if judged and below is not None:
                claim, passed, tolerance = f"at most {below} below {other}", value >= reference - below, below
            elif judged:
                claim, passed = f"within {LOWEST} to {HIGHEST}, beside {other}", LOWEST <= value <= HIGHEST
            rows.append(record(name, "check", f"five folds: {claim}", DATASET, digest, metric, value, passed=passed,
                               reference=f"tenfold {other}", reference_value=reference,
                               tolerance=tolerance))  # fmt: skip
    largest = max(np.mean(label == truth) for label in set(truth))
    blind = metrics.accuracy(truth, told(name, parameters or {}, permuted=True)[0])
    rows.append(record(name, "check", "permuted labels teach nothing", DATASET, digest, "accuracy, labels permuted",
                       blind, passed=blind <= largest + SLACK, reference="most frequent label",
                       reference_value=largest, tolerance=SLACK))  # fmt: skip
    return rows
