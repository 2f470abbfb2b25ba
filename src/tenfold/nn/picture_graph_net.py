"""The network of SiGra: graph transformers that code expression and picture, each alone and both together."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.graph_layers import Fixed, Neighborhoods
from tenfold.nn.graph_transformer import ProductTarget, TransformerDecoder, TransformerLayer, decoder_width


class Branch(nn.Module):
    """Code of one input, by two layers, and expression from it, by two more.

    Parameters
    ----------
    n_in, n_first, n_latent, n_hidden, n_genes
        Widths: input, before the code, code, after it, output.
    around
        The cells around each cell.
    """

    def __init__(self, n_in: int, n_first: int, n_latent: int, n_hidden: int, n_genes: int, around: Neighborhoods):
        super().__init__()
        self.first = TransformerLayer(n_in, n_first, around)
        self.code = TransformerLayer(n_first, n_latent, around)
        self.back = TransformerLayer(n_latent, n_hidden, around)
        self.decoder = TransformerDecoder(n_hidden, n_genes, around)

    def encode(self, x: Tensor | Fixed) -> Tensor:
        """Return the code, shape (n_cells, n_latent)."""
        return self.code(F.elu(self.first(x)))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return two matrices whose product is expression, as `TransformerDecoder` does."""
        return self.decoder(F.elu(self.back(z)))


class PictureGraphNet(nn.Module):
    """A branch that reads expression, one that reads the picture, and one that reads the codes of both.

    All give expression. The last is there where both others are.

    Parameters
    ----------
    expression
        X, shape (n_cells, n_genes).
    picture
        Shape (n_cells, n_features); None for no such branch.
    graph
        Non-zero for the neighbours of a cell, shape (n_cells, n_cells).
    n_hidden, n_latent
        Widths.
    weights
        Of the errors of the branches, which are called genes, picture and fused.
    reads_genes
        Whether there is a branch that reads expression.

    References
    ----------
    Tang et al. (2023), doi 10.1038/s41467-023-41437-w.
    """

    def __init__(
        self, expression: sparse.csr_matrix, picture: np.ndarray | None, graph: sparse.csr_matrix, n_hidden: int,
        n_latent: int, weights: dict[str, float], reads_genes: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.target, self.weights = ProductTarget(expression, decoder_width(n_hidden)), weights
        around, n_genes, widths = Neighborhoods(graph), expression.shape[1], {}
        if reads_genes:
            widths["genes"] = (n_genes, n_hidden)
        if picture is not None:
            self.register_buffer("picture", torch.from_numpy(picture), persistent=False)
            widths["picture"] = (picture.shape[1], n_hidden)
        if len(widths) == 2:
            widths["fused"] = (2 * n_latent, n_latent)
        self.branches = nn.ModuleDict(
            {name: Branch(*width, n_latent, n_hidden, n_genes, around) for name, width in widths.items()}
        )

    def _branch(self, name: str) -> Branch:
        return cast(Branch, self.branches[name])

    def codes(self) -> dict[str, Tensor]:
        """Return the code of every branch, the one that has read most last, each of shape (n_cells, n_latent)."""
        found: dict[str, Tensor] = {}
        if "genes" in self.branches:
            found["genes"] = self._branch("genes").encode(self.target.matrix)
        if "picture" in self.branches:
            found["picture"] = self._branch("picture").encode(self.get_buffer("picture"))
        if "fused" in self.branches:
            found["fused"] = self._branch("fused").encode(torch.cat(list(found.values()), dim=1))
        return found

    def terms(self) -> dict[str, Tensor]:
        """Return the loss and the mean squared error of every branch."""
        errors = {name: self.target.error(*self._branch(name).decode(code)) for name, code in self.codes().items()}
        loss = sum((self.weights[name] * error for name, error in errors.items()), torch.zeros(()))
        return {"loss": loss, **errors}

    @torch.no_grad()
    def outputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the code of the branch that has read most, and two matrices L, R with expression L Rᵀ."""
        name, code = list(self.codes().items())[-1]
        left, right = self._branch(name).decode(code)
        return code.numpy(), left.numpy(), right.numpy()
