"""The networks of SpaCell: one code of expression and picture, or of expression alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.rows import SparseRows
from tenfold.nn.expression_autoencoder import ExpressionAutoencoder
from tenfold.nn.mlp import NOTHING, Layer

#: Width of each side's layer, and of the layers where there is one side only.
SIDE, ALONE = 256, (512, 256, 64)


class JointAutoencoder(nn.Module):
    """Expression and picture, a layer each, meet in a linear code from which both are decoded.

    Inputs lie between 0 and 1; the loss is the cross-entropy of each side, mean over its features. Without a picture
    it is a plain autoencoder of three layers each way.

    Parameters
    ----------
    n_genes, n_picture
        Width of both sides; 0 for no picture.
    n_latent
        Width of the code.

    References
    ----------
    Tan et al. (2020), doi 10.1093/bioinformatics/btz914.
    """

    def __init__(self, n_genes: int, n_picture: int, n_latent: int):
        super().__init__()
        self.n_picture = n_picture
        if not n_picture:
            self.alone = ExpressionAutoencoder(n_genes, n_latent, ALONE)
            return
        self.genes = Layer(n_genes, SIDE, batch_norm=False)
        self.picture = nn.Linear(n_picture, SIDE)
        self.code, self.back = nn.Linear(2 * SIDE, n_latent), nn.Linear(n_latent, 2 * SIDE)
        self.to_genes, self.to_picture = nn.Linear(2 * SIDE, n_genes), nn.Linear(2 * SIDE, n_picture)

    def encode(self, batch: dict[str, Any]) -> Tensor:
        """Return the code of a minibatch of ``genes`` and ``picture``, shape (n_cells, n_latent)."""
        if not self.n_picture:
            return self.alone.encode(batch["genes"])
        sides = self.genes(batch["genes"], NOTHING), F.relu(self.picture(batch["picture"]))
        return self.code(torch.cat(sides, dim=1))

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the loss and its parts."""
        z = self.encode(batch)
        if not self.n_picture:
            return {"loss": _sparse_cross_entropy(self.alone.decode(z), batch["genes"])}
        h = F.relu(self.back(z))
        genes = _sparse_cross_entropy(self.to_genes(h), batch["genes"])
        picture = F.binary_cross_entropy_with_logits(self.to_picture(h), batch["picture"])
        return {"loss": genes + picture, "genes": genes, "picture": picture}


def _sparse_cross_entropy(logits: Tensor, target: SparseRows) -> Tensor:
    """Return the mean cross-entropy of logits against shares, of which few are not zero."""
    hit = (logits[target.row_index(), target.indices] * target.values).sum()
    return (F.softplus(logits).sum() - hit) / logits.numel()
