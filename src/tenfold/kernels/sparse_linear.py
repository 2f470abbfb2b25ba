"""Sparse rows times a dense matrix: the first layer of a network on counts."""

from __future__ import annotations

from torch import Tensor

from tenfold.kernels.rows import SparseRows


def sparse_linear(rows: SparseRows, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply sparse rows by a dense matrix, ``rows @ weight + bias``.

    Parameters
    ----------
    rows
        B rows of G columns. Transform the values first (``rows.with_values(rows.values.log1p())``); a scaling per
        gene belongs into `weight`.
    weight
        Shape (G, H): one row of outputs a gene, the transpose of what `torch.nn.Linear` stores.
    bias
        Shape (H,).

    Returns
    -------
    Shape (B, H). Differentiable once in `weight` and `bias`; the values of `rows` are data.
    """
    product = rows.dense() @ weight
    return product if bias is None else product + bias
