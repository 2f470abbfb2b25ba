"""SingleR: scores and markers by their definition, fine-tuning one cell at a time, pruning."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

import tenfold as tf
from tenfold.annotate.singler import SingleR
from tenfold.data.preprocess import normalize_log1p
from tenfold.errors import DataError

CELLS = tf.data.simulate(240, 80, n_types=4, type_strength=0.8, depth=800, seed=2)
TRAIN, TEST = CELLS[:160].copy(), CELLS[160:].copy()
TRUTH = TEST.obs["cell_type"].astype(str).to_numpy()


def fit(**params) -> SingleR:
    return SingleR(**params).fit(TRAIN, labels="cell_type", progress=False)


def by_hand(model: SingleR, cell: np.ndarray, labels: list[int]) -> np.ndarray:
    genes = np.unique([g for a in labels for b in labels for g in model.markers_[a, b] if g >= 0])
    known = model.known_.toarray()[:, genes]
    return np.array([
        np.quantile([stats.spearmanr(cell[genes], other)[0] for other in known[model.codes_ == label]], 0.8)
        for label in labels
    ])  # fmt: skip


def test_every_round_is_that_of_the_definition():
    model, x = fit(), normalize_log1p(TEST.X)
    found = model._judged(x, np.zeros(80, dtype=bool))
    rounds = []
    for row in range(25):
        cell, labels = x[row].toarray()[0], [0, 1, 2, 3]
        scores = by_hand(model, cell, labels)
        np.testing.assert_allclose(found.scores[row], scores, atol=1e-5)
        best = labels[int(scores.argmax())]
        kept = [label for label, score in zip(labels, scores, strict=True) if score >= scores.max() - 0.05]
        rounds.append(0)
        while 1 < len(kept) < len(labels):
            labels, rounds[-1] = kept, rounds[-1] + 1
            scores = by_hand(model, cell, labels)
            best = labels[int(scores.argmax())]
            kept = [label for label, score in zip(labels, scores, strict=True) if score >= scores.max() - 0.05]
        assert found.best[row] == best
    assert max(rounds) > 0


def test_markers_have_the_largest_differences_of_medians():
    model = fit(n_markers=5)
    x = normalize_log1p(TRAIN.X).toarray()
    names = TRAIN.obs["cell_type"].astype(str).to_numpy()
    more = np.median(x[names == "type_1"], axis=0) - np.median(x[names == "type_2"], axis=0)
    assert set(model.markers_[0, 1]) == set(np.argsort(-more, kind="stable")[:5])


def test_only_ranks_count():
    model, other = fit(), TEST.copy()
    other.X = sparse.csr_matrix(np.rint(TEST.X.toarray() ** 2))  # another scale of expression, the same order
    assert (model.predict(other) == model.predict(TEST)).mean() > 0.98
    assert (model.predict(TEST) == TRUTH).mean() > 0.8


def test_pruning_takes_the_cells_with_the_smallest_lead():
    kept, all_ = fit(n_mads=1.0), fit()
    told, named = kept.predict(TEST), all_.predict(TEST)
    unknown = told == "Unknown"
    assert 0 < unknown.mean() < 0.5 and (told[~unknown] == named[~unknown]).all()
    lead = kept._judged(normalize_log1p(TEST.X), np.zeros(80, dtype=bool)).lead
    for name in set(named):
        own = named == name
        if unknown[own].any():
            assert lead[own & unknown].max() < lead[own & ~unknown].min()


def test_counts_too_sparse_for_medians_are_named():
    sparse_cells = TRAIN.copy()
    dense = np.zeros(TRAIN.shape)
    dense[np.arange(160), np.arange(160) % 80] = 1
    sparse_cells.X = sparse.csr_matrix(dense)
    with pytest.raises(DataError, match="too sparse for SingleR"):
        SingleR().fit(sparse_cells, labels="cell_type", progress=False)


def test_permuted_labels_teach_nothing():
    shuffled = TRAIN.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(TRAIN.obs["cell_type"].astype(str))
    assert (SingleR().fit(shuffled, labels="cell_type", progress=False).predict(TEST) == TRUTH).mean() < 0.45
