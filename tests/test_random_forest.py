"""Random forest: trees from arrays say what scikit-learn's say; calibration by cells outside the resamples."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

import tenfold as tf
from tenfold.annotate.random_forest import RandomForest
from tenfold.data.preprocess import normalize_log1p

CELLS = tf.data.simulate(300, 100, n_types=4, type_strength=0.9, seed=2)
TRAIN, TEST = CELLS[:200].copy(), CELLS[200:].copy()
NAMES = TRAIN.obs["cell_type"].astype(str).to_numpy()


@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_shares_are_those_of_scikit_learn(weight):
    model = RandomForest(n_trees=20, class_weight=weight, max_features=30, seed=3)
    model.fit(TRAIN, labels="cell_type", progress=False)
    peer = RandomForestClassifier(
        20, max_features=30, random_state=3, class_weight="balanced_subsample" if weight == "balanced" else None
    ).fit(normalize_log1p(TRAIN.X).toarray(), np.unique(NAMES, return_inverse=True)[1])
    x = normalize_log1p(TEST.X)
    np.testing.assert_allclose((21 * model._score(x) - 1 / 4) / 20, peer.predict_proba(x.toarray()), atol=1e-5)


def test_forest_is_grown_once_and_calibrated_by_cells_outside_the_resamples(monkeypatch):
    grown = []
    train = RandomForest._train
    monkeypatch.setattr(
        RandomForest, "_train", lambda self, x, codes: (grown.append(len(codes)), train(self, x, codes))
    )
    model = RandomForest().fit(TRAIN, labels="cell_type", progress=False)
    assert grown == [200] and 30 <= len(model.calibration_["codes"]) <= 40
    right = (model.predict(TEST) == TEST.obs["cell_type"].astype(str).to_numpy()).mean()
    assert right > 0.8 and abs(model.confidence(TEST).mean() - right) < 0.15


def test_error_outside_the_resamples_is_that_of_new_cells():
    adata = tf.data.pbmc()
    model = RandomForest(n_trees=60)
    model.fit(adata, labels="cell_type", progress=False)
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    outside = (model.labels_[np.nan_to_num(model._outside).argmax(axis=1)] == truth).mean()
    assert 0.76 < outside < 0.86


def test_permuted_labels_teach_nothing():
    shuffled = TRAIN.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(NAMES)
    truth = TEST.obs["cell_type"].astype(str).to_numpy()
    assert (RandomForest().fit(shuffled, labels="cell_type", progress=False).predict(TEST) == truth).mean() < 0.45
