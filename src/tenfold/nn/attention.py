"""Transformer blocks over the tokens of a cell, and what attention says of the tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.dropout import dropout


class Attention(nn.Module):
    """Multi-head softmax attention.

    Parameters
    ----------
    width
        Of the tokens; a multiple of `n_heads`.
    n_heads
        Number of heads.
    dropout
        Of the attention weights, in training.
    """

    def __init__(self, width: int, n_heads: int, dropout: float = 0.0):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def _heads(self, x: Tensor, n_first: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of the first tokens, keys and values of all, (n_cells, n_heads, n_tokens, width of a head)."""
        width = x.shape[2]
        weight, bias = self.inward.weight, self.inward.bias
        if n_first is None:
            parts = F.linear(x, weight, bias).split(width, dim=2)
        else:
            query = F.linear(x[:, :n_first], weight[:width], bias[:width])
            parts = (query, *F.linear(x, weight[width:], bias[width:]).split(width, dim=2))
        query, key, value = (part.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        return query, key, value

    def forward(self, x: Tensor, n_first: int | None = None, mask: Tensor | None = None) -> Tensor:
        """Return what each of the first tokens (default: all) gathers from all tokens.

        Parameters
        ----------
        x
            Tokens, shape (n_cells, n_tokens, width).
        n_first
            Number of tokens to gather for, k.
        mask
            Which tokens there are, shape (n_cells, n_tokens), bool; default all.

        Returns
        -------
        Shape (n_cells, k, width).
        """
        allowed = None if mask is None else mask[:, None, None, :]
        query, key, value = self._heads(x, n_first)
        if self.training and self.dropout:
            weights = dropout(_weights(query, key, allowed), self.dropout)
            found = weights @ value
        else:
            found = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.outward(found.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, n_first: int | None = None) -> Tensor:
        """Return the attention weights, mean over heads, shape (n_cells, k, n_tokens); rows sum to 1."""
        query, key, _ = self._heads(x, n_first)
        return _weights(query, key, None).mean(dim=1)


class TransformerBlock(nn.Module):
    """Attention, then a network of two layers on each token; both add to their input.

    Parameters
    ----------
    width, n_heads
        As in `Attention`.
    n_hidden
        Width of the hidden layer.
    attention_dropout, dropout
        Of attention weights; of what is added and of the hidden layer.
    stochastic_depth
        Share of cells that skip each of the two halves, in training.
    pre_norm
        Layer norm before each half; otherwise after.
    eps
        Of layer norm.
    """

    def __init__(
        self, width: int, n_heads: int, n_hidden: int, *, attention_dropout: float = 0.0, dropout: float = 0.0,
        stochastic_depth: float = 0.0, pre_norm: bool = True, eps: float = 1e-6,
    ):  # fmt: skip
        super().__init__()
        self.dropout, self.stochastic_depth, self.pre_norm = dropout, stochastic_depth, pre_norm
        self.attention = Attention(width, n_heads, attention_dropout)
        self.hidden, self.out = nn.Linear(width, n_hidden), nn.Linear(n_hidden, width)
        self.first_norm, self.second_norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, n_first: int | None = None, mask: Tensor | None = None) -> Tensor:
        """Map tokens (n_cells, n_tokens, width) to the first of them, (n_cells, k, width); default: to all.

        A last block of which a single token is read need not compute the others.
        """
        first = x if n_first is None else x[:, :n_first]
        if self.pre_norm:
            h = first + self._thinned(self.attention(self.first_norm(x), n_first, mask))
            return h + self._thinned(self._network(self.second_norm(h)))
        h = self.first_norm(first + self._thinned(self.attention(x, n_first, mask)))
        return self.second_norm(h + self._thinned(self._network(h)))

    def weights(self, x: Tensor, n_first: int | None = None) -> Tensor:
        """Return the attention weights of the block on its input, mean over heads, (n_cells, k, n_tokens)."""
        return self.attention.weights(self.first_norm(x) if self.pre_norm else x, n_first)

    def _network(self, x: Tensor) -> Tensor:
        return self.out(dropout(F.gelu(self.hidden(x)), self.dropout, self.training))

    def _thinned(self, added: Tensor) -> Tensor:
        """Drop part of what a half adds, and all of it for some cells."""
        added = dropout(added, self.dropout, self.training)
        if self.training and self.stochastic_depth:
            kept = torch.empty(len(added), 1, 1, device=added.device).bernoulli_(1 - self.stochastic_depth)
            added = added * (kept / (1 - self.stochastic_depth))
        return added


def _weights(query: Tensor, key: Tensor, allowed: Tensor | None) -> Tensor:
    """Return softmax of the scaled products, shape (n_cells, n_heads, k, n_tokens)."""
    scores = query * query.shape[3] ** -0.5 @ key.transpose(2, 3)
    return (scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))).softmax(dim=3)


def rollout(blocks: Any, x: Tensor) -> Tensor:
    """Return how much the first token draws on each token through all blocks, shape (n_cells, n_tokens).

    In each block a token keeps half of itself and takes the other half by attention; rows sum to 1.

    Parameters
    ----------
    blocks
        `TransformerBlock` in order.
    x
        Tokens that enter the first one, shape (n_cells, n_tokens, width).

    References
    ----------
    Abnar & Zuidema (2020), doi 10.18653/v1/2020.acl-main.385.
    """
    layers = []
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        layers.append(block.weights(x, 1 if last else None))
        if not last:
            x = block(x)
    # Of the last block one row is needed; what it draws on is followed back from there.
    found = layers[-1][:, 0] / 2
    found[:, 0] += 0.5
    for weights in reversed(layers[:-1]):
        found = (found + (found[:, None] @ weights)[:, 0]) / 2
    return found
