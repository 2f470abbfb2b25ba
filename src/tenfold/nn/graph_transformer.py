"""Graph transformer layers: attention of each cell to those around it, by products of queries and keys."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.graph_layers import Fixed, Neighborhoods, gram

#: Products run fastest where widths are multiples of it.
_ALIGNED = 16
#: Time of a product with a non-zero of a sparse matrix, in that of a product of dense ones.
_SPARSE_PRICE = 4


def decoder_width(n_in: int) -> int:
    """Return the columns of L and R of a `TransformerDecoder`; those beyond 2 × n_in + 2 are zero and stay so."""
    return -(-(2 * n_in + 2) // _ALIGNED) * _ALIGNED


class TransformerLayer(nn.Module):
    """Σⱼ αᵢⱼ (W_v xⱼ + b_v) + W_s xᵢ + b_s over the neighbours j of i, α = softmax((W_q xᵢ + b_q)·W_k xⱼ / √n_out).

    Keys need no bias: it would add the same to all logits of a cell. A cell without neighbours has its own part only.

    Parameters
    ----------
    n_in, n_out
        Widths.
    around
        The cells around each cell.

    Attributes
    ----------
    weight
        Those of query, key, value and the cell itself side by side, shape (n_in, 4 × n_out).
    bias
        Of query, value and the cell itself, shape (3, n_out).

    References
    ----------
    Shi et al. (2021), doi 10.24963/ijcai.2021/214.
    """

    def __init__(self, n_in: int, n_out: int, around: Neighborhoods):
        super().__init__()
        self.around, self.n_out = around, n_out
        self.weight = nn.Parameter(_drawn(n_in, n_in, 4 * n_out))
        self.bias = nn.Parameter(_drawn(n_in, 3, n_out))

    def forward(self, x: Tensor | Fixed) -> Tensor:
        """Return new features, shape (n_cells, n_out)."""
        mapped = x(self.weight) if isinstance(x, Fixed) else x @ self.weight
        query, key, value, own = mapped.split(self.n_out, dim=1)
        weights = _attention(self.around, query + self.bias[0], key, self.n_out)
        return self.around.mean(weights, value + self.bias[1]) + own + self.bias[2]


class TransformerDecoder(nn.Module):
    """A `TransformerLayer` to many genes, as a product L Rᵀ.

    What depends on genes is moved to where there are fewer numbers. Queries times keys, (W_q hᵢ + b_q)·W_k hⱼ, is
    (hᵢ W_qᵀW_k + b_qᵀ W_k)·hⱼ. As attention sums to 1, it averages h and not the values, so that the output is the
    product of L = [α h, h, 1 of cells with neighbours, 1] and R = [W_v, W_s, b_v, b_s], filled up with zeros.

    Parameters
    ----------
    n_in, n_genes
        Widths of input and output.
    around
        The cells around each cell.
    """

    def __init__(self, n_in: int, n_genes: int, around: Neighborhoods):
        super().__init__()
        self.around = around
        self.query = nn.Parameter(_drawn(n_in, n_genes, n_in))
        self.key = nn.Parameter(_drawn(n_in, n_genes, n_in))
        self.query_bias = nn.Parameter(_drawn(n_in, n_genes))
        used, width = 2 * n_in + 2, decoder_width(n_in)
        self.right = nn.Parameter(F.pad(_drawn(n_in, n_genes, used), (0, width - used)))
        constant = torch.zeros(around.n_cells, width - 2 * n_in)
        constant[:, 0] = around.get_buffer("indptr").diff() > 0
        constant[:, 1] = 1
        self.register_buffer("constant", constant, persistent=False)
        self.folds = (around.n_cells + n_genes) * n_in < 2 * around.n_cells * n_genes

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and R of the output, shapes (n_cells, n) and (n_genes, n), n being `decoder_width`."""
        if self.folds:
            query, key = h @ (self.query.T @ self.key) + self.query_bias @ self.key, h
        else:
            query, key = F.linear(h, self.query, self.query_bias), h @ self.key.T
        weights = _attention(self.around, query, key, len(self.query))
        return torch.cat([self.around.mean(weights, h), h, self.get_buffer("constant")], dim=1), self.right


class ProductTarget(nn.Module):
    """What a product L Rᵀ is to come near to; the product is made only where that is less work.

    Parameters
    ----------
    matrix
        X, shape (n_cells, n_genes).
    width
        Columns of L and of R.
    """

    def __init__(self, matrix: sparse.csr_matrix, width: int):
        super().__init__()
        n_cells, n_genes = matrix.shape
        self.matrix = Fixed(matrix)
        self.square = float(np.square(matrix.data, dtype=np.float64).sum())
        onto = n_cells * n_genes if self.matrix.is_dense else _SPARSE_PRICE * matrix.nnz
        self.writes_out = 3 * n_cells * n_genes <= 2 * (width * (n_cells + n_genes) + onto)
        if self.writes_out:
            dense = self.matrix.get_buffer("matrix") if self.matrix.is_dense else torch.from_numpy(matrix.toarray())
            self.register_buffer("dense", dense, persistent=False)

    def error(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the mean squared error of L Rᵀ."""
        return _MeanError.apply(self, left, right)


class _MeanError(torch.autograd.Function):
    """Its gradients are found along with it, of products that it needs itself."""

    @staticmethod
    def forward(ctx, target, left, right):
        if target.writes_out:
            apart = torch.addmm(target.get_buffer("dense"), left, right.T, beta=-1)
            error, to_left, to_right = apart.square().sum(), apart @ right, apart.T @ left
        else:
            # ‖X‖² - 2 ⟨L, X R⟩ + ⟨LᵀL, RᵀR⟩
            onto, of_left, of_right = target.matrix.times(right), gram(left), gram(right)
            error = target.square - 2 * (left * onto).sum() + (of_left * of_right).sum()
            to_left = torch.addmm(onto, left, of_right, beta=-1)
            to_right = torch.addmm(target.matrix.times(left, transposed=True), right, of_left, beta=-1)
        ctx.save_for_backward(to_left, to_right)
        ctx.size = target.matrix.shape[0] * target.matrix.shape[1]
        return error / ctx.size

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return None, *(part * (2 * upstream / ctx.size) for part in ctx.saved_tensors)


def _attention(around: Neighborhoods, query: Tensor, key: Tensor, n: int) -> Tensor:
    """Return the weight of every edge, by products of queries and keys of width n."""
    return around.softmax(around.products(query, key) / np.sqrt(n), bounded=False)


def _drawn(n_in: int, *shape: int) -> Tensor:
    """Return initial weights of a layer with so many inputs."""
    return torch.empty(shape).uniform_(-(n_in**-0.5), n_in**-0.5)
