"""The network of STAGATE: an autoencoder with attention over neighbours, whose decoder has the encoder's weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.graph_layers import Fixed, Neighborhoods, product_error

#: Of the normal draws of initial weights.
_GAIN = 1.414


class GraphAttention(nn.Module):
    """Autoencoder H = ELU(A X W₁), Z = H W₂, X̂ = ELU(A Z W₂ᵀ) W₁ᵀ with attention A over the cells around each cell.

    The reconstruction G W₁ᵀ, with G = ELU(A Z W₂ᵀ), is never made: its error follows from X W₁, which is at hand from
    the encoder (`product_error`).

    Parameters
    ----------
    expression
        X, shape (n_cells, n_genes).
    graph
        Non-zero for a cell's neighbours and the cell itself, shape (n_cells, n_cells).
    n_hidden, n_latent
        Widths.
    tie
        ``"clean"``: one set of weights, which takes the sum of the encoder's and the decoder's gradients. ``"double"``:
        two sets in one place, so that the optimiser steps twice, as in the original.

    References
    ----------
    Dong and Zhang (2022), doi 10.1038/s41467-022-29439-6.
    """

    first: nn.Parameter
    second: nn.Parameter
    source: nn.Parameter
    target: nn.Parameter

    def __init__(
        self, expression: sparse.csr_matrix, graph: sparse.csr_matrix, n_hidden: int, n_latent: int,
        tie: Literal["clean", "double"] = "clean",
    ):  # fmt: skip
        super().__init__()
        self.expression, self.around, self.tie = Fixed(expression), Neighborhoods(graph), tie
        self.square = float(np.square(expression.data, dtype=np.float64).sum())
        shapes = {"first": (expression.shape[1], n_hidden), "second": (n_hidden, n_latent)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(nn.init.xavier_normal_(torch.empty(shape), gain=_GAIN)))
        for name in ("source", "target"):
            drawn = nn.init.xavier_normal_(torch.empty(1, 1, n_hidden), gain=_GAIN)[0, 0]
            self.register_parameter(name, nn.Parameter(drawn))
        if tie == "double":
            for name in shapes:
                self.register_parameter(f"{name}_back", nn.Parameter(self.get_parameter(name).data))

    def _back(self, name: str) -> Tensor:
        """Return the decoder's weights; they lie where the encoder's are, also after a move to another device."""
        if self.tie == "clean":
            return self.get_parameter(name)
        back = self.get_parameter(f"{name}_back")
        back.data = self.get_parameter(name).data
        return back

    def attention(self, mapped: Tensor) -> Tensor:
        """Return the weight of every edge; those of a cell sum to 1. Logits are sigmoids, thus alike."""
        logits = (mapped @ self.source)[self.around.get_buffer("neighbor")]
        return self.around.softmax((logits + (mapped @ self.target)[self.around.get_buffer("cell")]).sigmoid())

    def encode(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return X W₁, the attention and the latent space."""
        mapped = self.expression(self.first)
        weights = self.attention(mapped)
        return mapped, weights, F.elu(self.around.mean(weights, mapped)) @ self.second

    def reconstruction(self) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of the reconstruction, and the latent space."""
        n_cells, n_genes = self.expression.shape
        mapped, weights, latent = self.encode()
        first, second = self._back("first"), self._back("second")
        # The average is taken before the weights: it is of the latent space, which is narrower.
        hidden = F.elu(self.around.mean(weights, latent) @ second.T)
        onto = mapped if self.tie == "clean" else self.expression(first)
        return product_error(self.square, hidden, onto, first) / (n_cells * n_genes), latent

    def terms(self) -> dict[str, Tensor]:
        """Return the loss, the mean squared error."""
        return {"loss": self.reconstruction()[0]}

    def aligned_terms(self, anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> dict[str, Tensor]:
        """Return the loss and its two parts: the error, and how much less cells that match lie apart than others.

        Parameters
        ----------
        anchor, positive, negative
            Cells: those that have a match, the match, and one that is none, each of shape (n_triplets,).
        margin
            By which a match is to be nearer, in Euclidean distance.
        """
        error, latent = self.reconstruction()
        apart = latent.new_zeros(())
        if len(anchor):
            apart = F.triplet_margin_loss(latent[anchor], latent[positive], latent[negative], margin=margin)
        return {"loss": error + apart, "reconstruction": error, "triplets": apart}

    @torch.no_grad()
    def embedding(self) -> np.ndarray:
        """Return the latent space, shape (n_cells, n_latent), float32."""
        return self.encode()[2].numpy()
