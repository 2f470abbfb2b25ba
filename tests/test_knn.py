"""Nearest neighbours against plain sorting of all distances in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from tenfold.errors import DataError, ParameterError
from tenfold.kernels.knn import drop_self, knn


def points(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + 4 * rng.normal(size=(5, d))[rng.integers(5, size=n)]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("d", [2, 3, 12, 50])
def test_exact_neighbours_and_distances(metric: str, d: int) -> None:
    x = points(700, d)
    indices, distances = knn(x, k=20, metric=metric)
    full = cdist(x, x, metric)
    np.fill_diagonal(full, -1)
    expected = np.argsort(full, axis=1, kind="stable")[:, :20]
    assert indices.dtype == np.int32 and distances.dtype == np.float32
    assert (indices == expected).mean() > 0.9999
    np.fill_diagonal(full, 0)
    np.testing.assert_allclose(distances, np.take_along_axis(full, indices, 1), rtol=2e-4, atol=1e-6)


def test_query_against_reference() -> None:
    x, y = points(150, 10), points(400, 10, seed=1)
    indices, distances = knn(x, y, k=7)
    full = cdist(x, y)
    np.testing.assert_array_equal(indices, np.argsort(full, axis=1)[:, :7])
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :7], rtol=1e-5)


def test_close_points_far_from_the_origin_keep_their_digits() -> None:
    x = 1000.0 + np.random.default_rng(0).normal(size=(300, 20)) * 0.01
    _, distances = knn(x, k=5)
    np.testing.assert_allclose(distances[:, 1:], np.sort(cdist(x, x), axis=1)[:, 1:5], rtol=1e-4)


@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize("exact", [True, False])
def test_self_comes_first_among_duplicates(d: int, exact: bool) -> None:
    x = np.repeat(points(12, d), 25, axis=0)
    indices, distances = knn(x, k=10, exact=exact)
    np.testing.assert_array_equal(indices[:, 0], np.arange(300))
    assert (distances[:, 0] == 0).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    assert all(len(set(row)) == 10 for row in indices)


def test_approximate_search_is_deterministic_and_close() -> None:
    x = points(3000, 20)
    true, _ = knn(x, k=15, exact=True)
    first, distances = knn(x, k=15, exact=False, seed=3)
    again, _ = knn(x, k=15, exact=False, seed=3)
    np.testing.assert_array_equal(first, again)
    recall = np.mean([len(set(a) & set(b)) / 15 for a, b in zip(true, first, strict=True)])
    assert recall > 0.97
    direct = np.linalg.norm(x[first] - x[:, None], axis=2)
    np.testing.assert_allclose(distances, direct, rtol=1e-3, atol=1e-3)


def test_approximate_search_among_others_looks_beyond_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few lists searched, a third of the neighbours are elsewhere; descent finds most of these."""
    x, y = np.split(points(5400, 8), [400])
    true, _ = knn(x, y, k=15, exact=True)
    recall = []
    monkeypatch.setattr("tenfold.kernels.knn._LISTS", 4)
    for rounds in (0, 5):
        monkeypatch.setattr("tenfold.kernels.knn._MOST_ROUNDS", rounds)
        found, distances = knn(x, y, k=15, exact=False)
        recall.append(np.mean([len(set(a) & set(b)) / 15 for a, b in zip(true, found, strict=True)]))
        np.testing.assert_allclose(distances, np.linalg.norm(y[found] - x[:, None], axis=2), rtol=1e-3, atol=1e-3)
        assert (np.diff(distances, axis=1) >= 0).all() and all(len(set(row)) == 15 for row in found.tolist())
    assert recall[0] < 0.7 and recall[1] > 0.95


def test_all_cells_as_neighbours() -> None:
    indices, _ = knn(points(9, 6), k=9)
    assert all(sorted(row) == list(range(9)) for row in indices)


def test_drop_self() -> None:
    indices, distances = knn(points(30, 4), k=4)
    others, away = drop_self(indices, distances)
    assert others.shape == away.shape == (30, 3)
    assert not (others == np.arange(30)[:, None]).any()
    with pytest.raises(DataError, match="itself"):
        drop_self(others, away)


def test_bad_input_is_named() -> None:
    x = points(10, 4)
    with pytest.raises(DataError, match="only 10 cells"):
        knn(x, k=11)
    broken = x.copy()
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3"):
        knn(broken, k=2)
    with pytest.raises(DataError, match="dimensions"):
        knn(x, x[:, :2], k=2)
    with pytest.raises(DataError, match="zeros"):
        knn(np.vstack([x, np.zeros(4)]), k=2, metric="cosine")
    with pytest.raises(DataError, match="shape"):
        knn(x[0], k=1)
    with pytest.raises(ParameterError, match="metric"):
        knn(x, k=2, metric="manhattan")
    with pytest.raises(ParameterError, match="at least 1"):
        knn(x, k=0)


def test_neighbours_over_several_blocks_on_one_thread_and_two() -> None:
    """More rows and columns than a block holds; the threads share the rows."""
    import torch

    x, y = points(1200, 6), points(8400, 6, seed=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = knn(x, y, k=5)
        torch.set_num_threads(1)
        one = knn(x, y, k=5)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[0], np.argsort(cdist(x, y), axis=1, kind="stable")[:, :5])


def test_smallest_entries_of_rows_seen_in_pieces() -> None:
    from tenfold.kernels.smallest import Smallest

    rows = np.random.default_rng(5).integers(0, 40, size=(70, 900)).astype(np.float32)  # many equal entries
    kept = Smallest(70, 12)
    for first in range(0, 900, 130):
        kept.add(rows[:, first : first + 130], first)
    columns = kept.columns()
    assert all(len(set(own)) == 12 for own in columns.tolist())
    np.testing.assert_array_equal(np.sort(np.take_along_axis(rows, columns, 1), axis=1), np.sort(rows, axis=1)[:, :12])
