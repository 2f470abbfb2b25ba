"""scMerge2: its algebra against dense matrices, matches, the choice of factors, and bad input."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.data import replicates as rep
from tenfold.data.unwanted import cell_factors, components_without, lost_variance, replicate_factors
from tenfold.errors import DataError, KeyMissingError
from tenfold.integrate.scmerge import ScMerge
from tenfold.integrate.scmerge_v1 import ScMergeV1
from tenfold.kernels.knn import knn


def two_batches(seed: int = 0, strength: float = 0.35, n: int = 800) -> ad.AnnData:
    return tf.data.simulate(
        n, 200, n_types=4, n_batches=2, batch_strength=strength, proportions=[[1, 1, 1, 1], [1, 1, 1, 0]], seed=seed
    )


def halves(seed: int) -> ad.AnnData:
    adata = tf.data.simulate(600, 200, n_types=4, n_batches=1, seed=seed)
    adata.obs["batch"] = np.where(np.random.default_rng(seed).random(600) < 0.5, "a", "b")
    return adata


def test_factors_are_those_of_a_dense_decomposition():
    rng = np.random.default_rng(0)
    y, group = rng.normal(size=(12, 30)), np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4])
    member = np.eye(5)[group]
    y0 = y - member @ np.linalg.solve(member.T @ member, member.T @ y)
    u, s, _ = np.linalg.svd(y0)
    found = replicate_factors(y, group, np.ones(12), 4)
    alpha = u[:, :4].T @ y  # the sheet's: of Y, not of the residuals
    np.testing.assert_allclose(np.abs(found.effects), np.abs(alpha), atol=1e-10)
    np.testing.assert_allclose(found.spread, s[:4] / np.sqrt(12 - 5))
    assert len(replicate_factors(y, group, np.ones(12), 99).spread) == 7
    assert len(replicate_factors(y, np.arange(12), np.ones(12), 5).spread) == 0


def test_weights_stand_for_repeated_rows():
    rng = np.random.default_rng(1)
    y, group, weights = rng.normal(size=(6, 20)), np.array([0, 0, 0, 1, 1, 1]), np.array([1, 2, 3, 1, 1, 4])
    once = replicate_factors(y, group, weights, 4)
    again = replicate_factors(np.repeat(y, weights, axis=0), np.repeat(group, weights), np.ones(weights.sum()), 4)
    np.testing.assert_allclose(np.abs(once.effects), np.abs(again.effects), atol=1e-9)


def test_planted_factors_are_removed():
    """Y = X beta + W alpha + noise: group means without W alpha come back within 5 %."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 100)
    beta, w, alpha = rng.normal(size=(4, 300)), rng.normal(size=(400, 2)), rng.normal(size=(2, 300))
    y = beta[group] + w @ alpha + 0.1 * rng.normal(size=(400, 300))
    effects = replicate_factors(y, group, np.ones(400), 2).effects
    factors = cell_factors(sparse.csr_matrix(y), y.mean(axis=0), effects, np.arange(300))
    basis = np.linalg.qr(effects.T)[0]
    expected = beta - beta.mean(axis=0)
    expected = expected - expected @ basis @ basis.T  # with all genes as controls, biology along alpha goes, too
    got = np.stack([(y - y.mean(axis=0) - factors @ effects)[group == g].mean(axis=0) for g in range(4)])
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.05


def test_components_and_lost_variance_are_those_of_the_dense_matrix():
    rng = np.random.default_rng(0)
    y = sparse.random(90, 40, density=0.3, random_state=0, format="csr")
    batch, w = np.repeat([0, 1], 45), rng.normal(size=(90, 3))
    w, alpha = w - w.mean(axis=0), 0.1 * rng.normal(size=(3, 40))
    dense = y.toarray() - w @ alpha
    embedding, loadings = components_without(y, w, alpha, 5)
    centred = dense - dense.mean(axis=0)
    np.testing.assert_allclose(embedding, centred @ loadings, atol=1e-5)
    top = np.linalg.svd(centred, compute_uv=False)[:5]
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=0), top, rtol=1e-5)
    share = [1 - dense[batch == b].var(axis=0).sum() / y.toarray()[batch == b].var(axis=0).sum() for b in (0, 1)]
    np.testing.assert_allclose(lost_variance(y, w, alpha, batch), share, atol=1e-8)


def test_pseudo_bulks_average_every_cell_once():
    adata = two_batches(n=200)
    batch = adata.obs["batch"].cat.codes.to_numpy()
    cluster = batch * 2 + (np.arange(200) % 2)
    bulks = rep.pseudo_bulks(adata.X, batch, cluster, 7, np.random.default_rng(0))
    assert len(bulks.cluster) == 28 and list(np.unique(bulks.cluster)) == [0, 1, 2, 3]
    single = rep.pseudo_bulks(adata.X, batch, cluster, 1, np.random.default_rng(0))
    expected = [adata.X[cluster == c].mean(axis=0).A1 for c in range(4)]
    np.testing.assert_allclose(single.profiles, expected, rtol=1e-5)
    _, sizes, within = rep.cluster_averages(bulks)
    assert list(sizes) == [7] * 4 and within > 0 and rep.cluster_averages(single)[2] == 0


def test_groups_join_matches_across_batches():
    matches = [rep.Match(0, 2, 0.9), rep.Match(2, 4, 0.9), rep.Match(0, 4, 0.8), rep.Match(1, 3, 0.9)]
    groups = rep.replicate_groups(matches, 6)
    assert len({groups[0], groups[2], groups[4]}) == 1 and groups[1] == groups[3]
    assert len(set(groups)) == 3 and list(rep.replicate_groups([], 3)) == [0, 1, 2]


@pytest.mark.parametrize("n_factors", [20, None])
def test_shared_types_match_and_mix_while_the_other_stays_pure(n_factors):
    adata = two_batches()
    method = ScMerge(n_factors=n_factors, n_components=10).fit(adata, batch="batch")
    types, batch = adata.obs["cell_type"].to_numpy(), adata.obs["batch"].to_numpy()
    assert len(method.matches_) >= 3
    for match in method.matches_:
        main = [
            pd.Series(types[method.batch_clusters_ == match[side]]).mode()[0]
            for side in ("left_cluster", "right_cluster")
        ]
        assert main[0] == main[1] and match["same_group"] and 0 < match["correlation"] < 1
    near = knn(method.embed(), k=16)[0][:, 1:]
    before = knn(ScMerge(n_factors=0, n_components=10).fit(adata, batch="batch").embed(), k=16)[0][:, 1:]
    alone = types == "type_4"
    assert (types[near[alone]] == "type_4").mean() > (types[before[alone]] == "type_4").mean() - 0.03
    mixed, unmixed = ((batch[lists] != batch[:, None])[~alone].mean() for lists in (near, before))
    assert mixed > 0.35 > 0.2 > unmixed


def test_no_factor_is_chosen_where_batches_do_not_differ():
    chosen = [ScMerge(n_factors=None, n_components=10).fit(halves(seed), batch="batch") for seed in range(3)]
    assert [len(method.alpha_) for method in chosen].count(0) >= 2
    none = next(method for method in chosen if len(method.alpha_) == 0)
    np.testing.assert_array_equal(none.correct(), none.expression_.toarray())
    assert len(none.null_spread_) == 5 and (none.lost_variance_ == 0).all()


def test_expression_is_expanded_by_gene_and_agrees_with_the_components():
    adata = two_batches()
    method = ScMerge(n_factors=5, n_components=10, n_top_genes=100).fit(adata, batch="batch")
    whole, genes = method.correct(), [adata.var_names[9], adata.var_names[2]]
    np.testing.assert_allclose(method.correct(genes=genes), whole[:, [9, 2]], atol=1e-6)
    expected = method.expression_.toarray() - method.factors_ @ method.alpha_
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    assert method.embed().shape == (800, 10) and method.loadings_.shape == (100, 10)
    with pytest.raises(KeyMissingError, match="Did you mean"):
        method.correct(genes=["gene_1x"])


def test_control_genes_measure_the_factors():
    adata = two_batches()
    some = list(adata.var_names[:50])
    method = ScMerge(n_factors=3, control_genes=some, n_components=5).fit(adata, batch="batch")
    centred = method.expression_.toarray() - method.expression_.toarray().mean(axis=0)
    w = np.linalg.lstsq(method.alpha_[:, :50].T, centred[:, :50].T, rcond=None)[0].T
    np.testing.assert_allclose(method.factors_, w, rtol=1e-3, atol=1e-4)
    with pytest.raises(KeyMissingError, match="gene_x"):
        ScMerge(control_genes=["gene_x"]).fit(adata, batch="batch")
    with pytest.warns(UserWarning, match="3 are removed"):
        ScMerge(n_factors=5, control_genes=some[:3], n_components=5).fit(adata, batch="batch")


def test_batches_of_one_cluster_are_left_uncorrected():
    adata = tf.data.simulate(120, 60, n_types=1, n_batches=2, batch_strength=0.5, seed=0)
    for n_factors in (20, None):
        with pytest.warns(UserWarning, match="Nothing is corrected"):
            method = ScMerge(resolution=0.01, n_factors=n_factors, n_components=5).fit(adata, batch="batch")
        assert method.matches_ == [] and method.alpha_.shape == (0, 60)
        np.testing.assert_array_equal(method.correct(), method.expression_.toarray())


def test_too_many_factors_and_small_batches_are_named():
    adata = two_batches(n=200)
    with pytest.warns(UserWarning, match="variance within"), pytest.warns(UserWarning, match="pseudo-bulks"):
        method = ScMerge(n_factors=5000, n_components=5).fit(adata, batch="batch")
    assert 0 < len(method.alpha_) < 5000 and np.isfinite(method.correct()).all()
    adata.obs["batch"] = pd.Categorical(["few"] * 6 + ["rest"] * 194)
    with pytest.raises(DataError, match="'few' has 6 cells"):
        ScMerge().fit(adata, batch="batch")


def test_warns_where_much_of_a_batch_is_lost():
    with pytest.warns(UserWarning, match="of the variance within batch"):
        ScMerge(n_factors=100, n_components=5).fit(two_batches(), batch="batch")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ScMerge(n_factors=None, n_components=5).fit(two_batches(), batch="batch")


def test_known_types_are_the_clusters_and_matched():
    adata = two_batches()
    method = ScMerge(n_factors=5, n_components=5).fit(adata, batch="batch", labels="cell_type")
    types, batch = (adata.obs[key].cat.codes.to_numpy() for key in ("cell_type", "batch"))
    assert len(np.unique(method.batch_clusters_)) == 7  # 4 types and 3 types
    for match in method.matches_:
        sides = [np.unique(types[method.batch_clusters_ == match[side]]) for side in ("left_cluster", "right_cluster")]
        assert len(sides[0]) == 1 and sides[0] == sides[1]
    assert [len(np.unique(batch[method.batch_clusters_ == c])) for c in range(7)] == [1] * 7


def test_only_clusters_of_the_same_condition_are_matched():
    adata = two_batches()
    adata.obs["condition"] = pd.Categorical(np.where(np.arange(800) % 3 == 0, "x", "y"))
    method = ScMerge(n_factors=5, n_components=5).fit(
        adata, batch="batch", labels="cell_type", categorical_covariates="condition"
    )
    condition = adata.obs["condition"].cat.codes.to_numpy()
    assert len(np.unique(method.batch_clusters_)) == 14 and len(method.matches_) >= 6
    for match in method.matches_:
        sides = [condition[method.batch_clusters_ == match[side]] for side in ("left_cluster", "right_cluster")]
        assert len(np.unique(np.concatenate(sides))) == 1


@pytest.mark.parametrize("cls", [ScMerge, ScMergeV1])
def test_new_cells_are_corrected_by_the_fitted_effects(cls):
    """Half of the cells, corrected as new ones, come to lie where a fit of the same effects puts the fitted half."""
    adata = two_batches()
    method = cls(n_factors=3, n_components=5).fit(adata[::2].copy(), batch="batch")
    again = adata[::2].copy()
    np.testing.assert_allclose(method.embed(again), method.embed(), atol=1e-4)
    np.testing.assert_allclose(method.correct_cells(again), method.correct(), atol=1e-5)
    new, genes = adata[1::2, ::-1].copy(), [adata.var_names[9], adata.var_names[2]]
    values = method._scaled(tf.data.preprocess.normalize_log1p(adata[1::2].X)).toarray()
    factors = (values - method.mean_) @ method.weights_
    expected = values - factors @ method.alpha_
    np.testing.assert_allclose(method.correct_cells(new, genes=genes), expected[:, [9, 2]], atol=1e-5)
    batch, mixed = adata.obs["batch"].cat.codes.to_numpy()[1::2], []
    for points in (
        method.embed(new),
        cls(n_factors=0, n_components=5).fit(adata[::2].copy(), batch="batch").embed(new),
    ):
        mixed.append((batch[knn(points, k=16)[0][:, 1:]] != batch[:, None]).mean())
    assert mixed[0] > mixed[1] + 0.05
    with pytest.raises(KeyMissingError, match="genes needed are not in the data"):
        method.embed(new[:, :50].copy())


@pytest.mark.parametrize("by_depth", [False, True])
def test_thinned_bulks_have_the_depth_of_a_cell(by_depth):
    rng = np.random.default_rng(0)
    rates = np.concatenate([rng.uniform(1, 5, (1, 80)).repeat(300, axis=0), rng.uniform(1, 5, (1, 80)).repeat(20, 0)])
    rates *= rng.uniform(0.5, 2, (320, 1))
    counts, cluster = sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), np.repeat([0, 1], [300, 20])
    bulks = rep.thinned_bulks(counts, cluster, 30, by_depth, np.random.default_rng(1))
    assert np.bincount(bulks.cluster).tolist() == [30, 20]  # a small cluster gives its cells
    np.testing.assert_allclose(np.linalg.norm(bulks.profiles, axis=1), 1, rtol=1e-5)
    cells = np.log1p(counts[:300].toarray())
    expected = cells.mean(axis=0) / np.linalg.norm(cells.mean(axis=0))
    alike = bulks.profiles[:30] @ expected
    assert 0.9 < alike.mean() < 0.995  # as noisy as cells, not as their averages


def test_thinned_bulks_correct_too():
    adata = tf.data.simulate(900, 200, n_types=3, n_batches=2, batch_strength=0.4, type_strength=1.5, seed=0)
    batch = adata.obs["batch"].cat.codes.to_numpy()
    left = {}
    for kind in ("average", "divide", "pool_divide"):
        method = ScMerge(n_factors=5, pseudo_bulk=kind, n_components=10).fit(adata, batch="batch", progress=False)
        assert not hasattr(method, "_counts")
        values = method.correct()
        left[kind] = np.linalg.norm(values[batch == 0].mean(axis=0) - values[batch == 1].mean(axis=0))
    before = method.expression_.toarray()
    gap = np.linalg.norm(before[batch == 0].mean(axis=0) - before[batch == 1].mean(axis=0))
    assert all(value < 0.5 * gap for value in left.values())
    assert left["divide"] != left["average"]
