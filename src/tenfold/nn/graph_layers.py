"""Parts of networks on graphs: products with a matrix that stays as it is, and attention over neighbours."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from tenfold.kernels.edges import edge_products
from tenfold.kernels.rows import SparseRows
from tenfold.kernels.sparse_linear import rows_times

#: Share of non-zeros above which a dense product is faster.
_DENSE = 0.25
#: Columns that a sparse matrix is multiplied with at once: of more, the factor would not stay in the cache.
_AT_ONCE = 128


class Fixed(nn.Module):
    """A matrix without gradients, sparse where it pays, that is multiplied with tensors that have them.

    Graphs and expression are such matrices. The transpose that gradients need is made once. Its entries are no part of
    the state of a network.

    Parameters
    ----------
    matrix
        Shape (n_rows, n_columns), float32.
    """

    def __init__(self, matrix: sparse.csr_matrix):
        super().__init__()
        matrix = sparse.csr_matrix(matrix, dtype=np.float32)
        self.shape = matrix.shape
        self.is_dense = matrix.nnz > _DENSE * matrix.shape[0] * matrix.shape[1]
        if self.is_dense:
            self.register_buffer("matrix", torch.from_numpy(matrix.toarray()), persistent=False)
            return
        for name, part in (("rows", matrix), ("columns", matrix.T.tocsr())):
            part.sort_indices()
            for key, value in (("indptr", part.indptr), ("indices", part.indices), ("values", part.data)):
                kind = {"indptr": np.int64, "indices": np.int32, "values": np.float32}[key]
                tensor = torch.from_numpy(value.astype(kind))
                self.register_buffer(f"{name}_{key}", tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with `x`, shape (n_columns, n) → (n_rows, n)."""
        return self.get_buffer("matrix") @ x if self.is_dense else _FixedProduct.apply(self, x)

    def times(self, x: Tensor, transposed: bool = False) -> Tensor:
        """Return the product of the matrix, or of its transpose, with `x`, without a gradient."""
        if self.is_dense:
            matrix = self.get_buffer("matrix")
            return (matrix.T if transposed else matrix) @ x
        name = "columns" if transposed else "rows"
        indptr, indices, values = (self.get_buffer(f"{name}_{key}") for key in ("indptr", "indices", "values"))
        n_rows, n_columns = self.shape[::-1] if transposed else self.shape
        if x.device.type == "cpu":
            rows = SparseRows(indptr, indices, values, n_columns)
            return torch.cat([rows_times(rows, part) for part in x.split(_AT_ONCE, dim=1)], dim=1)
        return torch.sparse_csr_tensor(indptr.int(), indices, values, (n_rows, n_columns)) @ x


class _FixedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fixed, x):
        ctx.fixed = fixed
        return fixed.times(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return None, ctx.fixed.times(upstream.contiguous(), transposed=True)


class Neighborhoods(nn.Module):
    """The cells around each cell, for attention: a pattern whose weights are learnt.

    Parameters
    ----------
    graph
        Non-zero where the column's cell is a neighbour of the row's, shape (n_cells, n_cells); every row needs one.
    """

    def __init__(self, graph: sparse.csr_matrix):
        super().__init__()
        graph = sparse.csr_matrix(graph)
        graph.sort_indices()
        by_column = sparse.csr_matrix((np.arange(graph.nnz), graph.indices, graph.indptr), shape=graph.shape).tocsc()
        parts = {
            "indptr": graph.indptr, "neighbor": graph.indices,
            "cell": np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr)),
            # The transpose: where its rows start, the cell of each entry, and the entry's place in the graph.
            "back_indptr": by_column.indptr, "back_cell": by_column.indices, "back_edge": by_column.data,
        }  # fmt: skip
        for name, value in parts.items():
            self.register_buffer(name, torch.from_numpy(value.astype(np.int64)), persistent=False)
        self.n_cells = graph.shape[0]

    def softmax(self, logits: Tensor, bounded: bool = True) -> Tensor:
        """Return weights that sum to 1 over the neighbours of each cell, shape (n_edges,).

        Logits that are not `bounded` are taken relative to the largest of each cell, so that none overflows.
        """
        if not bounded:
            cell, free = self.get_buffer("cell"), logits.detach()
            highest = free.new_full((self.n_cells,), -torch.inf).scatter_reduce(0, cell, free, "amax")
            logits = logits - highest[cell]
        weights = logits.exp()
        total = weights.new_zeros(self.n_cells).index_add(0, self.get_buffer("cell"), weights)
        return weights / total[self.get_buffer("cell")]

    def mean(self, weights: Tensor, x: Tensor) -> Tensor:
        """Return the sum over the neighbours of each cell of weight times features, (n_cells, n)."""
        return _WeightedSum.apply(self, weights, x)

    def products(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the inner product of `first` of the cell and `second` of the neighbour of every edge, (n_edges,)."""
        return _EdgeProducts.apply(self, first, second)

    def spread(self, weights: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
        """Return the product of the weights as a matrix, or of its transpose, with `x`, without a gradient."""
        name, columns = ("back_indptr", "back_cell") if transposed else ("indptr", "neighbor")
        values = weights[self.get_buffer("back_edge")] if transposed else weights
        indptr, indices = self.get_buffer(name), self.get_buffer(columns)
        if x.device.type == "cpu":
            return rows_times(SparseRows(indptr, indices, values, self.n_cells), x)
        return torch.sparse_csr_tensor(indptr, indices, values, (self.n_cells, self.n_cells)) @ x


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, around, weights, x):
        ctx.around = around
        ctx.save_for_backward(weights, x)
        return around.spread(weights, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        weights, x = ctx.saved_tensors
        around, upstream = ctx.around, upstream.contiguous()
        to_x = around.spread(weights, upstream, transposed=True) if ctx.needs_input_grad[2] else None
        to_weights = None
        if ctx.needs_input_grad[1]:
            to_weights = edge_products(upstream, x, around.get_buffer("indptr"), around.get_buffer("neighbor"))
        return None, to_weights, to_x


class _EdgeProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, around, first, second):
        ctx.around = around
        ctx.save_for_backward(first, second)
        return edge_products(first, second, around.get_buffer("indptr"), around.get_buffer("neighbor"))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        first, second = ctx.saved_tensors
        around, upstream = ctx.around, upstream.contiguous()
        return None, around.spread(upstream, second), around.spread(upstream, first, transposed=True)


def gram(x: Tensor) -> Tensor:
    """Return XᵀX, shape (n, n), without a gradient; NumPy makes half of it, the other half being the same."""
    if not x.is_cpu:
        return x.T @ x
    matrix = x.detach().numpy()
    return torch.from_numpy(matrix.T @ matrix)


def product_error(square: float, left: Tensor, onto: Tensor, right: Tensor) -> Tensor:
    """Return ‖X - L Rᵀ‖² of a matrix X that is known by its square sum and by X R; L Rᵀ is never made.

    Parameters
    ----------
    square
        ‖X‖².
    left, right
        L, shape (n_rows, n), and R, shape (n_columns, n).
    onto
        X R, shape (n_rows, n).
    """
    return _ProductError.apply(square, left, onto, right)


class _ProductError(torch.autograd.Function):
    """‖X‖² - 2 ⟨L, X R⟩ + ⟨LᵀL, RᵀR⟩; its gradients need one product each, where autograd would make two."""

    @staticmethod
    def forward(ctx, square, left, onto, right):
        of_left, of_right = gram(left), gram(right)
        ctx.save_for_backward(left, onto, right, of_left, of_right)
        return square - 2 * (left * onto).sum() + (of_left * of_right).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        left, onto, right, of_left, of_right = ctx.saved_tensors
        by_two = 2 * upstream
        to_left = torch.addmm(onto, left, of_right, beta=-1).mul_(by_two)
        return None, to_left, left * -by_two, (right @ of_left).mul_(by_two)
