"""SAUCIE: the loss of two batches, what each network sees, and the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tenfold as tf
from tenfold.errors import ParameterError
from tenfold.integrate.saucie import SAUCIE
from tenfold.nn.expression_autoencoder import ExpressionAutoencoder
from tenfold.nn.saucie_net import SCALES, pair_terms

QUICK = {"epochs": 3, "n_hidden": (16, 8), "batch_size": 40, "n_top_genes": None}


def by_hand(net: ExpressionAutoencoder, x: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    """The published loss, with codes divided by their mean first."""
    z = net.encode(x)
    recon, e = net.decode(z), z / z.mean()
    squared = (e[:, None] - e).square().sum(-1)
    squared = squared / squared.max()
    kernel = sum(torch.exp(-squared / (2 * scale)) for scale in SCALES) / len(SCALES)
    within = kernel[~second][:, ~second].mean() + kernel[second][:, second].mean()
    mean, var = ([f(part[second], 0) for part in (recon, x)] for f in (torch.mean, lambda p, d: p.var(d, correction=0)))
    unit = [(part[second] - m) / ((v + 1e-6).sqrt() + 1e-6) for part, m, v in zip((recon, x), mean, var, strict=True)]
    return [
        (recon - x)[~second].square().mean(), (unit[0] - unit[1]).square().mean(),
        (within - 2 * kernel[~second][:, second].mean()).abs(),
    ]  # fmt: skip


def test_the_loss_is_the_published_one():
    torch.manual_seed(0)
    net = ExpressionAutoencoder(12, 2, (8, 6), activation="leaky_relu", slope=0.2).double()
    x, second = torch.rand(20, 12).double(), torch.arange(20) % 3 == 0
    # rtol allows float32 of the discrepancy
    found, expected = pair_terms(net, x, second, 0.1), by_hand(net, x, second)
    for name, value in zip(("reference", "other", "mmd"), expected, strict=True):
        torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        found["loss"].double(), expected[0] + 0.01 * expected[1] + 0.1 * expected[2], rtol=1e-3, atol=1e-5
    )
    alone = pair_terms(net, x, torch.ones(20, dtype=torch.bool), 0.1)
    assert alone["mmd"] == 0 and alone["reference"] == 0 and torch.isfinite(alone["loss"])


def test_each_batch_has_a_network_and_all_have_the_last():
    adata = tf.data.simulate(160, 40, n_types=2, n_batches=4, seed=0)
    method = SAUCIE(**QUICK, reference_batch="batch_2").fit(adata, batch="batch", progress=False)
    assert method.net_.others == [0, 2, 3] and list(dict.fromkeys(method.history["phase"])) == [
        "batch 1", "batch 2", "batch 3", "all"
    ]  # fmt: skip
    z = method.embed()
    for code in range(4):
        rows = (adata.obs["batch"].cat.codes == code).to_numpy()
        part = adata[rows].copy()
        np.testing.assert_allclose(method.embed(part), z[rows], atol=1e-5)
        net = method.net_.pairs[{0: 0, 1: 0, 2: 1, 3: 2}[code]]
        with torch.no_grad():
            x = torch.from_numpy(np.log1p(part.X.toarray() * (1e4 / part.X.toarray().sum(1, keepdims=True)))).float()
            expected = method.net_.joint.encode(net.decode(net.encode(x)))
        np.testing.assert_allclose(z[rows], expected, atol=1e-4)
    assert method.correct().shape == (160, 40)


def test_the_reference_is_the_largest_batch_or_the_given_one():
    adata = tf.data.simulate(90, 30, n_batches=2, seed=0)[20:].copy()
    method = SAUCIE(**QUICK).fit(adata, batch="batch", progress=False)
    assert method.reference_ == "batch_2" and method.net_.joint is None
    with pytest.raises(ParameterError, match="Did you mean 'batch_1'"):
        SAUCIE(**QUICK, reference_batch="batch_11").fit(adata, batch="batch", progress=False)
    with pytest.raises(ParameterError, match="leave transform_batch"):
        method.expression(transform_batch="batch_1")
