"""SCEMENT: equal to ComBat on the genes of every batch, others untouched, nothing dense for an embedding."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.errors import DataError, ParameterError
from tenfold.integrate.combat import ComBat
from tenfold.integrate.scement import SCEMENT
from tenfold.kernels import batch_affine


def with_gene_lists() -> ad.AnnData:
    """Two batches; gene 3 is measured in the first only, genes 7 and 8 in the second only."""
    adata = tf.data.simulate(400, 60, n_types=3, n_batches=2, batch_strength=0.4, seed=0)
    dense, first = adata.X.toarray(), (adata.obs["batch"] == "batch_1").to_numpy()
    dense[~first, 3] = 0
    dense[np.ix_(first, [7, 8])] = 0
    dense[:, 0] += 1
    adata.X = sparse.csr_matrix(dense)
    return adata


def test_equal_to_combat_where_every_batch_has_every_gene() -> None:
    adata = tf.data.simulate(300, 50, n_types=3, n_batches=3, batch_strength=0.4, seed=0)
    adata.obs["age"] = np.random.default_rng(0).normal(size=300)
    roles = {"batch": "batch", "continuous_covariates": "age"}
    ours, combat = (cls(n_components=5).fit(adata, **roles) for cls in (SCEMENT, ComBat))
    np.testing.assert_array_equal(ours.correct(), combat.correct())
    np.testing.assert_array_equal(ours.embed(), combat.embed())


def test_genes_of_some_batches_take_no_part() -> None:
    adata = with_gene_lists()
    method = SCEMENT(n_components=5, n_top_genes=20).fit(adata, batch="batch")
    assert list(np.flatnonzero(~method.included_)) == [3, 7, 8] and method.loadings_.shape == (20, 5)
    before, after = method.expression_.toarray(), method.correct()
    np.testing.assert_array_equal(after[:, [3, 7, 8]], before[:, [3, 7, 8]])
    shared = ComBat(n_components=5).fit(adata, batch="batch")
    kept = np.flatnonzero(method.included_)
    assert np.abs(after[:, kept] - before[:, kept]).max() > 0.05
    assert np.abs(after[:, kept] - shared.correct()[:, kept]).max() > 1e-3  # their zeros no longer enter the prior


def test_union_takes_all_genes_and_says_what_that_means() -> None:
    adata = with_gene_lists()
    with pytest.warns(UserWarning, match="3 of 60 genes have no count in some batch"):
        union = SCEMENT(gene_set="union", n_components=5).fit(adata, batch="batch")
    np.testing.assert_array_equal(union.correct(), ComBat(n_components=5).fit(adata, batch="batch").correct())


def test_nothing_in_common_is_an_error() -> None:
    adata = with_gene_lists()
    dense, first = adata.X.toarray(), (adata.obs["batch"] == "batch_1").to_numpy()
    dense[np.ix_(first, range(30))] = 0
    dense[np.ix_(~first, range(30, 60))] = 0
    adata = ad.AnnData(sparse.csr_matrix(dense), obs=adata.obs)
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    with pytest.raises(DataError, match="only 0 of 60 genes"):
        SCEMENT().fit(adata, batch="batch")


def test_an_embedding_makes_no_dense_matrix(monkeypatch) -> None:
    def small_only(matrix) -> np.ndarray:
        assert matrix.shape[0] <= 2048, "made dense"
        return original(matrix)

    def refuse(*args: object) -> None:
        raise AssertionError("made dense")

    adata, original = tf.data.simulate(2500, 60, n_types=3, n_batches=2, seed=0), sparse.csr_matrix.toarray
    for cls in (sparse.csr_matrix, sparse.csc_matrix):
        monkeypatch.setattr(cls, "toarray", small_only)
        monkeypatch.setattr(cls, "todense", small_only)
    monkeypatch.setattr("tenfold.integrate.combat.affine_rows", refuse)
    method = SCEMENT(n_components=5).fit(adata, batch="batch")
    assert method.embed().shape == (2500, 5)
    with pytest.raises(AssertionError, match="made dense"):
        method.correct()


@pytest.mark.parametrize("width", [1, 3])
def test_kernels_by_definition(width: int, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    y, batch = rng.poisson(0.5, size=(70, 12)).astype(np.float32), rng.integers(3, size=70)
    design = np.column_stack([np.ones(70), rng.normal(size=(70, width - 1))])
    slope, shift = rng.normal(size=(3, 12)), rng.normal(size=(3, width, 12))
    matrix = sparse.csr_matrix(y)
    products, squares = batch_affine.batch_sums(matrix, batch, design)
    for b in range(3):
        np.testing.assert_allclose(products[b], design[batch == b].T @ y[batch == b], atol=1e-9)
        np.testing.assert_allclose(squares[b], (y[batch == b] ** 2).sum(axis=0))
    scaled = batch_affine.scaled_rows(matrix, batch, slope)
    np.testing.assert_allclose(scaled.toarray(), y * slope[batch], rtol=1e-6)
    np.testing.assert_allclose(batch_affine.column_products(scaled), scaled.toarray().T @ scaled.toarray(), atol=1e-4)
    expected = y * slope[batch] + np.einsum("nw,nwp->np", design, shift[batch])
    np.testing.assert_allclose(batch_affine.affine_rows(matrix, batch, slope, design, shift), expected, atol=1e-5)
    for limit in (0.0, 9.0):
        monkeypatch.setattr(batch_affine, "_SPARSE", limit)
        mean, scatter = batch_affine.column_scatter(scaled)
        np.testing.assert_allclose(mean, scaled.toarray().mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(scatter, np.cov(scaled.toarray().T, bias=True) * 70, atol=1e-4)
    order = pd.Series(matrix.indices).groupby(np.repeat(np.arange(70), np.diff(matrix.indptr))).apply(lambda g: g[::-1])
    shuffled = sparse.csr_matrix(
        (scaled.toarray()[np.repeat(np.arange(70), np.diff(matrix.indptr)), order], order, matrix.indptr),
        shape=matrix.shape,
    )
    np.testing.assert_allclose(batch_affine.column_products(shuffled), batch_affine.column_products(scaled), rtol=1e-6)


def test_messages_name_the_method() -> None:
    adata = tf.data.simulate(200, 40, n_types=2, n_batches=2, seed=0)
    dense = adata.X.toarray() + 1
    adata.X = sparse.csr_matrix(dense)
    adata.obs["batch"] = pd.Categorical(["alone", *adata.obs["batch"].astype(str)[1:]])
    with pytest.warns(UserWarning, match="SCEMENT: 1 batches have a single cell"):
        SCEMENT(n_components=5).fit(adata, batch="batch")
    with pytest.raises(ParameterError, match="SCEMENT: reference_batch='x'"):
        SCEMENT(reference_batch="x").fit(adata, batch="batch")
