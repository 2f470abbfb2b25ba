"""Annotators on five stratified folds of pbmc68k_reduced, pooled, beside scikit-learn on the same folds and values.

The stored values are log(1 + counts per 10,000 of all genes), of 765 genes. So that ours sees the same, the counts of
all other genes are added as one more gene, which is summed into the depth and not learnt from. CellTypist (with and
without its vote over clusters) and SingleR see counts of the 765 genes, scaled to 10,000, as ours then does. Linear
discriminants have no counterpart here; they are a floor for the linear SVM. A plumbing check: the labels are noisy and
all cells are of one donor, so nothing here says which method is better on new samples.

Needs celltypist 1.7.1 (with scikit-learn 1.7) and singler 0.5.0 in the environments whose Pythons are named by
TENFOLD_CELLTYPIST_PYTHON and TENFOLD_SINGLER_PYTHON; rows of an environment that is not named are kept as they are.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from recording import ROOT, record, run_apart, sha256, version, write
from scipy import sparse
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
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
from tenfold.data.preprocess import normalize_log1p

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
    ("logistic", "multinomial logistic regression", {"voting": "off"}, lambda: LogisticRegression(max_iter=1000)),
    ("random_forest", "random forest, 50 trees", {}, lambda: RandomForestClassifier(50, random_state=0)),
    ("knn", "15 neighbours in 50 components", {},
     lambda: make_pipeline(PCA(50, random_state=0), KNeighborsClassifier(15))),
]  # fmt: skip

#: Packages that run in environments of their own: the variable that names it, setup, and code that labels one fold.
CELLTYPIST = ("celltypist", "TENFOLD_CELLTYPIST_PYTHON", """
import logging, anndata, celltypist, pandas as pd
logging.disable(logging.CRITICAL)
def cells(x, y):
    names = [str(i) for i in range(len(x))]
    return anndata.AnnData(x, obs=pd.DataFrame({"y": y}, index=names), var=pd.DataFrame(index=given["genes"]))
train, test = cells(given["train"], given["labels"]), cells(given["test"], "")
""", """
model = celltypist.train(train, labels="y", check_expression=False, n_jobs=1)
found = celltypist.annotate(test, model=model, majority_voting=True)
told = {name: column.to_numpy().astype("U") for name, column in found.predicted_labels.items()}
result = {"alone": told["predicted_labels"], "voted": told["majority_voting"]}
""")  # fmt: skip
SINGLER = (
    "singler",
    "TENFOLD_SINGLER_PYTHON",
    "import singler",
    """
built = singler.train_single(given["train"].T.copy(), given["labels"].tolist(), given["genes"].tolist())
found = singler.classify_single(given["test"].T.copy(), built)
result = {"alone": np.array(list(found.column("best")), dtype="U")}
""",
)
#: Ours, its parameters, the package, which of its answers, and words for it.
APART: list[tuple[str, dict[str, Any], tuple[str, str, str, str], str, str]] = [
    ("logistic", {"voting": "off"}, CELLTYPIST, "alone", "CellTypist without its vote"),
    (
        "logistic",
        {"voting": "on", "scale_clusters": True},
        CELLTYPIST,
        "voted",
        "CellTypist with its vote, each in clusters of its own",
    ),
    ("singler", {}, SINGLER, "alone", "SingleR"),
]


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


def compared(
    name: str, words: str, peer: str, digest: str, truth: np.ndarray, told: np.ndarray, other: np.ndarray
) -> list[dict[str, Any]]:
    """Return a record of every score."""
    rows = []
    for metric, score in SCORES.items():
        value, reference = score(truth, told), score(truth, other)
        rows.append(
            record(name, "check", f"five folds of pbmc68k_reduced land where {words} does", "pbmc68k_reduced", digest,
                   metric, value, reference=f"{peer}, {words}", reference_value=reference, tolerance=TOLERANCE,
                   passed=abs(value - reference) <= TOLERANCE)
        )  # fmt: skip
    return rows


def labelled(name: str, parameters: dict[str, Any], plain: ad.AnnData, folds: list) -> np.ndarray:
    """Return what ours calls the cells of all folds, from counts of their own genes alone."""
    told = np.empty(plain.n_obs, dtype=object)
    for train, test in folds:
        model = tf.method("annotate", name, **parameters)
        stub = ad.AnnData(plain.X[test], obs=plain.obs.iloc[test][[]].copy(), var=plain.var.copy())
        model.fit(stub, reference=plain[train].copy(), labels="cell_type", progress=False)
        told[test] = model.predict()
    return told.astype(str)


def apart(truth: np.ndarray, folds: list, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of packages that run in environments of their own."""
    plain = tf.data.pbmc()
    x, genes, rows = normalize_log1p(plain.X).toarray(), np.asarray(plain.var_names, dtype="U"), []
    answers: dict[str, dict[str, np.ndarray]] = {}
    for name, parameters, (package, variable, setup, code), which, words in APART:
        python = os.environ.get(variable)
        if python is None:
            rows += [row for row in kept if words in str(row["reference"])]
            continue
        if package not in answers:
            found = answers[package] = {}
            for train, test in folds:
                given = {"train": x[train], "test": x[test], "labels": truth[train].astype("U"), "genes": genes}
                for key, value in run_apart(code, given, setup, python).items():
                    if not key.startswith("_"):
                        found.setdefault(key, np.empty(len(truth), dtype="U60"))[test] = value
        digest = sha256(plain.X.toarray())
        told, other = labelled(name, parameters, plain, folds), answers[package][which]
        rows += compared(name, words, version(package, python), digest, truth, told, other)
        if parameters.get("voting") == "on":
            default, found = labelled(name, {"voting": "on"}, plain, folds), SCORES["accuracy"]
            value, reference = found(truth, default), found(truth, other)
            rows.append(
                record(name, "check", "the vote in clusters of genes as they are, the default, is not below",
                       "pbmc68k_reduced", digest, "accuracy", value, reference=f"{version(package, python)}, {words}",
                       reference_value=reference, passed=value >= reference)
            )  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    path = ROOT / "evidence" / "results" / "annotation_protocol.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    adata, x, truth = cells()
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(x, truth))
    digest, peer = sha256(x.data), version("scikit-learn")
    rows, accuracy = [], {}
    for name, words, parameters, make in PAIRS:
        if name not in catalog.names("annotate"):
            print(f"{name} is not in the catalog yet")
            continue
        told, other = ours(name, parameters, adata, folds), theirs(make, x, truth, folds)
        accuracy[words] = float((told == truth).mean())
        rows += compared(name, words, peer, digest, truth, told, other)
    floor = float((theirs(LinearDiscriminantAnalysis, x, truth, folds) == truth).mean())
    rows.append(
        record("svm", "check", "not below linear discriminants on five folds of pbmc68k_reduced", "pbmc68k_reduced",
               digest, "accuracy", accuracy["LinearSVC"], reference=f"{peer}, LDA", reference_value=floor,
               passed=accuracy["LinearSVC"] >= floor)
    )  # fmt: skip
    write([*rows, *apart(truth, folds, kept)])


if __name__ == "__main__":
    main()
