"""Polynomial exp, log and log1p against NumPy in float64."""

import numpy as np
import pytest
from numba import njit

from tenfold.kernels import vectormath


@njit
def _apply(which, x, out):
    for i in range(x.shape[0]):
        if which == 0:
            out[i] = vectormath.exp(x[i])
        elif which == 1:
            out[i] = vectormath.log(x[i])
        elif which == 2:
            out[i] = vectormath.log1p(x[i])
        elif which == 3:
            out[i] = vectormath.softplus(x[i])
        else:
            out[i] = vectormath.sigmoid(x[i])


def apply(which, x):
    x = np.asarray(x, dtype=np.float32)
    out = np.empty_like(x)
    _apply(which, x, out)
    return out.astype(np.float64)


POSITIVE = np.exp(np.linspace(-86, 86, 200_001)).astype(np.float32)
SIGNED = np.linspace(-87, 87, 200_001).astype(np.float32)
EXACT = {
    0: (SIGNED, np.exp),
    1: (POSITIVE, np.log),
    2: (POSITIVE, np.log1p),
    3: (SIGNED, lambda x: np.logaddexp(x, 0)),
    4: (SIGNED, lambda x: 1 / (1 + np.exp(-x))),
}


@pytest.mark.parametrize("which", EXACT)
def test_relative_error_is_that_of_float32(which):
    x, exact = EXACT[which]
    truth = exact(x.astype(np.float64))
    error = np.abs(apply(which, x) - truth) / np.maximum(np.abs(truth), 1e-37)
    assert error.max() < 2.5e-7


def test_log1p_keeps_tiny_arguments():
    tiny = np.float32([1e-30, 1e-12, 1e-8, 3e-8, 1e-7, 1e-4])
    np.testing.assert_allclose(apply(2, tiny), np.log1p(tiny.astype(np.float64)), rtol=2e-7)


def test_exp_is_held_where_float32_ends():
    assert np.isfinite(apply(0, [200, np.inf])).all()
    assert (apply(0, [-200, -np.inf]) < 2e-38).all()


def test_nan_stays_nan():
    for which in EXACT:
        assert np.isnan(apply(which, [np.nan])).all()


@pytest.mark.parametrize("values", [[-3, -1, -2], [0, -0.0, -1], [1e-40, -1e-40], [np.inf, 1], [-np.inf, -5], [-7]])
def test_row_max(values):
    row = np.array(values, dtype=np.float32)
    assert vectormath.row_max(row) == row.max()


def test_row_max_of_long_rows_and_nan():
    row = np.random.default_rng(0).normal(size=1001).astype(np.float32)
    assert vectormath.row_max(row) == row.max()
    row[500] = np.nan
    assert np.isnan(vectormath.row_max(row))
