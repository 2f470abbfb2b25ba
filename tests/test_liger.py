"""LIGER: least squares against SciPy's, an objective that never rises, planted metagenes, quantiles, bad input."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, sparse

import tenfold as tf
from tenfold.data.factorisation import factor_clusters, integrative_nmf, quantile_aligned, random_start
from tenfold.errors import DataError, ParameterError
from tenfold.integrate.liger import LIGER
from tenfold.kernels.knn import knn
from tenfold.kernels.nnls import nnls_rows


def planted(seed: int = 0, k: int = 5, n: int = 300, p: int = 200) -> tuple[list[sparse.csr_matrix], np.ndarray]:
    """Two batches of k shared metagenes, small additions of their own, and noise; rows of the truth have length 1."""
    rng = np.random.default_rng(seed)
    shared = rng.gamma(0.3, 1, size=(k, p))
    matrices = []
    for _ in range(2):
        own, cells = 0.1 * rng.gamma(0.3, 1, size=(k, p)), rng.gamma(0.3, 1, size=(n, k))
        matrices.append(sparse.csr_matrix(rng.poisson(cells @ (shared + own)).astype(np.float32)))
    return matrices, shared / np.linalg.norm(shared, axis=1, keepdims=True)


def batches(n: int = 500, seed: int = 0) -> ad.AnnData:
    return tf.data.simulate(n, 150, n_types=4, n_batches=2, batch_strength=0.3, seed=seed)


def test_least_squares_are_scipys() -> None:
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(30, 6)), rng.normal(size=(40, 30))
    found = nnls_rows(a.T @ a, y @ a, np.zeros((40, 6)), tolerance=1e-10)
    np.testing.assert_allclose(found, [optimize.nnls(a, row)[0] for row in y], atol=1e-7)
    assert (found >= 0).all() and (found == 0).any()
    empty = nnls_rows(np.zeros((2, 2)), np.ones((3, 2)), np.ones((3, 2)))
    assert np.isfinite(empty).all()


def test_objective_is_that_of_dense_matrices_and_never_rises() -> None:
    matrices, _ = planted()
    start = random_start([300, 300], 4, 200, 0)
    found = integrative_nmf(matrices, start, 3.0, 20, 0.0)

    def dense(run) -> float:
        parts = zip(matrices, run.cells, run.own, strict=True)
        return sum(((e.toarray() - h @ (run.shared + v)) ** 2).sum() + 3 * ((h @ v) ** 2).sum() for e, h, v in parts)

    np.testing.assert_allclose(found.objective[[0, -1]], [dense(start), dense(found)], rtol=1e-6)
    assert (np.diff(found.objective) <= 1e-9 * found.objective[1:]).all() and len(found.objective) > 10
    assert all((part >= 0).all() for part in (*found.cells, found.shared, found.own))


def test_planted_metagenes_come_back() -> None:
    matrices, truth = planted()
    runs = [integrative_nmf(matrices, random_start([300, 300], 5, 200, s), 5.0, 100, 1e-7) for s in range(3)]
    shared = min(runs, key=lambda run: run.objective[-1]).shared
    alike = truth @ (shared / np.linalg.norm(shared, axis=1, keepdims=True)).T
    assert alike[optimize.linear_sum_assignment(-alike)].min() >= 0.9


def test_neighbours_vote_on_the_factor() -> None:
    cells = np.repeat([[1.0, 0.2], [0.2, 30.0]], 40, axis=0) + np.random.default_rng(0).random((80, 2)) * 0.01
    cells[0] = [1.0, 60.0]  # highest in the second, scaled or not, among cells of the first
    cells[:, 1] /= 30
    votes = factor_clusters(np.r_[cells, [[1.0, 0.21]]], 15, 0)
    assert (votes[1:40] == 0).all() and (votes[40:80] == 1).all() and votes[80] == 0


def test_quantiles_become_those_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.gamma(2, 1, size=(600, 2)), 3 + rng.gamma(5, 2, size=(400, 2))
    second[:, 1] = 1.0
    clusters = [np.r_[np.zeros(595, int), np.ones(5, int)], np.r_[np.zeros(300, int), np.ones(100, int)]]
    one, two = quantile_aligned([first, second], clusters, 0, 50, 20, 1000, 0)
    np.testing.assert_array_equal(one, first)
    np.testing.assert_array_equal(two[300:], second[300:])  # the reference has but five such cells
    at = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(two[:300, 0], at), np.quantile(first[:595, 0], at), rtol=0.06)
    assert (np.argsort(two[:300, 0]) == np.argsort(second[:300, 0])).all() and (two[:300, 1] == 0).all()


def test_batches_mix_and_types_stay() -> None:
    adata = batches()
    adata.obsm["X"] = tf.embed.PCA(n_components=8).fit(adata).embed()
    method = LIGER(n_factors=8, seed=1).fit(adata, batch="batch")
    types, batch = (adata.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    near, before = (knn(points, k=16)[0][:, 1:] for points in (method.embed(), adata.obsm["X"]))
    assert (types[near] == types[:, None]).mean() > 0.8
    assert (batch[near] != batch[:, None]).mean() > 0.45 > 0.35 > (batch[before] != batch[:, None]).mean()
    assert method.embed().shape == (500, 8) and method.batch_metagenes_.shape == (2, 8, 150)
    assert (method.embed() >= 0).all() and (np.diff(method.objective_) <= 1e-9 * method.objective_[1:]).all()
    own = batch == np.bincount(batch).argmax()
    np.testing.assert_array_equal(method.embed()[own], method.factors_[own])
    best = LIGER(n_factors=8, n_starts=3).fit(adata, batch="batch").objective_[-1]
    assert best <= min(LIGER(n_factors=8, seed=s).fit(adata, batch="batch").objective_[-1] for s in range(3)) * (
        1 + 1e-9
    )


def test_bad_input_is_named() -> None:
    adata = batches(n=100)
    with pytest.raises(ParameterError, match="batch_1, batch_2"):
        LIGER(reference_batch="batch_3").fit(adata, batch="batch")
    with pytest.raises(ParameterError, match="lower than the number of variable genes"):
        LIGER(n_factors=12, n_top_genes=10).fit(adata, batch="batch")
    adata.obs["batch"] = pd.Categorical(["few"] * 9 + ["rest"] * 91)
    with pytest.raises(DataError, match="'few' has 9 cells"):
        LIGER(n_factors=10).fit(adata, batch="batch")
