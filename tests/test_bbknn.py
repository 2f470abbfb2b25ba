"""BBKNN against a search by brute force and UMAP's own fuzzy set."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.optimize import brentq
from scipy.spatial.distance import cdist

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, ParameterError
from tenfold.integrate.bbknn import BBKNN, long_edges, merge, trimmed
from tenfold.kernels.knn import knn

RNG = np.random.default_rng


def data(n: int = 150, n_batches: int = 3, d: int = 8, seed: int = 0) -> ad.AnnData:
    rng = RNG(seed)
    batch = rng.integers(n_batches, size=n)
    adata = ad.AnnData(rng.poisson(1.0, size=(n, 20)).astype(np.float32) + 1)
    adata.obsm["X_start"] = (rng.normal(size=(n, d)) + rng.normal(size=(n_batches, d))[batch]).astype(np.float32)
    adata.obs["batch"] = pd.Categorical(np.array(["a", "b", "c", "d"])[batch])
    return adata


def fitted(adata: ad.AnnData, **params) -> BBKNN:
    return BBKNN(**params).fit(adata, batch="batch", use_rep="X_start")


def brute(adata: ad.AnnData, k: int, metric: str = "euclidean") -> tuple[np.ndarray, np.ndarray]:
    points, batch = adata.obsm["X_start"].astype(np.float64), adata.obs["batch"].cat.codes.to_numpy()
    full = cdist(points, points, metric)
    np.fill_diagonal(full, -1)
    parts = []
    for b in range(batch.max() + 1):
        own = np.flatnonzero(batch == b)
        parts.append(own[np.argsort(full[:, own], axis=1)[:, :k]])
    indices = np.concatenate(parts, axis=1)
    order = np.argsort(np.take_along_axis(full, indices, 1), axis=1)
    indices = np.take_along_axis(indices, order, 1)
    return indices, np.maximum(np.take_along_axis(full, indices, 1), 0)


def fuzzy(indices, distances, local_connectivity=1.0, set_op_mix_ratio=1.0) -> np.ndarray:
    """UMAP's weights by definition, row by row."""
    n, k = indices.shape
    directed = np.zeros((n, n))
    for i in range(n):
        away = distances[i, 1:]
        rho = np.interp(local_connectivity, np.arange(1, k), away)
        beyond = np.maximum(away - rho, 0)
        sigma = brentq(lambda s, e=beyond: np.exp(-e / s).sum() - np.log2(k), 1e-3, 1e3)
        directed[i, indices[i, 1:]] = np.exp(-beyond / sigma)
    both = directed * directed.T
    return set_op_mix_ratio * (directed + directed.T - both) + (1 - set_op_mix_ratio) * both


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_lists_are_the_true_ones(metric: str) -> None:
    adata = data()
    distances, _ = fitted(adata, metric=metric).graph()
    indices, away = brute(adata, 3, metric)
    expected = np.zeros((150, 150))
    np.put_along_axis(expected, indices[:, 1:], away[:, 1:], 1)
    np.testing.assert_allclose(distances.toarray(), expected, rtol=1e-3, atol=1e-5)
    batch = adata.obs["batch"].cat.codes.to_numpy()
    for b in range(3):
        count = (distances.toarray()[:, batch == b] > 0).sum(axis=1)
        np.testing.assert_array_equal(count, np.where(batch == b, 2, 3))


OPTIONS = [{}, {"set_op_mix_ratio": 0.3}, {"local_connectivity": 2.0}, {"local_connectivity": 1.5}]


@pytest.mark.parametrize("options", OPTIONS)
def test_weights_by_definition(options: dict) -> None:
    adata = data()
    _, weights = fitted(adata, trim=0, **options).graph()
    np.testing.assert_allclose(weights.toarray(), fuzzy(*brute(adata, 3), **options), atol=2e-5)
    assert (abs(weights - weights.T) > 1e-6).nnz == 0


@pytest.mark.slow  # UMAP compiles for seconds
@pytest.mark.parametrize("options", OPTIONS)
def test_weights_are_umaps(options: dict) -> None:
    from umap.umap_ import fuzzy_simplicial_set

    adata = data()
    indices, distances = brute(adata, 3)
    lists = {"knn_indices": indices, "knn_dists": distances}
    expected = fuzzy_simplicial_set(sparse.coo_matrix((150, 1)), 9, None, None, **lists, **options)[0]
    _, weights = fitted(adata, trim=0, **options).graph()
    np.testing.assert_allclose(weights.toarray(), expected.toarray(), atol=2e-5)


def test_trimming_by_definition() -> None:
    rng = RNG(0)
    dense = np.triu(rng.random((40, 40)) * (rng.random((40, 40)) < 0.5), 1)
    dense = dense + dense.T
    result = trimmed(sparse.csr_matrix(dense), 6).toarray()
    strongest = np.sort(dense, axis=1)[:, -6]
    expected = np.where((dense >= strongest[:, None]) & (dense >= strongest[None, :]), dense, 0)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(trimmed(sparse.csr_matrix(dense), 0).toarray(), dense)


def test_the_cell_itself_comes_first_among_duplicates() -> None:
    adata = data()
    adata.obsm["X_start"][:50] = adata.obsm["X_start"][0]
    distances, weights = fitted(adata, neighbors_within_batch=4).graph()
    assert distances.diagonal().sum() == 0 and weights.diagonal().sum() == 0
    assert (np.diff(distances.indptr) == 11).all() and (distances.indices != np.repeat(np.arange(150), 11)).all()
    indices = np.array([[[1, 0], [2, 3]]] * 2)
    assert merge(indices, np.zeros((2, 2, 2), dtype=np.float32))[0][:, 0].tolist() == [0, 1]


def test_separated_batches_are_joined() -> None:
    adata = data(n=300)
    adata.obsm["X_start"] += 5 * adata.obs["batch"].cat.codes.to_numpy()[:, None].astype(np.float32)
    distances, _ = fitted(adata).graph()
    batch = adata.obs["batch"].cat.codes.to_numpy()
    rows = np.repeat(np.arange(300), np.diff(distances.indptr))
    assert (batch[rows] != batch[distances.indices]).mean() == pytest.approx(6 / 8)


def test_a_missing_type_shows_in_long_edges() -> None:
    adata, rng = data(n=300, n_batches=2), RNG(1)
    away = (adata.obs["batch"] == "a").to_numpy() & (rng.random(300) < 0.3)
    adata.obsm["X_start"][away] += 6
    with pytest.warns(UserWarning, match="b \\("):
        missing = fitted(adata)
    assert missing.long_edges_[1] > 0.2 > 0.05 > missing.long_edges_[0]
    assert long_edges(np.ones((4, 2, 3), dtype=np.float32), np.array([0, 0, 1, 1])).tolist() == [0, 0]


def test_small_batches_and_wrong_options_are_named() -> None:
    adata = data()
    names = adata.obs["batch"].astype(str)
    names.iloc[:2] = "tiny"
    adata.obs["batch"] = names.astype("category")
    with pytest.raises(DataError, match="tiny \\(2\\)"):
        fitted(adata)
    assert fitted(adata, neighbors_within_batch=2).graph()[0].shape == (150, 150)
    with pytest.raises(ParameterError, match="more than the 8 neighbours"):
        fitted(data(), local_connectivity=20)


def test_from_counts_written_where_scanpy_looks(tmp_path) -> None:
    adata = tf.data.pbmc(planted_batch=True)
    method = BBKNN(n_components=20).fit(adata, batch="batch")
    method.write(adata)
    assert adata.uns["bbknn"]["connectivities_key"] == "bbknn_connectivities"
    again = tf.load(method.save(tmp_path / "bbknn"))
    assert (again.graph()[1] != adata.obsp["bbknn_connectivities"]).nnz == 0


def test_ridge_regression_is_that_of_dense_matrices() -> None:
    """Standardise, regress on indicators of all levels without intercept, subtract the batches' part; PCA."""
    from sklearn.linear_model import Ridge

    adata = tf.data.simulate(300, 60, n_types=3, n_batches=2, batch_strength=0.4, seed=0)
    method = BBKNN(ridge=2.0, n_components=6)
    inputs = Inputs(adata, {"batch": "batch", "categorical_covariates": "cell_type"})
    points = method._points(inputs, inputs.batch)
    x = inputs.lognorm.toarray().astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    batch, design = (pd.get_dummies(adata.obs[keys]).astype(float) for keys in (["batch"], ["batch", "cell_type"]))
    effects = Ridge(alpha=2.0, fit_intercept=False).fit(design, x).coef_[:, :2]
    rest = x - batch.to_numpy() @ effects.T
    u, s, _ = np.linalg.svd(rest - rest.mean(axis=0), full_matrices=False)
    expected = u[:, :6] * s[:6]
    np.testing.assert_allclose(points, expected * np.sign((expected * points).sum(axis=0)), atol=2e-3)


def test_ridge_regression_mixes_batches_and_refuses_what_it_cannot_use() -> None:
    adata = tf.data.simulate(300, 60, n_types=3, n_batches=2, batch_strength=0.4, seed=0)
    inputs = Inputs(adata, {"batch": "batch", "categorical_covariates": "cell_type"})
    batch = inputs.batch.values
    points = BBKNN(ridge=1.0, n_components=10)._points(inputs, inputs.batch)
    plain = Inputs(adata, {"batch": "batch"})
    before = BBKNN(n_components=10)._points(plain, plain.batch)
    mixed = [(batch[knn(each, k=16)[0][:, 1:]] != batch[:, None]).mean() for each in (before, points)]
    assert mixed[1] > 0.45 and mixed[1] > mixed[0] + 0.1
    BBKNN(ridge=1.0, n_components=10).fit(adata, batch="batch")
    with pytest.raises(ParameterError, match="ridge is None"):
        BBKNN().fit(adata, batch="batch", categorical_covariates="cell_type")
    adata.obsm["X_start"] = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    with pytest.raises(ParameterError, match="Use one of them"):
        BBKNN(ridge=1.0).fit(adata, batch="batch", use_rep="X_start")
