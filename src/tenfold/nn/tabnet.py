"""TabNet: a classifier that looks at a few features of each sample, in several steps.

A step masks the features, transforms what is left by gated layers, and hands one part of the result to the answer and
the other to the mask of the next step. The masks say which features were looked at.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil, sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.sparsemax import sparsemax


class Looked(NamedTuple):
    """What the network makes of some samples.

    Attributes
    ----------
    logits
        Of the answer, shape (n_samples, n_out).
    entropy
        Mean over samples and steps of Σ M log M of the masks: 0 where each looks at one feature, negative otherwise.
    masks
        Of each step, shape (n_samples, n_features); rows sum to 1.
    shares
        How much each step adds to the answer, shape (n_samples, n_steps).
    """

    logits: Tensor
    entropy: Tensor
    masks: list[Tensor]
    shares: Tensor


class SettlingBatchNorm(nn.BatchNorm1d):
    """Batch norm whose running statistics are the mean of all minibatches until there are 1 / momentum of them.

    As running means that start at 0 and 1 they would need some hundred minibatches to forget it, and predict badly
    until then: what is normalised here can have a variance of a thousandth.
    """

    def __init__(self, n_features: int, momentum: float):
        super().__init__(n_features, momentum=momentum)
        self.settled = momentum

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, shape (n_samples, n_features)."""
        if self.training:
            self.momentum = max(self.settled, 1 / (int(self.num_batches_tracked) + 1))  # type: ignore[arg-type]
        return super().forward(x)


class GhostBatchNorm(nn.Module):
    """Batch norm whose statistics are those of parts of the minibatch.

    Parameters
    ----------
    n_features
        Width.
    size
        Samples in a part, at most; parts are equally large.
    momentum
        Of the running statistics, which the parts update one after the other.

    References
    ----------
    Hoffer et al. (2017), arXiv 1705.08741.
    """

    def __init__(self, n_features: int, size: int, momentum: float):
        super().__init__()
        self.size, self.norm = size, SettlingBatchNorm(n_features, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, shape (n_samples, n_features)."""
        n_parts = ceil(len(x) / self.size)
        if not self.training or n_parts <= 1:
            return self.norm(x)
        return torch.cat([self.norm(part) for part in x.chunk(n_parts)])


class GatedLayer(nn.Module):
    """Linear map, ghost batch norm, then one half of the units times the sigmoid of the other.

    Parameters
    ----------
    linear
        The map, to twice the width; other layers may share it.
    size, momentum
        As in `GhostBatchNorm`.
    """

    def __init__(self, linear: nn.Linear, size: int, momentum: float):
        super().__init__()
        self.linear, self.norm = linear, GhostBatchNorm(linear.out_features, size, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_samples, n_in) to half of what the linear map gives."""
        return F.glu(self.norm(self.linear(x)))


class FeatureTransformer(nn.Module):
    """Gated layers, those that all steps share first; each but the first adds to what comes in, times √½.

    Parameters
    ----------
    shared
        Linear maps that are shared.
    n_in, n_out
        Width of input and output.
    n_own
        Number of layers of its own.
    size, momentum
        As in `GhostBatchNorm`.
    """

    def __init__(self, shared: list[nn.Linear], n_in: int, n_out: int, n_own: int, size: int, momentum: float):
        super().__init__()
        own = gated_maps(n_out if shared else n_in, n_out, n_own)
        self.layers = nn.ModuleList(GatedLayer(linear, size, momentum) for linear in (*shared, *own))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_samples, n_in) to (n_samples, n_out)."""
        x = self.layers[0](x)
        for layer in self.layers[1:]:
            x = (x + layer(x)) * sqrt(0.5)
        return x


class TabNet(nn.Module):
    """The whole network.

    Parameters
    ----------
    n_features, n_out
        Width of input and output.
    n_decision, n_attention
        Units of a step for the answer, and for the mask of the next step.
    n_steps
        Number of steps.
    relaxation
        At 1 a feature can be looked at fully in one step only; above it, again in later ones.
    n_shared, n_own
        Gated layers that steps share, and those of each step; one at least.
    size, momentum
        As in `GhostBatchNorm`.

    References
    ----------
    Arik & Pfister (2021), doi 10.1609/aaai.v35i8.16826.
    """

    def __init__(
        self, n_features: int, n_out: int, *, n_decision: int = 8, n_attention: int = 8, n_steps: int = 3,
        relaxation: float = 1.3, n_shared: int = 2, n_own: int = 2, size: int = 128, momentum: float = 0.02,
    ):  # fmt: skip
        super().__init__()
        self.n_decision, self.relaxation = n_decision, relaxation
        width = n_decision + n_attention
        self.norm = SettlingBatchNorm(n_features, 0.01)
        shared = gated_maps(n_features, width, n_shared)
        self.transformers = nn.ModuleList(
            FeatureTransformer(shared, n_features, width, n_own, size, momentum) for _ in range(n_steps + 1)
        )
        self.attention = nn.ModuleList(
            nn.Sequential(plain_map(n_attention, n_features), GhostBatchNorm(n_features, size, momentum))
            for _ in range(n_steps)
        )
        self.answer = plain_map(n_decision, n_out)

    def forward(self, x: Tensor) -> Looked:
        """Look at samples, shape (n_samples, n_features)."""
        x = self.norm(x)
        attended = self.transformers[0](x)[:, self.n_decision :]
        prior: Tensor | None = None
        answer, entropy, masks, shares = x.new_zeros(()), x.new_zeros(()), [], []
        for transformer, attention in zip(self.transformers[1:], self.attention, strict=True):
            wanted = attention(attended)
            mask, of_rows = sparsemax((wanted if prior is None else wanted * prior).float())
            left = self.relaxation - mask
            prior = left if prior is None else prior * left
            out = transformer(x * mask)
            decided = out[:, : self.n_decision].relu()
            answer, attended = answer + decided, out[:, self.n_decision :]
            entropy = entropy + of_rows.mean() / len(self.attention)
            masks.append(mask)
            shares.append(decided.sum(dim=1))
        return Looked(self.answer(answer), entropy, masks, torch.stack(shares, dim=1))


def gated_maps(n_in: int, n_out: int, number: int) -> list[nn.Linear]:
    """Return linear maps for gated layers, the first from n_in, the others from n_out, to twice n_out."""
    maps = []
    for before, after in pairwise([n_in, *[n_out] * number]):
        maps.append(nn.Linear(before, 2 * after, bias=False))
        nn.init.xavier_normal_(maps[-1].weight, gain=sqrt((before + 2 * after) / sqrt(before)))
    return maps


def plain_map(n_in: int, n_out: int) -> nn.Linear:
    """Return a linear map for what is not gated."""
    found = nn.Linear(n_in, n_out, bias=False)
    nn.init.xavier_normal_(found.weight, gain=sqrt((n_in + n_out) / sqrt(4 * n_in)))
    return found
