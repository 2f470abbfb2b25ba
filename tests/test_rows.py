"""Sparse minibatches hold exactly the rows asked for."""

import numpy as np
import pytest
import torch
from scipy import sparse

from tenfold.kernels.rows import SparseRows, all_rows, take_rows


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.3, (50, 17)).astype(np.float32)
    dense[7] = 0
    return sparse.csr_matrix(dense)


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_take_rows_equals_fancy_indexing(matrix, index_dtype):
    matrix.indptr, matrix.indices = matrix.indptr.astype(index_dtype), matrix.indices.astype(index_dtype)
    index = np.array([3, 7, 7, 49, 0])
    rows = take_rows(matrix, index)
    expected = matrix.toarray()[index]
    assert rows.shape == (5, 17) and len(rows) == 5
    np.testing.assert_array_equal(rows.dense().numpy(), expected)
    np.testing.assert_array_equal(rows.sum(1).numpy(), expected.sum(1))
    np.testing.assert_array_equal(rows.sum(0).numpy(), expected.sum(0))
    np.testing.assert_array_equal(rows.row_index().numpy(), np.nonzero(expected)[0])


def test_other_number_types_become_float32_and_float64_stays(matrix):
    assert take_rows(matrix.astype(np.int64), np.arange(3)).values.dtype == torch.float32
    assert take_rows(matrix.astype(np.float64), np.arange(3)).values.dtype == torch.float64


def test_rows_outside_the_matrix_are_refused(matrix):
    for bad in ([50], [-1]):
        with pytest.raises(IndexError, match="50 rows"):
            take_rows(matrix, np.array(bad))


def test_all_rows_keeps_everything_and_empty_selection_is_empty(matrix):
    np.testing.assert_array_equal(all_rows(matrix).dense().numpy(), matrix.toarray())
    none = take_rows(matrix, np.array([], dtype=int))
    assert none.shape == (0, 17) and none.dense().shape == (0, 17) and none.sum(1).shape == (0,)


def test_moving_and_replacing_values(matrix):
    rows = take_rows(matrix, np.arange(4)).to("cpu")
    logged = rows.with_values(torch.log1p(rows.values))
    assert isinstance(logged, SparseRows)
    np.testing.assert_allclose(logged.dense().numpy(), np.log1p(matrix.toarray()[:4]), rtol=1e-6)
