"""scANVI's prior under every label, written out: what autograd gives, forth and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenfold.nn import labelled_vae
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.labelled_vae import LabelledVAE


@pytest.mark.parametrize("n_labels", [2, 7])
def test_densities_and_gradients_are_those_of_autograd(n_labels, monkeypatch):
    norms: dict[str, Any] = {"batch_norm": True, "layer_norm": False}
    torch.manual_seed(0)
    net = LabelledVAE(
        GaussianEncoder(20, 4), CountDecoder(4, 20), n_labels=n_labels, n_hidden=16, n_layers=1, dropout=0.0,
        encoder_norms=norms, decoder_norms=norms,
    ).train()  # fmt: skip
    z = torch.randn(30, 4, requires_grad=True)
    weight = torch.rand(30)
    assert labelled_vae.is_written_out(net.label_encoder, net.label_decoder, z)
    found = []
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr(labelled_vae, "is_written_out", lambda *parts: False)
        net.zero_grad()
        z.grad = None
        torch.manual_seed(1)
        density, kl = net.of_prior(z)
        ((density - 0.3 * kl) * weight).sum().backward()
        grads = {name: one.grad.clone() for name, one in net.named_parameters() if one.grad is not None}
        found.append((density.detach(), kl.detach(), z.grad.clone(), grads))
    for own, expected in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
    assert found[0][3].keys() == found[1][3].keys() and len(found[0][3]) >= 14
    for name, expected in found[1][3].items():
        torch.testing.assert_close(found[0][3][name], expected, atol=2e-4, rtol=1e-3, msg=name)


def test_gradients_with_dropout_are_those_of_differences():
    norms: dict[str, Any] = {"batch_norm": True, "layer_norm": False}
    torch.manual_seed(0)
    net = LabelledVAE(
        GaussianEncoder(20, 4), CountDecoder(4, 20), n_labels=3, n_hidden=16, n_layers=1, dropout=0.3,
        encoder_norms=norms, decoder_norms=norms,
    ).train()  # fmt: skip
    z = torch.randn(30, 4, requires_grad=True)

    def value(at: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        density, kl = net.of_prior(at)
        return (density - kl).sum()

    value(z).backward()
    assert z.grad is not None
    way = torch.randn_like(z)
    step = 2e-3
    change = (
        value((z + step * way).detach().requires_grad_()) - value((z - step * way).detach().requires_grad_())
    ).item()
    assert change / (2 * step) == pytest.approx((z.grad * way).sum().item(), rel=0.02)
