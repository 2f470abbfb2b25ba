"""Nearest labelled cells: the votes of scikit-learn's classifier, and the components that cells are placed on."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

import tenfold as tf
from tenfold.annotate.knn import KNN
from tenfold.data.preprocess import normalize_log1p

CELLS = tf.data.simulate(300, 100, n_types=4, type_strength=1.2, seed=2)
TRAIN, TEST = CELLS[:200].copy(), CELLS[200:].copy()


def fit(**params) -> KNN:
    return KNN(n_components=10, **params).fit(TRAIN, labels="cell_type", progress=False)


def test_cells_lie_where_the_components_of_the_labelled_cells_put_them():
    model, x = fit(), normalize_log1p(TEST.X)
    expected = PCA(10, svd_solver="full").fit(normalize_log1p(TRAIN.X).toarray()).transform(x.toarray())
    np.testing.assert_allclose(np.abs(x @ model.components_.T - model.components_ @ model.means_), np.abs(expected),
                               atol=2e-3)  # fmt: skip


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_votes_are_those_of_scikit_learn(weights):
    model, x = fit(weights=weights), normalize_log1p(TEST.X)
    placed = x @ model.components_.T - model.components_ @ model.means_
    peer = KNeighborsClassifier(15, weights=weights).fit(model.points_, TRAIN.obs["cell_type"].astype(str))
    shares = (16 * model._score(x) - 1 / 4) / 15  # without the vote that all labels share
    np.testing.assert_allclose(shares, peer.predict_proba(placed), atol=1e-4)


def test_a_missing_gene_is_taken_at_its_mean():
    model = fit()
    lacking = TEST[:, 5:].copy()
    x = normalize_log1p(TEST[:, 5:].X).toarray()
    full = np.hstack([np.tile(model.means_[:5], (100, 1)), x])
    placed = (full - model.means_) @ model.components_.T
    peer = KNeighborsClassifier(15).fit(model.points_, TRAIN.obs["cell_type"].astype(str))
    assert (model.predict(lacking) == peer.predict(placed)).mean() > 0.97


def test_permuted_labels_teach_nothing():
    shuffled = TRAIN.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(TRAIN.obs["cell_type"].astype(str))
    truth = TEST.obs["cell_type"].astype(str).to_numpy()
    right = KNN(n_components=10).fit(shuffled, labels="cell_type", progress=False).predict(TEST) == truth
    assert right.mean() < 0.45 < (fit().predict(TEST) == truth).mean() - 0.3
