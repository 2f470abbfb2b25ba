"""The first scMerge: genes, the mixture, the factors of cells against dense matrices, replicates and choices."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, special, stats

import tenfold as tf
from tenfold.data import replicates as rep
from tenfold.data import unwanted
from tenfold.data.dispersed_genes import dispersion_test, gamma_regression
from tenfold.data.stable_genes import stable_genes
from tenfold.errors import KeyMissingError, ParameterError
from tenfold.integrate.scmerge_v1 import ScMergeV1
from tenfold.kernels.gamma_normal import gamma_normal, inverse_digamma


def two_batches(seed: int = 0, n: int = 600) -> ad.AnnData:
    return tf.data.simulate(
        n, 200, n_types=4, n_batches=2, batch_strength=0.35, proportions=[[1, 1, 1, 1], [1, 1, 1, 0]], seed=seed
    )


def fitted(adata: ad.AnnData, labels: str | None = None, wanted: str | None = None, **params) -> ScMergeV1:
    params = {"n_components": 5, "n_clusters": 4, "control_genes": list(adata.var_names[:60]), **params}
    return ScMergeV1(**params).fit(adata, batch="batch", labels=labels, categorical_covariates=wanted)


# ---- genes -----------------------------------------------------------------------------------------------------------


def test_gamma_regression_maximises_the_likelihood():
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(400), rng.uniform(0.1, 3, 400)])
    response = rng.gamma(4, design @ [0.3, 1.2] / 4)
    b = gamma_regression(design, response)
    np.testing.assert_allclose(b, [0.3, 1.2], atol=0.15)
    expected = design @ b
    score = design.T @ ((response - expected) / expected**2)
    np.testing.assert_allclose(score, 0, atol=1e-3)


def test_only_genes_that_vary_beyond_noise_are_significant():
    rng = np.random.default_rng(0)
    mean = rng.uniform(1, 20, 300)
    rate = np.tile(mean, (500, 1))
    rate[:, :30] *= rng.gamma(1 / 1.5, 1.5, size=(500, 30))  # biological variation of 1.2
    found = dispersion_test(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    assert found.significant[:30].mean() > 0.7 and not found.significant[30:].any()
    assert found.ratio[:30].min() > found.ratio[30:].max()
    rare = sparse.csr_matrix((rng.random((500, 20)) < 0.05).astype(np.float32))
    assert not dispersion_test(rare).significant.any() and (dispersion_test(rare).ratio == 0).all()


def test_mixture_of_a_normal_and_a_gamma_is_found():
    for y in (-10.0, -2.0, 0.0, 3.0):
        assert special.digamma(inverse_digamma(y)) == pytest.approx(y, abs=1e-9)
    rng = np.random.default_rng(0)
    x = np.where(rng.random(4000) < 0.7, rng.normal(4, 0.4, 4000), rng.gamma(2, 0.4, 4000))
    first = rng.integers(2, size=len(x)).astype(float)
    rho, mu, sigma, shape, rate = gamma_normal(np.array([0, len(x)]), x, first)[0]
    np.testing.assert_allclose([rho, mu, sigma, shape / rate], [0.7, 4, 0.4, 0.8], atol=0.05)
    normal, gamma = rho * stats.norm.pdf(x, mu, sigma), (1 - rho) * stats.gamma.pdf(x, shape, scale=1 / rate)
    z = normal / (normal + gamma)  # a fixed point of the plain steps
    np.testing.assert_allclose([z.mean(), (z @ x) / z.sum()], [rho, mu], atol=1e-5)
    assert np.isnan(gamma_normal(np.array([0, 4]), x[:4], first[:4])).all()


def test_evenly_expressed_genes_are_the_stable_ones():
    rng = np.random.default_rng(0)
    types = rng.integers(3, size=400)
    log = np.exp(rng.normal(1.0, 0.05, size=(400, 90)))
    log[:, :45] *= np.exp(rng.normal(0, 0.5, size=(3, 45)))[types]
    log[:, :45] *= rng.random((400, 45)) < 0.6
    log[:, 89] *= rng.random(400) < 0.1
    for labels in (None, types):
        index = stable_genes(sparse.csr_matrix(log), labels).score
        assert np.isnan(index[89]) and np.quantile(index[45:89], 0.05) > np.quantile(index[:45], 0.95)
        assert 0 < np.nanmin(index) < np.nanmax(index) < 1


# ---- factors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest_dense", [4000, 5])
def test_factors_of_cells_are_those_of_dense_rows(monkeypatch, largest_dense):
    monkeypatch.setattr(unwanted, "LARGEST_DENSE", largest_dense)
    rng = np.random.default_rng(0)
    y, group = rng.poisson(1.0, size=(60, 25)).astype(float), np.r_[np.repeat([0, 1, 2], 15), np.arange(3, 18)]
    dense = unwanted.replicate_factors(y, group, np.ones(60), 6)
    found = unwanted.cell_replicate_factors(sparse.csr_matrix(y), group, 6)
    np.testing.assert_allclose(np.abs(found.effects), np.abs(dense.effects), atol=1e-5)
    np.testing.assert_allclose(found.spread, dense.spread, atol=1e-6)
    assert len(unwanted.cell_replicate_factors(sparse.csr_matrix(y), np.arange(60), 6).effects) == 0


def test_corrected_values_are_ruv_iii_by_definition():
    """Standardise, subtract group means, decompose, regress on controls, scale back: with dense matrices."""
    adata = two_batches(n=200)
    method = fitted(adata, n_factors=4)
    y = method.expression_.toarray().astype(np.float64)
    batch, group = adata.obs["batch"].cat.codes.to_numpy(), method.replicates_
    mean = y.mean(axis=0)
    within = y - np.stack([y[batch == b].mean(axis=0) for b in range(2)])[batch]
    sd = np.sqrt((within**2).sum(axis=0) / (len(y) - 2))
    sd[sd == 0] = 1
    z = (y - mean) / sd
    z0 = z - np.stack([z[group == g].mean(axis=0) for g in range(group.max() + 1)])[group]
    u = np.linalg.svd(z0, full_matrices=False)[0][:, :4]
    alpha = u.T @ z
    w = z[:, :60] @ alpha[:, :60].T @ np.linalg.inv(alpha[:, :60] @ alpha[:, :60].T)
    np.testing.assert_allclose(method.correct(), (z - w @ alpha) * sd + mean, atol=2e-4)


# ---- replicates ------------------------------------------------------------------------------------------------------


def test_the_share_nearest_the_median_is_kept():
    rng = np.random.default_rng(0)
    y, cluster = rng.poisson(1.5, size=(80, 30)).astype(float), np.arange(80) % 2
    near = rep.central(sparse.csr_matrix(y), cluster, 0.25)
    for c in range(2):
        own = y[cluster == c]
        away = ((own - np.median(own, axis=0)) ** 2).sum(axis=1)
        np.testing.assert_array_equal(near[cluster == c], stats.rankdata(away) / 40 <= 0.25)
    method = fitted(two_batches(), replicate_prop=0.5)
    sizes = np.bincount(method.replicates_)
    assert 250 < (sizes == 1).sum() < 350 and (sizes > 50).sum() >= 3


def test_clusters_of_shared_types_match():
    adata = two_batches()
    method = fitted(adata, n_clusters={"batch_1": 4, "batch_2": 3})
    types = adata.obs["cell_type"].to_numpy()
    assert len(method.matches_) == 3
    for match in method.matches_:
        main = [
            pd.Series(types[method.batch_clusters_ == match[side]]).mode()[0]
            for side in ("left_cluster", "right_cluster")
        ]
        assert main[0] == main[1]
    assert len(np.unique(fitted(adata, n_clusters=None).batch_clusters_)) >= 7


def test_known_types_are_replicates_or_clusters_or_partly_known():
    adata = two_batches()
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    supervised = fitted(adata, labels="cell_type")
    np.testing.assert_array_equal(supervised.replicates_, codes)
    matched = fitted(adata, labels="cell_type", labels_as="clusters")
    assert len(matched.matches_) == 3 and len(np.unique(matched.replicates_)) == 4
    adata.obs["some"] = np.where(np.arange(600) % 2, adata.obs["cell_type"].astype(str), "?")
    partly = fitted(adata, labels="some", unlabeled="?")
    for name in range(4):
        assert len(np.unique(partly.replicates_[(codes == name) & (np.arange(600) % 2 == 1)])) == 1
    assert len(partly.matches_) >= 3 and len(np.unique(partly.replicates_)) > 4
    with pytest.raises(ParameterError, match="type of every cell"):
        fitted(adata, labels="some", labels_as="clusters", unlabeled="?")


def test_wanted_variation_splits_replicates():
    adata = two_batches()
    adata.obs["treated"] = pd.Categorical(np.where(np.arange(600) % 3 == 0, "yes", "no"))
    method = fitted(adata, labels="cell_type", wanted="treated")
    treated = adata.obs["treated"].cat.codes.to_numpy()
    assert len(np.unique(method.replicates_)) == 8
    assert all(len(np.unique(treated[method.replicates_ == g])) == 1 for g in range(8))


# ---- choices ---------------------------------------------------------------------------------------------------------


def test_of_several_numbers_the_best_score_is_taken():
    adata = two_batches()
    method = fitted(adata, n_factors=[0, 2, 10])
    assert [choice["n_factors"] for choice in method.choice_] == [0, 2, 10]
    best = max(method.choice_, key=lambda choice: choice["score"])
    assert len(method.alpha_) == best["n_factors"] > 0
    assert method.choice_[0]["silhouette_batches"] > method.choice_[1]["silhouette_batches"]
    one = fitted(adata, n_factors=best["n_factors"])
    np.testing.assert_allclose(one.correct(), method.correct(), atol=1e-5)


def test_bad_choices_are_named():
    adata = two_batches(n=200)
    with pytest.raises(ParameterError, match="batch 'batch_2' is 0"):
        fitted(adata, n_clusters={"batch_1": 3})
    with pytest.raises(ParameterError, match="is 5000"):
        fitted(adata, n_clusters=5000)
    with pytest.raises(KeyMissingError, match="gene_x"):
        fitted(adata, control_genes=["gene_x"])
    with pytest.warns(UserWarning, match="single cluster"):
        assert fitted(adata, n_clusters=1).matches_ == []
    assert len(fitted(adata, n_factors=0).alpha_) == 0
