"""Annotators on five stratified folds of pbmc68k_reduced, pooled, beside scikit-learn on the same folds and values.

The stored values are log(1 + counts per 10,000 of all genes), of 765 genes. So that ours sees the same, the counts of
all other genes are added as one more gene, which is summed into the depth and not learnt from. A plumbing check: the
labels are noisy and all cells are of one donor, so nothing here says which method is better on new samples.
"""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from recording import record, sha256, version, write
from scipy import sparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import tenfold as tf
from tenfold import catalog, metrics

TOLERANCE = 0.02
SCORES = {
    "accuracy": metrics.accuracy, "balanced accuracy": metrics.balanced_accuracy, "macro F1": metrics.macro_f1,
    "median F1": metrics.median_f1,
}  # fmt: skip
# Ours, its parameters, and the peer that does the same.
PAIRS: list[tuple[str, str, dict[str, Any], Any]] = [
    ("svm", "LinearSVC", {"probability": "margin"}, lambda: LinearSVC(random_state=0)),
    ("svm", "LinearSVC, Platt", {}, lambda: CalibratedClassifierCV(LinearSVC(random_state=0))),
    ("logistic", "one-vs-rest logistic regression on z-scores", {"voting": "off"},
     lambda: make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=1000)))),
    ("random_forest", "random forest, 50 trees", {}, lambda: RandomForestClassifier(50, random_state=0)),
    ("knn", "15 neighbours in 50 components", {},
     lambda: make_pipeline(PCA(50, random_state=0), KNeighborsClassifier(15))),
]  # fmt: skip


def cells() -> tuple[ad.AnnData, sparse.csr_matrix, np.ndarray]:
    """Return counts with the rest of each cell as one gene, the stored log values, and labels."""
    plain = tf.data.pbmc()
    rest = plain.obs["n_counts"].to_numpy() - np.asarray(plain.X.sum(axis=1)).ravel()
    counts = sparse.hstack([plain.X, sparse.csr_matrix(np.maximum(np.rint(rest), 0)[:, None])], format="csr")
    var = pd.DataFrame(index=[*plain.var_names, "all other genes"])
    adata = ad.AnnData(counts.astype(np.float32), obs=plain.obs[["cell_type"]].copy(), var=var)
    stored = sparse.csr_matrix(sc.datasets.pbmc68k_reduced().raw.X).astype(np.float64)
    return adata, stored, plain.obs["cell_type"].astype(str).to_numpy()


def ours(name: str, parameters: dict[str, Any], adata: ad.AnnData, folds: list) -> np.ndarray:
    told = np.empty(adata.n_obs, dtype=object)
    for train, test in folds:
        model = tf.method("annotate", name, **parameters)
        stub = ad.AnnData(adata.X[test][:, :-1], obs=adata.obs.iloc[test][[]].copy(), var=adata.var.iloc[:-1].copy())
        model.fit(stub, reference=adata[train].copy(), labels="cell_type", progress=False)
        told[test] = model.predict(adata[test].copy())
    return told.astype(str)


def theirs(make: Any, x: sparse.csr_matrix, truth: np.ndarray, folds: list) -> np.ndarray:
    told = np.empty(len(truth), dtype=object)
    dense = x.toarray()
    for train, test in folds:
        told[test] = make().fit(dense[train], truth[train]).predict(dense[test])
    return told.astype(str)


def main() -> None:
    warnings.simplefilter("ignore")
    adata, x, truth = cells()
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(x, truth))
    digest, peer = sha256(x.data), version("scikit-learn")
    rows = []
    for name, words, parameters, make in PAIRS:
        if name not in catalog.names("annotate"):
            print(f"{name} is not in the catalog yet")
            continue
        told, other = ours(name, parameters, adata, folds), theirs(make, x, truth, folds)
        for metric, score in SCORES.items():
            value, reference = score(truth, told), score(truth, other)
            rows.append(
                record(name, "check", f"five folds of pbmc68k_reduced land where {words} does", "pbmc68k_reduced",
                       digest, metric, value, reference=f"{peer}, {words}", reference_value=reference,
                       tolerance=TOLERANCE, passed=abs(value - reference) <= TOLERANCE)
            )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
