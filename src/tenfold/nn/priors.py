"""Diagonal Gaussians: posteriors, priors, and how far one is from the other."""

from __future__ import annotations

from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Independent normal distributions.

    Attributes
    ----------
    mean, variance
        Both of shape (n_cells, n_dimensions), or broadcast to it.
    """

    mean: Tensor
    variance: Tensor

    def sample(self) -> Tensor:
        """Draw once, differentiable in mean and variance."""
        return torch.addcmul(self.mean, self.variance.sqrt(), torch.randn_like(self.mean))

    def log_density(self, value: Tensor) -> Tensor:
        """Return the log density of `value`, summed over dimensions, shape (n_cells,)."""
        terms = (value - self.mean).square() / self.variance + self.variance.log() + log(2 * pi)
        return -0.5 * terms.expand_as(value).sum(-1)

    def kl_from_standard(self) -> Tensor:
        """Return KL(self ‖ N(0, I)) in nats, shape (n_cells,)."""
        return 0.5 * (self.mean.square() + self.variance - self.variance.log() - 1).sum(-1)

    def kl_from(self, prior: Gaussian) -> Tensor:
        """Return KL(self ‖ prior) in nats, shape (n_cells,)."""
        ratio = self.variance / prior.variance
        return 0.5 * ((self.mean - prior.mean).square() / prior.variance + ratio - ratio.log() - 1).sum(-1)


def standard_log_density(value: Tensor) -> Tensor:
    """Return the log density of `value` under N(0, I), summed over dimensions, shape (n_cells,)."""
    return -0.5 * (value.square() + log(2 * pi)).sum(-1)
