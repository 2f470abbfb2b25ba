"""SIMS: sparsemax by its definition, blocks of TabNet, masks as results, labels."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional as F

from tenfold.annotate.sims import SIMS, _of_length_one
from tenfold.kernels.sparsemax import sparsemax
from tenfold.nn.tabnet import FeatureTransformer, GatedLayer, GhostBatchNorm, SettlingBatchNorm, TabNet

QUICK: dict[str, Any] = {"n_top_genes": None, "batch_size": 50, "calibration": 0.0, "epochs": 40}
MARKERS = {"type 0": [0, 1, 2], "type 1": [3, 4, 5], "type 2": [6, 7, 8]}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    """Three types, each with three genes of its own among thirty."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 3, 400)
    rate = np.full((400, 30), 2.0)
    for code, genes in enumerate(MARKERS.values()):
        rate[np.ix_(types == code, genes)] = 12.0
    found = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    found.obs["cell_type"] = [f"type {code}" for code in types]
    return found


@pytest.fixture(scope="module")
def model(adata) -> SIMS:
    return SIMS(**QUICK).fit(adata[:250].copy(), labels="cell_type", progress=False)


# ---- sparsemax -------------------------------------------------------------------------------------------------------


def closed_form(row: np.ndarray) -> np.ndarray:
    """Sort, find the largest k with 1 + k x_(k) > sum of the k largest; the threshold is their (sum - 1) / k."""
    highest = np.sort(row)[::-1]
    k = max(k for k in range(1, len(row) + 1) if 1 + k * highest[k - 1] > highest[:k].sum())
    return np.maximum(row - (highest[:k].sum() - 1) / k, 0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_sparsemax_is_its_closed_form(scale):
    x = scale * np.random.default_rng(0).normal(size=(40, 200)).astype(np.float32)
    x[0] = 0.5  # all alike: the uniform point
    x[1, :3] = x[1].max() + np.float32(0.2)  # ties above
    p, entropy = sparsemax(torch.from_numpy(x))
    expected = np.stack([closed_form(row.astype(np.float64)) for row in x])
    np.testing.assert_allclose(p, expected, atol=2e-6 * max(scale, 1))
    np.testing.assert_allclose(p.sum(dim=1), 1, atol=2e-5)
    logs = np.where(expected > 0, expected * np.log(np.maximum(expected, 1e-300)), 0)
    np.testing.assert_allclose(entropy, logs.sum(axis=1), atol=1e-3)
    if scale == 30.0:
        assert ((p > 0).sum(dim=1)[2:] < 5).all()


def test_sparsemax_is_nearer_to_the_row_than_other_points_of_the_simplex():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(20, 12)).astype(np.float32))
    p = sparsemax(x)[0]
    others = torch.from_numpy(rng.dirichlet(np.full(12, 0.3), size=500).astype(np.float32))
    assert ((p - x).square().sum(1)[:, None] <= (others[None] - x[:, None]).square().sum(2) + 1e-6).all()


def test_gradient_of_sparsemax_is_that_of_its_jacobian_and_of_differences():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(8, 30)).astype(np.float32)).requires_grad_()
    upstream, of_entropy = (torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in ((8, 30), 8))
    p, entropy = sparsemax(x)
    (p * upstream).sum().backward()
    for row in range(8):  # on the support: identity less the mean
        s = (p[row] > 0).double().detach()
        jacobian = torch.diag(s) - s[:, None] * s / s.sum()
        torch.testing.assert_close(x.grad[row].double(), jacobian @ upstream[row].double(), atol=1e-6, rtol=1e-5)
    y = x.detach().double().requires_grad_()  # the reference path, by autograd
    q, other = sparsemax(y)
    ((q * upstream).sum() + (other * of_entropy).sum()).backward()
    x.grad = None
    p, entropy = sparsemax(x)
    ((p * upstream).sum() + (entropy * of_entropy).sum()).backward()
    torch.testing.assert_close(x.grad.double(), y.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(entropy.double(), other, atol=1e-5, rtol=1e-5)
    assert torch.autograd.gradcheck(lambda z: sparsemax(z)[0], y.detach()[:3].requires_grad_())


# ---- blocks ----------------------------------------------------------------------------------------------------------


def test_ghost_batch_norm_normalises_parts_by_themselves():
    torch.manual_seed(0)
    norm, x = GhostBatchNorm(3, 10, 0.1), torch.randn(30, 3) * torch.arange(1, 31)[:, None]
    found = norm(x)
    for part in found.chunk(3):
        torch.testing.assert_close(part.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.var(0, unbiased=False), torch.ones(3), atol=1e-3, rtol=0)
    assert int(norm.norm.num_batches_tracked) == 3
    torch.testing.assert_close(norm.eval()(x), norm.norm(x))


def test_gated_layers_share_maps_and_not_norms():
    torch.manual_seed(0)
    linear = nn.Linear(6, 8, bias=False)
    layer = GatedLayer(linear, 100, 0.1)
    x = torch.randn(50, 6)
    both = layer.norm(linear(x))
    torch.testing.assert_close(layer(x), both[:, :4] * both[:, 4:].sigmoid())
    shared = [linear, nn.Linear(4, 8, bias=False)]
    first, second = (FeatureTransformer(shared, 6, 4, 2, 100, 0.1) for _ in range(2))
    assert first.layers[0].linear is second.layers[0].linear and first.layers[2].linear is not second.layers[2].linear
    h = first.layers[0](x)
    for own in first.layers[1:]:
        h = (h + own(h)) * 0.5**0.5
    torch.testing.assert_close(first(x), h)


def test_at_relaxation_one_no_feature_is_looked_at_twice_in_full():
    torch.manual_seed(0)
    x = torch.randn(200, 30)
    for relaxation, most in ((1.0, 1.0 + 1e-4), (3.0, 3.0)):
        found = TabNet(30, 2, relaxation=relaxation, n_steps=3).train()(x)
        assert all(
            (mask >= 0).all() and torch.allclose(mask.sum(1), torch.ones(200), atol=1e-4) for mask in found.masks
        )
        full = torch.stack([mask > 0.999 for mask in found.masks]).sum(0)
        assert full.max() <= most
    assert found.entropy < 0 and found.shares.shape == (200, 3)


# ---- the method ------------------------------------------------------------------------------------------------------


def test_masks_and_explanations_say_what_was_looked_at(adata, model):
    test = adata[250:].copy()
    masks, explained = model.masks(test), model.explain(test)
    assert len(masks) == 3 and explained.shape == (150, 30)
    for mask in masks:
        np.testing.assert_allclose(np.asarray(mask.sum(axis=1)).ravel(), 1, atol=1e-4)
        assert mask.nnz < 0.8 * 150 * 30
    sums = np.asarray(explained.sum(axis=1)).ravel()
    assert (np.isclose(sums, 1, atol=1e-4) | (sums == 0)).all()
    table = model.importance(test)
    assert table.shape == (30, 3) and table.index.tolist() == model.genes_.tolist()
    # Nine of thirty genes tell the types apart.
    assert table.iloc[:9].mean(axis=None) > 2 * table.iloc[9:].mean(axis=None)


def test_genes_outside_all_masks_do_not_reach_the_layers(model):
    net, x = model.net_, torch.randn(20, 30)
    seen = net(x)
    unseen = torch.stack(seen.masks).sum(0) == 0
    assert unseen.any()
    kept = [net.norm(x) * mask for mask in seen.masks]
    assert all((part[unseen] == 0).all() for part in kept)


def test_sparsity_makes_masks_look_at_fewer_genes(adata):
    wide, narrow = (
        SIMS(sparsity=weight, **{**QUICK, "epochs": 15}).fit(adata, labels="cell_type", progress=False)
        for weight in (0.0, 1.0)
    )
    counts = [sum(mask.nnz for mask in each.masks(adata)) for each in (wide, narrow)]
    assert counts[1] < 0.8 * counts[0]


def test_labels_and_permuted_labels(adata, model):
    test = adata[250:].copy()
    truth = test.obs["cell_type"].to_numpy()
    assert (model.predict(test) == truth).mean() > 0.8
    train = adata[:250].copy()
    train.obs["cell_type"] = np.random.default_rng(0).permutation(train.obs["cell_type"].to_numpy())
    blind = SIMS(**QUICK).fit(train, labels="cell_type", progress=False)
    # Cells of a type get one label, if any: what chance gives is spread widely around a third.
    assert (blind.predict(test) == truth).mean() < 0.7
    test.obs["cell_type"] = "type_0"
    np.testing.assert_array_equal(model.predict(test), model.predict(adata[250:].copy()))


def test_balanced_labels_weigh_rare_ones_more(adata):
    cells = adata[:220].copy()
    labels = np.where(np.arange(220) < 20, "rare", "frequent")  # nothing tells them apart
    cells.obs["cell_type"] = np.random.default_rng(0).permutation(labels)
    settings = {**QUICK, "epochs": 5}
    shares = [
        SIMS(balance_labels=balance, **settings).fit(cells, labels="cell_type", progress=False)
        .probabilities(cells)["rare"].mean()
        for balance in (False, True)
    ]  # fmt: skip
    assert shares[1] > 1.3 * shares[0]


def test_running_statistics_forget_their_start():
    torch.manual_seed(0)
    norm = SettlingBatchNorm(4, 0.01)
    x = 0.01 * torch.randn(5, 60, 4) + 3
    for part in x:
        norm(part)
    torch.testing.assert_close(norm.running_mean, x.mean(dim=(0, 1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.running_var, x.var(dim=1).mean(0), atol=1e-6, rtol=1e-4)
    norm.num_batches_tracked += 200
    norm(x[0])
    assert norm.momentum == 0.01


def test_the_length_of_a_cell_is_left_out():
    x = sparse.csr_matrix(np.array([[3.0, 0, 4], [0, 0, 0]], dtype=np.float32))
    found = torch.from_numpy(_of_length_one(x).toarray())
    torch.testing.assert_close(found, F.normalize(torch.from_numpy(x.toarray())))
