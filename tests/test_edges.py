"""Inner products on edges, and the error of a product of low rank, against their plain forms."""

import numpy as np
import pytest
import torch
from scipy import sparse

from tenfold.kernels.edges import edge_products, pair_products
from tenfold.nn.graph_layers import gram, product_error


@pytest.mark.parametrize("width", [1, 7, 130])
def test_edge_products(width):
    graph = sparse.random(30, 30, density=0.2, format="csr", random_state=0)
    graph.sort_indices()
    first, second = (torch.randn(30, width, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    indptr, neighbor = (torch.from_numpy(part.astype(np.int64)) for part in (graph.indptr, graph.indices))
    row, column = (torch.from_numpy(part.astype(np.int64)) for part in graph.nonzero())
    expected = (first[row] * second[column]).sum(dim=1)
    torch.testing.assert_close(edge_products(first, second, indptr, neighbor), expected, rtol=1e-5, atol=1e-5)
    # Half of the edges of a graph on one thread, all of them on two: the same.
    torch.set_num_threads(2)
    try:
        torch.testing.assert_close(edge_products(first, second, indptr, neighbor), expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(1)


def test_products_of_pairs_and_their_gradients():
    torch.manual_seed(0)
    x = torch.randn(12, 7, requires_grad=True)
    first, second = torch.randint(12, (2, 40))
    first[:3] = second[:3]  # a row with itself
    found, expected = pair_products(x, first, second), (x[first] * x[second]).sum(dim=1)
    torch.testing.assert_close(found, expected)
    sink = torch.randn(40)
    torch.testing.assert_close(*(torch.autograd.grad((y * sink).sum(), x)[0] for y in (found, expected)))


@pytest.mark.parametrize("n", [1, 3, 4, 21])
def test_a_product_with_the_own_transpose(n):
    x = torch.randn(9, n)
    torch.testing.assert_close(gram(x), x.T @ x)


def test_error_of_a_product_and_its_gradients():
    generator = torch.Generator().manual_seed(0)
    x, left, right = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9, 6), (9, 3), (6, 3))
    )
    left, right = left.requires_grad_(), right.requires_grad_()
    found = product_error(float(x.square().sum()), left, x @ right, right)
    expected = (x - left @ right.T).square().sum()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(e, (left, right)) for e in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)
