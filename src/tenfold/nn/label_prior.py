"""The prior of a latent variable under every label, with its gradient written out: in a third of autograd's time."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.kernels.label_prior import density_backward, density_forward, draw_backward, draw_forward
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.normed import back, forth, is_one_pass


def is_written_out(encoder: GaussianEncoder, decoder: GaussianEncoder, z: Tensor) -> bool:
    """Whether `label_densities` computes what two networks of one hidden layer say, in their present mode."""
    return z.dtype == torch.float32 and is_one_pass(encoder.hidden) and is_one_pass(decoder.hidden)


def label_densities(encoder: GaussianEncoder, decoder: GaussianEncoder, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(z₁ | z₂, y) at a draw of z₂, and KL(q(z₂ | z₁, y) ‖ N(0, I)), for every label y and cell.

    Parameters
    ----------
    encoder, decoder
        q(z₂ | z₁, y) and p(z₁ | z₂, y), which are told the label.
    z
        z₁, shape (n_cells, n_latent).

    Returns
    -------
    Both of shape (n_labels, n_cells), in nats.
    """
    weights = [weight for network in (encoder, decoder) for weight in _weights(network)]
    return _LabelDensities.apply(z.contiguous(), encoder, decoder, *weights)


def _weights(network: GaussianEncoder) -> tuple[Tensor, ...]:
    layer: Any = network.hidden.layers[0]
    norm = layer.batch_norm
    return layer.weight, layer.tables[0], norm.weight, norm.bias, network.heads.weight, network.heads.bias


class _LabelDensities(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, encoder, decoder, w, table, gamma, beta, heads, bias, w_2, table_2, gamma_2, beta_2, heads_2,
                bias_2):  # fmt: skip
        n_labels, (n_cells, n_latent) = len(table), z.shape
        n_rows = n_labels * n_cells
        layer, layer_2 = encoder.hidden.layers[0], decoder.hidden.layers[0]
        h, way = forth((z @ w + table[:, None]).view(n_rows, -1), gamma, beta, layer)
        below, noise = torch.addmm(bias, h, heads.t()), torch.randn(n_rows, n_latent)
        variance, z_2, kl = torch.empty_like(noise), torch.empty_like(noise), torch.empty(n_rows)
        least = np.float32(encoder.least_variance)
        draw_forward(below.numpy(), noise.numpy(), least, variance.numpy(), z_2.numpy(), kl.numpy())
        inward = (z_2 @ w_2).view(n_labels, n_cells, -1) + table_2[:, None]
        h_2, way_2 = forth(inward.view(n_rows, -1), gamma_2, beta_2, layer_2)
        above, density = torch.addmm(bias_2, h_2, heads_2.t()), torch.empty(n_rows)
        density_forward(above.numpy(), z.detach().numpy(), density.numpy())
        ctx.save_for_backward(z, w, gamma, heads, w_2, gamma_2, heads_2)
        ctx.kept = h, way, below, noise, variance, least, z_2, h_2, way_2, above, layer, layer_2
        return density.view(n_labels, n_cells), kl.view(n_labels, n_cells)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_density, of_kl):
        z, w, gamma, heads, w_2, gamma_2, heads_2 = ctx.saved_tensors
        h, way, below, noise, variance, least, z_2, h_2, way_2, above, layer, layer_2 = ctx.kept
        ctx.kept = None
        n_labels, n_cells = of_density.shape
        grad_above, grad_z = torch.empty_like(above), torch.zeros_like(z)
        of_density, of_kl = (part.contiguous().view(-1).numpy() for part in (of_density, of_kl))
        density_backward(of_density, above.numpy(), z.numpy(), grad_above.numpy(), grad_z.numpy())
        a_2, *of_norm_2 = back(grad_above @ heads_2, h_2, way_2, gamma_2, layer_2)
        grad_z_2, grad_below = a_2 @ w_2.t(), torch.empty_like(below)
        draw_backward(grad_z_2.numpy(), of_kl, below.numpy(), noise.numpy(), least, variance.numpy(),
                      grad_below.numpy())  # fmt: skip
        a, *of_norm = back(grad_below @ heads, h, way, gamma, layer)
        of_labels, of_labels_2 = (part.view(n_labels, n_cells, -1) for part in (a, a_2))
        of_cells = of_labels.sum(dim=0)
        grad_z += of_cells @ w.t()
        return (
            grad_z, None, None,
            z.t() @ of_cells, of_labels.sum(dim=1), *of_norm, grad_below.t() @ h, grad_below.sum(dim=0),
            z_2.t() @ a_2, of_labels_2.sum(dim=1), *of_norm_2, grad_above.t() @ h_2, grad_above.sum(dim=0),
        )  # fmt: skip
