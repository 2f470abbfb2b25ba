"""Logistic regression against CellTypist: decisions, labels, and the vote in the same clusters.

Five folds of the bundled blood cells, trained and labelled by both. CellTypist's solver ends early at its default
tolerance (its decisions then differ by up to 5 from those at the minimum), so decisions are compared where both have
gone on to the minimum, and labels at the defaults of both. Needs celltypist 1.7.1 with scikit-learn 1.7 in the
environment whose Python is named by TENFOLD_CELLTYPIST_PYTHON. Run ``python evidence/logistic_parity.py``.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
from recording import REFERENCE_PYTHON, record, run_apart, sha256, version, write
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

import tenfold as tf
from tenfold.annotate.logistic import Logistic
from tenfold.annotators.voting import majority
from tenfold.data.preprocess import normalize_log1p

PYTHON = os.environ.get("TENFOLD_CELLTYPIST_PYTHON", REFERENCE_PYTHON)
SETUP = """
import logging, anndata, celltypist, pandas as pd
logging.disable(logging.CRITICAL)
def cells(x, y):
    names = [str(i) for i in range(len(x))]
    return anndata.AnnData(x, obs=pd.DataFrame({"y": y}, index=names), var=pd.DataFrame(index=given["genes"]))
train, test = cells(given["train"], given["labels"]), cells(given["test"], "")
"""
CODE = """
options = {} if given["tol"] < 0 else {"tol": float(given["tol"]), "max_iter": 100000}
model = celltypist.train(train, labels="y", check_expression=False, n_jobs=1, **options)
found = celltypist.annotate(test, model=model, majority_voting=True, over_clustering=given["clusters"].tolist())
told = {name: column.to_numpy().astype("U") for name, column in found.predicted_labels.items()}
result = {"decisions": found.decision_matrix.to_numpy()}
result |= {"alone": told["predicted_labels"], "voted": told["majority_voting"]}
model.write(str(given["path"]))
"""


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.pbmc()
    x, y = normalize_log1p(adata.X), adata.obs["cell_type"].astype(str).to_numpy()
    used = version("celltypist", PYTHON)
    off, same, voted, loaded, clusters_of = [], [], [], [], np.random.default_rng(0)
    accuracy = {"ours": np.empty(len(y), object), "theirs": np.empty(len(y), object)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pkl"
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(y, y):
            clusters = clusters_of.integers(0, 20, len(test)).astype("U")
            given = {
                "train": x[train].toarray(), "test": x[test].toarray(), "labels": y[train].astype("U"),
                "genes": np.asarray(adata.var_names, dtype="U"), "clusters": clusters, "path": str(file),
            }  # fmt: skip
            reference, cells = adata[train].copy(), adata[test].copy()
            plain = run_apart(CODE, {**given, "tol": -1.0}, SETUP, PYTHON)
            ours = Logistic(calibration=0.0, voting="off").fit(reference, labels="cell_type", progress=False)
            alone = ours.predict(cells)
            same.append(alone == plain["alone"])
            accuracy["ours"][test], accuracy["theirs"][test] = alone, plain["alone"]
            voted.append(majority(plain["alone"], clusters) == plain["voted"])
            official = Logistic.from_celltypist(file, voting="off")
            loaded.append(np.abs(official.decisions(x[test]) - plain["decisions"]).max())
            loaded.append(0.0 if (official.predict(cells) == plain["alone"]).all() else np.inf)
            exact = run_apart(CODE, {**given, "tol": 1e-9}, SETUP, PYTHON)
            ours = Logistic(calibration=0.0, tol=1e-8).fit(reference, labels="cell_type", progress=False)
            by_name = np.argsort(ours.labels_.astype(str))  # theirs are in this order
            off.append(np.abs(ours.decisions(x[test])[:, by_name] - exact["decisions"]).max())
    digest, rows = sha256(adata.X.toarray()), []
    scores = {
        name: (float((found == y).mean()), float(f1_score(y, found.astype(str), average="macro")))
        for name, found in accuracy.items()
    }
    for claim, metric, value, expected, tolerance, passed in (
        ("the same minimum", "largest difference of a decision, both at the minimum", max(off), 0.0, 1e-3,
         max(off) < 1e-3),
        ("the same labels at default settings", "share of held-out cells with the same label",
         np.concatenate(same).mean(), 1.0, 0.01, np.concatenate(same).mean() >= 0.99),
        ("the same vote in the same clusters", "share of cells with the same voted label",
         np.concatenate(voted).mean(), 1.0, 0.0, np.concatenate(voted).all()),
        ("its files give its decisions and labels", "largest difference of a decision of the loaded file",
         max(loaded), 0.0, 1e-3, max(loaded) < 1e-3),
        ("as accurate", "accuracy, five folds", scores["ours"][0], scores["theirs"][0], 0.02,
         abs(scores["ours"][0] - scores["theirs"][0]) <= 0.02),
        ("as accurate", "macro-F1, five folds", scores["ours"][1], scores["theirs"][1], 0.02,
         abs(scores["ours"][1] - scores["theirs"][1]) <= 0.02),
    ):  # fmt: skip
        rows.append(
            record("logistic", "parity", claim, "tenfold.data.pbmc", digest, metric, value, reference=used,
                   reference_value=expected, tolerance=tolerance, passed=passed)
        )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
