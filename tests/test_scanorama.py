"""Scanorama: matching and stitching against loops, the plan by hand, and its guards."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tenfold as tf
from tenfold.data.panorama import Step, match_batches, plan
from tenfold.errors import DataError
from tenfold.integrate.scanorama import Scanorama
from test_anchors import loop_pairs


@pytest.fixture
def points() -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    batch = rng.permutation(np.repeat([0, 1, 2], [60, 40, 50]))
    x = rng.normal(size=(150, 6)).astype(np.float32) + batch[:, None] * 0.3
    return x.astype(np.float32), [np.flatnonzero(batch == b) for b in range(3)]


def test_each_batch_looks_among_all_later_and_all_earlier_ones(points):
    x, members = points
    matches, alignment = match_batches(x, members, 5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)

    def named(b: int, others: list[int]) -> set[tuple[int, int]]:
        pool = np.concatenate([members[o] for o in others])
        d = np.abs(unit[members[b]][:, None] - unit[pool][None]).sum(axis=2)
        return {(members[b][i], c) for i in range(len(members[b])) for c in pool[np.argsort(d[i])[:5]]}

    for i, j in ((0, 1), (0, 2), (1, 2)):
        forward = named(i, list(range(i + 1, 3)))
        backward = {(b, a) for a, b in named(j, list(range(j)))}
        expected = forward & backward
        assert set(zip(*matches[i, j], strict=True)) == expected
        share = max(len({a for a, _ in expected}) / len(members[i]), len({b for _, b in expected}) / len(members[j]))
        assert alignment[i, j] == alignment[j, i] == pytest.approx(share)
    two = [np.sort(np.concatenate(members[:2])), members[2]]
    pairs = match_batches(x, two, 4)[0][0, 1]
    local = set(zip(np.searchsorted(two[0], pairs.left), np.searchsorted(two[1], pairs.right), strict=True))
    assert local == loop_pairs(unit[two[0]], unit[two[1]], 4, 4, p=1)


def test_stitching_is_a_gaussian_average_over_all_pairs(points):
    x, members = points
    method = Scanorama(n_neighbors=5, sigma=2.0)
    method._stitch(x, members, ["a", "b", "c"])
    moved = x.astype(float)
    for merge in method.merges_:
        at, to = moved[merge["moved_rows"]], moved[merge["reference_rows"]]
        cells = merge["cells"]
        w = np.exp(-0.5 * 2.0 * ((moved[cells][:, None] - at[None]) ** 2).sum(axis=2))
        moved[cells] += (w / w.sum(axis=1, keepdims=True)) @ (to - at)
    np.testing.assert_allclose(method.embedding_, moved, atol=1e-4)
    assert len(method.merges_) >= 2


def test_plan_starts_with_the_best_pair_and_the_larger_base():
    a = np.zeros((4, 4))
    a[0, 1], a[2, 3], a[1, 2], a[0, 3] = 0.9, 0.8, 0.5, 0.05
    steps, panoramas = plan(a + a.T, [10, 20, 30, 5], 0.1)
    assert steps == [
        Step([0], [1], [(0, 1)]),
        Step([3], [2], [(3, 2)]),
        Step([1, 0], [2, 3], [(1, 2)]),
    ]
    assert panoramas == [[1, 0, 2, 3]]
    a[1, 2] = 0.1  # must be exceeded
    assert plan(a + a.T, [10, 20, 30, 5], 0.1)[1] == [[1, 0], [2, 3]]
    a[:] = 0
    a[0, 1], a[0, 2] = 0.9, 0.8
    steps, panoramas = plan(a + a.T, [10, 20, 30, 5], 0.1)
    assert steps[1] == Step([2], [1, 0], [(2, 1), (2, 0)]) and panoramas == [[1, 0, 2], [3]]


def test_pairs_of_batches_used_often_are_passed_over():
    a = np.full((5, 5), 0.5) - np.diag(np.full(5, 0.5))
    steps, _ = plan(a, [10] * 5, 0.1)
    uses = np.zeros(5)
    expected = 0
    for i in range(4, -1, -1):
        for j in range(4, i, -1):
            uses[[i, j]] += 1
            expected += not (uses[[i, j]] > 3).all()
    assert len(steps) == expected < 10


def test_batches_mix_and_expression_follows():
    adata = tf.data.simulate(300, 120, n_types=3, n_batches=3, batch_strength=0.5, seed=0)
    adata = adata[np.random.default_rng(0).permutation(300)].copy()
    method = Scanorama(n_components=15).fit(adata, batch="batch")
    codes = adata.obs["batch"].cat.codes.to_numpy()

    def gap(values: np.ndarray) -> float:
        means = np.array([values[codes == b].mean(axis=0) for b in range(3)])
        return float(np.linalg.norm(means - means.mean(axis=0)))

    assert gap(method.embed()) < 0.5 * gap(method.start_)
    corrected = method.correct()
    assert gap(corrected) < 0.6 * gap(method.expression_.toarray())
    some = list(adata.var_names[[5, 2]])
    np.testing.assert_allclose(method.correct(genes=some), corrected[:, [5, 2]], atol=1e-5)


def test_far_cells_stay_and_unmatched_batches_are_named(points):
    x, members = points
    far = x.copy()
    far[members[0][0]] += 1000
    method = Scanorama(n_neighbors=5, sigma=50.0)
    method._stitch(far, members, ["a", "b", "c"])
    first = next(merge for merge in method.merges_ if members[0][0] in merge["cells"])
    if members[0][0] not in first["moved_rows"]:
        np.testing.assert_array_equal(method.embedding_[members[0][0]], far[members[0][0]])
    adata = tf.data.simulate(200, 100, n_types=2, n_batches=2, seed=0)
    with pytest.warns(UserWarning, match="batch_1, batch_2 matched no other"):
        apart = Scanorama(alpha=1.0, n_components=10).fit(adata, batch="batch")
    np.testing.assert_array_equal(apart.embed(), apart.start_)
    assert apart.panoramas_ == [["batch_1"], ["batch_2"]]


def test_small_batches_are_named():
    adata = tf.data.simulate(100, 80, seed=0)
    adata.obs["batch"] = pd.Categorical(["tiny"] + ["rest"] * 99)
    with pytest.raises(DataError, match="'tiny' has 1 cell,"):
        Scanorama().fit(adata, batch="batch")
