"""Fully connected layers: sparse or dense input, covariates, normalisation, dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.rows import SparseRows
from tenfold.kernels.sparse_linear import sparse_linear

#: Batch norm as in the models of this family: slow running means, and a floor for the variance of silent units.
BATCH_NORM: dict[str, Any] = {"momentum": 0.01, "eps": 1e-3}

#: Width of every hidden layer, or of each.
Widths = int | Sequence[int]
Activation = Literal["relu", "leaky_relu", "mish", "elu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "mish": F.mish, "elu": F.elu}


class Covariates(NamedTuple):
    """What a network is told of each cell beside its expression.

    Attributes
    ----------
    levels
        Level of each categorical covariate, shape (n_cells, n_categorical), int64; None for no such covariates.
    continuous
        Continuous covariates, shape (n_cells, n_continuous); None for no such covariates.
    """

    levels: Tensor | None = None
    continuous: Tensor | None = None


#: A network that is told nothing.
NOTHING = Covariates()


class Layer(nn.Module):
    """Linear map with covariates, then batch norm, layer norm, activation and dropout, each where asked for.

    A categorical covariate adds a row of a table to the linear map, which is what a one-hot input would do, without the
    input. A covariate of one level adds nothing. Initial weights are drawn as for a linear layer whose inputs include
    the covariates.

    Parameters
    ----------
    n_in, n_out
        Width of input and output.
    categories
        Number of levels of each categorical covariate.
    n_continuous
        Number of continuous covariates.
    batch_norm, layer_norm
        Normalise each unit over the minibatch, each cell over the units (without parameters).
    dropout
        Share of units that are silenced in training.
    activation, slope
        ``"relu"``, ``"mish"``, ``"elu"``, or ``"leaky_relu"`` with this slope below 0.
    norm
        ``momentum`` and ``eps`` of batch norm, where they are not those of `BATCH_NORM`.
    """

    def __init__(
        self, n_in: int, n_out: int, *, categories: tuple[int, ...] = (), n_continuous: int = 0,
        batch_norm: bool = True, layer_norm: bool = False, dropout: float = 0.0, activation: Activation = "relu",
        slope: float = 0.01, norm: dict[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.told = [column for column, n_levels in enumerate(categories) if n_levels > 1]
        bound = 1 / sqrt(n_in + n_continuous + sum(categories[column] for column in self.told))

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))

        # Input-major, so that a sparse row gathers contiguous weights.
        self.weight = drawn(n_in, n_out)
        self.tables = nn.ParameterList([drawn(categories[column], n_out) for column in self.told])
        self.slopes = drawn(n_continuous, n_out) if n_continuous else None
        # Before batch norm a bias cancels.
        self.bias = None if batch_norm else drawn(n_out)
        self.batch_norm = nn.BatchNorm1d(n_out, **{**BATCH_NORM, **(norm or {})}) if batch_norm else None
        self.layer_norm = nn.LayerNorm(n_out, elementwise_affine=False) if layer_norm else None
        self.dropout, self.activation = dropout, activation
        leaky = partial(F.leaky_relu, negative_slope=slope)
        self.activate = leaky if activation == "leaky_relu" else _ACTIVATIONS[activation]

    def of_covariates(self, covariates: Covariates) -> Tensor | None:
        """Return what covariates add to the linear map, shape (n_cells, n_out); None if there are none."""
        parts = [
            F.embedding(covariates.levels[:, column], table)  # type: ignore[index]
            for column, table in zip(self.told, self.tables, strict=True)
        ]
        if self.slopes is not None:
            parts.append(covariates.continuous @ self.slopes)  # type: ignore[operator]
        return sum(parts[1:], start=parts[0]) if parts else None

    def linear(self, x: Tensor | SparseRows, covariates: Covariates) -> Tensor:
        """Return the linear map without bias, shape (n_cells, n_out)."""
        h = sparse_linear(x, self.weight) if isinstance(x, SparseRows) else x @ self.weight
        told = self.of_covariates(covariates)
        return h if told is None else h + told

    def forward(self, x: Tensor | SparseRows, covariates: Covariates) -> Tensor:
        """Map (n_cells, n_in) to (n_cells, n_out)."""
        h = self.linear(x, covariates)
        if self.bias is not None:
            h = h + self.bias
        if self.batch_norm is not None:
            h = self.batch_norm(h)
        if self.layer_norm is not None:
            h = self.layer_norm(h)
        h = self.activate(h)
        return F.dropout(h, self.dropout) if self.training and self.dropout else h


class MLP(nn.Module):
    """A chain of `Layer`.

    Parameters
    ----------
    n_in
        Width of the input.
    n_hidden
        Width of every layer; or the width of each, and `n_layers` does not count.
    n_layers
        Number of layers.
    categories, n_continuous, batch_norm, layer_norm, dropout
        As in `Layer`.
    deep_covariates
        Categorical covariates enter every layer rather than the first only. Continuous ones enter the first.
    **options
        ``activation``, ``slope`` and ``norm`` of `Layer`.

    Attributes
    ----------
    n_out
        Width of the output, that of the last layer.
    """

    def __init__(
        self, n_in: int, n_hidden: Widths, n_layers: int = 1, *, categories: tuple[int, ...] = (),
        n_continuous: int = 0, batch_norm: bool = True, layer_norm: bool = False, dropout: float = 0.0,
        deep_covariates: bool = True,
        **options: Any,
    ):  # fmt: skip
        super().__init__()
        shared = {"batch_norm": batch_norm, "layer_norm": layer_norm, "dropout": dropout, **options}
        widths = [n_hidden] * n_layers if isinstance(n_hidden, int) else list(n_hidden)
        first = Layer(n_in, widths[0], categories=categories, n_continuous=n_continuous, **shared)
        told = categories if deep_covariates else ()
        others = [Layer(before, width, categories=told, **shared) for before, width in pairwise(widths)]
        self.layers = nn.ModuleList([first, *others])
        self.n_out = widths[-1]

    def forward(self, x: Tensor | SparseRows, covariates: Covariates = NOTHING) -> Tensor:
        """Map (n_cells, n_in) to (n_cells, n_out)."""
        for layer in self.layers:
            x = layer(x, covariates)
        return x  # type: ignore[return-value]
