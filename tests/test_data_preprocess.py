"""Preprocessing equals the tools that everybody knows."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.decomposition import PCA

import tenfold as tf
from tenfold.data import check, preprocess
from tenfold.errors import DataError


@pytest.fixture(scope="module")
def adata():
    made = tf.data.simulate(600, 300, n_types=4, n_batches=3, depth=400, proportions=[[4, 3, 2, 1]] * 3)
    sc.pp.filter_genes(made, min_counts=1)
    return made


def test_normalisation_equals_scanpys(adata):
    reference = adata.copy()
    sc.pp.normalize_total(reference, target_sum=1e4)
    sc.pp.log1p(reference)
    ours = preprocess.normalize_log1p(adata.X)
    np.testing.assert_allclose(ours.toarray(), reference.X.toarray(), rtol=1e-5, atol=1e-6)
    assert ours.dtype == np.float32 and ours.indices is not None and ours.nnz == adata.X.nnz
    assert preprocess.normalize_log1p(sparse.csr_matrix((2, 3))).nnz == 0


@pytest.mark.parametrize("batch", [None, "batch"])
@pytest.mark.parametrize("n_top", [20, 100])
def test_variable_genes_equal_scanpys(adata, batch, n_top):
    reference = sc.pp.highly_variable_genes(
        adata, n_top_genes=n_top, flavor="seurat_v3_paper", batch_key=batch, inplace=False, span=0.3
    )
    codes = check.categories(adata, batch, "batch") if batch else None
    ours = preprocess.highly_variable_genes(adata.X, n_top, codes)
    np.testing.assert_array_equal(ours, np.flatnonzero(reference["highly_variable"]))


def test_variable_genes_of_real_cells_equal_scanpys():
    adata = tf.data.pbmc()
    reference = sc.pp.highly_variable_genes(adata, n_top_genes=200, flavor="seurat_v3_paper", inplace=False)
    ours = preprocess.highly_variable_genes(adata.X, 200)
    np.testing.assert_array_equal(ours, np.flatnonzero(reference["highly_variable"]))


def test_variable_genes_of_odd_data(adata):
    np.testing.assert_array_equal(preprocess.highly_variable_genes(adata.X, 10**6), np.arange(adata.n_vars))
    few = adata[:15].X
    assert len(preprocess.highly_variable_genes(few, 30)) == 30
    tiny = check.Codes(np.r_[np.zeros(595), np.ones(5)].astype(np.int32), ["large", "tiny"])
    ours = preprocess.highly_variable_genes(adata.X, 30, tiny)
    np.testing.assert_array_equal(ours, preprocess.highly_variable_genes(adata.X[:595], 30))
    ones = sparse.csr_matrix(np.ones((50, 40), np.float32))
    assert len(preprocess.highly_variable_genes(ones, 10)) == 10
    binary = sparse.csr_matrix((np.random.default_rng(0).random((50, 40)) < 0.3).astype(np.float32))
    assert len(preprocess.highly_variable_genes(binary, 10)) == 10


@pytest.mark.parametrize("largest_dense", [4000, 10])
def test_pca_equals_scikit_learns(adata, monkeypatch, largest_dense):
    monkeypatch.setattr(preprocess, "LARGEST_DENSE", largest_dense)
    lognorm = preprocess.normalize_log1p(adata.X)
    ours = preprocess.pca(lognorm, 10)
    reference = PCA(10, svd_solver="full").fit(lognorm.toarray().astype(np.float64))
    np.testing.assert_allclose(ours.variance, reference.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(ours.variance_ratio, reference.explained_variance_ratio_, rtol=1e-4)
    found = reference.transform(lognorm.toarray())
    signs = np.sign((found * ours.embedding).sum(axis=0))
    np.testing.assert_allclose(ours.embedding[:, :3], (found * signs)[:, :3], atol=2e-3)
    # Directions of nearly equal variance may be turned into one another; the distances may not change.
    np.testing.assert_allclose(
        np.linalg.norm(ours.embedding - ours.embedding[0], axis=1), np.linalg.norm(found - found[0], axis=1), atol=2e-2
    )
    np.testing.assert_allclose(ours.components @ ours.components.T, np.eye(10), atol=1e-5)
    assert (ours.components[np.arange(10), np.abs(ours.components).argmax(axis=1)] > 0).all()


def test_a_large_covariance_is_decomposed_alike(adata, monkeypatch):
    lognorm = preprocess.normalize_log1p(adata.X)
    whole = preprocess.pca(lognorm, 4)
    monkeypatch.setattr(preprocess, "LARGEST_SOLVED", 10)
    assert lognorm.shape[1] > 20 * 4
    few = preprocess.pca(lognorm, 4)
    np.testing.assert_allclose(few.variance, whole.variance, rtol=1e-5)
    np.testing.assert_allclose(few.embedding, whole.embedding, atol=1e-4)


def test_pca_with_more_genes_than_cells(adata):
    lognorm = preprocess.normalize_log1p(adata.X[:40])
    ours = preprocess.pca(lognorm, 8)
    reference = PCA(8, svd_solver="full").fit(lognorm.toarray().astype(np.float64))
    np.testing.assert_allclose(ours.variance, reference.explained_variance_, rtol=1e-4)


def test_pca_projects_new_cells(adata):
    lognorm = preprocess.normalize_log1p(adata.X)
    fitted = preprocess.pca(lognorm, 5)
    np.testing.assert_allclose(preprocess.project(lognorm[:10], fitted), fitted.embedding[:10], atol=1e-5)
    with pytest.raises(DataError, match="same genes"):
        preprocess.project(lognorm[:, :10], fitted)


def test_pca_of_too_little():
    few = sparse.csr_matrix(np.random.default_rng(0).random((5, 8)).astype(np.float32))
    with pytest.warns(UserWarning, match="4 are computed"):
        assert preprocess.pca(few, 20).embedding.shape == (5, 4)
    with pytest.raises(DataError, match="too few for a PCA"):
        preprocess.pca(few[:2], 2)
    constant = preprocess.pca(sparse.csr_matrix(np.ones((6, 5), np.float32)), 2)
    assert np.abs(constant.embedding).max() < 1e-5 and np.isfinite(constant.variance_ratio).all()
