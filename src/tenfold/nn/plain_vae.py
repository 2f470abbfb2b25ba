"""The loss of a plain conditional VAE with its gradient written out: what autograd would give, in a third of the time.

Plain means: one hidden layer each way with batch norm and ReLU, a normal latent variable, an observed library size, on
a CPU in float32; or, where the processor multiplies bfloat16 faster, with the three large products of the decoder in
bfloat16. Only what covariates add to a layer is left to autograd.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from tenfold.kernels.count_losses import value_and_gradients
from tenfold.kernels.hidden_layers import (
    Latent,
    MiddleGradients,
    Normed,
    Units,
    latent,
    middle_backward,
    middle_forward,
    random_words,
    units,
)
from tenfold.kernels.sparse_linear import multiplies_bfloat16, rows_times, transposed_times
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.encoders import LEAST_VARIANCE
from tenfold.nn.mlp import MLP

if TYPE_CHECKING:
    from tenfold.nn.autoencoder import Batch, ConditionalVAE

_NO_WORDS = np.empty((0, 0), np.uint16)


def is_plain(net: ConditionalVAE) -> bool:
    """Whether `plain_terms` computes the loss of this network, in its present mode."""
    return (
        net.training
        and torch.is_grad_enabled()
        and _parts_of(net) is not None
        and (not torch.is_autocast_enabled("cpu") or multiplies_bfloat16())
    )


def _has_plain_parts(net: ConditionalVAE) -> bool:
    encoder, decoder = net.encoder, net.decoder
    return (
        isinstance(decoder, CountDecoder)
        and _is_normed_layer(encoder.hidden)
        and _is_normed_layer(decoder.hidden)
        and (net.library, decoder.theta_head, net.latent) == (None, None, "normal")
        and (encoder.link, encoder.least_variance) == ("exp", LEAST_VARIANCE)
        and (decoder.log_theta is None or decoder.log_theta.is_leaf)  # else some of its rows are fixed
        and (decoder.mean_head.weight.device.type, decoder.mean_head.weight.dtype) == ("cpu", torch.float32)
    )


def _is_normed_layer(block: MLP) -> bool:
    layer: Any = block.layers[0]
    norm = layer.batch_norm
    return (
        (len(block.layers), layer.layer_norm, layer.activation) == (1, None, "relu")
        and norm is not None and norm.affine and norm.track_running_stats and norm.momentum is not None
    )  # fmt: skip


class _Parts:
    """The parts of a network, and the memory of its weights as compiled code takes it.

    Looked up once: asking a module for its parameters takes as long as a small layer.
    """

    def __init__(self, net: ConditionalVAE):
        encoder, decoder = net.encoder, net.decoder
        self.first: Any = encoder.hidden.layers[0]
        self.second: Any = decoder.hidden.layers[0]
        norm: Any = self.first.batch_norm
        norm_2: Any = self.second.batch_norm
        of_decoder = [(decoder.mean_head, "weight"), (decoder.mean_head, "bias"), (decoder, "log_theta")]
        if decoder.dropout_head is not None:
            of_decoder += [(decoder.dropout_head, "weight"), (decoder.dropout_head, "bias")]
        self._held = [
            _held(module, name) for module, name in (
                (self.first, "weight"), (norm, "weight"), (norm, "bias"), (encoder.heads, "weight"),
                (encoder.heads, "bias"), (self.second, "weight"), (norm_2, "weight"), (norm_2, "bias"), *of_decoder,
            )
        ]  # fmt: skip
        #: Every weight of the network, but for what covariates add; None for the theta of Poisson counts.
        self.weights = [weight for _, _, weight, _ in self._held]
        self.norms = [_norm_of(layer) for layer in (self.first, self.second)]
        self.counted = [norm.num_batches_tracked.numpy(), norm_2.num_batches_tracked.numpy()]
        self.small: Any = [weight.detach().numpy() for weight in self.weights[3:6]]
        self.of_decoder: list[Any] = [None if weight is None else weight.detach() for weight in self.weights[8:]]
        self._n = 0
        self._memory: Any = None

    def are_current(self) -> bool:
        """Whether no weight has been replaced or has moved."""
        return all(
            own.get(name) is weight and (weight is None or weight.data_ptr() == place)
            for own, name, weight, place in self._held
        )

    def memory(self, n: int) -> tuple[Units, Latent, Units]:
        """Return memory for the units of the two layers and the latent variable of n cells."""
        if self._memory is None or n != self._n:
            widths = self.first.weight.shape[1], self.second.weight.shape[1]
            self._n, self._memory = n, (units(n, widths[0]), latent(n, len(self.small[2])), units(n, widths[1]))
        return self._memory


#: What was looked up.
_PARTS: WeakKeyDictionary[Any, _Parts] = WeakKeyDictionary()


def _parts_of(net: ConditionalVAE) -> _Parts | None:
    """Return the parts of a network, None if it is not plain."""
    parts = _PARTS.get(net)
    if parts is None or not parts.are_current():
        parts = _Parts(net) if _has_plain_parts(net) else None
        if parts is not None:
            _PARTS[net] = parts
    return parts


def _held(module: Any, name: str) -> tuple[dict[str, Any], str, Any, int]:
    own = module._parameters
    weight = own.get(name)
    return own, name, weight, 0 if weight is None else weight.data_ptr()


def _norm_of(layer: Any) -> Normed:
    norm = layer.batch_norm
    parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    gamma, beta, mean, variance = (part.detach().numpy() for part in parts)
    return Normed(gamma, beta, mean, variance, layer.dropout, norm.eps, norm.momentum)


def plain_terms(net: ConditionalVAE, batch: Batch, kl_weight: float) -> dict[str, Tensor]:
    """Return what `ConditionalVAE.terms` returns, for a network that `is_plain` found to be."""
    parts = _PARTS[net]
    told = parts.first.of_covariates(net.encoder_covariates(batch))
    told_2 = parts.second.of_covariates(net.covariates(batch))
    trigger = next((weight for weight in parts.weights if weight is not None and weight.requires_grad), None)
    loss, nll, kl = _PlainLoss.apply(net, parts, batch, kl_weight, trigger, told, told_2)
    return {"loss": loss, "nll": nll, "kl": kl}


class _PlainLoss(torch.autograd.Function):
    """Autograd hears of one weight only, the `trigger`: the way back hands all weights their gradients itself."""

    @staticmethod
    def forward(
        ctx: Any, net: ConditionalVAE, parts: _Parts, batch: Batch, kl_weight: float, trigger: Tensor | None,
        told: Tensor | None, told_2: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        half = torch.is_autocast_enabled("cpu")
        large = torch.bfloat16 if half else torch.float32
        # Which products are in bfloat16 is said here, one by one.
        with torch.autocast("cpu", enabled=False) if half else nullcontext():
            nll, kl, ctx.of_told, ctx.grads = _terms_and_gradients(net, parts, batch, kl_weight, large, told, told_2)
        ctx.weights = parts.weights
        terms = torch.from_numpy(np.array([nll + kl_weight * kl, nll, kl], np.float32)).unbind()
        ctx.mark_non_differentiable(*terms[1:])
        ctx.set_materialize_grads(False)
        return terms  # type: ignore[return-value]

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
    net: ConditionalVAE, parts: _Parts, batch: Batch, kl_weight: float, large: torch.dtype, told: Tensor | None,
    told_2: Tensor | None,
) -> tuple[float, float, list[Tensor | None], list[Tensor | None]]:  # fmt: skip
    """Return mean negative log-likelihood, mean KL, and the gradients of the loss by what is told, and by weights.

    `large` is the type of the operands of the three large products.
    """
    x = net.encoder_input(batch)
    first, z, second = parts.memory(len(x))
    norm, norm_2 = parts.norms
    rows_times(x, parts.weights[0].detach(), first.a)
    if told is not None:
        first.a[:] += told.detach().numpy()
    second.a[:] = 0.0 if told_2 is None else told_2.detach().numpy()
    words = random_words(*first.a.shape) if norm.dropout else _NO_WORDS
    z.noise[:] = torch.randn(z.noise.shape).numpy()
    words_2 = random_words(*second.a.shape) if norm_2.dropout else _NO_WORDS
    w_heads, b_heads, w = parts.small
    kl = middle_forward(first, norm, words, w_heads, b_heads, LEAST_VARIANCE, z, w, second, norm_2, words_2)
    for counted in parts.counted:
        counted += 1

    nll, upstream, of_decoder = _decoded(net, batch, torch.from_numpy(second.h), large, *parts.of_decoder)

    like = (norm.gamma, norm.beta, *parts.small, norm_2.gamma, norm_2.beta, first.a, second.a)
    grads = MiddleGradients(*(np.empty(part.shape, np.float32) for part in like))
    middle_backward(upstream.numpy(), first, norm, w_heads, LEAST_VARIANCE, z, kl_weight, w, second, norm_2, grads)
    *of_middle, grad_a, grad_a_2 = map(torch.from_numpy, grads)
    of_told = [None if told is None else grad_a, None if told_2 is None else grad_a_2]
    return nll, kl, of_told, [transposed_times(x, grad_a), *of_middle, *of_decoder]


def _decoded(
    net: ConditionalVAE, batch: Batch, h: Tensor, large: torch.dtype, w: Tensor, b: Tensor, log_theta: Tensor | None,
    w_dropout: Tensor | None = None, b_dropout: Tensor | None = None,
) -> tuple[float, Tensor, list[Tensor | None]]:  # fmt: skip
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
    grad_h = torch.mm(logits, w)
    grads: list[Tensor | None] = [torch.mm(logits.t(), h).float(), torch.from_numpy(found.bias)]
    grads.append(None if log_theta is None else torch.from_numpy(found.log_theta.reshape(log_theta.shape)))
    if w_dropout is not None and dropout_logits is not None:
        grad_h.addmm_(dropout_logits, w_dropout)
        grads += [torch.mm(dropout_logits.t(), h).float(), dropout_logits.sum(0, dtype=torch.float32)]
    return float(nll.sum()) / len(nll), grad_h.float(), grads
