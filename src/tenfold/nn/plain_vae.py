"""The loss of a plain conditional VAE with its gradient written out: what autograd would give, in a third of the time.

Plain means: one hidden layer each way with batch norm and ReLU, a normal latent variable, an observed library size, on
a CPU in float32; or, where the processor multiplies bfloat16 faster, with the three large products of the decoder in
bfloat16. Only what covariates add to a layer is left to autograd.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from tenfold.kernels.count_losses import value_and_gradients
from tenfold.kernels.hidden_layers import (
    latent_backward,
    latent_forward,
    normed_backward,
    normed_forward,
    random_words,
)
from tenfold.kernels.sparse_linear import rows_times, transposed_times
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.encoders import LEAST_VARIANCE
from tenfold.nn.mlp import MLP

if TYPE_CHECKING:
    from tenfold.nn.autoencoder import Batch, ConditionalVAE

#: Whether networks have the parts for it; a step takes so little time that looking again would be noticed.
_PLAIN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_NO_WORDS = np.empty((0, 0), np.uint16)


def is_plain(net: ConditionalVAE) -> bool:
    """Whether `plain_terms` computes the loss of this network, in its present mode."""
    if not (net.training and torch.is_grad_enabled()):
        return False
    parts = _PLAIN.get(net)
    if parts is None:
        parts = _PLAIN[net] = _has_plain_parts(net)
    weight = net.decoder.mean_head.weight
    return (
        parts
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (not torch.is_autocast_enabled("cpu") or _multiplies_bfloat16())
    )


def _has_plain_parts(net: ConditionalVAE) -> bool:
    encoder, decoder = net.encoder, net.decoder
    return (
        isinstance(decoder, CountDecoder)
        and _is_normed_layer(encoder.hidden)
        and _is_normed_layer(decoder.hidden)
        and (net.library, decoder.theta_head, net.latent) == (None, None, "normal")
        and (encoder.link, encoder.least_variance) == ("exp", LEAST_VARIANCE)
    )


def _is_normed_layer(block: MLP) -> bool:
    layer: Any = block.layers[0]
    norm = layer.batch_norm
    return (
        (len(block.layers), layer.layer_norm, layer.activation) == (1, None, "relu")
        and norm is not None and norm.affine and norm.track_running_stats and norm.momentum is not None
    )  # fmt: skip


@cache
def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


def plain_terms(net: ConditionalVAE, batch: Batch, kl_weight: float) -> dict[str, Tensor]:
    """Return what `ConditionalVAE.terms` returns."""
    encoder, decoder = net.encoder, net.decoder
    first: Any = encoder.hidden.layers[0]
    second: Any = decoder.hidden.layers[0]
    told = [first.of_covariates(net.encoder_covariates(batch)), second.of_covariates(net.covariates(batch))]
    # One by one: asking a module for its parameters takes as long as a small layer.
    norm, norm_2, heads, head, dropout_head = (
        first.batch_norm, second.batch_norm, encoder.heads, decoder.mean_head, decoder.dropout_head,
    )  # fmt: skip
    weights = [
        first.weight, norm.weight, norm.bias, heads.weight, heads.bias, second.weight, norm_2.weight, norm_2.bias,
        head.weight, head.bias, decoder.log_theta,
    ]  # fmt: skip
    if dropout_head is not None:
        weights += [dropout_head.weight, dropout_head.bias]
    trigger = next((weight for weight in weights if weight is not None and weight.requires_grad), None)
    loss, nll, kl = _PlainLoss.apply(net, batch, kl_weight, weights, trigger, *told)
    return {"loss": loss, "nll": nll, "kl": kl}


class _PlainLoss(torch.autograd.Function):
    """Autograd hears of one weight only, the `trigger`: the way back hands all weights their gradients itself."""

    @staticmethod
    def forward(
        ctx: Any, net: ConditionalVAE, batch: Batch, kl_weight: float, weights: list[Any],
        trigger: Tensor | None, *told: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        large = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        with torch.autocast("cpu", enabled=False):  # which products are in bfloat16 is said here, one by one
            nll, kl, ctx.of_told, ctx.grads = _terms_and_gradients(net, batch, kl_weight, large, *told, *weights)
        ctx.weights = weights
        ctx.mark_non_differentiable(nll, kl)
        ctx.set_materialize_grads(False)
        return nll + kl_weight * kl, nll, kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *others: Any) -> tuple:
        factor, grads, of_told = float(upstream), ctx.grads, ctx.of_told
        if factor != 1:
            grads = [None if grad is None else grad * factor for grad in grads]
            of_told = [None if grad is None else grad * factor for grad in of_told]
        for weight, grad in zip(ctx.weights, grads, strict=True):
            if weight is not None and weight.requires_grad:
                weight.grad = grad if weight.grad is None else weight.grad + grad
        ctx.grads = ctx.of_told = None
        return None, None, None, None, None, *of_told


def _terms_and_gradients(
    net: ConditionalVAE, batch: Batch, kl_weight: float, large: torch.dtype, told: Tensor | None, told_2: Tensor | None,
    w: Tensor, gamma: Tensor, beta: Tensor, w_heads: Tensor, b_heads: Tensor, w_2: Tensor, gamma_2: Tensor,
    beta_2: Tensor, *of_decoder: Any,
) -> tuple[Tensor, Tensor, list[Tensor | None], list[Tensor | None]]:  # fmt: skip
    """Return mean negative log-likelihood, mean KL, and the gradients of the loss by what is told, and by weights.

    `large` is the type of the operands of the three large products.
    """
    first: Any = net.encoder.hidden.layers[0]
    second: Any = net.decoder.hidden.layers[0]
    x = net.encoder_input(batch)
    a = rows_times(x, w)
    if told is not None:
        a += told
    h, way = _normed(first, a, gamma, beta)
    heads = torch.addmm(b_heads, h, w_heads.t())
    noise = torch.randn(len(a), heads.shape[1] // 2)
    variance, z = torch.empty_like(noise), torch.empty_like(noise)
    latent = (heads.numpy(), noise.numpy(), LEAST_VARIANCE, variance.numpy())
    kl = latent_forward(*latent, z.numpy())
    a_2 = torch.mm(z, w_2) if told_2 is None else torch.addmm(told_2, z, w_2)
    h_2, way_2 = _normed(second, a_2, gamma_2, beta_2)

    nll, grad_h_2, grads_of_decoder = _decoded(net, batch, h_2, large, *of_decoder)

    grad_a_2, *norm_2 = _back(second, grad_h_2, h_2, way_2, gamma_2)
    grad_heads = torch.empty_like(heads)
    latent_backward(torch.mm(grad_a_2, w_2.t()).numpy(), *latent, kl_weight, grad_heads.numpy())
    grad_a, *norm = _back(first, torch.mm(grad_heads, w_heads), h, way, gamma)
    of_told = [grad_a if told is not None else None, grad_a_2 if told_2 is not None else None]
    grads = [
        transposed_times(x, grad_a), *norm, torch.mm(grad_heads.t(), h), grad_heads.sum(0),
        torch.mm(z.t(), grad_a_2), *norm_2, *grads_of_decoder,
    ]  # fmt: skip
    return nll, torch.tensor(kl, dtype=torch.float32), of_told, grads


def _decoded(
    net: ConditionalVAE, batch: Batch, h: Tensor, large: torch.dtype, w: Tensor, b: Tensor, log_theta: Tensor | None,
    w_dropout: Tensor | None = None, b_dropout: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:  # fmt: skip
    """Return mean negative log-likelihood and its gradients, by the decoder's hidden layer and by weights."""
    decoder, h = net.decoder, h.to(large)
    w = w.to(large)
    logits, dropout_logits = torch.mm(h, w.t()), None
    if w_dropout is not None and b_dropout is not None:
        w_dropout = w_dropout.to(large)
        dropout_logits = torch.addmm(b_dropout.to(large), h, w_dropout.t())
    nll, found = value_and_gradients(
        decoder.likelihood, batch["counts"], logits, batch["log_size"], decoder.link, log_theta,
        net.level(batch) if decoder.by_level else None, dropout_logits, b,
    )  # fmt: skip
    grad_h = torch.mm(found.logits, w)
    grads: list[Tensor | None] = [torch.mm(found.logits.t(), h).float(), found.bias]
    grads.append(None if log_theta is None else found.log_theta.view(log_theta.shape))
    if w_dropout is not None:
        grad_h.addmm_(found.dropout_logits, w_dropout)
        grads += [torch.mm(found.dropout_logits.t(), h).float(), found.dropout_logits.sum(0, dtype=torch.float32)]
    return nll.mean(), grad_h.float(), grads


def _normed(layer: Any, a: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, tuple[np.ndarray, np.ndarray]]:
    """Return the units of a layer after batch norm, ReLU and dropout, and what the way back needs."""
    norm, dropout = layer.batch_norm, layer.dropout
    h, standard, inverse = torch.empty_like(a), np.empty(a.shape, np.float32), np.empty(a.shape[1], np.float32)
    running = norm.running_mean.numpy(), norm.running_var.numpy()
    affine = gamma.detach().numpy(), beta.detach().numpy()
    words = random_words(*a.shape) if dropout else _NO_WORDS
    settings = dropout, norm.eps, norm.momentum
    normed_forward(a.numpy(), *affine, words, *settings, *running, standard, inverse, h.numpy())
    norm.num_batches_tracked.add_(1)
    return h, (standard, inverse)


def _back(
    layer: Any, upstream: Tensor, h: Tensor, way: tuple[np.ndarray, np.ndarray], gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the input, gamma and beta of `_normed`."""
    grads = torch.empty_like(h), torch.empty_like(gamma), torch.empty_like(gamma)
    grad_a, grad_gamma, grad_beta = (grad.numpy() for grad in grads)
    kept = upstream.numpy(), h.numpy(), *way, gamma.detach().numpy()
    normed_backward(*kept, 1 / (1 - layer.dropout), grad_gamma, grad_beta, grad_a)
    return grads
