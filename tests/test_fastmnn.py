"""fastMNN against a transcription of its steps in dense loops, and its guards."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.errors import DataError, KeyMissingError, ParameterError
from tenfold.integrate.fastmnn import FastMNN
from test_anchors import loop_pairs


def three_batches(seed: int = 0, n: int = 240) -> ad.AnnData:
    return tf.data.simulate(n, 100, n_types=3, n_batches=3, batch_strength=0.4, seed=seed)


def flat(x: np.ndarray, vectors: list[np.ndarray]) -> np.ndarray:
    x = x.copy()
    for v in vectors:
        u = v / np.linalg.norm(v)
        loc = x @ u
        x += np.outer(loc.mean() - loc, u)
    return x


def transcription(parts: list[np.ndarray], k: int, ndist: float) -> list[np.ndarray]:
    """Merge in the given order, each step cell by cell, in float64."""
    left, vectors = parts[0].astype(float), []
    for part in parts[1:]:
        right = flat(part.astype(float), vectors)
        pairs = loop_pairs(left, right, k, k)
        paired = sorted({j for _, j in pairs})

        def shifts(a, b, pairs=pairs, paired=paired):
            return np.array([np.mean([a[i] - b[j] for i, j in pairs if j == q], axis=0) for q in paired])

        vector = shifts(left, right).mean(axis=0)
        left, right = flat(left, [vector]), flat(right, [vector])
        moved, at = right.copy(), right[paired]
        s = shifts(left, right)
        for c in range(len(right)):
            d = np.linalg.norm(right[c] - at, axis=1)
            near = np.argsort(d)[:k]
            bandwidth = max(1e-8, ndist * d[near][int(np.ceil(len(near) / 2)) - 1])
            w = (1 - np.minimum(d[near] / bandwidth, 1) ** 3) ** 3
            moved[c] += w @ s[near] / w.sum()
        left = np.concatenate([left, moved])
        vectors.append(vector)
    return left


def test_merges_are_those_of_the_transcription():
    adata = three_batches()
    batch = adata.obs["batch"].cat.codes.to_numpy()
    start = np.random.default_rng(0).normal(size=(240, 8)).astype(np.float32)
    start += batch[:, None] * np.linspace(0, 1, 8, dtype=np.float32)
    method = FastMNN(n_neighbors=8)
    order = [1, 0, 2]
    method._merge(start, batch, ["a", "b", "c"], order)
    expected = transcription([start[batch == b] for b in order], 8, 3.0)
    got = np.concatenate([method.embedding_[batch == b] for b in order])
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert [merge["left"] for merge in method.merges_] == [["b"], ["b", "a"]]


def test_batches_mix_within_types_and_order_is_restored():
    adata = three_batches()
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    a = FastMNN(n_components=10).fit(adata, batch="batch")
    b = FastMNN(n_components=10).fit(shuffled, batch="batch")
    place = adata.obs_names.get_indexer(shuffled.obs_names)
    np.testing.assert_allclose(a.embed()[place], b.embed(), atol=2e-3)
    before = tf.embed.PCA(n_components=10).fit(adata).embed()
    codes, types = (adata.obs[key].cat.codes.to_numpy() for key in ("batch", "cell_type"))

    def gap(z: np.ndarray) -> float:
        means = np.array([[z[(codes == b) & (types == t)].mean(axis=0) for b in range(3)] for t in range(3)])
        between = np.linalg.norm(means[:, :1] - means[:, 1:], axis=2).mean()
        return between / np.linalg.norm(means.mean(axis=1)[0] - means.mean(axis=1)[1])

    assert gap(a.embed()) < 0.5 * gap(before)


def test_low_rank_expression_is_coordinates_times_loadings():
    adata = three_batches()
    method = FastMNN(n_components=10, n_top_genes=60).fit(adata, batch="batch")
    expected = method.embed() @ method.loadings_.T + method.centre_
    np.testing.assert_allclose(method.correct(), expected, atol=1e-5)
    some = list(adata.var_names[[7, 3]])
    np.testing.assert_allclose(method.correct(genes=some), expected[:, [7, 3]], atol=1e-5)
    with pytest.raises(KeyMissingError, match="gene_"):
        method.correct(genes=["gene_3x"])


def test_automatic_order_starts_with_the_batches_that_share_most():
    shares = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 0]]
    adata = tf.data.simulate(300, 120, n_types=4, n_batches=3, batch_strength=0.2, proportions=shares, seed=0)
    method = FastMNN(merge_order="auto", n_components=10).fit(adata, batch="batch")
    assert method.merges_[0]["left"] != ["batch_1"] or method.merges_[0]["right"] != ["batch_2"]
    given = FastMNN(merge_order=["batch_3", "batch_1", "batch_2"], n_components=10).fit(adata, batch="batch")
    assert given.merges_[0]["left"] == ["batch_3"] and given.merges_[1]["right"] == ["batch_2"]
    assert given.lost_variance_.shape == (2, 3) and given.lost_variance_[0, 1] == 0


def test_guard_leaves_batches_without_effect_alone():
    adata = tf.data.simulate(300, 120, n_types=3, n_batches=2, batch_strength=0.0, seed=0)
    free = FastMNN(n_components=10).fit(adata, batch="batch")
    assert free.merges_[0]["magnitude"] < 0.5 and not free.merges_[0]["skipped"]
    guarded = FastMNN(n_components=10, min_batch_skip=0.5).fit(adata, batch="batch")
    assert guarded.merges_[0]["skipped"] and (guarded.lost_variance_ == 0).all()
    strong = tf.data.simulate(300, 120, n_types=3, n_batches=2, batch_strength=0.6, seed=0)
    assert not FastMNN(n_components=10, min_batch_skip=0.5).fit(strong, batch="batch").merges_[0]["skipped"]


def test_warns_where_batches_share_no_type():
    apart, alike = [[1, 1, 0, 0], [0, 0, 1, 1]], [1, 1, 1, 1]
    for shares, expected in ((apart, True), (alike, False)):
        adata = tf.data.simulate(1200, 200, 4, 2, batch_strength=0.1, type_strength=1.5, proportions=shares, seed=0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method = FastMNN(n_components=10).fit(adata, batch="batch")
        assert any("share no cell type" in str(w.message) for w in caught) == expected, method.merges_


def test_warns_where_variance_is_lost():
    start = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    start[:, 0] *= 3
    batch = np.repeat([0, 1], 150)
    start[batch == 1, 0] += 8  # the batch vector runs along what differs most within a batch
    method = FastMNN(n_neighbors=10)
    method._merge(start, batch, ["a", "b"], [0, 1])
    assert method.lost_variance_.max() > 0.1
    with pytest.warns(UserWarning, match="removed .* of the variance"):
        method._warn()


def test_prop_k_widens_the_search():
    adata = three_batches()
    few, many = (FastMNN(n_components=10, prop_k=p).fit(adata, batch="batch").merges_[0] for p in (0.0, 0.5))
    assert many["pairs"] > few["pairs"]


def test_bad_data_are_named():
    adata = three_batches()
    adata.obs["batch"] = pd.Categorical(["tiny"] + ["rest"] * (adata.n_obs - 1))
    with pytest.raises(DataError, match="'tiny' has 1 cell,"):
        FastMNN().fit(adata, batch="batch")
    adata = three_batches()
    adata.obs["batch"] = pd.Categorical(["small"] * 12 + ["rest"] * (adata.n_obs - 12))
    with pytest.raises(DataError, match="Lower n_neighbors"):
        FastMNN().fit(adata, batch="batch")
    FastMNN(n_neighbors=5, n_components=5).fit(adata, batch="batch")
    with pytest.raises(ParameterError, match="merge_order"):
        FastMNN(merge_order="size")
    with pytest.raises(ParameterError, match="not a batch"):
        FastMNN(merge_order=["small", "rset"], n_neighbors=5).fit(adata, batch="batch")
    constant = ad.AnnData(sparse.csr_matrix(np.ones((60, 20), dtype=np.float32)))
    constant.obs["batch"] = ["a", "b"] * 30
    with pytest.raises(DataError, match="genes vary"):
        FastMNN().fit(constant, batch="batch")
