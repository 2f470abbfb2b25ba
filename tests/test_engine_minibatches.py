"""Minibatches: what they hold, their order, weights, small last batches."""

# ruff: noqa: NPY002  (the global generator is what is tested)
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse

from tenfold.engine import Minibatches, split
from tenfold.errors import DataError, ParameterError
from tenfold.kernels.rows import SparseRows


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    counts = sparse.random(40, 6, density=0.4, format="csc", dtype=np.float64, rng=rng)
    return {"x": counts, "y": rng.normal(size=40), "batch": np.arange(40, dtype=np.int32), "seen": np.ones(40, bool)}


def rows_of(batches, epoch=0):
    return [batch["index"].tolist() for batch in batches.epoch(epoch)]


def test_batches_hold_the_rows_they_name_and_stay_sparse(data):
    dense = data["x"].toarray().astype(np.float32)
    for batch in Minibatches(data, 16, seed=1).epoch(2):
        rows = batch["index"].numpy()
        assert isinstance(batch["x"], SparseRows)
        np.testing.assert_array_equal(batch["x"].dense(), dense[rows])
        np.testing.assert_array_equal(batch["y"], data["y"][rows].astype(np.float32))
        np.testing.assert_array_equal(batch["batch"], rows)
        types = {name: batch[name].dtype for name in ("y", "batch", "seen")}
        assert types == {"y": torch.float32, "batch": torch.int64, "seen": torch.bool}


def test_order_depends_on_seed_and_epoch_only(data):
    first, again, other = (Minibatches(data, 16, seed=seed) for seed in (1, 1, 2))
    list(again.epoch(0)), np.random.rand(), torch.rand(3)
    assert rows_of(first, 5) == rows_of(again, 5)
    assert rows_of(first, 5) != rows_of(first, 6)
    assert rows_of(first, 5) != rows_of(other, 5)
    assert sorted(itertools.chain(*rows_of(first, 5))) == list(range(40))
    assert rows_of(first, 5)[1:] == [batch["index"].tolist() for batch in first.epoch(5, start=1)]


def test_without_shuffling_rows_come_in_the_order_of_the_index(data):
    index = np.array([9, 2, 30, 2])
    assert rows_of(Minibatches(data, 3, index=index, shuffle=False)) == [[9, 2, 30, 2]]


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [(40, 16, [16, 16, 8]), (33, 16, [16, 17]), (34, 16, [16, 18]), (35, 16, [16, 16, 3]), (40, None, [40]),
     (5, 128, [5]), (5, 1, [1] * 5), (5, 2, [2, 3]), (1, 128, [1]), (2, 128, [2])],
)  # fmt: skip
def test_a_last_batch_too_small_for_batch_norm_joins_the_one_before(data, n, size, sizes):
    batches = Minibatches(data, size, index=np.arange(n))
    assert [len(rows) for rows in rows_of(batches)] == sizes
    assert len(batches) == len(sizes)


def test_weights_draw_cells_in_proportion(data):
    weights = np.zeros(40)
    weights[[3, 8]] = 1.0, 3.0
    batches = Minibatches(data, 10, weights=weights)
    drawn = np.concatenate([np.concatenate(rows_of(batches, epoch)) for epoch in range(50)])
    assert set(drawn) == {3, 8}
    assert 0.7 < (drawn == 8).mean() < 0.8
    assert len(drawn) == 50 * 40


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(40), np.zeros(40), np.full(40, np.nan)])
def test_unusable_weights_are_refused(data, weights):
    with pytest.raises(DataError, match="Sampling weights"):
        Minibatches(data, weights=weights)


def test_data_that_do_not_fit_together_are_refused(data):
    with pytest.raises(DataError, match=r"one row a cell.*'y': 3"):
        Minibatches({**data, "y": np.zeros(3)})
    with pytest.raises(DataError, match="none given"):
        Minibatches({})
    with pytest.raises(DataError, match="no cells"):
        Minibatches(data, index=np.array([], dtype=int))
    with pytest.raises(ParameterError, match="at least 1"):
        Minibatches(data, 0)


def test_split_is_random_disjoint_and_complete():
    train, validation = split(101, 0.9, seed=0)
    assert len(train) == 91
    assert sorted([*train, *validation]) == list(range(101))
    assert not np.array_equal(train, split(101, 0.9, seed=1)[0])
    np.testing.assert_array_equal(train, split(101, 0.9, seed=0)[0])
    assert len(split(10, 0.3, seed=0)[0]) == 3  # 0.3 × 10 is 3, not the next whole number above 3.0000000000000004
    assert len(split(10, 1.0, seed=0)[1]) == 0
