"""The floor of a comparison, and boosted trees walked by our code, on the bundled blood cells."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import sklearn
from recording import record, sha256, write
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold

import tenfold as tf
from tenfold.annotate.boosted_trees import LEVELS
from tenfold.data.preprocess import normalize_log1p

ROUNDS, GENES, DATASET = 5, 300, "tenfold.data.pbmc"
PEER = f"scikit-learn {sklearn.__version__}"


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.pbmc()
    y, x = adata.obs["cell_type"].astype(str).to_numpy(), normalize_log1p(adata.X)
    train, test = next(iter(StratifiedKFold(5, shuffle=True, random_state=0).split(y, y)))
    digest = sha256(adata.X.toarray())

    def fit(method: str, **params):
        model = tf.method("annotate", method, calibration=0.0, **params)
        return model.fit(adata[train].copy(), labels="cell_type", progress=False)

    floor = fit("majority")
    dummy = DummyClassifier(strategy="prior").fit(x[train], y[train])
    order = np.array([list(dummy.classes_).index(name) for name in floor.labels_])
    apart = float(np.abs(floor._score(x[test]) - dummy.predict_proba(x[test])[:, order]).max())
    accuracy = float((floor.predict(adata[test].copy()) == y[test]).mean())
    share = Counter(y[test])[Counter(y[train]).most_common(1)[0][0]] / len(test)

    trees = fit("boosted_trees", n_rounds=ROUNDS, n_top_genes=GENES)
    codes = np.array([list(trees.labels_).index(name) for name in y[train]])
    x = x[:, adata.var_names.get_indexer(trees.genes_)]
    forest = HistGradientBoostingClassifier(
        max_iter=ROUNDS, learning_rate=trees.learning_rate, max_leaf_nodes=trees.n_leaves,
        min_samples_leaf=trees.min_cells, max_bins=LEVELS, early_stopping=False, random_state=0,
    ).fit(x[train].toarray(), codes)  # fmt: skip
    off = float(np.abs(trees._score(x[test]) - forest.predict_proba(x[test].toarray())).max())
    right = float((trees.predict(adata[test].copy()) == y[test]).mean())
    write([
        record("majority", "parity", "probabilities of DummyClassifier", DATASET, digest, "largest difference", apart,
               reference=PEER, reference_value=0.0, tolerance=1e-12, passed=apart <= 1e-12),
        record("majority", "check", "accuracy is the share of the most frequent label", DATASET, digest, "accuracy",
               accuracy, reference="share among the cells asked about", reference_value=share, tolerance=0.0,
               passed=accuracy == share),
        record("boosted_trees", "parity", f"probabilities of the same trees, {ROUNDS} rounds", DATASET, digest,
               "largest difference", off, reference=PEER, reference_value=0.0, tolerance=1e-5, passed=off <= 1e-5),
        record("boosted_trees", "check", "above the most frequent label by 20 points", DATASET, digest, "accuracy",
               right, reference="majority", reference_value=accuracy, tolerance=0.2, passed=right >= accuracy + 0.2),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
