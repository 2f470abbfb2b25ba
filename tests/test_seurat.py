"""Seurat's anchors against transcriptions in dense loops: scaling, anchors, scores, weights, corrected values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.data import seurat
from tenfold.errors import DataError
from tenfold.integrate.seurat_cca import SeuratCCA
from tenfold.integrate.seurat_rpca import SeuratRPCA
from tenfold.kernels.anchors import Pairs


def scaled(x: np.ndarray) -> np.ndarray:
    deviation = x.std(axis=0, ddof=1)
    return np.minimum((x - x.mean(axis=0)) / np.where(deviation > 0, deviation, np.inf), 10)


def by_cell(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, ddof=1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def nearest(query: np.ndarray, ref: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(((query[:, None] - ref[None]) ** 2).sum(axis=2), axis=1, kind="stable")[:, :k]


def cca_space(x: np.ndarray, y: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    u, _, vt = np.linalg.svd(by_cell(scaled(x)) @ by_cell(scaled(y)).T, full_matrices=False)
    return unit(u[:, :d]), unit(vt[:d].T)


def loop_scores(pairs: list[tuple[int, int]], lists: list[np.ndarray], k: int) -> np.ndarray:
    aa, ab, bb, ba = (named[:, :k] for named in lists)
    overlap = np.array([len({*aa[i]} & {*ba[j]}) + len({*ab[i]} & {*bb[j]}) for i, j in pairs])
    low, high = np.quantile(overlap, [0.01, 0.9])
    return np.clip((overlap - low) / (high - low), 0, 1)


def loop_weights(points: np.ndarray, rows: np.ndarray, score: np.ndarray, k: int, sd: float) -> np.ndarray:
    cells = np.unique(rows)
    weights = np.zeros((len(points), len(rows)))
    for c in range(len(points)):
        d = np.linalg.norm(points[c] - points[cells], axis=1)
        near = np.argsort(d)[:k]
        taken = 0
        for n in near:
            for anchor in np.flatnonzero(rows == cells[n]):
                if taken < k:
                    closeness = 1 - d[n] / d[near[-1]]
                    weights[c, anchor] = 1 - np.exp(-closeness * score[anchor] / (2 / sd) ** 2)
                    taken += 1
        weights[c] /= weights[c].sum()
    return weights


@pytest.fixture(scope="module")
def data():
    adata = tf.data.simulate(220, 90, n_types=3, n_batches=2, batch_strength=0.4, seed=0)
    return adata[np.r_[0:110, 110:190]].copy()


def test_scaling_clips_and_leaves_constant_genes_at_zero():
    rng = np.random.default_rng(0)
    x = rng.poisson(1.0, size=(300, 20)).astype(np.float32)
    x[:, 3], x[0, 4], x[:, 5] = 2, 0, 0
    x[7, 4], x[8, 5] = 60, 9
    for cells in (False, True):
        part = seurat.Scaled(sparse.csr_matrix(x), by_cell=cells)
        expected = scaled(x.astype(float))
        assert expected.max() == 10 and (expected[:, 3] == 0).all()
        expected = by_cell(expected) if cells else expected
        got = np.concatenate([block for _, block in part.blocks()])
        np.testing.assert_allclose(got, expected, atol=1e-4)
        np.testing.assert_allclose(part.gram(), expected.T @ expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("sizes", [(60, 50), (15, 50), (400, 380)])
def test_canonical_vectors_without_the_matrix_of_cells(sizes):
    rng = np.random.default_rng(0)
    n_genes = 330 if sizes[0] == 400 else 40  # the larger takes the iterative decomposition
    mix = rng.normal(size=(4, n_genes))
    x, y = (rng.normal(size=(n, 4)) @ mix * 2 + rng.normal(size=(n, n_genes)) for n in sizes)
    a, b = seurat.canonical_loadings(seurat.root(x.T @ x), seurat.root(y.T @ y), 6)
    u, s, _ = np.linalg.svd(x @ y.T, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(x @ a * u[:, :6], axis=0)), 1, atol=1e-5)
    np.testing.assert_allclose(np.sum((x @ a) * (x @ y.T @ (y @ b)), axis=0), s[:6], rtol=1e-5)


def test_genes_come_from_both_ends_of_the_components():
    loadings = np.zeros((100, 2))
    loadings[:, 0], loadings[:, 1] = np.arange(100) - 50, np.roll(np.arange(100) - 50, 30)
    chosen = seurat.leading_genes(loadings, 20)
    assert 12 <= len(chosen) < 20 and {0, 99, 30, 29} <= set(chosen)


def test_weights_count_at_most_k_anchors():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 3)).astype(np.float32)
    rows, score = rng.integers(0, 25, size=70), rng.random(70)
    k = 10
    got = seurat.anchor_weights(points, rows, score, k, 1.5)
    assert (np.diff(got.indptr) <= k).all()
    np.testing.assert_allclose(got.toarray(), loop_weights(points.astype(float), rows, score, k, 1.5), atol=1e-5)


def test_tree_joins_what_shares_most_and_the_larger_is_the_reference():
    counts = np.array([[0, 50, 5], [50, 0, 4], [5, 4, 0]])
    merges = seurat.merge_tree(counts, np.array([100, 120, 300]))
    assert merges == [([1], [0]), ([2], [1, 0])]
    none = seurat.merge_tree(np.zeros((2, 2)), np.array([10, 20]))
    assert none == [([1], [0])]


def test_cca_anchors_scores_and_values(data):
    method = SeuratCCA(n_components=10, k_filter=40, max_features=30, k_weight=30).fit(data, batch="batch")
    merge = method.merges_[0]
    x = method.expression_.toarray().astype(float)
    a, b = np.arange(110), np.arange(110, 190)
    varies = (x[a].std(axis=0) > 0) & (x[b].std(axis=0) > 0)
    one, two = cca_space(x[a][:, varies], x[b][:, varies], 10)
    lists = [nearest(one, one, 30), nearest(one, two, 30), nearest(two, two, 30), nearest(two, one, 30)]
    mutual = {(i, j) for i in range(110) for j in lists[1][i, :5] if i in lists[3][j, :5]}
    loadings = scaled(x[a]).T @ one + scaled(x[b]).T @ two
    got = set(zip(merge["left_rows"], merge["right_rows"] - 110, strict=True))
    assert got < mutual and len(got) > 0.4 * len(mutual)  # the filter dropped some
    free = SeuratCCA(n_components=10, k_filter=0, k_weight=30).fit(data, batch="batch").merges_[0]
    pairs = list(zip(free["left_rows"], free["right_rows"] - 110, strict=True))
    assert set(pairs) == mutual
    np.testing.assert_allclose(free["score"], loop_scores(pairs, lists, 30), atol=1e-6)
    genes = seurat.leading_genes(loadings, 30)
    near = nearest(unit(x[a][:, genes]), unit(x[b][:, genes]), 40)
    kept = seurat.near_in_expression(method.expression_[a], method.expression_[b],
                                     Pairs(*np.array(sorted(mutual)).T), genes, 40)  # fmt: skip
    assert kept.tolist() == [j in near[i] for i, j in sorted(mutual)]
    expected = x.copy()
    rows = merge["right_rows"]
    weights = loop_weights(method.start_[b].astype(float), rows - 110, merge["score"], 30, 1.0)
    expected[b] -= weights @ (x[rows] - x[merge["left_rows"]])
    np.testing.assert_allclose(method.correct(), expected, atol=1e-3)


def test_rpca_anchors_are_mutual_in_each_others_components(data):
    method = SeuratRPCA(n_components=8, k_weight=30).fit(data, batch="batch")
    merge = method.merges_[0]
    x = method.expression_.toarray().astype(float)
    parts = [scaled(x[:110]), scaled(x[110:])]
    loadings = [np.linalg.svd(part - part.mean(axis=0), full_matrices=False)[2][:8].T for part in parts]

    def across(query: int, ref: int) -> np.ndarray:
        one, two = parts[query] @ loadings[ref], parts[ref] @ loadings[ref]
        deviation = np.concatenate([one, two]).std(axis=0, ddof=1)
        return nearest(unit(one / deviation), unit(two / deviation), 30)

    def own(b: int) -> np.ndarray:
        points = parts[b] @ loadings[b]
        return nearest(points, points, 30)

    lists = [own(0), across(0, 1), own(1), across(1, 0)]
    mutual = {(i, j) for i in range(110) for j in lists[1][i, :5] if i in lists[3][j, :5]}
    pairs = list(zip(merge["left_rows"], merge["right_rows"] - 110, strict=True))
    assert set(pairs) == mutual
    np.testing.assert_allclose(merge["score"], loop_scores(pairs, lists, 30), atol=1e-6)


@pytest.mark.parametrize("cls", [SeuratCCA, SeuratRPCA])
def test_three_batches_mix_in_embedding_and_expression(cls):
    adata = tf.data.simulate(450, 300, n_types=3, n_batches=3, batch_strength=0.3, type_strength=1.5, seed=0)
    adata = adata[np.random.default_rng(0).permutation(450)].copy()
    method = cls(n_components=10).fit(adata, batch="batch")
    codes, types = (adata.obs[key].cat.codes.to_numpy() for key in ("batch", "cell_type"))

    def gap(values: np.ndarray) -> float:
        means = np.array([values[codes == b].mean(axis=0) for b in range(3)])
        return float(np.linalg.norm(means - means.mean(axis=0)))

    assert gap(method.embed()) < 0.5 * gap(method.start_)
    corrected = method.correct()
    assert gap(corrected) < 0.6 * gap(method.expression_.toarray())
    for merge in method.merges_:
        same = types[merge["left_rows"]] == types[merge["right_rows"]]
        assert same.mean() > 0.85  # 150 cells a batch: too few for the filter among 200 to drop any
        assert len(merge["left"]) >= len(merge["right"])
    some = list(adata.var_names[[5, 2]])
    np.testing.assert_allclose(method.correct(genes=some), corrected[:, [5, 2]], atol=1e-5)


def test_rpca_moves_batches_without_effect_less_than_cca():
    adata = tf.data.simulate(600, 150, n_types=3, n_batches=2, batch_strength=0.0, seed=0)
    moved = [
        np.linalg.norm(method.embed() - method.start_)
        for method in (cls(n_components=15).fit(adata, batch="batch") for cls in (SeuratRPCA, SeuratCCA))
    ]
    assert moved[0] < moved[1]


def test_few_anchors_are_warned_of_and_small_batches_named(data):
    with pytest.warns(UserWarning, match="fewer than k_weight=100"):
        SeuratRPCA(n_components=10).fit(data, batch="batch")
    data = data.copy()
    data.obs["batch"] = pd.Categorical(["tiny"] + ["rest"] * (data.n_obs - 1))
    for cls in (SeuratCCA, SeuratRPCA):
        with pytest.raises(DataError, match="'tiny' has 1 cell,"):
            cls().fit(data, batch="batch")
