"""The conditional variational autoencoder of counts that are read as log-expression and fitted by squared error."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.errors import ParameterError
from tenfold.kernels.rows import SparseRows
from tenfold.nn.autoencoder import Batch, ConditionalVAE, Posterior
from tenfold.nn.mlp import MLP, NOTHING, Covariates, Widths


def log_expression(counts: SparseRows, log_size: Tensor, depth: float) -> SparseRows:
    """Return log(1 + x · depth / size) of counts x, (n_cells, n_genes); `log_size` has the shape (n_cells,)."""
    factor = (depth * torch.exp(-log_size))[counts.row_index()]
    return counts.with_values(torch.log1p(counts.values * factor))


class LogExpressionDecoder(nn.Module):
    """x̂(z, s) ≥ 0: hidden layers, a linear head and a ReLU. The loss is the squared error of log-expression.

    It takes the place of `CountDecoder`, without a distribution of counts.

    Parameters
    ----------
    n_latent, n_genes
        Width of input and output.
    n_hidden, n_layers
        Width and number of hidden layers, as in `MLP`.
    depth
        Size that cells are brought to before the logarithm.
    **options
        Covariates, norms and dropout of `MLP`.
    """

    likelihood, dispersion = "mse", "gene"

    def __init__(
        self, n_latent: int, n_genes: int, n_hidden: Widths = 128, n_layers: int = 1, *, depth: float = 1e4,
        **options: Any,
    ):  # fmt: skip
        super().__init__()
        self.depth = depth
        self.hidden = MLP(n_latent, n_hidden, n_layers, **options)
        self.mean_head = nn.Linear(self.hidden.n_out, n_genes)

    def log_scale(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the expected log-expression, shape (n_cells, n_genes)."""
        return F.relu(self.mean_head(self.hidden(z, covariates)))

    def scale(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the expression of a cell of unit size that the log-expression stands for, (n_cells, n_genes)."""
        return torch.expm1(self.log_scale(z, covariates)) / self.depth

    def nll(
        self, counts: SparseRows, z: Tensor, log_size: Tensor, covariates: Covariates = NOTHING,
        level: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the squared error of each cell, summed over genes, (n_cells,); `level` has no effect."""
        observed = log_expression(counts, log_size, self.depth).dense()
        return (self.log_scale(z, covariates).to(observed.dtype) - observed).square().sum(1)

    def model(self, *args: Any) -> NoReturn:
        """Refuse: there is no distribution of counts."""
        raise ParameterError(
            'likelihood="mse" fits log-expression by squared error: there is no likelihood of counts to draw from or '
            'to compare by. Fit with likelihood="nb".'
        )


class LogExpressionVAE(ConditionalVAE):
    """`ConditionalVAE` with a `LogExpressionDecoder`, whose encoder sees the same log-expression."""

    def encoder_input(self, batch: Batch) -> SparseRows:
        """Return the log-expression that the encoder sees."""
        return log_expression(batch["counts"], batch["log_size"], self.decoder.depth)  # type: ignore[arg-type]

    def nll_at_mean(self, batch: Batch) -> Tensor:
        """Refuse, see `LogExpressionDecoder.model`."""
        return self.decoder.model()  # type: ignore[call-arg, return-value]

    def log_weight(self, batch: Batch, posterior: Posterior) -> Tensor:
        """Refuse, see `LogExpressionDecoder.model`."""
        return self.decoder.model()  # type: ignore[call-arg, return-value]
