"""GraphST: its loss without wide products equals the plain one; sections are joined only where asked."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.spatial import averaging, joined_sections, normalised, spatial_graph, symmetrised
from tenfold.domains.graphst import scaled
from tenfold.errors import DataError
from tenfold.nn.graph_contrast import GraphContrast
from tenfold.nn.graph_layers import Fixed
from test_spatial import positions, tissue


def network(adata, kind="after"):
    directed = spatial_graph(positions(adata), "knn", 3)
    x = scaled(sparse.csr_matrix(adata.X))
    torch.manual_seed(0)
    return GraphContrast(x, normalised(symmetrised(directed), kind), averaging(directed), 6), x, directed


def plain_loss(net, x, directed, order):
    """The loss as it is written: wide matrices, dense graphs."""
    x = torch.from_numpy(x.toarray())
    graph = torch.from_numpy(normalised(symmetrised(directed), "after").toarray())
    mask = torch.from_numpy(directed.toarray()) + torch.eye(len(x))
    z = graph @ (x @ net.encoder)
    h = graph @ (z @ net.decoder)
    own, other = z.relu(), (graph @ (x[order] @ net.encoder)).relu()

    def told(first, second, place):
        logits = torch.stack([torch.einsum("ni,ij,nj->n", e, net.form, place) + net.bias for e in (first, second)], 1)
        return F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0]).expand(len(x), 2))

    places = [torch.sigmoid(F.normalize(mask @ e / mask.sum(1, keepdim=True), dim=1)) for e in (own, other)]
    return 10 * F.mse_loss(x, h) + told(own, other, places[0]) + told(other, own, places[1]), h


@pytest.mark.parametrize("genes", [slice(None), slice(0, 6)])
def test_the_loss_and_its_gradients_are_the_plain_ones(genes):
    adata = tissue(8)[:, genes].copy()
    net, x, directed = network(adata)
    order = torch.randperm(64)
    found = net.terms(order)["loss"]
    expected, _ = plain_loss(net, x, directed, order)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    parameters = list(net.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_components_are_those_of_the_reconstruction():
    net, x, directed = network(tissue(8))
    wide = plain_loss(net, x, directed, torch.arange(64))[1].detach().double().numpy()
    left, values, _ = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)
    expected = left[:, :4] * values[:4]
    found = net.reconstruction_pcs(4)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-3, atol=1e-3)


def test_fixed_products_of_sparse_and_dense_matrices_agree():
    rng = np.random.default_rng(0)
    for share in (0.05, 0.9):
        matrix = sparse.random(30, 40, share, format="csr", random_state=0, dtype=np.float32)
        fixed, x = Fixed(matrix), torch.from_numpy(rng.normal(size=(40, 5)).astype(np.float32)).requires_grad_()
        out = fixed(x)
        np.testing.assert_allclose(out.detach(), matrix @ x.detach().numpy(), atol=1e-5)
        upstream = torch.ones_like(out)
        np.testing.assert_allclose(torch.autograd.grad(out, x, upstream)[0], matrix.T @ upstream.numpy(), atol=1e-5)
        assert not fixed.state_dict()


def test_it_finds_halves_of_a_tissue_and_learns():
    adata = tissue()
    model = tf.domains.GraphST(n_clusters=2, epochs=100, n_latent=8, n_components=4)
    model.fit(adata, progress=False)
    assert tf.metrics.ari(model.cluster(), adata.obs["domain"]) > 0.8
    assert (np.diff(model.history.query("term == 'loss'")["train"]) < 0).mean() > 0.8


def test_sections_are_joined_where_asked():
    adata = tissue(10)
    adata.obs["slice"] = np.where(np.arange(100) < 50, "a", "b")
    where = positions(adata, sample="slice")
    graph = spatial_graph(where, "knn", 3)
    joined = joined_sections(graph, where, 2)
    assert graph[:50, 50:].nnz == 0 and (joined[:50, 50:].getnnz(axis=1) == 2).all()
    assert (joined[:50, :50] != graph[:50, :50]).nnz == 0
    with pytest.raises(DataError, match="single section"):
        joined_sections(graph, positions(adata), 2)
    apart, across = (
        tf.domains.GraphST(n_clusters=2, epochs=5, n_latent=4, n_components=3, n_across=n).fit(
            adata, sample="slice", progress=False
        )
        for n in (0, 2)
    )
    assert not np.allclose(apart.embed(), across.embed())
