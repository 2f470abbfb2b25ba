"""SEDR: its terms against plain ones, strangers, the two phases, resuming, and bad input."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import normalised, spatial_graph, symmetrised
from tenfold.domains.sedr import standardised_components
from tenfold.errors import DataError
from tenfold.nn.masked_graph_net import MaskedGraphAutoencoder, Weights, Widths
from test_spatial import positions, tissue


def network(mask_rate=0.8):
    adata = tissue(8)
    graph = normalised(symmetrised(spatial_graph(positions(adata), "knn", 5)))
    torch.manual_seed(0)
    features = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    net = MaskedGraphAutoencoder(features, graph, Widths(7, 3, 4), Weights(10.0, 0.1, 1.0, 1.0), mask_rate, 0.0)
    with torch.no_grad():
        net.token.normal_()
    return net.eval(), graph


def test_terms_are_the_plain_ones():
    net, graph = network()
    torch.manual_seed(1)
    strangers = torch.randint(64, (graph.nnz,))
    torch.manual_seed(2)
    found = net.terms(strangers=strangers)
    torch.manual_seed(2)
    masked = torch.randperm(64)[:51]
    a, x = torch.from_numpy(graph.toarray()), net.get_buffer("features").clone()
    x[masked] += net.token
    code = net.encoder(x)
    hidden = (a @ (code @ net.around)).relu()
    mean, log_sd = a @ (hidden @ net.mean), a @ (hidden @ net.log_sd)
    latent = torch.cat([code, mean + torch.randn_like(mean) * log_sd.exp()], dim=1)
    back = a @ (latent @ net.decoder)
    assert found["reconstruction"].item() == pytest.approx(
        F.mse_loss(back, net.get_buffer("features")).item(), rel=1e-5
    )
    cosine = (1 - F.cosine_similarity(back[masked], x[masked])) ** 3
    assert found["masked"].item() == pytest.approx(cosine.mean().item(), rel=1e-5)
    row, column = (torch.from_numpy(part.astype(np.int64)) for part in sparse.csr_matrix(graph).nonzero())
    logits = torch.cat([(latent[row] * latent[other]).sum(1) for other in (column, strangers)])
    truth = torch.cat([torch.ones(len(row)), torch.zeros(len(row))])
    divergence = -0.5 / 64 * (1 + 2 * log_sd - mean**2 - log_sd.exp() ** 2).sum(1).mean()
    expected = 64**2 / (2 * (64**2 - graph.nnz)) * F.binary_cross_entropy_with_logits(logits, truth) + divergence
    assert found["edges"].item() == pytest.approx(expected.item(), rel=1e-5)
    whole = 10 * found["reconstruction"] + 0.1 * found["edges"] + found["masked"]
    assert found["loss"].item() == pytest.approx(whole.item(), rel=1e-6)


def test_strangers_are_no_neighbours():
    net, graph = network()
    joined = net.get_buffer("joined")
    near = graph.toarray() > 0
    for seed in range(5):
        torch.manual_seed(seed)
        other = net.strangers()
        assert not near[(joined // 64).numpy(), other.numpy()].any()
    assert len(torch.unique(other)) > 30


def test_clusters_take_the_place_of_masked_cells():
    net, _ = network()
    net.place_centres(lambda latent: latent[:4])
    net.refresh()
    target = net.get_buffer("target")
    torch.testing.assert_close(target.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(net.centres.detach(), net.latent()[:4])
    found = net.terms(clustering=True)
    assert "masked" not in found and found["clusters"].item() >= 0


def test_features_are_standardised_components_of_counts():
    adata = tissue(10)
    data = Inputs(adata, {})
    found = standardised_components(data, None, 20, 0)
    scaled = adata.X.toarray() / adata.X.toarray().sum(axis=1, keepdims=True) * 1e6
    scaled = (scaled - scaled.mean(axis=0)) / scaled.std(axis=0)
    values = np.linalg.svd(scaled, compute_uv=False)[:20]
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), values, rtol=1e-3)


def test_it_finds_halves_of_a_tissue_and_resumes(tmp_path):
    adata = tissue(14, noise=2.0)
    options = {"n_clusters": 2, "n_components": 20, "epochs": 60}
    model = tf.domains.SEDR(**options).fit(adata, progress=False, checkpoint=tmp_path)
    assert tf.metrics.ari(model.cluster(), adata.obs["domain"]) > 0.8
    assert set(model.history["phase"]) == {"train", "cluster"}
    again = tf.domains.SEDR(**options).fit(adata, progress=False, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.embed(), model.embed())


def test_too_few_genes_are_told():
    adata = tissue(8)
    adata = adata[:, :2].copy()
    with pytest.raises(DataError, match="Only 2 genes"):
        tf.domains.SEDR(n_clusters=2).fit(adata, progress=False)
