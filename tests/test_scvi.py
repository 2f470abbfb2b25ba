"""scVI: options, outputs, and that it does what it is for."""

from __future__ import annotations

import signal
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

import tenfold as tf
from tenfold.count_models.differential import discoveries
from tenfold.embed import SCVI
from tenfold.errors import DataError, KeyMissingError, ParameterError, RoleError

SMALL = {"n_latent": 4, "n_hidden": 32, "n_top_genes": None, "kl_warmup_epochs": 2}
ROLES = {"batch": "batch", "labels": "cell_type"}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    adata = tf.data.simulate(n_cells=240, n_genes=60, n_types=3, n_batches=2, batch_strength=0.4, depth=400.0, seed=1)
    rng = np.random.default_rng(0)
    adata.obs["site"] = pd.Categorical(rng.choice(["x", "y", "z"], adata.n_obs))
    adata.obs["age"] = 1000 + 50 * rng.normal(size=adata.n_obs)
    adata.obs["factor"] = np.asarray(adata.X.sum(axis=1)).ravel() / 400
    return adata


def fit(adata: ad.AnnData, roles: dict | None = None, **params) -> SCVI:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SCVI(**{**SMALL, "epochs": 4, **params}).fit(
            adata, progress=False, **(ROLES if roles is None else roles)
        )


@pytest.fixture(scope="module")
def trained(cells) -> SCVI:
    return fit(cells, epochs=80, kl_warmup_epochs=20, batch_size=32, learning_rate=3e-3)


@pytest.fixture(scope="module")
def plain(cells) -> np.ndarray:
    return fit(cells).embed()


OPTIONS = [
    {"n_latent": 3}, {"n_hidden": 16}, {"n_layers": 2}, {"dropout": 0.5}, {"likelihood": "zinb"},
    {"likelihood": "poisson"}, {"dispersion": "gene-batch"}, {"dispersion": "gene-label"}, {"dispersion": "gene-cell"},
    {"latent_distribution": "ln"}, {"batch_norm": "none"}, {"batch_norm": "encoder"}, {"layer_norm": "both"},
    {"encode_covariates": True}, {"n_layers": 2, "deeply_inject_covariates": False}, {"batch_embedding": 3},
    {"library": "latent"}, {"log_variational": False}, {"kl_start": 0.5}, {"kl_end": 0.5},
    {"kl_warmup_epochs": 4}, {"schedule": "constant"}, {"kl_warmup_steps": 1}, {"epochs": 5}, {"batch_size": 50},
    {"learning_rate": 0.01},
    {"weight_decay": 0.5}, {"n_top_genes": 30}, {"train_fraction": 0.5}, {"seed": 5}, {"precision": "bf16-mixed"},
]  # fmt: skip


@pytest.mark.parametrize("params", OPTIONS, ids=str)
def test_every_option_runs_and_changes_the_result(cells, plain, params):
    if params == {"n_layers": 2, "deeply_inject_covariates": False}:
        plain = fit(cells, n_layers=2).embed()
    model = fit(cells, **params)
    z = model.embed()
    assert z.shape == (240, params.get("n_latent", 4))
    assert np.isfinite(z).all()
    assert z.shape != plain.shape or np.abs(z - plain).max() > 1e-4
    assert np.isfinite(model.reconstruction_error(cells[:20]))
    if params.get("latent_distribution") == "ln":
        np.testing.assert_allclose(z.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "role", [{"categorical_covariates": ["site"]}, {"continuous_covariates": ["age"]}, {"size_factor": "factor"}]
)
def test_covariates_and_size_factors_are_used_for_old_and_new_cells(cells, plain, role):
    model = fit(cells, {**ROLES, **role}, encode_covariates="size_factor" not in role)
    assert np.abs(model.embed() - plain).max() > 1e-4
    np.testing.assert_allclose(model.embed(cells), model.embed(), atol=1e-5)
    np.testing.assert_allclose(model.denoise(cells[:9]), model.denoise()[:9], rtol=1e-3)
    assert np.isfinite(model.reconstruction_error(cells))


def test_runs_without_any_role(cells):
    model = fit(cells, {})
    assert model.sample(7).shape == (7, 60)
    assert model.denoise().shape == (240, 60)


def test_seeds(cells, plain):
    np.testing.assert_array_equal(fit(cells).embed(), plain)
    assert np.abs(fit(cells, seed=1).embed() - plain).max() > 0.01


def test_storage_of_counts_does_not_matter(cells, plain, tmp_path):
    for convert in (sparse.csc_matrix, lambda x: x.toarray(), lambda x: x.astype(np.int64)):
        other = cells.copy()
        other.X = convert(cells.X)
        np.testing.assert_array_equal(fit(other).embed(), plain)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(fit(ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")).embed(), plain)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"library": "latent", "dispersion": "gene-label", "likelihood": "zinb"},
        {"batch_embedding": 2, "n_layers": 2},
    ],
)
def test_saved_and_loaded_models_give_the_same(cells, tmp_path, params):
    model = fit(cells, {**ROLES, "continuous_covariates": ["age"]}, **params)
    model.save(tmp_path / "model")
    loaded = tf.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.embed(), model.embed())
    np.testing.assert_array_equal(loaded.embed(cells), model.embed(cells))
    np.testing.assert_array_equal(loaded.denoise(transform_batch="batch_1"), model.denoise(transform_batch="batch_1"))
    assert (loaded.sample(30, seed=3).X != model.sample(30, seed=3).X).nnz == 0
    assert loaded.reconstruction_error(cells) == model.reconstruction_error(cells)
    pd.testing.assert_frame_equal(loaded.history, model.history)


def test_an_interrupted_training_resumes_to_the_same_result(cells, plain, tmp_path, monkeypatch):
    from tenfold.nn.autoencoder import ConditionalVAE

    terms, calls = ConditionalVAE.terms, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return terms(self, *args)

    monkeypatch.setattr(ConditionalVAE, "terms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SCVI(**SMALL, epochs=4).fit(cells, progress=False, checkpoint=tmp_path, **ROLES)
    monkeypatch.setattr(ConditionalVAE, "terms", terms)
    assert list(tmp_path.iterdir())
    resumed = SCVI(**SMALL, epochs=4).fit(cells, progress=False, checkpoint=tmp_path, **ROLES)
    np.testing.assert_array_equal(resumed.embed(), plain)


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_new_cells_are_placed_like_fitted_ones(cells, trained):
    nll = trained.history.query("term == 'nll'").train.to_numpy()
    assert nll[-1] < 0.97 * nll[0]
    np.testing.assert_allclose(trained.embed(cells[10:40]), trained.embed()[10:40], atol=1e-5)
    assert trained.reconstruction_error(cells) < -trained.marginal_likelihood(cells, 50) < -trained.elbo(cells)


def test_kl_weight_is_recorded_and_a_small_one_is_warned_of(cells):
    with pytest.warns(UserWarning, match=r"KL weight of 0\.03, not 1"):
        model = SCVI(**{**SMALL, "kl_warmup_epochs": 100, "epochs": 4}).fit(cells, progress=False)
    assert model.kl_weight_ == pytest.approx(0.03)
    assert any("KL weight" in message for message in model.run_["warnings"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SCVI(**{**SMALL, "epochs": 4}).fit(cells, progress=False)
    assert model.kl_weight_ == 1
    assert model.history.query("term == 'kl_weight'").train.tolist() == [0, 0.5, 1, 1]


def test_patience_counts_once_the_kl_weight_has_risen(cells):
    def epochs_of(**params):
        model = SCVI(**{**SMALL, "epochs": 60, "early_stopping": True, "patience": 2, **params})
        model.learning_rate, model.batch_norm = 0.0, "none"  # nothing changes, so no epoch is a gain
        return model.fit(cells, progress=False).history.epoch.max() + 1

    assert epochs_of(kl_warmup_epochs=5) == 8  # one epoch to set the mark, two without gain
    assert epochs_of(kl_warmup_steps=20) == 13  # two minibatches an epoch
    with pytest.warns(UserWarning, match="Early stopping cannot act"):
        epochs_of(kl_warmup_epochs=400, epochs=3)


def test_learning_rate_falls_on_a_plateau(cells):
    model = fit(cells, schedule="plateau", epochs=40, learning_rate=1e-12)
    rates = model.history.query("term == 'learning_rate'").train
    assert rates.iloc[-1] == pytest.approx(0.6 * rates.iloc[0])


def test_by_default_the_learning_rate_falls_and_the_kl_weight_rises_over_half_of_the_epochs(cells):
    model = fit(cells, epochs=4, kl_warmup_epochs=None, learning_rate=1e-3)
    terms = model.history.pivot(index="epoch", columns="term", values="train")
    assert terms.kl_weight.tolist() == [0, 0.5, 1, 1]
    middles = (np.arange(4) + 0.5) / 4
    np.testing.assert_allclose(terms.learning_rate, 1e-3 * (1 + np.cos(np.pi * middles)) / 2)


@pytest.mark.parametrize(("n_cells", "epochs"), [(240, 100), (20_000, 100), (200_000, 10), (10**8, 1)])
def test_epochs_shrink_with_cells(n_cells, epochs):
    assert SCVI()._phase(n_cells).epochs == epochs


# ---- what it is for --------------------------------------------------------------------------------------------------


def mixing(z: np.ndarray, batch: np.ndarray) -> float:
    """Share of each cell's 15 neighbours that are of another batch, over the share expected."""
    neighbors = NearestNeighbors(n_neighbors=16).fit(z).kneighbors(z, return_distance=False)[:, 1:]
    return float((batch[neighbors] != batch[:, None]).mean() / 0.5)


def test_batches_mix_and_types_stay_apart():
    adata = tf.data.simulate(
        n_cells=600, n_genes=100, n_types=3, n_batches=2, type_strength=1.2, batch_strength=0.6, seed=2
    )
    batch, types = adata.obs["batch"].cat.codes.to_numpy(), adata.obs["cell_type"].cat.codes.to_numpy()
    params = {"n_latent": 5, "epochs": 80, "kl_warmup_epochs": 20, "learning_rate": 5e-3}
    told, untold = (fit(adata, roles, **params).embed() for roles in ({"batch": "batch"}, {}))
    assert mixing(untold, batch) < 0.3
    assert mixing(told, batch) > 0.7
    neighbors = NearestNeighbors(n_neighbors=16).fit(told).kneighbors(told, return_distance=False)[:, 1:]
    assert (types[neighbors] == types[:, None]).mean() > 0.93  # 0.949 to 0.962 over seeds, written out or by autograd


def test_denoised_expression(cells, trained):
    values = trained.denoise()
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.sum(axis=1), 1e4, rtol=1e-4)
    np.testing.assert_allclose(trained.denoise(library_size=1.0).sum(axis=1), 1, rtol=1e-4)
    observed = trained.denoise(library_size="observed")
    np.testing.assert_allclose(observed.sum(axis=1), np.asarray(cells.X.sum(axis=1)).ravel(), rtol=1e-3)
    # The mean over cells of expected counts is the mean of the counts.
    assert np.corrcoef(observed.mean(axis=0), np.asarray(cells.X.mean(axis=0)).ravel())[0, 1] > 0.99
    first, second = (trained.denoise(transform_batch=name) for name in ("batch_1", "batch_2"))
    np.testing.assert_allclose(trained.denoise(transform_batch=["batch_1", "batch_2"]), (first + second) / 2, rtol=1e-5)
    batch = (cells.obs["batch"] == "batch_1").to_numpy()
    np.testing.assert_allclose(first[batch], values[batch], rtol=1e-6)
    assert np.abs(first - second).max() > 1
    with pytest.raises(ParameterError, match="Did you mean 'batch_1'"):
        trained.denoise(transform_batch="batch1")


def test_genes_left_out_are_nan(cells):
    model = fit(cells, n_top_genes=20)
    values = model.denoise()
    assert values.shape == (240, 60)
    assert np.isfinite(values).all(axis=0).sum() == 20
    kept = cells.var_names[np.isfinite(values).all(axis=0)]
    assert list(kept) == list(model.genes_)
    shuffled = cells[:, ::-1].copy()
    np.testing.assert_allclose(model.denoise(shuffled)[:, ::-1], values, rtol=1e-3)


def test_synthetic_cells_look_like_the_fitted_ones(cells, trained):
    drawn = trained.sample(4000, label="type_2", batch="batch_1")
    assert drawn.obs["synthetic"].all()
    assert set(drawn.obs["label"]) == {"type_2"}
    assert set(drawn.obs["batch"]) == {"batch_1"}
    assert drawn.X.dtype == np.int32
    real = cells[(cells.obs["cell_type"] == "type_2") & (cells.obs["batch"] == "batch_1")].X.toarray()
    mean, found = real.mean(axis=0), drawn.X.toarray().mean(axis=0)
    deviation = np.sqrt(real.var(axis=0) / len(real)) + 0.2
    assert (np.abs(found - mean) < 4 * deviation).mean() > 0.95
    other = cells[cells.obs["cell_type"] == "type_1"].X.toarray().mean(axis=0)
    assert np.abs(found - mean).sum() < 0.5 * np.abs(found - other).sum()


def test_sampling_modes(trained):
    same = [trained.sample(50).X.toarray() for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (trained.sample(50, seed=9).X.toarray() != same[0]).any()
    assert (trained.sample(50, prior=True).X.toarray() != same[0]).any()
    assert trained.sample(3000).n_obs == 3000  # more than are drawn at a time
    with pytest.raises(ParameterError, match="at least 1"):
        trained.sample(0)
    with pytest.raises(ParameterError, match="Did you mean 'type_2'"):
        trained.sample(5, label="type2")


# ---- differential expression -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> tuple[ad.AnnData, SCVI, list[str]]:
    """Two groups that differ in 8 of 160 genes, fourfold up or down, and in next to nothing else."""
    rng = np.random.default_rng(0)
    profile = rng.gamma(2.0, 1.0, size=160)
    profile[:8] = 2
    group = np.arange(600) % 2
    rates = np.tile(profile, (600, 1))
    rates[np.ix_(group == 1, np.arange(8))] *= [4, 4, 4, 4, 0.25, 0.25, 0.25, 0.25]
    counts = rng.poisson(rates / rates.sum(axis=1, keepdims=True) * rng.lognormal(6, 0.2, size=(600, 1)))
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = [f"gene_{i}" for i in range(160)]
    adata.obs["group"] = pd.Categorical(np.where(group == 1, "up", "down"))
    adata.obs["batch"] = pd.Categorical(rng.choice(["a", "b"], 600))
    return (
        adata,
        fit(adata, {"batch": "batch"}, epochs=80, kl_warmup_epochs=20, learning_rate=5e-3, schedule="constant"),
        list(adata.var_names[:8]),
    )


def test_planted_genes_are_found(planted):
    adata, model, truth = planted
    change = {"mode": "change", "delta": 0.5, "n_samples": 1000}
    for options in ({}, {"batch_correction": True}):
        table = model.differential_expression(adata, "group", "up", **change, **options)
        assert set(table.index[:8]) == set(truth), options
        assert table.loc[truth, "significant"].all()
        assert (table.loc[truth, "bayes_factor"] > 2).all()
        assert table["significant"].sum() < 20
        np.testing.assert_allclose(table.loc[truth, "lfc_median"], [2] * 4 + [-2] * 4, atol=0.7)
    back = model.differential_expression(adata, "group", "down", "up", **change)
    np.testing.assert_allclose(back.loc[truth, "lfc_median"], -table.loc[truth, "lfc_median"], atol=0.2)
    vanilla = model.differential_expression(adata, "group", "up", n_samples=1000)
    assert (vanilla.loc[truth[:4], "probability"] > 0.95).all()
    assert (vanilla.loc[truth[4:], "bayes_factor"] < -3).all()
    raw = adata[adata.obs["group"] == "up"].X
    np.testing.assert_allclose(table.loc[adata.var_names, "raw_mean1"], np.asarray(raw.mean(axis=0)).ravel(), rtol=1e-5)


def test_false_discoveries_are_bounded_by_their_expected_share():
    np.testing.assert_array_equal(discoveries(np.array([0.2, 0.99, 0.93, 1.0]), 0.05), [False, True, True, True])
    np.testing.assert_array_equal(discoveries(np.array([0.2, 0.5]), 0.05), [False, False])
    np.testing.assert_array_equal(discoveries(np.array([0.2, 0.5]), 1.0), [True, True])


def test_differential_expression_refuses_unknown_groups(planted):
    adata, model, _ = planted
    with pytest.raises(ParameterError, match="Did you mean 'up'"):
        model.differential_expression(adata, "group", "Up!")
    with pytest.raises(KeyMissingError, match="Did you mean 'group'"):
        model.differential_expression(adata, "groups", "up")
    with pytest.raises(ParameterError, match="'vanilla' or 'change'"):
        model.differential_expression(adata, "group", "up", mode="both")


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_a_covariate_with_missing_values_is_refused(cells):
    broken = cells.copy()
    broken.obs.loc[broken.obs_names[3], "age"] = np.nan
    with pytest.raises(DataError, match=r"age.*no value"):
        fit(broken, {"continuous_covariates": ["age"]})


def test_a_batch_of_one_cell_is_warned_of(cells):
    lonely = cells.copy()
    lonely.obs["batch"] = np.where(np.arange(240) == 5, "lonely", "others")
    with pytest.warns(UserWarning, match="'lonely' has a single cell"):
        model = SCVI(**SMALL, epochs=4, library="latent").fit(lonely, batch="batch", progress=False)
    assert np.isfinite(model.embed()).all()


def test_new_cells_of_an_unknown_batch_are_refused(cells):
    model = fit(cells, encode_covariates=True)
    other = cells[:40].copy()
    other.obs["batch"] = "batch_9"
    with pytest.raises(DataError, match=r"40 cells is 'batch_9'.*It knows 'batch_1', 'batch_2'"):
        model.embed(other)
    assert fit(cells).embed(other).shape == (40, 4)  # an encoder that is not told of batches does not need them


def test_cells_of_other_genes_are_refused(cells, trained):
    other = cells.copy()
    other.var_names = [f"x{i}" for i in range(60)]
    with pytest.raises(KeyMissingError, match="None match"):
        trained.reconstruction_error(other)
    with pytest.raises(KeyMissingError, match="30 of the 60 genes"):
        trained.embed(cells[:, :30])


def test_size_factors_must_be_positive(cells):
    other = cells.copy()
    other.obs.loc[other.obs_names[:2], "factor"] = 0
    with pytest.raises(DataError, match="0 or less in 2 cells"):
        fit(other, {"size_factor": "factor"})


def test_cells_that_are_empty_over_the_modelled_genes_are_warned_of(cells):
    model = fit(cells, n_top_genes=20)
    other = cells[:5].copy()
    dense = other.X.toarray()
    dense[0, other.var_names.get_indexer(model.genes_)] = 0
    other.X = dense
    with pytest.warns(UserWarning, match="1 cells have no counts in the 20 modelled genes"):
        error = model.reconstruction_error(other)
    assert np.isfinite(error)


def test_gene_label_dispersion_needs_labels(cells):
    with pytest.raises(RoleError, match="needs labels"):
        fit(cells, {"batch": "batch"}, dispersion="gene-label")


def test_too_few_cells_are_refused(cells):
    with pytest.raises(DataError, match="too few"):
        fit(cells[:4].copy(), {})
