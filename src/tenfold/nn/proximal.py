"""Penalties that make weights exactly zero, applied after each step of the optimiser (proximal operators)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tenfold.kernels.adam import Adam


@torch.no_grad()
def shrink_entries(weight: Tensor, threshold: Tensor | float) -> None:
    """Bring every entry nearer to 0 by its threshold, in place: the proximal operator of the L1 norm.

    Parameters
    ----------
    weight
        Any shape.
    threshold
        At least 0; broadcasts to `weight`.
    """
    weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))


@torch.no_grad()
def shrink_rows(weight: Tensor, threshold: Tensor | float) -> None:
    """Bring every row nearer to 0 by its threshold, in place: the proximal operator of the group lasso.

    Parameters
    ----------
    weight
        Shape (n_rows, n_columns).
    threshold
        At least 0, shape (n_rows,) or one number; rows whose norm is not above it become 0.

    References
    ----------
    Yuan & Lin (2006), doi 10.1111/j.1467-9868.2005.00532.x.
    """
    norm = weight.norm(dim=1)
    kept = (1 - threshold / norm.clamp(min=torch.finfo(weight.dtype).tiny)).clamp(min=0)
    weight.mul_(kept[:, None])


class ProximalAdam(Adam):
    """Adam, after each of whose steps weights are shrunk in place.

    With Adam's own step for each weight this is not the proximal gradient method: its fixed points are those of the
    penalised loss only where these steps are alike.

    Parameters
    ----------
    params, options
        As for Adam.
    shrink
        Given the learning rate, shrinks weights in place.
    """

    def __init__(self, params: Any, shrink: Callable[[float], None], **options: Any):
        super().__init__(params, **options)
        self._shrink = shrink

    def step(self, closure: Any = None) -> Any:
        """Take a step, then shrink."""
        loss = super().step(closure)
        self._shrink(float(self.param_groups[0]["lr"]))
        return loss
