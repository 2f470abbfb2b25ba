"""Anchor pairs, their smoothing, and the preparation of batches, against loops over cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.data import anchors as shared
from tenfold.errors import DataError, ParameterError
from tenfold.kernels import anchors
from tenfold.types import Codes


def loop_pairs(left: np.ndarray, right: np.ndarray, k_left: int, k_right: int, p: int = 2) -> set[tuple[int, int]]:
    d = np.linalg.norm(left[:, None].astype(float) - right[None].astype(float), ord=p, axis=2)
    to_right = {(i, j) for i in range(len(left)) for j in np.argsort(d[i])[:k_right]}
    to_left = {(i, j) for j in range(len(right)) for i in np.argsort(d[:, j])[:k_left]}
    return to_right & to_left


@pytest.fixture
def sides() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 7)).astype(np.float32), rng.normal(size=(45, 7)).astype(np.float32) + 0.5


def test_mutual_pairs_are_those_of_a_loop(sides):
    left, right = sides
    for k_left, k_right in ((5, 5), (3, 9), (1, 1)):
        pairs = anchors.mutual_pairs(left, right, k_left, k_right)
        assert set(zip(pairs.left, pairs.right, strict=True)) == loop_pairs(left, right, k_left, k_right)
        assert (np.diff(pairs.left) >= 0).all()


def test_manhattan_neighbours(sides):
    left, right = sides
    found = anchors.nearest_manhattan(left, right, 6)
    d = np.abs(left[:, None] - right[None]).sum(axis=2)
    assert (np.sort(found, axis=1) == np.sort(np.argsort(d, axis=1)[:, :6], axis=1)).all()


def test_shifts_are_averages_over_the_pairs_of_a_cell(sides):
    left, right = sides
    pairs = anchors.mutual_pairs(left, right, 5, 5)
    rows, shifts = anchors.shifts_at_pairs(left, right, pairs)
    for row, shift in zip(rows, shifts, strict=True):
        mine = [left[i] - right[j] for i, j in zip(*pairs, strict=True) if j == row]
        np.testing.assert_allclose(shift, np.mean(mine, axis=0), atol=1e-5)


def test_tricube_weights_with_the_middle_neighbour_as_unit(sides):
    points, at = sides
    weights = anchors.tricube_weights(points, at, 7, 3.0).toarray()
    for i in range(len(points)):
        d = np.linalg.norm(points[i].astype(float) - at, axis=1)
        near = np.argsort(d)[:7]
        w = (1 - np.minimum(d[near] / (3 * d[near][3]), 1) ** 3) ** 3
        expected = np.zeros(len(at))
        expected[near] = w / w.sum()
        np.testing.assert_allclose(weights[i], expected, atol=1e-5)
    assert anchors.tricube_weights(points, at[:3], 7, 3.0).shape == (60, 3)


def test_gaussian_average_in_blocks_with_weights_and_far_cells(sides, monkeypatch):
    points, at = sides
    values, log_weight = at[:, :2] ** 2, np.linspace(-1, 1, len(at))
    d2 = ((points[:, None].astype(float) - at[None]) ** 2).sum(axis=2)
    w = np.exp(-0.7 * d2 + log_weight)
    expected = (w / w.sum(axis=1, keepdims=True)) @ values
    monkeypatch.setattr(anchors, "_BLOCK_ENTRIES", 300)
    np.testing.assert_allclose(anchors.gaussian_smooth(points, at, values, 0.7, log_weight), expected, atol=1e-4)
    limit = float(np.median(np.log(w).max(axis=1)))
    moved = anchors.gaussian_smooth(points, at, values, 0.7, log_weight, smallest=limit)
    assert ((moved == 0).all(axis=1) == (np.log(w).max(axis=1) < limit - 1e-4)).all()
    # Weights that all underflow still have an average: that of the nearest.
    far = anchors.gaussian_smooth(points, at, values, 1e5)
    np.testing.assert_allclose(far, values[d2.argmin(axis=1)], atol=1e-4)
    density = anchors.gaussian_log_density(at, 0.7)
    inner = ((at[:, None].astype(float) - at[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(density, np.log(np.exp(-0.7 * inner).sum(axis=1)), atol=1e-4)


def test_depth_of_the_shallowest_batch():
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], 300)
    depth = np.where(batch == 0, 4.0, 1.0)[:, None]
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(2, 3, size=80) * depth).astype(np.float32))
    scaled = np.expm1(shared.depth_matched(counts, batch).toarray())
    sums = [scaled[batch == b].sum(axis=1).mean() for b in (0, 1)]
    assert abs(sums[0] / sums[1] - 1) < 0.05
    assert abs(sums[1] / counts[batch == 1].sum(axis=1).mean() - 1) < 0.01  # the shallow one is left as it is


def test_components_weigh_batches_alike():
    adata = tf.data.simulate(500, 60, n_types=3, batch_strength=0.5, seed=0)
    x = shared.depth_matched(adata.X, adata.obs["batch"].cat.codes.to_numpy())
    keep = np.r_[0:250, 250:300]
    x, batch, genes = x[keep], np.repeat([0, 1], [250, 50]), np.arange(0, 60, 2)
    x = shared.cosine_normalised(x, genes)
    np.testing.assert_allclose(np.linalg.norm(x[:, genes].toarray(), axis=1), 1, atol=1e-5)
    found = shared.multibatch_pca(x, batch, genes, 5)
    dense = x.toarray().astype(float)
    centre = (dense[batch == 0].mean(axis=0) + dense[batch == 1].mean(axis=0)) / 2
    weighted = (dense - centre) / np.sqrt(np.bincount(batch)[batch])[:, None]
    _, s, vt = np.linalg.svd(weighted[:, genes], full_matrices=False)
    aligned = np.abs(np.sum(vt[:5] * found.loadings[genes].T, axis=1))
    np.testing.assert_allclose(aligned, 1, atol=1e-4)
    np.testing.assert_allclose(found.embedding, (dense - centre)[:, genes] @ found.loadings[genes], atol=1e-4)
    u = weighted[:, genes] @ found.loadings[genes] / s[:5]
    np.testing.assert_allclose(found.loadings, weighted.T @ u / s[:5], atol=2e-3)


def test_batches_and_orders_are_checked():
    codes = Codes(np.array([0] * 30 + [1] * 5), ["big", "small"])
    with pytest.raises(DataError, match="'small' has 5 cells"):
        shared.cells_of_batches(codes, 20, "X", "n_neighbors")
    assert [len(cells) for cells in shared.cells_of_batches(codes, 5, "X", "n_neighbors")] == [30, 5]
    assert shared.order_of_batches(["small", "big"], codes.names, "X") == [1, 0]
    with pytest.raises(ParameterError, match="Did you mean 'small'"):
        shared.order_of_batches(["big", "smal"], codes.names, "X")
    with pytest.raises(ParameterError, match="each of the 2 batches once"):
        shared.order_of_batches(["big"], codes.names, "X")


def test_depth_of_two_batches_is_compared_in_the_genes_that_are_high_in_both():
    rng = np.random.default_rng(0)
    profiles = np.outer([1.0, 4.0, 2.0], rng.uniform(2, 5, 60))
    profiles = np.hstack([profiles, rng.uniform(0, 0.5, (3, 40))])  # too low to tell depth
    np.testing.assert_allclose(shared.depth_ratios(profiles)[0], [1, 4, 2], rtol=1e-6)
    np.testing.assert_allclose(shared.depth_ratios(profiles)[1], [0.25, 1, 0.5], rtol=1e-6)


def test_depth_falls_back_to_sums_where_batches_share_no_gene():
    profiles = np.array([[3.0, 0.0, 1.0, 0.0], [0.0, 6.0, 0.0, 2.0]])
    np.testing.assert_allclose(shared.depth_ratios(profiles), [[1, 2], [0.5, 1]])
