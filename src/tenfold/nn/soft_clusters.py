"""Deep embedded clustering: soft membership in clusters by a Student kernel, trained towards its sharpened self."""

from __future__ import annotations

import torch
from torch import Tensor


def student_membership(latent: Tensor, centres: Tensor, width: float = 1.0, power: float | None = None) -> Tensor:
    """Return the membership of cells in clusters, rows of sum 1.

    It falls with the distance d to a centre as ``(1 + d² / width) ^ -power``.

    Parameters
    ----------
    latent
        Shape (n_cells, n_latent).
    centres
        Shape (n_clusters, n_latent).
    width
        Degrees of freedom of the kernel.
    power
        By default (width + 1) / 2, that of Student's distribution.

    Returns
    -------
    Shape (n_cells, n_clusters).

    References
    ----------
    Xie, Girshick and Farhadi (2016), doi 10.48550/arXiv.1511.06335.
    """
    squares = (latent**2).sum(dim=1, keepdim=True) - 2 * latent @ centres.T + (centres**2).sum(dim=1)
    log = -(power or (width + 1) / 2) * torch.log1p(squares.clamp_min(0) / width)
    return log.softmax(dim=1)


def sharpened(membership: Tensor) -> Tensor:
    """Return the target of the next rounds: squared membership, divided by the size of the cluster, rows of sum 1."""
    weight = membership**2 / membership.sum(dim=0)
    return weight / weight.sum(dim=1, keepdim=True)


def divergence(target: Tensor, membership: Tensor, least: float = 1e-6) -> Tensor:
    """Return the Kullback-Leibler divergence of membership from target, mean over cells, in nats."""
    return (target * (target.clamp_min(1e-30) / (membership + least)).log()).sum(dim=1).mean()
