"""The networks of SAUCIE's batch correction: an autoencoder for each batch and the reference, and one for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tenfold.nn.discrepancy import mmd
from tenfold.nn.expression_autoencoder import ExpressionAutoencoder
from tenfold.nn.expression_decoders import dense

#: Variances of the kernels, of distances whose largest is 1.
SCALES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 100.0, 1e3, 1e4, 1e5, 1e6)


class SaucieNet(nn.Module):
    """One autoencoder for every batch but the reference, which is trained on both, and a last one on what these give.

    Parameters
    ----------
    n_batches
        Number of batches; of two, the only autoencoder is also the last.
    reference
        Code of the reference batch. Its cells pass through the first autoencoder.
    sizes, options
        Of every `ExpressionAutoencoder`.
    """

    def __init__(self, n_batches: int, reference: int, sizes: tuple[Any, ...], options: dict[str, Any]):
        super().__init__()
        self.pairs = nn.ModuleList([ExpressionAutoencoder(*sizes, **options) for _ in range(n_batches - 1)])
        self.joint = ExpressionAutoencoder(*sizes, **options) if n_batches > 2 else None
        self.n_latent: int = sizes[1]
        self.others = [code for code in range(n_batches) if code != reference]

    def own(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return code and reconstruction of each cell by the autoencoder of its batch."""
        x, level = dense(batch["expression"]), batch["levels"][:, 0]
        z, recon = x.new_empty(len(x), self.n_latent), torch.empty_like(x)
        net: Any
        for place, (code, net) in enumerate(zip(self.others, self.pairs, strict=True)):
            # The first serves the reference too.
            rows = level == code if place else ~torch.isin(level, level.new_tensor(self.others[1:]))
            z[rows] = net.encode(x[rows])
            recon[rows] = net.decode(z[rows])
        return z, recon

    def encode(self, batch: dict[str, Any]) -> Tensor:
        """Return the code of cells, shape (n_cells, n_latent)."""
        z, recon = self.own(batch)
        return z if self.joint is None else self.joint.encode(recon)

    def decode(self, z: Tensor) -> Tensor:
        """Return the expression at a code, shape (n_cells, n_genes)."""
        last: Any = self.pairs[0] if self.joint is None else self.joint
        return last.decode(z)


def pair_terms(net: Any, x: Tensor, is_second: Tensor, weight: float) -> dict[str, Tensor]:
    """Return the loss of a minibatch of two batches.

    The squared error of the reference, a hundredth of that of the other batch after both it and its reconstruction are
    standardised gene by gene, and the maximum mean discrepancy of the codes. Distances of codes are divided by the
    largest. (The original first divides codes by their mean, which this undoes; only where the mean is about 0 it is
    seen, as NaN.)

    Parameters
    ----------
    net
        An `ExpressionAutoencoder`.
    x
        Expression, shape (n_cells, n_genes).
    is_second
        Whether a cell is not of the reference, shape (n_cells,).
    weight
        Of the discrepancy.
    """
    z = net.encode(x)
    recon = net.decode(z)
    parts = {"reference": x.new_zeros(()), "other": x.new_zeros(()), "mmd": x.new_zeros(())}
    if not is_second.all():
        parts["reference"] = (recon - x)[~is_second].square().mean()
    if is_second.any():
        parts["other"] = (_standardised(recon[is_second]) - _standardised(x[is_second])).square().mean()
    if is_second.any() and not is_second.all():
        z = z.float()
        largest = (z[:, None] - z).square().sum(-1).max().clamp(min=1e-12)
        z = z / largest.sqrt()
        parts["mmd"] = mmd(z[~is_second], z[is_second], SCALES).abs() / len(SCALES)
    return {"loss": parts["reference"] + 0.01 * parts["other"] + weight * parts["mmd"], **parts}


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / ((x.var(0, correction=0) + 1e-6).sqrt() + 1e-6)
