"""Random folds flatter an annotator where batches differ: the gap to batches left out, by the size of the effect.

Simulated negative binomial counts: 600 genes, 8 types, 4 batches, 1,600 cells, in each batch a factor exp(N(0, s²))
for each gene.
"""

from __future__ import annotations

import warnings

import numpy as np
from recording import record, sha256, write

import tenfold as tf
from tenfold import metrics
from tenfold.data import splits

SEEDS, STRENGTHS = range(3), (0.0, 0.3, 0.6, 0.9)
METHODS = {"svm": {"probability": "margin", "C": 0.1, "calibration": 0.0}, "logistic": {"C": 0.1, "calibration": 0.0}}
LARGEST_WITHOUT, SMALLEST_WITH = 0.02, 0.04


def macro_f1(name: str, adata, split: splits.Split) -> float:
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    told = np.empty(adata.n_obs, dtype=object)
    parameters = dict(METHODS[name], **({"voting": "off"} if name == "logistic" else {}))
    for fold in split:
        model = tf.method("annotate", name, **parameters)
        model.fit(adata[fold.train].copy(), labels="cell_type", progress=False)
        told[fold.test] = model.predict(adata[fold.test].copy())
    return metrics.macro_f1(truth, told.astype(str))


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    for strength in STRENGTHS:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
        for seed in SEEDS:
            adata = tf.data.simulate(1600, 600, 8, 4, type_strength=0.5, batch_strength=strength, seed=seed)
            random = splits.random_cv(adata, "cell_type", 4, seed)
            left_out = splits.leave_batch_out(adata, "batch", "cell_type")
            for name in METHODS:
                found[name].append((macro_f1(name, adata, random), macro_f1(name, adata, left_out)))
        digest = sha256(adata.X.data)
        for name, pairs in found.items():
            within, without = np.mean(pairs, axis=0)
            gap = within - without
            passed = abs(gap) <= LARGEST_WITHOUT if strength == 0 else strength < 0.9 or gap >= SMALLEST_WITH
            limit = LARGEST_WITHOUT if strength == 0 else SMALLEST_WITH if strength == 0.9 else None
            rows.append(
                record(name, "check", "random folds flatter where batches differ",
                       f"simulated, batch effect {strength}, {len(SEEDS)} seeds", digest,
                       f"macro F1 of random folds ({within:.3f}) above that of batches left out", gap, tolerance=limit,
                       passed=passed)
            )  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
