"""The VampPrior: a mixture of the posteriors of a few learned pseudo-cells."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.mlp import Covariates
from tenfold.nn.priors import Gaussian


class VampPrior(nn.Module):
    """Mixture of q(z | u, s) over pseudo-cells (u, s), with learned expression u and learned weights.

    Parameters
    ----------
    expression
        Expression that pseudo-cells start from, (n_components, n_genes).
    covariates
        Theirs, which stay as they are.
    as_reference
        The density of scvi-tools' SysVI: one mixture for every latent dimension by itself, with the square root of the
        standard deviation in the place of the standard deviation.

    References
    ----------
    Tomczak & Welling (2018), arXiv 1705.07120.
    """

    def __init__(self, expression: Tensor, covariates: Covariates, as_reference: bool = False):
        super().__init__()
        self.expression = nn.Parameter(expression.clone())
        self.levels: Tensor | None
        self.continuous: Tensor | None
        self.register_buffer("levels", covariates.levels)
        self.register_buffer("continuous", covariates.continuous)
        self.weight_logits = nn.Parameter(torch.zeros(len(expression)))
        self.as_reference = as_reference

    def components(self, encoder: GaussianEncoder) -> Gaussian:
        """Return the posteriors of the pseudo-cells, with the encoder in evaluation mode."""
        training = encoder.training
        encoder.eval()
        found = encoder(self.expression, Covariates(self.levels, self.continuous))
        encoder.train(training)
        return Gaussian(found.mean.float(), found.variance.float())

    def log_density(self, z: Tensor, encoder: GaussianEncoder) -> Tensor:
        """Return the log density of latent variables, shape (n_cells,)."""
        mean, variance = self.components(encoder)
        log_weight = self.weight_logits.log_softmax(0)[:, None]
        each = z.expand(len(mean), *z.shape)
        if self.as_reference:
            alone = Gaussian(mean[:, None, :, None], variance.sqrt()[:, None, :, None])
            return (alone.log_density(each[..., None]) + log_weight[:, :, None]).logsumexp(0).sum(1)
        return (Gaussian(mean[:, None], variance[:, None]).log_density(each) + log_weight).logsumexp(0)
