"""Simulated cells, a planted batch effect, and the bundled blood cells."""

from __future__ import annotations

import socket
import warnings

import numpy as np
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.data import bundled
from tenfold.data.counts import check_counts
from tenfold.errors import DataError, ParameterError

# ---- simulate --------------------------------------------------------------------------------------------------------


def test_simulated_counts_have_the_asked_moments():
    adata = tf.data.simulate(4000, 30, n_types=1, n_batches=1, depth=300, dispersion=0.5, seed=1)
    counts = adata.X.toarray().astype(float)
    assert counts.sum(axis=1).mean() == pytest.approx(300, rel=0.05)
    share = adata.varm["type_profiles"]["type_1"].to_numpy()
    np.testing.assert_allclose(counts.mean(axis=0), 300 * share, rtol=0.12)
    # Depth varies by 0.3 in the logarithm: variance = mean + mean^2 ((1 + dispersion) exp(0.09) - 1).
    mean = 300 * share
    expected = mean + mean**2 * (1.5 * np.exp(0.09) - 1)
    assert np.median(counts.var(axis=0) / expected) == pytest.approx(1, abs=0.1)


def test_simulated_data_are_raw_counts_and_reproducible():
    adata = tf.data.simulate(300, 100, depth=50, dropout=0.5)
    check_counts(adata.X)
    assert adata.X.format == "csr" and adata.X.dtype == np.float32
    assert (adata.X != tf.data.simulate(300, 100, depth=50, dropout=0.5).X).nnz == 0
    assert (adata.X != tf.data.simulate(300, 100, depth=50, dropout=0.5, seed=1).X).nnz > 0
    assert list(adata.obs["batch"].value_counts()) == [150, 150]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_counts(tf.data.simulate(300, 100, depth=0.5).X)  # no cell is empty, however thin the data


def test_simulated_dropout_loses_entries():
    full, thin = (tf.data.simulate(200, 100, depth=3000, dispersion=0, dropout=d).X.nnz for d in (0.0, 0.4))
    assert thin / full == pytest.approx(0.6, abs=0.03)


def test_simulated_proportions_by_batch():
    shares = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
    adata = tf.data.simulate(1000, 20, n_types=3, proportions=shares)
    table = adata.obs.groupby("batch", observed=False)["cell_type"].value_counts().unstack().to_numpy()
    np.testing.assert_array_equal(np.sort(table, axis=1), np.sort(500 * shares, axis=1))


def test_simulated_effects_can_be_switched_off():
    adata = tf.data.simulate(50, 200, type_strength=0, batch_strength=0)
    assert (adata.varm["batch_factors"] == 1).all(axis=None)
    assert np.ptp(adata.varm["type_profiles"].to_numpy(), axis=1).max() < 1e-12


@pytest.mark.parametrize(
    "bad",
    [{"n_cells": 0}, {"dropout": 1.0}, {"depth": 0}, {"dispersion": -1}, {"proportions": [1, 2]},
     {"proportions": [0, 0, 0, 0, 0]}, {"proportions": [1, 1, 1, 1, -1]}],
)  # fmt: skip
def test_simulation_refuses_impossible_values(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        tf.data.simulate(**bad)


# ---- plant_batch -----------------------------------------------------------------------------------------------------


def test_a_planted_batch_changes_what_it_says():
    adata = tf.data.simulate(4000, 60, n_types=1, n_batches=1, depth=600)
    halves = np.arange(4000) % 2
    before = adata.X.copy()
    planted = tf.data.plant_batch(adata.X, halves, strength=0.5, ambient=0.1, depth=0.4, seed=3)
    counts = planted.counts
    assert (before != adata.X).nnz == 0 and (counts[halves == 0] != before[halves == 0]).nnz == 0
    check_counts(counts)
    assert counts.has_canonical_format and counts.dtype == np.float32
    was, now = (np.asarray(m[halves == 1].mean(axis=0)).ravel() for m in (before, counts))
    expected = 0.4 * (0.9 * planted.factors * was + 0.1 * was.sum() * planted.ambient_profile)
    np.testing.assert_allclose(now, expected, rtol=0.1)  # 2,000 cells: sd of the rarest gene 3 %
    assert now.sum() / was.sum() == pytest.approx(0.4, rel=0.02)
    assert np.log(planted.factors).std() == pytest.approx(0.5, abs=0.1)
    assert planted.ambient_profile.sum() == pytest.approx(1, abs=1e-5)
    assert (tf.data.plant_batch(before, halves, 0.5, 0.1, 0.4, 3).counts != counts).nnz == 0


def test_without_effect_a_planted_batch_is_a_binomial_thinning():
    counts = sparse.csr_matrix(np.full((2000, 3), 10.0))
    thinned = tf.data.plant_batch(counts, np.ones(2000), strength=0, ambient=0).counts.toarray()
    assert thinned.max() <= 10 and thinned.mean() == pytest.approx(5, abs=0.1)
    assert thinned.var() == pytest.approx(2.5, abs=0.2)
    whole = tf.data.plant_batch(counts, np.ones(2000), strength=0, ambient=0, depth=1).counts
    np.testing.assert_array_equal(whole.toarray(), counts.toarray())


def test_no_cell_is_emptied():
    counts = sparse.csr_matrix(np.eye(50, dtype=np.float32))
    planted = tf.data.plant_batch(counts, np.ones(50), depth=0.01).counts
    assert (np.asarray(planted.sum(axis=1)).ravel() > 0).all()


def test_planting_refuses_what_makes_no_sense():
    counts = sparse.csr_matrix(np.ones((4, 3)))
    with pytest.raises(DataError, match="0 or 1"):
        tf.data.plant_batch(counts, np.array([0, 1, 2, 1]))
    with pytest.raises(DataError, match="4 cells"):
        tf.data.plant_batch(counts, np.array([0, 1]))
    with pytest.raises(ParameterError, match="depth"):
        tf.data.plant_batch(counts, np.ones(4), depth=0)


# ---- pbmc ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_bundled_cells_are_the_raw_counts(monkeypatch):
    import scanpy as sc

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    adata = tf.data.pbmc()
    assert adata.shape == (700, 765) and adata.obs["cell_type"].nunique() == 10
    check_counts(adata.X)
    stored = sc.datasets.pbmc68k_reduced()
    again = np.log1p(adata.X.toarray() * 1e4 / adata.obs["n_counts"].to_numpy()[:, None])
    np.testing.assert_allclose(again, stored.raw.X.toarray(), atol=5.1e-4)  # the file keeps three decimals
    assert list(adata.var_names) == list(stored.raw.var_names) and list(adata.obs_names) == list(stored.obs_names)


def test_counts_that_cannot_be_recovered_are_refused():
    depth = np.array([2000.0, 3000.0])
    counts = np.array([[1, 5], [0, 7]])
    values = np.round(np.log1p(counts / depth[:, None] * 1e4), 3)
    np.testing.assert_array_equal(bundled.recovered_counts(values, depth).toarray(), counts)
    with pytest.raises(DataError, match="cannot be recovered"):
        bundled.recovered_counts(values + 0.01, depth)
    with pytest.raises(DataError, match="cannot be recovered"):  # 3,000 and 3,001 give the same three decimals
        bundled.recovered_counts(np.round(np.log1p([[3000.0]]), 3), np.array([1e4]))


def test_bundled_cells_with_a_planted_batch():
    plain, adata = tf.data.pbmc(), tf.data.pbmc(planted_batch=True)
    assert "batch" not in plain.obs and list(adata.obs["batch"].value_counts()) == [350, 350]
    assert (adata.layers["untouched"] != plain.X).nnz == 0
    untouched = (adata.obs["batch"] == "untouched").to_numpy()
    assert (adata.X[untouched] != plain.X[untouched]).nnz == 0
    assert adata.X[~untouched].sum() / plain.X[~untouched].sum() == pytest.approx(0.5, abs=0.01)
    assert "planted_factor" in adata.var and (tf.data.pbmc(True, seed=1).obs["batch"] != adata.obs["batch"]).any()


def test_names_of_the_package():
    with pytest.raises(AttributeError, match="Did you mean 'simulate'"):
        _ = tf.data.simulat
    assert set(dir(tf.data)) >= {"read", "write", "pbmc", "simulate", "plant_batch"}
