"""DeepST: its terms against plain ones, attention, helped counts, sections confused, resuming."""

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.similar_cells import similar_cells
from tenfold.data.spatial import spatial_graph, symmetrised
from tenfold.nn.deep_graph_net import AttentionLayer, DeepGraphNet, Weights, Widths
from tenfold.nn.graph_layers import Neighborhoods
from tenfold.nn.reversal import reversed_gradient
from test_spatial import positions, tissue


def network(n_sections=1):
    adata = tissue(8)
    graph = symmetrised(spatial_graph(positions(adata), "knn", 5)) + sparse.identity(64, format="csr")
    torch.manual_seed(0)
    features = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    sections = np.arange(64) % n_sections
    return DeepGraphNet(features, graph, sections, Widths(7, 4, 6, 3), Weights(1.0, 1.0, 1.0, 1.0), 0.0).eval(), graph


def test_attention_is_the_plain_one():
    net, graph = network()
    layer = AttentionLayer(10, 5, Neighborhoods(graph))
    x = net.get_buffer("features") * 50  # logits far from zero
    mapped = x @ layer.weight
    logits = F.leaky_relu((mapped @ layer.source)[None] + (mapped @ layer.target)[:, None], 0.2)
    weights = torch.where(torch.from_numpy(graph.toarray()) > 0, logits, -torch.inf).softmax(dim=1)
    torch.testing.assert_close(layer(x), weights @ mapped + layer.bias, rtol=1e-4, atol=1e-4)


def test_terms_are_the_plain_ones():
    net, graph = network()
    torch.manual_seed(3)
    found = net.terms()
    torch.manual_seed(3)
    x = net.get_buffer("features") * (torch.rand(64, 10) >= 0.001)
    code, mean, log_sd = net.encode(x)
    latent = torch.cat([code, mean + torch.randn_like(mean) * log_sd.exp()], dim=1)
    label = torch.from_numpy((graph.toarray() > 0).astype(np.float32))
    norm = 64**2 / (2 * (64**2 - label.sum()))
    both = F.binary_cross_entropy_with_logits(latent @ latent.T * label, label, reduction="sum")
    others = (1 - label).sum() * np.log(2)  # the same whatever the codes are
    divergence = -0.5 / 64 * (1 + 2 * log_sd - mean**2 - log_sd.exp() ** 2).sum(1).mean()
    assert found["edges"].item() == pytest.approx((norm * (both - others) / 64**2 + divergence).item(), rel=1e-4)
    expected = F.mse_loss(net.decoder(latent), net.get_buffer("features"))
    assert found["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert "sections" not in found


def test_codes_are_trained_to_confuse_the_classifier():
    x = torch.ones(3, requires_grad=True)
    (reversed_gradient(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([-1.0, -2.0, -3.0]))
    net, _ = network(2)
    assert net.terms()["sections"].item() == pytest.approx(np.log(2), abs=0.3)


def test_clusters_are_placed_at_their_means():
    net, _ = network()
    labels = np.arange(64) % 3
    net.place_centres(lambda latent: labels)
    net.refresh()
    assert net.used == 3
    torch.testing.assert_close(net.centres[0].detach(), net.latent()[labels == 0].mean(dim=0))
    torch.testing.assert_close(net.get_buffer("target")[:, :3].sum(dim=1), torch.ones(64))
    assert net.terms(clustering=True)["clusters"].item() >= 0


def test_cells_are_helped_by_those_that_are_alike():
    adata = tissue(6)
    where, x = positions(adata), np.random.default_rng(0).normal(size=(36, 5))
    near = spatial_graph(where, "knn", 8)
    found = similar_cells(near, where.points, ((x, True), (None, False)), 2).toarray()
    correlation = np.maximum(np.corrcoef(x), 0) * near.toarray()
    for cell in range(36):
        best = np.sort(correlation[cell])[::-1][:2]
        np.testing.assert_allclose(np.sort(found[cell])[::-1][:2], best, atol=1e-12)


def test_it_finds_halves_of_a_tissue_and_resumes(tmp_path):
    adata = tissue(14, noise=2.0)
    options = {"n_clusters": 2, "n_components": 20, "epochs": 150, "histology": "no",
               "learning_rate": 5e-3}  # fmt: skip
    model = tf.domains.DeepST(head="kmeans", **options).fit(adata, progress=False, checkpoint=tmp_path)
    assert tf.metrics.ari(model.cluster(), adata.obs["domain"]) > 0.8
    assert set(model.history["phase"]) == {"train", "cluster"} and not model.saw_picture_
    again = tf.domains.DeepST(head="kmeans", **options).fit(adata, progress=False, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.embed(), model.embed())


def test_several_sections_share_codes():
    both = ad.concat({"a": tissue(10, seed=0), "b": tissue(10, seed=1)}, label="slice", index_unique="-")
    both.obsm["spatial"][100:] += 50
    model = tf.domains.DeepST(n_clusters=2, epochs=5, n_components=10, histology="no")
    model.fit(both, progress=False, sample="slice")
    assert "sections" in set(model.history["term"])
    assert Inputs(both, {}).n_cells == len(model.embed())
