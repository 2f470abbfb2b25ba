"""Batch norm with statistics, slopes and offsets of each domain (batch of cells) its own, and a decoder with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.kernels.rows import SparseRows
from tenfold.nn.expression_decoders import cross_entropy
from tenfold.nn.mlp import NOTHING, Covariates


class DomainNorm(nn.Module):
    """Batch norm by domain: in training each unit is standardised over the cells of the same domain in the minibatch.

    All domains are done at once, by sums over groups. A cell that is alone of its domain in a minibatch is standardised
    by the running statistics.

    Parameters
    ----------
    n_units, n_domains
        Number of units and of domains.
    momentum, eps
        As in `torch.nn.BatchNorm1d`.
    """

    def __init__(self, n_units: int, n_domains: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.slope = nn.Parameter(torch.ones(n_domains, n_units))
        self.offset = nn.Parameter(torch.zeros(n_domains, n_units))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(n_domains, n_units))
        self.register_buffer("variance", torch.ones(n_domains, n_units))

    def forward(self, h: Tensor, domain: Tensor) -> Tensor:
        """Standardise (n_cells, n_units) by the domain of each cell, shape (n_cells,), int64."""
        h = h.float()  # statistics in bfloat16 would be too coarse
        if self.training:
            with torch.autocast(h.device.type, enabled=False):
                h, scale = self._standardised(h, domain)
        else:
            h, scale = h - self.mean[domain], (self.variance + self.eps).rsqrt()
        return h * (scale * self.slope)[domain] + self.offset[domain]

    def _standardised(self, h: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
        """Return centred units and the inverse deviation of each domain, and move the running statistics."""
        member = F.one_hot(domain, len(self.slope)).to(h.dtype)
        sizes = member.sum(0)[:, None]
        many = sizes > 1
        share = member.t() / sizes.clamp(min=1)
        mean = torch.where(many, share @ h, self.mean)
        centred = h - mean[domain]
        found = share @ centred.square()
        variance = torch.where(many, found, self.variance)
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            unbiased = torch.where(many, found * sizes / (sizes - 1).clamp(min=1), self.variance)
            self.variance.lerp_(unbiased, self.momentum)
        return centred, (variance + self.eps).rsqrt()


class DomainDecoder(nn.Module):
    """x̂ in (0, 1): a linear map of z, `DomainNorm` by the first covariate, a sigmoid. The loss is the cross-entropy.

    Parameters
    ----------
    n_latent, n_genes
        Width of input and output.
    n_domains
        Number of batches.
    """

    dispersion = "gene"  # what `ConditionalVAE` asks of a decoder

    def __init__(self, n_latent: int, n_genes: int, n_domains: int):
        super().__init__()
        # A bias would cancel in the norm.
        self.linear = nn.Linear(n_latent, n_genes, bias=False)
        self.norm = DomainNorm(n_genes, n_domains)

    def logits(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the logit of the expected expression, shape (n_cells, n_genes)."""
        levels = covariates.levels
        domain = z.new_zeros(len(z), dtype=torch.int64) if levels is None else levels[:, 0]
        return self.norm(self.linear(z), domain)

    def scale(self, z: Tensor, covariates: Covariates = NOTHING) -> Tensor:
        """Return the expected expression, shape (n_cells, n_genes)."""
        return self.logits(z, covariates).sigmoid()

    def nll(
        self, x: SparseRows | Tensor, z: Tensor, log_size: Tensor | None = None, covariates: Covariates = NOTHING,
        level: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the cross-entropy of each cell, summed over genes, (n_cells,); `log_size` and `level` do nothing."""
        return cross_entropy(x, self.logits(z, covariates))
