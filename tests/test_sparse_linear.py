"""Sparse rows times dense weights against the dense product."""

import numpy as np
import pytest
import torch
from scipy import sparse

from tenfold.kernels import sparse_linear as module
from tenfold.kernels.rows import all_rows
from tenfold.kernels.sparse_linear import csr_product, sparse_linear


def rows_of(density, n=37, columns=53, dtype=np.float32):
    matrix = sparse.random(n, columns, density, format="csr", random_state=1, dtype=np.float64)
    return all_rows(matrix.astype(dtype))


@pytest.mark.parametrize("density", [0.0, 0.03, 0.15, 0.22, 0.6, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 5, 64, 128, 300])
def test_product_and_gradient(density, dtype, width):
    rows = rows_of(density, dtype=dtype)
    torch.manual_seed(0)
    weight = torch.randn(53, width, dtype=rows.values.dtype, requires_grad=True)
    bias = torch.randn(width, dtype=rows.values.dtype, requires_grad=True)
    upstream = torch.randn(37, width, dtype=rows.values.dtype)
    out = sparse_linear(rows, weight, bias)
    ours = torch.autograd.grad(out, [weight, bias], upstream)
    dense = rows.dense().double()
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    torch.testing.assert_close(out.double(), dense @ weight.double() + bias.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours[0].double(), dense.T @ upstream.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours[1].double(), upstream.double().sum(0), rtol=tolerance, atol=tolerance)


def test_the_sparse_path_is_taken_for_sparse_rows_only(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "in_threads", lambda work, n: calls.append(n) or work(0, n))
    weight = torch.randn(53, 4, requires_grad=True)
    sparse_linear(rows_of(0.05), weight).sum().backward()
    assert calls == [37, 53]
    sparse_linear(rows_of(0.6), weight).sum().backward()
    assert calls == [37, 53]


def test_weights_and_gradients_that_are_not_contiguous():
    rows = rows_of(0.1)
    weight = torch.randn(6, 53, requires_grad=True)
    out = sparse_linear(rows, weight.T)
    upstream = torch.randn(6, 37).T
    (gradient,) = torch.autograd.grad(out, weight, upstream)
    torch.testing.assert_close(out, rows.dense() @ weight.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, upstream.T @ rows.dense(), rtol=1e-5, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    rows, weight = rows_of(0.1, n=200), torch.randn(53, 32, requires_grad=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = sparse_linear(rows, weight)
            results.append((out.detach(), torch.autograd.grad(out, weight, torch.ones_like(out))[0]))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_product_of_a_matrix_is_scipys(kind):
    x = sparse.random(50, 40, density=0.3, format="csr", dtype=np.float32, random_state=0)
    matrix = np.random.default_rng(0).normal(size=(40, 7)).astype(kind)
    found = csr_product(x, matrix.T.copy().T)
    assert found.dtype == kind
    np.testing.assert_allclose(found, x @ matrix, rtol=1e-4 if kind == np.float32 else 1e-12, atol=1e-6)
