"""ComBat against a dense textbook version in float64, Scanpy's, and the guards."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse, stats

import tenfold as tf
from tenfold.data.linear import batch_moments, fit_genes
from tenfold.errors import DataError, KeyMissingError, ParameterError
from tenfold.integrate.combat import ComBat, shrink, shrink_to_genes

RNG = np.random.default_rng


def counts(n: int = 160, p: int = 60, n_batches: int = 3, seed: int = 0) -> ad.AnnData:
    """Poisson counts whose rates differ by batch and, in half of the genes, by condition."""
    rng = RNG(seed)
    batch, condition = rng.integers(n_batches, size=n), rng.integers(3, size=n)
    rate = rng.gamma(2, 1, size=p) * np.exp(rng.normal(size=(n_batches, p), scale=0.5))[batch]
    rate[:, : p // 2] *= np.exp(0.5 * (condition[:, None] - 1))
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.obs["batch"] = pd.Categorical(np.array(["a", "b", "c", "d"])[batch])
    adata.obs["condition"] = pd.Categorical(np.array(["x", "y", "z"])[condition])
    adata.obs["age"] = rng.normal(size=n)
    adata.obs_names = [f"cell{i}" for i in range(n)]
    return adata


def scanpy_combat(fitted: ComBat, adata: ad.AnnData, covariates: list[str] | None = None) -> np.ndarray:
    """Scanpy's values; categorical covariates as indicator columns without the first level.

    Scanpy itself adds indicators of all levels beside those of all batches and inverts the singular matrix.
    """
    dense = ad.AnnData(fitted.expression_.toarray().astype(np.float64), obs=adata.obs.copy())
    names = []
    for key in covariates or []:
        if isinstance(dense.obs[key].dtype, pd.CategoricalDtype):
            for level in dense.obs[key].cat.categories[1:]:
                dense.obs[f"{key}={level}"] = (dense.obs[key] == level).astype(float)
                names.append(f"{key}={level}")
        else:
            names.append(key)
    return sc.pp.combat(dense, key="batch", covariates=names or None, inplace=False)


@pytest.mark.parametrize(
    "roles",
    [{}, {"categorical_covariates": "condition"}, {"continuous_covariates": ["age"]},
     {"categorical_covariates": ["condition"], "continuous_covariates": ["age"]}],
)  # fmt: skip
def test_equal_to_scanpy(roles: dict) -> None:
    adata = counts()
    fitted = ComBat(n_components=5).fit(adata, batch="batch", **roles)
    named = [key for value in roles.values() for key in ([value] if isinstance(value, str) else value)]
    np.testing.assert_allclose(fitted.correct(), scanpy_combat(fitted, adata, named), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pbmc_3chem", "cellline_3x2"])
def test_equal_to_scanpy_on_real_data(shared_data, name: str) -> None:
    adata = ad.read_h5ad(shared_data(f"{name}.h5ad"))[:, :1200]
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    fitted = ComBat(n_components=5).fit(adata, batch="batch")
    np.testing.assert_allclose(fitted.correct(), scanpy_combat(fitted, adata), rtol=0, atol=1e-6)


def test_moments_and_fit_by_definition() -> None:
    adata, rng = counts(), RNG(1)
    batch, covariates = adata.obs["batch"].cat.codes.to_numpy(), rng.normal(size=(160, 2))
    y = adata.X.toarray().astype(np.float64)
    model = fit_genes(batch_moments(adata.X, batch, covariates), None)
    design = np.column_stack([np.eye(3)[batch], covariates])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    residual = y - design @ solution
    np.testing.assert_allclose(model.effects, solution[3:], atol=1e-10)
    np.testing.assert_allclose(model.mean, np.bincount(batch) @ solution[:3] / 160, atol=1e-10)
    np.testing.assert_allclose(model.variance, (residual**2).mean(axis=0), atol=1e-10)
    z = (y - model.mean - covariates @ solution[3:]) / np.sqrt(model.variance)
    for b in range(3):
        np.testing.assert_allclose(model.offsets[b], z[batch == b].mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(model.scales[b], z[batch == b].var(axis=0, ddof=1), atol=1e-9)


def test_components_are_those_of_the_corrected_matrix() -> None:
    adata = counts(n=300, p=40)
    fitted = ComBat(n_components=6).fit(adata, batch="batch", categorical_covariates=["condition"])
    corrected = fitted.correct().astype(np.float64)
    u, s, _ = np.linalg.svd(corrected - corrected.mean(axis=0), full_matrices=False)
    expected = u[:, :6] * s[:6]
    sign = np.sign((expected * fitted.embed()).sum(axis=0))
    np.testing.assert_allclose(fitted.embed(), expected * sign, atol=2e-4)


def test_batch_goes_and_a_named_condition_stays() -> None:
    adata = counts(n=600)
    adata.obs["condition"] = pd.Categorical(np.where(RNG(0).random(600) < 0.6, adata.obs["condition"], "x"))
    batch = adata.obs["batch"].cat.codes.to_numpy()
    fitted = ComBat(n_components=5).fit(adata, batch="batch", categorical_covariates=["condition"])

    def spread(values, codes):
        return np.stack([values[codes == c].mean(axis=0) for c in np.unique(codes)]).std(axis=0).mean()

    before, after = fitted.expression_.toarray(), fitted.correct()
    condition = adata.obs["condition"].cat.codes.to_numpy()
    assert spread(after, batch) < 0.3 * spread(before, batch)
    assert spread(after[:, :30], condition) > 0.8 * spread(before[:, :30], condition)


def test_reference_batch_stays_as_it_is() -> None:
    adata = counts()
    fitted = ComBat(reference_batch="b", n_components=5).fit(adata, batch="batch")
    own = (adata.obs["batch"] == "b").to_numpy()
    before, after = fitted.expression_.toarray(), fitted.correct()
    np.testing.assert_allclose(after[own], before[own], atol=1e-6)
    gap = np.abs(before[~own].mean(axis=0) - before[own].mean(axis=0)).mean()
    assert np.abs(after[~own].mean(axis=0) - before[own].mean(axis=0)).mean() < 0.3 * gap


def test_mean_only_keeps_variances() -> None:
    adata = counts()
    fitted = ComBat(mean_only=True, n_components=5).fit(adata, batch="batch")
    own = (adata.obs["batch"] == "a").to_numpy()
    before, after = fitted.expression_.toarray(), fitted.correct()
    np.testing.assert_allclose(after[own].std(axis=0), before[own].std(axis=0), atol=1e-5)
    assert np.abs(after[own].mean(axis=0) - before[own].mean(axis=0)).max() > 0.1


def test_a_batch_of_one_cell() -> None:
    adata = counts()
    lonely = adata.obs["batch"].astype(str)
    lonely.iloc[0] = "d"
    adata.obs["batch"] = lonely.astype("category")
    with pytest.warns(UserWarning, match="single cell.*'d'"):
        fitted = ComBat(n_components=5).fit(adata, batch="batch")
    assert np.isfinite(fitted.correct()).all() and (fitted.slope_ == 1).all()


def test_genes_without_variance() -> None:
    adata = counts()
    dense = adata.X.toarray()
    dense[:, 3] = 0  # nowhere
    dense[(adata.obs["batch"] == "a").to_numpy(), 5] = 0  # not in one batch
    adata.X = sparse.csr_matrix(dense)
    with pytest.warns(UserWarning, match="no counts"):
        fitted = ComBat(n_components=5).fit(adata, batch="batch")
    corrected = fitted.correct()
    assert np.isfinite(corrected).all() and (corrected[:, 3] == 0).all()
    kept = np.arange(60) != 3
    without = ComBat(n_components=5).fit(adata[:, kept].copy(), batch="batch")
    np.testing.assert_allclose(corrected[:, kept], without.correct(), atol=1e-6)
    np.testing.assert_allclose(without.correct(), scanpy_combat(without, adata[:, kept]), rtol=0, atol=1e-6)


def test_confounded_covariates_are_named() -> None:
    adata = counts()
    adata.obs["lab"] = adata.obs["batch"].map({"a": "north", "b": "south", "c": "south"}).astype("category")
    adata.obs["copy"] = adata.obs["age"] * 2 + 1
    with pytest.raises(DataError, match="'lab' cannot be told apart"):
        ComBat().fit(adata, batch="batch", categorical_covariates=["condition", "lab"])
    with pytest.raises(DataError, match="'copy' cannot be told apart"):
        ComBat().fit(adata, batch="batch", continuous_covariates=["age", "copy"])


def test_shrinkage_ends_near_zero_offsets() -> None:
    offset = np.array([0.0, 1e-300, -1e-12, 0.5])
    g, d = shrink(offset, np.array([0.0, 1.0, 2.0, 0.5]), 10, False)
    assert np.isfinite(g).all() and (d > 0).all()
    g, d = shrink(np.zeros(4), np.zeros(4), 5, False)
    assert (g == 0).all() and (d > 0).all()


@pytest.mark.parametrize("mean_only", [False, True])
def test_empirical_prior_by_definition(mean_only: bool) -> None:
    """Every gene's values under every other gene's offset and variance, one density at a time."""
    rng, n = RNG(0), 12
    z = rng.normal(rng.normal(0, 0.5, 15), rng.gamma(4, 0.25, 15), size=(n, 15))
    offset, scale = z.mean(axis=0), z.var(axis=0, ddof=1)
    used = np.ones(15) if mean_only else scale
    expected = np.empty((15, 2))
    for gene in range(15):
        others = [h for h in range(15) if h != gene]
        weight = np.array([stats.norm.pdf(z[:, gene], offset[h], np.sqrt(used[h])).prod() for h in others])
        expected[gene] = weight @ np.column_stack([offset, used])[others] / weight.sum()
    g, d = shrink_to_genes(offset, scale, n, mean_only)
    np.testing.assert_allclose(np.column_stack([g, d]), expected, rtol=1e-9)


def test_empirical_prior_corrects_too() -> None:
    adata = counts()
    fitted, usual = (
        ComBat(prior=prior, n_components=5).fit(adata, batch="batch") for prior in ("empirical", "parametric")
    )
    before, after = fitted.expression_.toarray(), fitted.correct()
    batch = adata.obs["batch"].cat.codes.to_numpy()

    def spread(values):
        return np.stack([values[batch == b].mean(axis=0) for b in range(3)]).std(axis=0).mean()

    assert spread(after) < 0.3 * spread(before) and np.abs(after - usual.correct()).max() > 1e-4
    constant = np.r_[np.zeros(5), RNG(0).gamma(2, 1, 20)]
    g, d = shrink_to_genes(RNG(1).normal(size=25), constant, 10, False)
    assert np.isfinite(g).all() and (d > 1e-3).all()


def test_some_genes_and_wrong_use() -> None:
    adata = tf.data.pbmc(planted_batch=True)
    fitted = ComBat(n_components=10).fit(adata, batch="batch")
    names = list(adata.var_names[[7, 2]])
    np.testing.assert_array_equal(fitted.correct(genes=names), fitted.correct()[:, [7, 2]])
    with pytest.raises(KeyMissingError, match="NOGENE"):
        fitted.correct(genes=["NOGENE"])
    with pytest.raises(ParameterError, match="untouched, planted"):
        ComBat(reference_batch="plant").fit(adata, batch="batch")
    with pytest.raises(DataError, match="cannot place cells"):
        fitted.embed(adata[:100].copy())


def test_save_and_load(tmp_path) -> None:
    adata = counts()
    fitted = ComBat(n_components=5).fit(adata, batch="batch", categorical_covariates=["condition"])
    again = tf.load(fitted.save(tmp_path / "combat"))
    np.testing.assert_array_equal(again.correct(), fitted.correct())
    np.testing.assert_array_equal(again.embed(), fitted.embed())
    again.write(adata)
    assert adata.layers["combat"].shape == adata.shape and adata.obsm["X_combat"].shape == (160, 5)
