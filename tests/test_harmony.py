"""Harmony against plain regressions, planted batch effects, and the stopping rule that it guards against."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from tenfold.data.mixture import (
    grouped_moments,
    make_design,
    move_cells,
    reassign,
    ridge_offsets,
    separation_of,
    soft_assign,
    tables,
    unit_rows,
)
from tenfold.errors import DataError, ParameterError
from tenfold.integrate.harmony import Harmony, converged
from tenfold.kernels.knn import knn

RNG = np.random.default_rng


def cells(n: int, n_batches: int, effect: float, seed: int = 0, noise: float = 0.5):
    """Fifteen types in 20 dimensions; every batch is moved by an offset of its own. `noise` blurs the types."""
    rng = RNG(seed)
    spread = 1 / np.sqrt(1 + np.arange(20))
    centres, offset = 2 * rng.normal(size=(15, 20)) * spread, effect * rng.normal(size=(n_batches, 20))
    types, batch = rng.integers(15, size=n), rng.integers(n_batches, size=n)
    x = centres[types] + offset[batch] + noise * rng.normal(size=(n, 20)) * spread
    return x.astype(np.float32), batch, types


def other_batch(z: np.ndarray, batch: np.ndarray) -> float:
    return float((batch[knn(z, k=16)[0][:, 1:]] != batch[:, None]).mean())


def as_adata(x: np.ndarray, batch: np.ndarray) -> ad.AnnData:
    adata = ad.AnnData(RNG(0).poisson(1.0, size=(len(x), 30)).astype(np.float32) + 1)
    adata.obs["batch"] = pd.Categorical(batch.astype(str))
    adata.obsm["X_start"] = x
    return adata


def plain_correction(z, r, covariates, lamb, alpha):
    """Ridge regression by its definition, one dense design and one solve a cluster, in float64."""
    one_hot = np.concatenate([np.eye(c.max() + 1)[c] for c in covariates], axis=1)
    design = np.column_stack([np.ones(len(z)), one_hot])
    moved, centroids = z.astype(np.float64).copy(), []
    for k in range(r.shape[1]):
        mass, share = r[:, k].sum(), one_hot.mean(axis=0)
        penalty = alpha * mass * share if lamb is None else np.full(len(share), lamb)
        gram = design.T @ (design * r[:, [k]]) + np.diag([0.0, *penalty])
        w = np.linalg.solve(gram, design.T @ (z * r[:, [k]]))
        centroids.append(w[0] / np.linalg.norm(w[0]))
        moved -= r[:, [k]] * (one_hot @ w[1:])
    return moved, np.array(centroids)


@pytest.mark.parametrize("lamb", [None, 1.0])
@pytest.mark.parametrize("levels", [[3], [2, 2], [3, 4]])  # [2, 2]: as many groups as levels
def test_correction_is_the_ridge_regression(levels: list[int], lamb: float | None) -> None:
    rng = RNG(1)
    z, r = rng.normal(size=(400, 6)) + 3, rng.dirichlet(np.ones(5), size=400)
    covariates = [rng.integers(n, size=400) for n in levels]
    z[covariates[0] == 0] += 1
    design = make_design(covariates)
    sorted_z, sorted_r = z[design.order].astype(np.float32), r[design.order].astype(np.float32)
    mass = np.stack([sorted_r[design.group == g].sum(axis=0) for g in range(len(design.membership))]).astype(float)
    moments = grouped_moments(sorted_r, sorted_z, design)
    offsets, centroids = ridge_offsets(mass, moments, design, lamb, 0.2, np.zeros((5, 6)))
    ours = move_cells(sorted_z, sorted_r, offsets, design)[np.argsort(design.order)]
    expected, expected_centroids = plain_correction(z, r, covariates, lamb, 0.2)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(centroids, expected_centroids, atol=1e-4)


def test_a_level_without_support_gets_no_offset() -> None:
    rng = RNG(0)
    batch = np.repeat([0, 1, 2], 100)
    z = rng.normal(size=(300, 4)).astype(np.float32)
    r = np.full((300, 2), 0.5, dtype=np.float32)
    r[batch == 2] = [0, 1]  # cluster 0 holds no cell of batch 2
    r[batch == 1, 0], r[batch == 1, 1] = 1, 0  # cluster 1 none of batch 1
    design = make_design([batch])
    mass = np.stack([r[batch == b].sum(axis=0) for b in range(3)]).astype(float)
    offsets, _ = ridge_offsets(mass, grouped_moments(r, z, design), design, None, 0.2, np.zeros((2, 4)))
    assert (offsets[2, 0] == 0).all() and (offsets[1, 1] == 0).all()
    assert (offsets[0] != 0).all()
    alone = np.where(batch[:, None] == [0], [[1, 0]], [[0, 1]]).astype(np.float32)  # no cluster with two batches
    mass = np.stack([alone[batch == b].sum(axis=0) for b in range(3)]).astype(float)
    offsets, centroids = ridge_offsets(mass, grouped_moments(alone, z, design), design, None, 0.2, np.zeros((2, 4)))
    assert (offsets[0] == 0).all()
    np.testing.assert_allclose(centroids[0], unit_rows(z[batch == 0].mean(axis=0)[None])[0], atol=1e-5)


def test_assignment_and_its_objective_by_definition() -> None:
    rng = RNG(2)
    unit = unit_rows(rng.normal(size=(3000, 8)).astype(np.float32))
    centroids = unit[:6]
    assigned, log_norm = soft_assign(unit, centroids, 0.1)
    distance = 2 * (1 - unit.astype(float) @ centroids.T.astype(float))
    expected = np.exp(-distance / 0.1)
    np.testing.assert_allclose(assigned, expected / expected.sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-6)
    fit = (assigned * (distance / 0.1 + np.log(np.maximum(assigned, 1e-30)))).sum()
    assert -log_norm == pytest.approx(fit, rel=1e-4)


def test_reassign_is_a_normalised_product() -> None:
    rng = RNG(3)
    affinity = rng.random((50, 4)).astype(np.float32)
    factor, group = rng.random((2, 4)).astype(np.float32), np.repeat([0, 1], 25).astype(np.int32)
    chosen, mass = np.arange(10, 40), np.zeros((2, 4))
    expected = affinity[chosen] * factor[group[chosen]]
    norms = expected.sum(axis=1, keepdims=True)
    stored = affinity.copy()
    assert reassign(stored, chosen, group, factor, mass, True) == pytest.approx(np.log(norms).sum(), rel=1e-4)
    np.testing.assert_allclose(stored[chosen], expected / norms, rtol=1e-5)
    np.testing.assert_array_equal(stored[:10], affinity[:10])
    np.testing.assert_allclose(mass[1], (expected / norms)[group[chosen] == 1].sum(axis=0), rtol=1e-5)


def test_separation_runs_from_zero_to_one() -> None:
    design = make_design([np.repeat([0, 1], [30, 90])])
    assert separation_of(np.array([[30.0, 0], [0, 90]]), design) == pytest.approx(1)
    assert separation_of(np.array([[10.0, 20], [30, 60]]), design) == pytest.approx(0)
    observed, expected = tables(np.array([[10.0, 20], [30, 60]]), design)
    np.testing.assert_allclose(observed, expected)


def test_batches_mix_and_types_stay() -> None:
    x, batch, types = cells(1500, 3, 0.25)
    assert other_batch(x, batch) < 0.3
    fitted = Harmony().fit(as_adata(x, batch), batch="batch", use_rep="X_start")
    z = fitted.embed()
    neighbors = knn(z, k=16)[0][:, 1:]
    assert z.dtype == np.float32 and z.shape == x.shape
    assert other_batch(z, batch) > 0.5  # ideal 0.67
    assert (types[neighbors] == types[:, None]).mean() > 0.98
    np.testing.assert_allclose(fitted.assignments_.sum(axis=1), 1, atol=1e-4)
    assert fitted.separation_[-1] < 0.15 < fitted.separation_[0]


def test_same_seed_same_result_in_any_order_of_cells() -> None:
    x, batch, _ = cells(400, 2, 0.4)
    a, b, other = Harmony(), Harmony(), Harmony(seed=1)
    for harmony in (a, b, other):
        harmony._harmonize(x, [batch])
    np.testing.assert_array_equal(a.embedding_, b.embedding_)
    assert not np.array_equal(a.embedding_, other.embedding_)
    assert np.abs(a.embedding_ - x).max() < 5  # rows came back in the order in which they were given


def test_guard_against_the_premature_stop() -> None:
    """A strong effect: one iteration of the reference's rule leaves the batches where they were."""
    x, batch, _ = cells(2000, 3, 1.0, noise=1.5)
    reference, guarded = Harmony(stop="reference", max_iter=10), Harmony()
    reference._harmonize(x, [batch])
    guarded._harmonize(x, [batch])
    assert reference.n_iter_ == 1 and guarded.n_iter_ > 3
    assert other_batch(reference.embedding_, batch) < 0.05 and other_batch(guarded.embedding_, batch) > 0.4


def test_stopping_rules() -> None:
    assert converged([100, 99.5], [0.9], "reference")
    assert converged([100, 101], [0.9], "reference")
    assert not converged([100, 90], [0.9], "reference")
    assert not converged([100, 99.9, 99.8], [0.9, 0.9], "guarded")
    assert converged([100, 99.9, 99.8, 99.7], [0.9, 0.9, 0.9], "guarded")
    assert not converged([100, 99.9, 99.8, 99.7], [0.9, 0.85, 0.8], "guarded")
    assert not converged([100, 99.9, 90, 89.9], [0.1, 0.1, 0.1], "guarded")


def test_batches_that_stay_apart_are_announced() -> None:
    x, batch, _ = cells(600, 2, 3.0)
    with pytest.warns(UserWarning, match="separate clusters"):
        Harmony().fit(as_adata(x, batch), batch="batch", use_rep="X_start")


def test_identical_batches_keep_their_neighbours() -> None:
    x, batch, _ = cells(1500, 2, 0.0)
    harmony = Harmony()
    harmony._harmonize(x, [batch])
    before, after = knn(x, k=16)[0][:, 1:], knn(harmony.embedding_, k=16)[0][:, 1:]
    kept = np.mean([len(np.intersect1d(a, b)) / 15 for a, b in zip(before, after, strict=True)])
    assert kept > 0.85


def test_several_covariates() -> None:
    x, batch, types = cells(1200, 2, 0.2)
    chemistry = RNG(5).integers(3, size=len(x))
    x += (0.2 * RNG(6).normal(size=(3, 20)))[chemistry].astype(np.float32)
    adata = as_adata(x, batch)
    adata.obs["chemistry"] = pd.Categorical(chemistry.astype(str))
    for combine in ("sum", "product"):
        both = Harmony(theta=[2, 1], combine=combine)
        both.fit(adata, batch="batch", use_rep="X_start", categorical_covariates=["chemistry"])
        assert other_batch(both.embed(), batch) > 0.35
        assert other_batch(both.embed(), chemistry) > 0.45
        assert (types[knn(both.embed(), k=16)[0][:, 1:]] == types[:, None]).mean() > 0.95


@pytest.mark.parametrize("options", [{"theta": 0.0}, {"tau": 30.0}, {"diversity": "original"}, {"block_size": 1.0}])
def test_options_change_the_result(options: dict) -> None:
    x, batch, _ = cells(600, 2, 0.25, noise=2)
    plain, other = Harmony(), Harmony(**options)
    plain._harmonize(x, [batch])
    other._harmonize(x, [batch])
    assert np.isfinite(other.embedding_).all()
    assert np.abs(plain.embedding_ - other.embedding_).max() > 1e-3


def test_tau_spares_a_small_batch() -> None:
    design = make_design([np.repeat([0, 1], [980, 20])])
    theta = Harmony(tau=5.0)._theta_of_levels(design, 30)
    assert theta[0] == pytest.approx(2) and theta[1] < 0.1


def test_wrong_use_is_named() -> None:
    x, batch, _ = cells(100, 2, 0.3)
    adata = as_adata(x, batch)
    with pytest.raises(ParameterError, match="more than the 100 cells"):
        Harmony(n_clusters=101).fit(adata, batch="batch", use_rep="X_start")
    with pytest.raises(ParameterError, match="1 covariates"):
        Harmony(theta=[1.0, 2.0]).fit(adata, batch="batch", use_rep="X_start")
    small = as_adata(x[np.r_[:60]], np.repeat(["0", "1"], [52, 8]))
    with pytest.warns(UserWarning, match="1 \\(8\\)"):
        fitted = Harmony().fit(small, batch="batch", use_rep="X_start")
    with pytest.raises(DataError, match="cannot place cells"):
        fitted.embed(adata)


def test_real_batches(shared_data) -> None:
    adata = ad.read_h5ad(shared_data("pbmc_3chem.h5ad"))
    fitted = Harmony().fit(adata, batch="batch")
    before = other_batch(fitted.embed(), adata.obs["batch"].cat.codes.to_numpy())
    fitted.write(adata)
    assert adata.obsm["X_harmony"].shape == (1200, 50)
    assert before > 0.4  # ideal about 0.66
