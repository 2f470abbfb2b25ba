"""The loss of a plain conditional VAE with its gradient written out: what autograd would give, in a third of the time.

Plain means: one hidden layer each way with batch norm and ReLU, a normal latent variable, an observed library size,
float32 on a CPU. Only what lies between the first layer's product and the loss is written out; the rest is left to
autograd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold.kernels.count_losses import value_and_gradients
from tenfold.kernels.hidden_layers import latent_backward, latent_forward, normed_backward, normed_forward
from tenfold.nn.encoders import LEAST_VARIANCE
from tenfold.nn.mlp import MLP

if TYPE_CHECKING:
    from tenfold.nn.autoencoder import Batch, ConditionalVAE

_NONE = torch.empty(0, 0)


def is_plain(net: ConditionalVAE) -> bool:
    """Whether `plain_terms` computes the loss of this network, in its present mode."""
    weight = net.decoder.mean_head.weight
    return (
        net.training
        and torch.is_grad_enabled()
        and _is_normed_layer(net.encoder.hidden)
        and _is_normed_layer(net.decoder.hidden)
        and (net.library, net.decoder.theta_head, net.latent) == (None, None, "normal")
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def _is_normed_layer(block: MLP) -> bool:
    layer: Any = block.layers[0]
    normed = layer.batch_norm is not None and layer.layer_norm is None
    return len(block.layers) == 1 and normed and layer.activation == "relu"


def plain_terms(net: ConditionalVAE, batch: Batch, kl_weight: float) -> dict[str, Tensor]:
    """Return what `ConditionalVAE.terms` returns, from the same random numbers."""
    encoder, decoder = net.encoder, net.decoder
    first: Any = encoder.hidden.layers[0]
    second: Any = decoder.hidden.layers[0]
    told = net.covariates(batch)
    inputs = [first.linear(net.encoder_input(batch), net.encoder_covariates(batch)), second.of_covariates(told)]
    weights = [
        *first.batch_norm.parameters(), *encoder.heads.parameters(), second.weight, *second.batch_norm.parameters(),
        *decoder.mean_head.parameters(), decoder.log_theta,
    ]  # fmt: skip
    if decoder.dropout_head is not None:
        weights += decoder.dropout_head.parameters()
    loss, nll, kl = _PlainLoss.apply(net, batch, kl_weight, *inputs, *weights)
    return {"loss": loss, "nll": nll, "kl": kl}


class _PlainLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, net: ConditionalVAE, batch: Batch, kl_weight: float, a: Tensor, told: Tensor | None, gamma: Tensor,
        beta: Tensor, heads_weight: Tensor, heads_bias: Tensor, weight: Tensor, gamma_2: Tensor, beta_2: Tensor,
        mean_weight: Tensor, mean_bias: Tensor, log_theta: Tensor | None, *dropout_head: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        decoder, a = net.decoder, a.detach()
        first: Any = net.encoder.hidden.layers[0]
        second: Any = decoder.hidden.layers[0]
        # ---- forward
        mask = torch.empty_like(a).bernoulli_(1 - first.dropout) if first.dropout else _NONE
        scale = 1 / (1 - first.dropout)
        h, saved = _normed(first.batch_norm, a, gamma, beta, mask, scale)
        heads = torch.addmm(heads_bias, h, heads_weight.t())
        noise = torch.randn(len(a), heads.shape[1] // 2)
        variance, z = torch.empty_like(noise), torch.empty_like(noise)
        latent = (heads.numpy(), noise.numpy(), LEAST_VARIANCE, variance.numpy())
        kl = latent_forward(*latent, z.numpy())
        a_2 = torch.mm(z, weight) if told is None else torch.addmm(told, z, weight)
        h_2, saved_2 = _normed(second.batch_norm, a_2, gamma_2, beta_2, _NONE, 1.0)
        logits = torch.addmm(mean_bias, h_2, mean_weight.t())
        dropout_logits = torch.addmm(dropout_head[1], h_2, dropout_head[0].t()) if dropout_head else None
        level = net.level(batch) if decoder.by_level else None
        nll, grads = value_and_gradients(
            decoder.likelihood,
            batch["counts"],
            logits,
            batch["log_size"],
            decoder.link,
            log_theta,
            level,
            dropout_logits,
        )
        # ---- backward
        grad_h = torch.mm(grads.logits, mean_weight)
        heads_of_genes = [torch.mm(grads.logits.t(), h_2), grads.logits.sum(0)]
        of_dropout = []
        if dropout_head:
            grad_h.addmm_(grads.dropout_logits, dropout_head[0])
            of_dropout = [torch.mm(grads.dropout_logits.t(), h_2), grads.dropout_logits.sum(0)]
        grad_a_2, *norms_2 = _back(grad_h, h_2, saved_2, gamma_2, 1.0)
        grad_z, grad_heads = torch.mm(grad_a_2, weight.t()), torch.empty_like(heads)
        latent_backward(grad_z.numpy(), *latent, kl_weight, grad_heads.numpy())
        grad_a, *norms = _back(torch.mm(grad_heads, heads_weight), h, saved, gamma, scale)
        ctx.grads = [
            grad_a, None if told is None else grad_a_2, *norms, torch.mm(grad_heads.t(), h), grad_heads.sum(0),
            torch.mm(z.t(), grad_a_2), *norms_2, *heads_of_genes,
            None if log_theta is None else grads.log_theta.view(log_theta.shape), *of_dropout,
        ]  # fmt: skip
        mean_nll, mean_kl = nll.mean(), torch.tensor(kl, dtype=torch.float32)
        ctx.mark_non_differentiable(mean_nll, mean_kl)
        return mean_nll + kl_weight * mean_kl, mean_nll, mean_kl

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *others: Tensor) -> tuple:
        grads, ctx.grads = ctx.grads, None  # the only reference, so that parameters take gradients without a copy
        factor = float(upstream)
        if factor != 1:
            grads = [None if grad is None else grad * factor for grad in grads]
        return None, None, None, *grads


def _normed(
    norm: Any, a: Tensor, gamma: Tensor, beta: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the units after batch norm, ReLU and dropout, and what the way back needs."""
    h, standard, inverse = torch.empty_like(a), torch.empty_like(a), torch.empty(a.shape[1])
    running = norm.running_mean.numpy(), norm.running_var.numpy()
    affine = gamma.detach().numpy(), beta.detach().numpy()
    out = standard.numpy(), inverse.numpy(), h.numpy()
    normed_forward(a.numpy(), *affine, mask.numpy(), scale, norm.eps, norm.momentum, *running, *out)
    norm.num_batches_tracked.add_(1)
    return h, (standard, inverse)


def _back(
    upstream: Tensor, h: Tensor, saved: tuple[Tensor, Tensor], gamma: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the input, gamma and beta of `_normed`."""
    standard, inverse = saved
    grads = torch.empty_like(h), torch.empty_like(inverse), torch.empty_like(inverse)
    grad_a, grad_gamma, grad_beta = (grad.numpy() for grad in grads)
    kept = upstream.numpy(), h.numpy(), standard.numpy(), inverse.numpy(), gamma.detach().numpy()
    normed_backward(*kept, scale, grad_gamma, grad_beta, grad_a)
    return grads
