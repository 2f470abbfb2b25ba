"""PCA and its clusters against Scanpy's steps on the same counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from sklearn.metrics import adjusted_rand_score

import tenfold as tf
from tenfold.embed.pca import PCA
from tenfold.errors import DataError, KeyMissingError, NotFittedError


@pytest.fixture(scope="module")
def pbmc() -> ad.AnnData:
    return tf.data.pbmc()


@pytest.fixture(scope="module")
def fitted(pbmc) -> PCA:
    return PCA(n_components=15, n_top_genes=300).fit(pbmc)


def test_components_are_scanpys(pbmc, fitted) -> None:
    steps = pbmc.copy()
    sc.pp.highly_variable_genes(steps, n_top_genes=300, flavor="seurat_v3_paper")
    sc.pp.normalize_total(steps, target_sum=1e4)
    sc.pp.log1p(steps)
    sc.pp.pca(steps, n_comps=15, mask_var="highly_variable", svd_solver="arpack")
    assert set(fitted.genes_) == set(steps.var_names[steps.var["highly_variable"]])
    theirs = steps.obsm["X_pca"]
    sign = np.sign((theirs * fitted.embed()).sum(axis=0))
    np.testing.assert_allclose(fitted.embed(), theirs * sign, atol=2e-3)
    np.testing.assert_allclose(fitted.pca_["variance"], steps.uns["pca"]["variance"], rtol=1e-4)
    np.testing.assert_allclose(fitted.pca_["variance_ratio"], steps.uns["pca"]["variance_ratio"], rtol=1e-4)


def test_new_cells_are_projected(pbmc, fitted) -> None:
    np.testing.assert_allclose(fitted.embed(pbmc[:50].copy()), fitted.embed()[:50], atol=1e-4)
    turned = pbmc[:50, ::-1].copy()  # the same genes in another order
    np.testing.assert_allclose(fitted.embed(turned), fitted.embed()[:50], atol=1e-4)
    with pytest.raises(KeyMissingError, match="not in the data"):
        fitted.embed(pbmc[:, :100].copy())


def test_new_cells_in_a_layer(pbmc) -> None:
    adata = pbmc.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.5
    method = PCA(n_components=5).fit(adata, layer="counts")
    np.testing.assert_allclose(method.embed(adata[:20].copy()), method.embed()[:20], atol=1e-4)


@pytest.mark.parametrize("clustering", ["leiden", "louvain"])
def test_clusters_agree_with_the_labels(pbmc, clustering: str) -> None:
    method = PCA(n_components=15, clustering=clustering).fit(pbmc)
    found = method.cluster()
    assert found.min() == 0 and (np.diff(np.bincount(found)) <= 0).all()  # the largest first
    assert adjusted_rand_score(pbmc.obs["cell_type"], found) > 0.35


def test_resolution_and_seed(pbmc) -> None:
    few = PCA(n_components=15, resolution=0.2).fit(pbmc).cluster()
    many = PCA(n_components=15, resolution=3.0).fit(pbmc).cluster()
    assert few.max() + 3 < many.max()
    first, other = (PCA(n_components=15, seed=seed).fit(pbmc) for seed in (0, 1))
    np.testing.assert_allclose(first.embed(), other.embed(), atol=1e-4)


def test_variable_genes_are_chosen_batch_by_batch() -> None:
    adata = tf.data.pbmc(planted_batch=True)
    together = PCA(n_components=5, n_top_genes=200).fit(adata)
    by_batch = PCA(n_components=5, n_top_genes=200).fit(adata, batch="batch")
    assert 0 < len(set(together.genes_) - set(by_batch.genes_)) < 200


def test_slots_and_state(pbmc, fitted, tmp_path) -> None:
    adata = pbmc.copy()
    fitted.write(adata)
    assert adata.obsm["X_pca"].shape == (700, 15) and adata.obs["pca"].dtype == "category"
    again = tf.load(fitted.save(tmp_path / "pca"))
    np.testing.assert_array_equal(again.embed(pbmc[:10].copy()), fitted.embed(pbmc[:10].copy()))
    np.testing.assert_array_equal(again.cluster(), fitted.cluster())


def test_wrong_use_is_named(pbmc) -> None:
    with pytest.raises(NotFittedError):
        PCA().embed()
    with pytest.raises(DataError, match="too few for n_neighbors=15"):
        PCA(n_components=3).fit(pbmc[:12].copy())
