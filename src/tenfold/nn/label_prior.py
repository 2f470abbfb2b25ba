"""The prior of a latent variable under every label, with its gradient written out: in a fraction of autograd's time."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.kernels.hidden_layers import random_words
from tenfold.kernels.label_prior import (
    density_backward,
    density_forward,
    draw_backward,
    draw_forward,
    rectify,
    rectify_backward,
)
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.normed import NO_WORDS, is_one_pass


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
    """Both networks map x + t, where x is of the cell and t of the label, for every pair of a cell and a label.

    So mean and variance over all pairs follow from those of x and of t, and the gradient of batch norm from sums over
    cells and over labels: what is computed for each pair is ReLU, dropout and the products with the heads.
    """

    @staticmethod
    def forward(ctx, z, encoder, decoder, w, table, gamma, beta, heads, bias, w_2, table_2, gamma_2, beta_2, heads_2,
                bias_2):  # fmt: skip
        n_labels, (n_cells, n_latent) = len(table), z.shape
        n_rows = n_labels * n_cells
        layer, layer_2 = encoder.hidden.layers[0], decoder.hidden.layers[0]

        x = z @ w
        mean, told = x.mean(dim=0), _centred(table)
        x, variance = x - mean, x.var(dim=0, correction=0) + told.square().mean(dim=0)
        inverse = _follow(layer.batch_norm, mean + table.mean(dim=0), variance, n_rows)
        h = _units(gamma * inverse * x + beta, gamma * inverse * told, n_rows, layer.dropout)

        below, noise = torch.addmm(bias, h, heads.t()), torch.randn(n_rows, n_latent)
        sigma, z_2, kl = torch.empty_like(noise), torch.empty_like(noise), torch.empty(n_rows)
        least = np.float32(encoder.least_variance)
        draw_forward(below.numpy(), noise.numpy(), least, sigma.numpy(), z_2.numpy(), kl.numpy())

        middle, told_2 = z_2.mean(dim=0), _centred(table_2)
        apart = z_2 - middle
        products = apart.t() @ apart / n_rows
        of_labels = apart.view(n_labels, n_cells, -1).mean(dim=1)
        variance_2 = ((products @ w_2) * w_2).sum(dim=0) + told_2.square().mean(dim=0)
        variance_2 += 2 * ((of_labels @ w_2) * told_2).mean(dim=0)
        inverse_2 = _follow(layer_2.batch_norm, middle @ w_2 + table_2.mean(dim=0), variance_2, n_rows)
        slope_2 = gamma_2 * inverse_2
        h_2 = _units(apart @ (w_2 * slope_2), slope_2 * told_2 + beta_2, n_rows, layer_2.dropout)

        above, density = torch.addmm(bias_2, h_2, heads_2.t()), torch.empty(n_rows)
        density_forward(above.numpy(), z.detach().numpy(), density.numpy())
        ctx.save_for_backward(z, w, gamma, heads, w_2, gamma_2, heads_2)
        ctx.kept = x, told, inverse, h, below, noise, sigma, least, layer.dropout
        ctx.kept_2 = apart, products, of_labels, told_2, inverse_2, h_2, above, layer_2.dropout
        return density.view(n_labels, n_cells), kl.view(n_labels, n_cells)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_density, of_kl):
        z, w, gamma, heads, w_2, gamma_2, heads_2 = ctx.saved_tensors
        x, told, inverse, h, below, noise, sigma, least, dropout = ctx.kept
        apart, products, of_labels, told_2, inverse_2, h_2, above, dropout_2 = ctx.kept_2
        ctx.kept = ctx.kept_2 = None
        (n_labels, n_cells), n_rows = of_density.shape, len(h)
        grad_above, grad_z = torch.empty_like(above), torch.zeros_like(z)
        of_density, of_kl = (part.contiguous().view(-1).numpy() for part in (of_density, of_kl))
        density_backward(of_density, above.numpy(), z.numpy(), grad_above.numpy(), grad_z.numpy())

        # Of the decoder: what its norm was given is apart @ w_2 + told_2, times inverse_2.
        upstream = grad_above @ heads_2
        _, by_label = _back(upstream, h_2, n_labels, dropout_2)
        by_latent = apart.t() @ upstream
        grad_beta_2 = by_label.sum(dim=0)
        grad_gamma_2 = inverse_2 * ((by_latent * w_2).sum(dim=0) + (by_label * told_2).sum(dim=0))
        slope, level, lean = gamma_2 * inverse_2, grad_beta_2 / n_rows, inverse_2 * grad_gamma_2 / n_rows
        grad_table_2 = slope * (by_label - n_cells * (level + lean * (of_labels @ w_2 + told_2)))
        leaning = n_rows * (products @ w_2) + n_cells * (of_labels.t() @ told_2)
        grad_w_2 = slope * (by_latent - lean * leaning)
        back_2 = (w_2 * slope).t()
        of_label = (level + lean * told_2) @ back_2
        grad_z_2 = torch.addmm(upstream @ back_2, apart, (w_2 * lean) @ back_2, alpha=-1)
        grad_z_2 = (grad_z_2.view(n_labels, n_cells, -1) - of_label[:, None]).view(n_rows, -1)

        grad_below = torch.empty_like(below)
        draw_backward(grad_z_2.numpy(), of_kl, below.numpy(), noise.numpy(), least, sigma.numpy(), grad_below.numpy())

        # Of the encoder: x + told, times inverse.
        by_cell, by_label = _back(grad_below @ heads, h, n_labels, dropout)
        grad_beta = by_label.sum(dim=0)
        grad_gamma = inverse * ((by_cell * x).sum(dim=0) + (by_label * told).sum(dim=0))
        slope, level, lean = gamma * inverse, grad_beta / n_rows, inverse * grad_gamma / n_rows
        by_cell = slope * (by_cell - n_labels * (level + lean * x))
        grad_table = slope * (by_label - n_cells * (level + lean * told))
        return (
            grad_z + by_cell @ w.t(), None, None,
            z.t() @ by_cell, grad_table, grad_gamma, grad_beta, grad_below.t() @ h, grad_below.sum(dim=0),
            grad_w_2, grad_table_2, grad_gamma_2, grad_beta_2, grad_above.t() @ h_2, grad_above.sum(dim=0),
        )  # fmt: skip


def _centred(table):
    return table - table.mean(dim=0)


def _follow(norm, mean, variance, n_rows):
    """Move the running moments of a norm on; return one over the standard deviation of a minibatch."""
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (n_rows / (n_rows - 1)), norm.momentum)
    norm.num_batches_tracked.add_(1)
    return (variance + norm.eps).rsqrt()


def _units(x, of_labels, n_rows, dropout):
    """Return the units of every label and cell, (n_rows, n_hidden)."""
    h = torch.empty(n_rows, x.shape[1])
    words = random_words(*h.shape) if dropout else NO_WORDS
    rectify(x.numpy(), of_labels.numpy(), words, dropout, h.numpy())
    return h


def _back(upstream, h, n_labels, dropout):
    """Take a gradient back through `_units`, in place; return its sums over labels and over cells."""
    by_cell, by_label = torch.empty(len(h) // n_labels, h.shape[1]), torch.empty(n_labels, h.shape[1])
    rectify_backward(upstream.numpy(), h.numpy(), dropout, by_cell.numpy(), by_label.numpy())
    return by_cell, by_label
