"""A layer's units after its linear map, in one pass each way: batch norm, ReLU and dropout together."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.kernels.hidden_layers import normed_backward, normed_forward, random_words
from tenfold.nn.mlp import MLP, NOTHING, Covariates

#: For no dropout.
NO_WORDS = np.empty((0, 0), np.uint16)


def is_one_pass(block: MLP) -> bool:
    """Whether `normed_units` computes a network's only layer, in its present mode: batch norm and ReLU on a CPU."""
    layer: Any = block.layers[0]
    return (
        block.training
        and torch.is_grad_enabled()
        and (len(block.layers), layer.layer_norm, layer.activation) == (1, None, "relu")
        and layer.batch_norm is not None
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def normed_units(a: Tensor, layer: Any) -> Tensor:
    """Return what a layer makes of its linear map `a`, shape (n_cells, n_out); in training only."""
    return _NormedUnits.apply(a.contiguous(), layer.batch_norm.weight, layer.batch_norm.bias, layer)


def hidden_units(block: MLP, x: Any, covariates: Covariates = NOTHING) -> Tensor:
    """Return what a network gives, (n_cells, n_out), in one pass where that can be."""
    if not is_one_pass(block):
        return block(x, covariates)
    layer: Any = block.layers[0]
    return normed_units(layer.linear(x, covariates), layer)


#: What the way back needs of the way forth: the normalised input and one over its standard deviation.
Way = tuple[np.ndarray, np.ndarray]


def forth(a: Tensor, gamma: Tensor, beta: Tensor, layer: Any) -> tuple[Tensor, Way]:
    """Return the units of a layer given its linear map, contiguous, and what `back` needs; without autograd."""
    norm, dropout = layer.batch_norm, layer.dropout
    h, standard, inverse = torch.empty_like(a), np.empty(a.shape, np.float32), np.empty(a.shape[1], np.float32)
    words = random_words(*a.shape) if dropout else NO_WORDS
    affine = gamma.detach().numpy(), beta.detach().numpy()
    running = norm.running_mean.numpy(), norm.running_var.numpy()
    normed_forward(
        a.detach().numpy(), *affine, words, dropout, norm.eps, norm.momentum, *running, standard, inverse, h.numpy()
    )
    norm.num_batches_tracked.add_(1)
    return h, (standard, inverse)


def back(upstream: Tensor, h: Tensor, way: Way, gamma: Tensor, layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the linear map and of the two parameters of batch norm."""
    grads = torch.empty_like(h), torch.empty_like(gamma), torch.empty_like(gamma)
    grad_a, grad_gamma, grad_beta = (grad.numpy() for grad in grads)
    kept = upstream.contiguous().numpy(), h.numpy(), *way, gamma.detach().numpy()
    normed_backward(*kept, 1 / (1 - layer.dropout), grad_gamma, grad_beta, grad_a)
    return grads


class _NormedUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, gamma, beta, layer):
        h, ctx.way = forth(a, gamma, beta, layer)
        ctx.save_for_backward(h, gamma)
        ctx.layer = layer
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        h, gamma = ctx.saved_tensors
        return *back(upstream, h, ctx.way, gamma, ctx.layer), None
