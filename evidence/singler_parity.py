"""SingleR against the Python binding of its C++ core: markers of each pair, scores, and labels after fine-tuning.

Needs singler 0.5.0 in the environment whose Python is named by TENFOLD_SINGLER_PYTHON. Run
``python evidence/singler_parity.py``.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
from recording import REFERENCE_PYTHON, record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.annotate.singler import SingleR
from tenfold.data.preprocess import normalize_log1p

PYTHON = os.environ.get("TENFOLD_SINGLER_PYTHON", REFERENCE_PYTHON)
SETUP = "import singler"
CODE = """
genes, labels = given["genes"].tolist(), given["labels"].tolist()
built = singler.train_single(given["train"].T.copy(), labels, genes)
found = singler.classify_single(given["test"].T.copy(), built)
names = sorted(set(labels))
scores = found.column("scores")
result = {"best": np.array(list(found.column("best")), dtype="U"), "n": built.num_markers(),
          "scores": np.column_stack([scores.column(name) for name in names]),
          "markers": np.array(sorted(built.marker_subset()), dtype="U")}
"""


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.pbmc()
    x, y = normalize_log1p(adata.X), adata.obs["cell_type"].astype(str).to_numpy()
    order = np.random.default_rng(0).permutation(len(y))
    train, test = np.sort(order[:350]), np.sort(order[350:])
    theirs = run_apart(CODE, {
        "train": x[train].toarray(), "test": x[test].toarray(), "labels": y[train].astype("U"),
        "genes": np.asarray(adata.var_names, dtype="U"),
    }, SETUP, PYTHON)  # fmt: skip
    ours = SingleR(calibration=0.0).fit(adata[train].copy(), labels="cell_type", progress=False)
    found = ours._judged(x[test], np.zeros(x.shape[1], dtype=bool))
    by_name = np.argsort(ours.labels_.astype(str))
    used = np.unique(ours.genes_[np.unique(ours.markers_[ours.markers_ >= 0])].astype(str))
    markers = len(np.intersect1d(used, theirs["markers"])) / len(np.union1d(used, theirs["markers"]))
    off = float(np.abs(found.scores[:, by_name] - theirs["scores"]).max())
    same = float((ours.labels_[found.best].astype(str) == theirs["best"]).mean())
    reference, digest, rows = version("singler", PYTHON), sha256(adata.X.toarray()), []
    for claim, metric, value, expected, tolerance, passed in (
        ("the same markers", "markers of both over markers of either", markers, 1.0, 0.02, markers >= 0.98),
        ("the same scores", "largest difference of a score", off, 0.0, 1e-3, off < 1e-3),
        ("the same labels after fine-tuning", "share of cells with the same label", same, 1.0, 0.05, same >= 0.95),
    ):
        rows.append(
            record("singler", "parity", claim, "tenfold.data.pbmc, halves", digest, metric, value,
                   reference=reference, reference_value=expected, tolerance=tolerance, passed=passed)
        )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
