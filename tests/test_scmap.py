"""scmap: the three similarities against SciPy's, the rules, and what is rejected."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

import tenfold as tf
from tenfold.annotate import scmap_cluster
from tenfold.annotate.scmap_cell import ScmapCell
from tenfold.annotate.scmap_cluster import ScmapCluster
from tenfold.data.preprocess import normalize_log1p
from tenfold.kernels.sparse_ranks import shifted_ranks

CELLS = tf.data.simulate(300, 100, n_types=4, type_strength=1.3, seed=2)
TRAIN, TEST = CELLS[:200].copy(), CELLS[200:].copy()
TRUTH = TEST.obs["cell_type"].astype(str).to_numpy()


def fit(kind: type, **params):
    return kind(**params).fit(TRAIN, labels="cell_type", progress=False)


def test_ranks_of_sparse_rows_are_scipys():
    x = sparse.random(40, 60, density=0.4, format="csr", random_state=0)
    x.data = np.round(x.data * 5)  # ties, and stored zeros
    found = shifted_ranks(x).toarray()
    expected = stats.rankdata(x.toarray(), axis=1)
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], atol=1e-5)


def test_similarities_are_scipys():
    x = normalize_log1p(TEST.X)[:20]
    profiles = fit(ScmapCluster).profiles_
    found = scmap_cluster._similarities(x, profiles)
    for i, cell in enumerate(x.toarray().astype(np.float64)):
        for k, profile in enumerate(profiles.astype(np.float64)):
            cosine = cell @ profile / np.linalg.norm(cell) / np.linalg.norm(profile)
            expected = [cosine, stats.pearsonr(cell, profile)[0], stats.spearmanr(cell, profile)[0]]
            np.testing.assert_allclose(found[:, i, k], expected, atol=1e-4)


def test_two_of_three_decide_and_nothing_is_made_of_nan():
    table = np.zeros((3, 4, 3))
    table[:, 0] = [[0.9, 0.1, 0.2], [0.8, 0.2, 0.1], [0.7, 0.1, 0.3]]  # all agree
    table[:, 1] = [[0.9, 0.1, 0.2], [0.1, 0.6, 0.2], [0.1, 0.5, 0.2]]  # two agree
    table[:, 2] = [[0.9, 0.1, 0.2], [0.1, 0.6, 0.2], [0.1, 0.2, 0.5]]  # none
    table[:, 3] = np.nan
    named, score = scmap_cluster._vote(table)
    assert list(named) == [0, 1, -1, -1]
    np.testing.assert_allclose(score[:2], [0.9, 0.6])


def test_labels_and_rejection_of_profiles():
    model = fit(ScmapCluster, threshold=0.0)
    assert (model.predict(TEST) == TRUTH).mean() > 0.85
    assert (fit(ScmapCluster, threshold=1.0).predict(TEST) == "Unknown").all()
    some = fit(ScmapCluster, threshold=0.7)
    told = some.predict(TEST)
    named = some.labels_[some.probabilities(TEST).to_numpy().argmax(axis=1)]
    assert (told[told != "Unknown"] == named[told != "Unknown"]).all()


def test_a_label_without_a_profile_is_named():
    adata = TRAIN.copy()
    dense = adata.X.toarray()
    rare = (adata.obs["cell_type"] == "type_2").to_numpy()
    rows = np.flatnonzero(rare)
    dense[rows] = 0
    dense[rows, np.arange(len(rows)) % 100] = 3
    adata.X = sparse.csr_matrix(dense)
    with pytest.warns(UserWarning, match="type_2 is zero everywhere"):
        model = ScmapCluster().fit(adata, labels="cell_type", progress=False)
    assert "type_2" not in set(model.predict(TEST))
    assert ScmapCluster(centre="mean").fit(adata, labels="cell_type", progress=False).profiles_.any(axis=1).all()


def test_neighbours_are_the_most_similar_and_must_agree():
    model = fit(ScmapCell)
    x, known = (normalize_log1p(a.X).toarray().astype(np.float64) for a in (TEST, TRAIN))
    cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (known / np.linalg.norm(known, axis=1, keepdims=True)).T
    order = np.argsort(-cosine, axis=1)[:, :3]
    names = TRAIN.obs["cell_type"].astype(str).to_numpy()[order]
    agreed = (names == names[:, :1]).all(axis=1) & (cosine.max(axis=1) > 0.5)
    np.testing.assert_array_equal(model.predict(TEST), np.where(agreed, names[:, 0], "Unknown"))
    assert 0 < agreed.mean() < 1


def test_quantised_search_finds_nearly_the_same_labels():
    exact, close = fit(ScmapCell, n_voters=1), fit(ScmapCell, n_voters=1, search="quantised")
    assert (close.predict(TEST) == TRUTH).mean() > (exact.predict(TEST) == TRUTH).mean() - 0.1
    parts = close.index_
    assert parts["numbers"].shape == (200, 10) and parts["centres"].shape == (14, 100)


@pytest.mark.parametrize("kind", [ScmapCluster, ScmapCell])
def test_permuted_labels_teach_nothing(kind):
    shuffled = TRAIN.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(TRAIN.obs["cell_type"].astype(str))
    assert (kind().fit(shuffled, labels="cell_type", progress=False).predict(TEST) == TRUTH).mean() < 0.45
