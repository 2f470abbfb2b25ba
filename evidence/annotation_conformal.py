"""Prediction sets: coverage over 200 repeats, thresholds and sets equal to MAPIE's and crepes', and what shift does.

The originals run in the environment whose python TENFOLD_REFERENCE_PYTHON names (mapie 1.6.0, crepes 0.9.1).
"""

from __future__ import annotations

import warnings

import numpy as np
from recording import record, run_apart, sha256, version, write
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

import tenfold as tf
from tenfold import metrics
from tenfold.annotators import conformal
from tenfold.data.preprocess import normalize_log1p

REPEATS, LABELS, N = 200, 6, 400
MAPIE = """
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
class Told(ClassifierMixin, BaseEstimator):
    def fit(self, x, y):
        self.classes_ = np.arange(x.shape[1]); self.fitted_ = True
        return self
    def predict_proba(self, x):
        return x
    def predict(self, x):
        return x.argmax(axis=1)
"""
RUN_MAPIE = """
told = Told().fit(given["p"], given["codes"])
machine = SplitConformalClassifier(told, confidence_level=1 - float(given["alpha"]), prefit=True,
                                   conformity_score="lac")
machine.conformalize(given["p"], given["codes"])
_, sets = machine.predict_set(given["q"])
score = machine._mapie_classifier.conformity_score_function_
result = {"sets": sets[:, :, 0], "threshold": float(np.ravel(score.quantiles_)[0])}
"""
CREPES = "from crepes import ConformalClassifier"
RUN_CREPES = """
n, k = given["q"].shape
alphas = 1 - given["p"][np.arange(len(given["codes"])), given["codes"]]
machine = ConformalClassifier().fit(alphas, bins=given["codes"])
sets = np.zeros((n, k), dtype=bool)
for label in range(k):
    own = 1 - given["q"][:, label]
    p = machine.predict_p(own[:, None], bins=np.full(n, label), smoothing=False)
    sets[:, label] = np.ravel(p) > float(given["alpha"])
result = {"sets": sets}
"""


def drawn(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    codes = rng.integers(0, LABELS, n)
    logits = 2.0 * np.eye(LABELS)[codes] + rng.standard_normal((n, LABELS))
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True), codes


def truth_of(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return values[np.arange(len(codes)), codes]


def coverage() -> list[dict]:
    rows = []
    for alpha in (0.05, 0.1, 0.2):
        hits: dict[str, list[float]] = {}
        for seed in range(REPEATS):
            rng = np.random.default_rng(seed)
            (p, codes), (q, truth) = drawn(N, rng), drawn(N, rng)
            for kind in ("lac", "aps", "raps"):
                known = truth_of(conformal.nonconformity(p, kind, rng.random(N)), codes)
                sets = conformal.nonconformity(q, kind, rng.random(N)) <= conformal.threshold(known, alpha)
                hits.setdefault(kind, []).append(truth_of(sets, truth).mean())
            known = truth_of(1 - p, codes)
            mondrian = 1 - q <= conformal.class_thresholds(known, codes, LABELS, alpha)
            hits.setdefault("mondrian", []).append(truth_of(mondrian, truth).mean())
            equal = conformal.weighted_thresholds(known, np.ones(N), np.ones(N), alpha)[:, None]
            hits.setdefault("weighted, equal weights", []).append(truth_of(1 - q <= equal, truth).mean())
        for kind, values in hits.items():
            value = float(np.mean(values))
            rows.append(
                record("conformal", "check", "coverage on exchangeable cells",
                       f"simulated, {REPEATS} repeats of {N} + {N}", sha256(q),
                       f"coverage of {kind} at alpha={alpha}", value, reference="nominal",
                       reference_value=1 - alpha, tolerance=0.015, passed=abs(value - (1 - alpha)) <= 0.015)
            )  # fmt: skip
    return rows


def parity() -> list[dict]:
    rows = []
    for alpha in (0.05, 0.1, 0.25):
        rng = np.random.default_rng(7)
        (p, codes), (q, _) = drawn(300, rng), drawn(500, rng)
        known = truth_of(1 - p, codes)
        given = {"p": p, "codes": codes, "q": q, "alpha": alpha}
        peer, limit = run_apart(RUN_MAPIE, given, MAPIE), conformal.threshold(known, alpha)
        lac = 1 - q <= limit
        name = f"simulated, 300 calibration and 500 query cells, alpha={alpha}"
        rows += [
            record("conformal", "parity", "LAC equals MAPIE's", name, sha256(q), "threshold", limit,
                   reference=version("mapie"), reference_value=peer["threshold"], tolerance=1e-12,
                   passed=abs(limit - peer["threshold"]) < 1e-12),
            record("conformal", "parity", "LAC equals MAPIE's", name, sha256(q), "sets that differ",
                   float((lac != peer["sets"]).any(axis=1).sum()), reference=version("mapie"), reference_value=0.0,
                   tolerance=0.0, passed=bool((lac == peer["sets"]).all())),
        ]  # fmt: skip
        other = run_apart(RUN_CREPES, given, CREPES)
        mondrian = 1 - q <= conformal.class_thresholds(known, codes, LABELS, alpha)
        differ = float((mondrian != other["sets"]).any(axis=1).sum())
        rows.append(
            record("conformal", "parity", "Mondrian equals crepes'", name, sha256(q), "sets that differ", differ,
                   reference=version("crepes"), reference_value=0.0, tolerance=0.0, passed=differ == 0)
        )  # fmt: skip
    return rows


def blood() -> list[dict]:
    """Logistic regression on 50 components of pbmc68k_reduced: coverage of all cells, the worst label, and shifted."""
    adata = tf.data.pbmc()
    sizes = adata.obs["cell_type"].value_counts()
    adata = adata[adata.obs["cell_type"].isin(sizes.index[sizes >= 19])].copy()
    x = normalize_log1p(adata.X).toarray()
    codes = np.unique(adata.obs["cell_type"].astype(str), return_inverse=True)[1]
    found: dict[str, list[float]] = {}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        train, known, asked = np.split(rng.permutation(len(x)), [len(x) // 2, 3 * len(x) // 4])
        factor, lost = np.exp(rng.normal(0, 0.5, x.shape[1])), rng.random((len(asked), x.shape[1])) < 0.3
        shifted = np.log1p(np.where(lost, 0, np.expm1(x[asked]) * factor))
        pca = PCA(50, random_state=0).fit(x[train])
        machine = LogisticRegression(max_iter=2000).fit(pca.transform(x[train]), codes[train])

        def told(cells: np.ndarray, pca: PCA = pca, machine: LogisticRegression = machine) -> np.ndarray:
            return machine.predict_proba(pca.transform(cells))

        p, q, moved = told(x[known]), told(x[asked]), told(shifted)
        scores, truth = truth_of(1 - p, codes[known]), codes[asked]
        uniforms = rng.random(len(known)), rng.random(len(asked))
        lac = conformal.threshold(scores, 0.1)
        aps = conformal.threshold(truth_of(conformal.nonconformity(p, "aps", uniforms[0]), codes[known]), 0.1)
        sets = {
            "LAC": 1 - q <= lac,
            "APS": conformal.nonconformity(q, "aps", uniforms[1]) <= aps,
            "Mondrian": 1 - q <= conformal.class_thresholds(scores, codes[known], codes.max() + 1, 0.1),
            "LAC after a shift": 1 - moved <= lac,
            "weighted after a shift": 1 - moved <= _weighted(pca, x[known], shifted, scores),
        }
        found.setdefault("accuracy", []).append((q.argmax(axis=1) == truth).mean())
        found.setdefault("calibration error", []).append(metrics.ece(q, truth, bins=10))
        for kind, inside in sets.items():
            hit = truth_of(inside, truth)
            found.setdefault(f"coverage, {kind}", []).append(hit.mean())
            found.setdefault(f"size, {kind}", []).append(inside.sum(axis=1).mean())
            worst = min(hit[truth == label].mean() for label in np.unique(truth))
            found.setdefault(f"coverage of the worst label, {kind}", []).append(worst)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    must = {
        "coverage, LAC": abs(means["coverage, LAC"] - 0.9) <= 0.015, "coverage, APS": means["coverage, APS"] >= 0.885,
        "coverage, Mondrian": means["coverage, Mondrian"] >= 0.885,
        "coverage of the worst label, Mondrian": means["coverage of the worst label, Mondrian"]
        > means["coverage of the worst label, LAC"],
    }  # fmt: skip
    return [
        record("conformal", "check", "what sets are worth on noisy blood cells", "pbmc68k_reduced, 40 repeats",
               sha256(x), name, value, passed=must.get(name, True))
        for name, value in means.items()
    ]  # fmt: skip


def _weighted(pca: PCA, known: np.ndarray, asked: np.ndarray, scores: np.ndarray) -> np.ndarray:
    weights, own = conformal.density_ratio(pca.transform(known)[:, :10], pca.transform(asked)[:, :10])
    return conformal.weighted_thresholds(scores, weights, own, 0.1)[:, None]


def refitted() -> list[dict]:
    """Sets of an annotator that was trained again on all cells, against those of cells kept apart."""
    found: dict[str, list[float]] = {}
    for seed in range(20):
        adata = tf.data.simulate(1600, 150, 4, 1, type_strength=0.5, batch_strength=0.0, seed=seed)
        parts = np.split(np.random.default_rng(seed).permutation(1600), [400, 600])
        train, known, asked = (adata[np.sort(part)].copy() for part in parts)
        truth = asked.obs["cell_type"].astype(str)
        for probability in ("platt", "margin"):
            model = tf.annotate.SVM(probability=probability).fit(train, labels="cell_type", progress=False)
            apart = tf.annotate.conformalize(model, known, labels="cell_type")
            for words, of in (("its own calibration", model), ("cells kept apart", apart)):
                inside = of.predict_sets(asked).contains
                hit = truth_of(inside.to_numpy(), inside.columns.get_indexer(truth)).mean()
                found.setdefault(f"{probability}, {words}", []).append(float(hit))
    return [
        record("conformal", "check", "training again on all cells costs little coverage",
               "simulated, 400 cells to train, 20 repeats", sha256(adata.X.data), f"coverage of LAC, SVM {name}",
               float(np.mean(values)), reference="nominal", reference_value=0.9, tolerance=0.015,
               passed=abs(np.mean(values) - 0.9) <= 0.015)
        for name, values in found.items()
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    write([*coverage(), *parity(), *blood(), *refitted()])


if __name__ == "__main__":
    main()
