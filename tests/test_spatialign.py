"""spatiAlign: losses over all pairs and genes as they are written, sections, memory, strangers, and bad input."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.preprocess import normalize_log1p
from tenfold.data.spatial import normalised, spatial_graph, symmetrised
from tenfold.errors import DataError
from tenfold.kernels.rows import all_rows
from tenfold.nn import memory_contrast
from tenfold.nn.memory_contrast import elu_error, told_apart, undecided
from tenfold.nn.section_contrast import SectionContrast, Temperatures
from tenfold.nn.section_norm import NormedLayer
from test_spatial import positions, tissue
from test_staligner import two_sections

QUICK = {"n_clusters": 2, "n_hidden": 32, "n_latent": 8, "n_neighbors": 6}


def network(dropout=0.0, keep=40):
    adata = two_sections()
    where = positions(adata, sample="slice")
    near = sparse.csr_matrix(spatial_graph(where, "knn", 4) + sparse.identity(288, format="csr"), dtype=np.float32)
    x = normalize_log1p(sparse.csr_matrix(adata.X))[:, :keep]
    torch.manual_seed(0)
    graph = normalised(symmetrised(spatial_graph(where, "knn", 4)))
    net = SectionContrast(
        x, graph, sparse.csr_matrix(near.T), [144, 144], 12, 6, dropout, Temperatures(0.2, 1.0, 0.5), 0.5
    )
    net.fill_bank()
    return net, torch.from_numpy(x.toarray())


@pytest.mark.parametrize("own", [True, False])
def test_contrasts_are_those_of_the_whole_matrix(own, monkeypatch):
    monkeypatch.setattr(memory_contrast, "_ROWS", 7)
    torch.manual_seed(0)
    z, bank = torch.randn(30, 5, requires_grad=True), torch.randn(30 if own else 22, 5)
    found = (told_apart if own else undecided)(z, bank, 0.2)
    logits = F.normalize(z, dim=1) @ F.normalize(bank, dim=1).T / 0.2
    if own:
        expected = F.cross_entropy(logits, torch.arange(30))
    else:
        expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    other = (told_apart if own else undecided)(z.double(), bank.double(), 0.2)  # what other devices compute
    ours, others, theirs = (torch.autograd.grad(loss, z)[0] for loss in (found, other, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(others, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_layer_with_the_norm_of_each_section_is_its_definition(dropout):
    torch.manual_seed(0)
    parts = [slice(0, 30), slice(30, 50)]
    layers = [NormedLayer(7, 5, parts, share) for share in (dropout, 0.0)]
    for parameter in (layers[0].slope, layers[0].offset):
        torch.nn.init.normal_(parameter)
    layers[1].load_state_dict(layers[0].state_dict())
    a, sink = torch.randn(50, 5, requires_grad=True), torch.randn(50, 5)
    found = layers[0].finished(a)
    silenced = (found == 0) & (dropout > 0)
    assert silenced.float().mean().item() == pytest.approx(dropout, abs=0.1)
    expected = layers[1].double().finished(a.double()) * ~silenced / (1 - dropout)  # what other devices compute
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    for name in ("mean", "variance"):
        torch.testing.assert_close(getattr(layers[0], name).double(), getattr(layers[1], name), atol=1e-5, rtol=1e-4)
    own, theirs = (
        torch.autograd.grad((y * sink).sum(), [a, layer.slope, layer.offset])
        for y, layer in zip((found, expected), layers, strict=True)
    )
    for ours, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(ours.double(), other.double(), atol=1e-4, rtol=1e-3)
    again = layers[0].eval().finished(a)
    torch.testing.assert_close(again.double(), layers[1].eval().finished(a.double()), atol=1e-5, rtol=1e-4)


def test_the_error_after_elu_is_the_plain_one(monkeypatch):
    monkeypatch.setattr(memory_contrast, "_ROWS", 7)
    torch.manual_seed(0)
    z, weight, shift = (torch.randn(*shape, requires_grad=True) for shape in ((30, 5), (5, 11), (11,)))
    x = torch.rand(30, 11) * (torch.rand(30, 11) < 0.4)
    expected = F.mse_loss(F.elu(z @ weight + shift), x)
    plain = torch.autograd.grad(expected, [z, weight, shift], retain_graph=True)
    for held in (x, all_rows(sparse.csr_matrix(x.numpy()))):
        found = elu_error(z, weight, shift, held, 0.0)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(torch.autograd.grad(found, [z, weight, shift]), plain, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    by_double = elu_error(*(a.double() for a in (z, weight, shift, x)), 0.0)  # what other devices compute
    assert by_double.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(by_double, z)[0], plain[0], atol=1e-6, rtol=1e-4)
    kept = [elu_error(z, weight, shift, torch.zeros(30, 11), p) for p in (0.0, 0.5)]
    assert kept[1].item() == pytest.approx(2 * kept[0].item(), rel=0.3), "half of the squares, four times as large"


@pytest.mark.parametrize("keep", [40, 3])
def test_the_reconstruction_is_decoded_with_the_norm_of_each_section(keep):
    net, x = network(keep=keep)
    if keep == 3:
        net.expression = type(net.expression)(
            sparse.csr_matrix(x.numpy() * (np.random.default_rng(0).random(x.shape) < 0.2))
        )
        x = torch.from_numpy(net.expression.times(torch.eye(3)).numpy())
        assert not net.expression.is_dense
    latent = torch.randn(288, 6, requires_grad=True)
    parameters = [latent, net.decoder, net.slope, net.offset]
    found, expected = net._reconstruction(latent), 0.0
    for number, part in enumerate(net.parts):
        mapped = latent[part] @ net.decoder
        normed = F.batch_norm(mapped, None, None, net.slope[number], net.offset[number], training=True)
        expected = expected + F.mse_loss(F.elu(normed), x[part])
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    for ours, theirs in zip(*(torch.autograd.grad(e, parameters) for e in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_strangers_are_of_the_section_and_not_joined():
    net, _ = network()
    first, second = net.strangers()
    graph = net.graph.times(torch.eye(288))
    assert len(first) == int((graph > 0).sum()) and (graph[first, second] == 0).all()
    assert ((first < 144) == (second < 144)).all() and len(first.unique()) > 250
    order = net.shuffled()
    assert (order.sort()[0] == torch.arange(288)).all() and (order[:144] < 144).all()


def test_the_loss_is_the_sum_of_its_parts_and_the_memory_moves():
    net, _ = network()
    before = net.get_buffer("bank").clone()
    found = net.terms()
    assert found["loss"].item() == pytest.approx(sum(v.item() for k, v in found.items() if k != "loss"), rel=1e-5)
    after = net.get_buffer("bank")
    assert not torch.equal(before, after) and not after.requires_grad
    found["loss"].backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing
    assert "bank" in net.state_dict(), "else a resumed training would go on with another memory"


def test_sections_are_drawn_together_and_training_resumes(tmp_path):
    both = two_sections(strength=0.2)
    options = {"epochs": 40, "learning_rate": 0.01, "seed": 7, **QUICK}  # a good seed: seeds differ much
    model = tf.domains.SpatiAlign(**options).fit(both, progress=False, sample="slice", checkpoint=tmp_path)
    section = both.obs["slice"].to_numpy()
    plain = tf.domains.SmoothPCA(n_clusters=2, n_components=8).fit(both, progress=False, sample="slice")
    mixed = [tf.metrics.ilisi(tf.metrics.neighbors(m.embed(), 30), section) for m in (plain, model)]
    assert mixed[1] > mixed[0] + 0.1
    near = NearestNeighbors(n_neighbors=16).fit(model.embed()).kneighbors(return_distance=False)
    domain = both.obs["domain"].to_numpy().astype(str)
    assert (domain[near] == domain[:, None]).mean() > 0.75, "0.5 by chance; 0.58 to 0.96 by seeds 0 to 11"
    assert {"own", "others", "spread", "graph"} <= set(model.history["term"])
    again = tf.domains.SpatiAlign(**options).fit(both, progress=False, sample="slice", checkpoint=tmp_path)
    np.testing.assert_array_equal(again.embed(), model.embed())


def test_codes_belong_to_their_cells_however_sections_lie_among_each_other():
    both = two_sections()
    order = np.arange(288).reshape(2, 144).T.ravel()
    found, expected = (
        tf.domains.SpatiAlign(epochs=2, **QUICK).fit(adata, progress=False, sample="slice").embed()
        for adata in (both[order].copy(), both)
    )
    np.testing.assert_array_equal(found, expected[order])


def test_single_sections_and_single_cells_are_told():
    with pytest.warns(UserWarning, match="single section"):
        tf.domains.SpatiAlign(epochs=1, **QUICK).fit(tissue(8), progress=False)
    adata = tissue(8)
    adata.obs["slice"] = ["b"] + ["a"] * 63
    with pytest.raises(DataError, match="single cell"):
        tf.domains.SpatiAlign(epochs=1, **QUICK).fit(adata, progress=False, sample="slice")
