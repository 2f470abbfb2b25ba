"""Boosted trees: what is kept of them predicts as scikit-learn does."""

from __future__ import annotations

import numpy as np
import pytest

import tenfold as tf
from tenfold.annotate.boosted_trees import BoostedTrees


@pytest.mark.parametrize("n_types", [2, 4])
def test_kept_trees_are_those_of_scikit_learn(n_types, monkeypatch):
    from sklearn import ensemble

    grown = []
    kind = ensemble.HistGradientBoostingClassifier

    class Seen(kind):
        def fit(self, x, y):
            grown.append(super().fit(x, y))
            return self

    monkeypatch.setattr(ensemble, "HistGradientBoostingClassifier", Seen)
    adata = tf.data.simulate(240, 60, n_types=n_types, n_batches=1, seed=0)
    model = BoostedTrees(n_rounds=8, calibration=0).fit(adata, labels="cell_type", progress=False)
    x = np.log1p(1e4 * adata.X.toarray() / adata.X.sum(axis=1)).astype(np.float32)
    expected = grown[-1].predict_proba(np.asarray(x))
    np.testing.assert_allclose(model.probabilities(), expected, atol=1e-5)


def test_labels_of_other_cells():
    adata = tf.data.simulate(500, 80, n_types=4, n_batches=2, batch_strength=0.1, seed=1)
    model = BoostedTrees(n_rounds=20).fit(adata[::2].copy(), labels="cell_type", progress=False)
    other = adata[1::2].copy()
    assert (model.predict(other) == other.obs["cell_type"].to_numpy()).mean() > 0.8
