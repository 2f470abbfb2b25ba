"""STAGATE: its loss without a reconstruction equals the plain one; attention; what the original's optimiser does."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.preprocess import normalize_log1p
from tenfold.data.spatial import spatial_graph, symmetrised
from tenfold.nn.graph_attention import GraphAttention
from test_spatial import positions, tissue


def network(tie="clean"):
    adata = tissue(8)
    graph = symmetrised(spatial_graph(positions(adata), "knn", 5)) + sparse.identity(64, format="csr")
    torch.manual_seed(0)
    x = normalize_log1p(sparse.csr_matrix(adata.X))
    return GraphAttention(x, graph, 12, 5, tie), torch.from_numpy(x.toarray()), torch.from_numpy(graph.toarray()) > 0


def plain(net, x, graph, back=None):
    """Loss and attention as they are written: dense, with the reconstruction."""
    first, second = back or (net.first, net.second)
    mapped = x @ net.first
    logits = torch.sigmoid((mapped @ net.target)[:, None] + (mapped @ net.source)[None])
    weights = torch.where(graph, logits, -torch.inf).softmax(dim=1)
    latent = F.elu(weights @ mapped) @ net.second
    return F.mse_loss(x, F.elu(weights @ (latent @ second.T)) @ first.T), weights


def test_loss_and_gradients_are_the_plain_ones():
    net, x, graph = network()
    found, (expected, _) = net.terms()["loss"], plain(net, x, graph)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    parameters = list(net.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5)


def test_attention_sums_to_one_within_its_bounds():
    net, x, graph = network()
    weights = net.attention(net.expression(net.first)).detach()
    assert torch.allclose(weights, plain(net, x, graph)[1].detach()[graph], atol=1e-6)
    n_around = graph.sum(dim=1).repeat_interleave(graph.sum(dim=1)) - 1
    assert (weights >= 1 / (1 + np.e * n_around) - 1e-6).all() and (weights <= np.e / (np.e + n_around) + 1e-6).all()


def test_double_ties_give_each_side_its_own_gradient_in_one_place():
    net, x, graph = network("double")
    assert net.first_back.data_ptr() == net.first.data_ptr()
    names = ("first", "second", "first_back", "second_back")
    own = [net.get_parameter(name) for name in names]
    found = torch.autograd.grad(net.terms()["loss"], own)
    copies = tuple(p.detach().clone().requires_grad_() for p in own[2:])
    expected = torch.autograd.grad(plain(net, x, graph, copies)[0], [*own[:2], *copies])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("tie", ["clean", "double"])
def test_it_finds_halves_of_a_tissue_and_resumes(tie, tmp_path):
    adata = tissue()
    options = {"n_clusters": 2, "n_hidden": 32, "n_latent": 4, "tie": tie, "learning_rate": 0.01}
    model = tf.domains.STAGATE(epochs=60, **options).fit(adata, progress=False, checkpoint=tmp_path)
    assert tf.metrics.ari(model.cluster(), adata.obs["domain"]) > 0.8
    again = tf.domains.STAGATE(epochs=60, **options).fit(adata, progress=False, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.embed(), model.embed())
