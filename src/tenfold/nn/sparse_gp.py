"""Gaussian processes over space, seen through inducing points, with the best posterior there in closed form.

What is observed of each cell is a mean and a variance, as an encoder gives them. In whitened coordinates, u = L v with
L Lᵀ = K the covariance of the inducing points, cell i has features a_i = L⁻¹ k(points, x_i), and the posterior of v has
precision B = I + Σ a_i a_iᵀ / ν_i and mean B⁻¹ Σ a_i y_i / ν_i. All is in float64: covariances of smooth functions are
too close to singular for float32.
"""

from __future__ import annotations

from math import expm1, log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.nn.priors import Gaussian

#: Added to the variance of the inducing values, whose prior is 1.
JITTER = 1e-8
#: Bounds of the squared length of the kernel.
SCALES = (1e-10, 1e4)
#: Rounding may take a variance below this.
_LEAST_VARIANCE = 1e-10


class Inducing(NamedTuple):
    """Posterior of the whitened values at the inducing points, of every section and process.

    Attributes
    ----------
    root
        Lower Cholesky factor of the precision, (n_sections, n_processes, n_points, n_points).
    mean
        Shape (n_sections, n_processes, n_points).
    """

    root: Tensor
    mean: Tensor

    def kl_from_prior(self) -> Tensor:
        """Return KL(posterior ‖ prior) in nats, summed over sections and processes."""
        m = self.mean.shape[-1]
        eye = torch.eye(m, dtype=self.root.dtype, device=self.root.device)
        spread = torch.linalg.solve_triangular(self.root, eye, upper=False).square().sum()
        log_det = 2 * self.root.diagonal(dim1=-2, dim2=-1).log().sum()
        return 0.5 * (spread + self.mean.square().sum() - self.mean.numel() + log_det)


class SparseGP(nn.Module):
    """Independent processes with the covariance 1 / (1 + d² / s), the same in all sections, each section on its own.

    Parameters
    ----------
    points
        Inducing points, shape (n_points, n_dimensions).
    n_processes
        Number of processes.
    n_sections
        Number of sections; what is seen in one says nothing of another.
    scale
        First value of s, in squared units of the points; it is trained.

    References
    ----------
    Titsias (2009), PMLR 5:567-574; Hensman et al. (2013), arXiv 1309.6835. With an encoder: Jazbec et al. (2021),
    arXiv 2010.13472.
    """

    def __init__(self, points: Tensor, n_processes: int, n_sections: int = 1, scale: float = 20.0):
        super().__init__()
        self.n_processes, self.n_sections = n_processes, n_sections
        self.points: Tensor
        self.register_buffer("points", points.double())
        self.raw_scale = nn.Parameter(torch.tensor(scale + log(-expm1(-scale))))  # softplus gives the scale
        shape = (n_sections, n_processes, len(points))
        self.root: Tensor
        self.register_buffer("root", torch.eye(len(points), dtype=torch.float64).repeat(*shape[:2], 1, 1))
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))

    @property
    def scale(self) -> Tensor:
        """Squared length of the kernel, s."""
        return F.softplus(self.raw_scale.double()).clamp(*SCALES)

    def covariance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the prior covariance of values at two sets of places, shape (n_first, n_second)."""
        apart = torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")
        scale = self.scale
        return scale / (scale + apart.square_())

    def features(self, places: Tensor) -> Tensor:
        """Return the whitened features of places, shape (n_places, n_points)."""
        prior = self.covariance(self.points, self.points)
        root = torch.linalg.cholesky(prior + JITTER * torch.eye(len(prior), dtype=prior.dtype, device=prior.device))
        return torch.linalg.solve_triangular(root, self.covariance(self.points, places), upper=False).T

    def seen(self, a: Tensor, section: Tensor | None, observed: Gaussian) -> tuple[Tensor, Tensor]:
        """Return what cells add to the precision B, and to B times the mean.

        Parameters
        ----------
        a
            Features of the cells, (n_cells, n_points).
        section
            Section of each cell, (n_cells,), int64; None where there is one section.
        observed
            Mean and variance for each cell, (n_cells, n_processes).

        Returns
        -------
        Shapes (n_sections, n_processes, n_points, n_points) and (n_sections, n_processes, n_points).
        """
        weight = 1 / observed.variance.double().T  # (n_processes, n_cells)
        weight = weight[None] if section is None else weight * self._members(section)[:, None]
        value = (weight * observed.mean.double().T)[..., None, :] @ a
        return (weight[..., None] * a).mT @ a, value[..., 0, :]

    def _members(self, section: Tensor) -> Tensor:
        return F.one_hot(section, self.n_sections).double().T

    @staticmethod
    def posterior(precision: Tensor, value: Tensor, times: float = 1.0) -> Inducing:
        """Return the posterior given what was `seen`, counted so many `times`: cells in all over cells seen."""
        eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
        root = torch.linalg.cholesky(eye + times * precision)
        return Inducing(root, torch.cholesky_solve(times * value[..., None], root)[..., 0])

    def at(self, known: Inducing, a: Tensor, section: Tensor | None) -> Gaussian:
        """Return the posterior of the processes at places with features `a`, shape (n_places, n_processes)."""
        mean = known.mean @ a.T  # (n_sections, n_processes, n_places)
        explained = torch.linalg.solve_triangular(known.root, a.T.expand(*mean.shape[:2], -1, -1), upper=False)
        # products, since the way back through a power takes twice as long
        variance = 1 - (a * a).sum(1) + (explained * explained).sum(-2)
        own = Gaussian(_of_section(mean, section), _of_section(variance, section))
        return own._replace(variance=own.variance.clamp(min=_LEAST_VARIANCE))

    # ---- after training ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def condition(self, places: Tensor, section: Tensor | None, observed: Gaussian, size: int = 4096) -> None:
        """Keep the posterior given all cells, `size` of them in memory at a time."""
        precision, value = torch.zeros_like(self.root), torch.zeros_like(self.mean)
        for rows in torch.arange(len(places)).split(size):
            told = None if section is None else section[rows]
            part = self.seen(self.features(places[rows]), told, Gaussian(*(each[rows] for each in observed)))
            precision += part[0]
            value += part[1]
        for buffer, found in zip((self.root, self.mean), self.posterior(precision, value), strict=True):
            buffer.copy_(found)

    @torch.no_grad()
    def forward(self, places: Tensor, section: Tensor | None = None, size: int = 4096) -> Gaussian:
        """Return the posterior at any places, given the cells of `condition`; the prior before it."""
        parts = []
        for rows in torch.arange(len(places)).split(size):
            told = None if section is None else section[rows]
            parts.append(self.at(Inducing(self.root, self.mean), self.features(places[rows]), told))
        return Gaussian(torch.cat([part.mean for part in parts]), torch.cat([part.variance for part in parts]))


def _of_section(values: Tensor, section: Tensor | None) -> Tensor:
    """Return (n_places, n_processes) from values for every section, (n_sections, n_processes, n_places)."""
    if section is None:
        return values[0].T
    return values[section, :, torch.arange(len(section), device=section.device)]


def grid(n_side: int, n_dimensions: int, extent: float) -> Tensor:
    """Return a lattice of points over [0, extent]ⁿ, `n_side` a side, shape (n_side ** n_dimensions, n_dimensions)."""
    side = torch.linspace(0, extent, n_side, dtype=torch.float64)
    return torch.cartesian_prod(*[side] * n_dimensions).reshape(-1, n_dimensions)
