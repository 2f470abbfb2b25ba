"""A layer in one pass each way: what PyTorch's operations give, alone and within the labelled model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.engine import Minibatches
from tenfold.integrate.scanvi import SCANVI
from tenfold.nn import labelled_vae, normed
from tenfold.nn.mlp import MLP
from tenfold.nn.normed import is_one_pass, normed_units


def test_batch_norm_and_relu_both_ways():
    torch.manual_seed(0)
    block = MLP(5, 7).train()
    layer = block.layers[0]
    torch.nn.init.normal_(layer.batch_norm.weight)
    torch.nn.init.normal_(layer.batch_norm.bias)
    a = torch.randn(20, 7, requires_grad=True)
    found = {}
    for name in ("one pass", "torch"):
        layer.batch_norm.reset_running_stats()
        block.zero_grad()
        a.grad = None
        h = normed_units(a, layer) if name == "one pass" else torch.relu(layer.batch_norm(a))
        (h * torch.arange(7.0)).square().sum().backward()
        norm = layer.batch_norm
        found[name] = [h.detach(), a.grad, norm.weight.grad.clone(), norm.bias.grad.clone(), norm.running_mean.clone(),
                       norm.running_var.clone(), norm.num_batches_tracked.clone()]  # fmt: skip
    for ours, theirs in zip(found["one pass"], found["torch"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_dropout_keeps_the_mean_and_stops_gradients():
    torch.manual_seed(0)
    layer = MLP(5, 50, dropout=0.4).train().layers[0]
    torch.nn.init.constant_(layer.batch_norm.bias, 10.0)
    a = torch.randn(400, 50, requires_grad=True)
    h = normed_units(a, layer)
    assert (h == 0).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert h.mean().item() == pytest.approx(10, rel=0.03)
    (upstream,) = torch.autograd.grad(h.sum(), layer.batch_norm.bias)
    torch.testing.assert_close(upstream, (h > 0).sum(dim=0) / 0.6, atol=1e-3, rtol=1e-5)


def test_where_it_applies():
    assert is_one_pass(MLP(5, 7).train())
    assert not is_one_pass(MLP(5, 7).eval())
    for options in ({"batch_norm": False}, {"layer_norm": True}, {"activation": "mish"}):
        assert not is_one_pass(MLP(5, 7, **options).train())
    assert not is_one_pass(MLP(5, 7, 2).train())
    with torch.no_grad():
        assert not is_one_pass(MLP(5, 7).train())


def test_the_labelled_model_has_the_same_loss_and_gradients(monkeypatch):
    adata = tf.data.simulate(60, 40, n_types=3, n_batches=2, seed=0)
    adata.obs["known"] = np.where(np.arange(60) % 3, adata.obs["cell_type"].astype(str), "Unknown")
    method = SCANVI(n_top_genes=None, n_hidden=16, n_latent=4, dropout=0.0)
    arrays = method._take(Inputs(adata, {"batch": "batch", "labels": "known"}), None)
    method.library_prior_ = np.zeros((2, 2), dtype=np.float32)
    torch.manual_seed(1)
    net = method._build().train()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    batch = next(iter(Minibatches(arrays, None)))
    found = []
    for one_pass in (True, False):
        if not one_pass:
            monkeypatch.setattr(normed, "is_one_pass", lambda block: False)
            monkeypatch.setattr(labelled_vae, "is_written_out", lambda *parts: False)
        net.load_state_dict(start)
        net.zero_grad()
        torch.manual_seed(2)
        net.joint_terms(batch, batch, 0.5, 10.0)["loss"].backward()
        found.append({name: parameter.grad.clone() for name, parameter in net.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=2e-4, rtol=2e-3, msg=name)
