"""SiGra: layers as they are written, both ways to the error, trained branches, patches, and bad input."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.image_features import ACROSS, patches
from tenfold.data.images import slides_of
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import spatial_graph, symmetrised
from tenfold.errors import DataError, KeyMissingError, ParameterError
from tenfold.nn.graph_layers import Neighborhoods
from tenfold.nn.graph_transformer import ProductTarget, TransformerDecoder, TransformerLayer, decoder_width
from tenfold.nn.picture_graph_net import PictureGraphNet
from test_spagcn import pictured
from test_spatial import positions, tissue

WEIGHTS = {"genes": 1.0, "picture": 1.0, "fused": 1.0}
QUICK = {"n_clusters": 2, "n_hidden": 24, "n_latent": 6, "graph": "knn", "learning_rate": 0.01}


def around():
    """A graph in which a cell has no neighbours."""
    graph = symmetrised(spatial_graph(positions(tissue(8)), "knn", 4)).tolil()
    graph[3, :], graph[:, 3] = 0, 0
    return sparse.csr_matrix(graph, dtype=np.float32)


def written(x, graph, query, key, value, own, biases):
    """The layer as it is defined, dense; matrices are (n_out, n_in)."""
    q, k, v = x @ query.T + biases[0], x @ key.T, x @ value.T + biases[1]
    logits = torch.where(graph, q @ k.T / np.sqrt(len(query)), -torch.inf)
    return torch.nan_to_num(logits.softmax(dim=1)) @ v + x @ own.T + biases[2]


def test_a_layer_is_the_definition_with_its_gradients():
    torch.manual_seed(0)
    graph = around()
    layer, x = TransformerLayer(7, 5, Neighborhoods(graph)), torch.randn(64, 7, requires_grad=True)
    found = layer(x)
    parts = [part.T for part in layer.weight.split(5, dim=1)]
    expected = written(x, torch.from_numpy(graph.toarray()) > 0, *parts, layer.bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[3], (x @ parts[3].T + layer.bias[2])[3])
    sink = torch.randn(64, 5)
    own, plain = (torch.autograd.grad((y * sink).sum(), [x, *layer.parameters()]) for y in (found, expected))
    for ours, theirs in zip(own, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_large_logits_do_not_overflow():
    torch.manual_seed(0)
    layer = TransformerLayer(7, 5, Neighborhoods(around()))
    assert torch.isfinite(layer(1e4 * torch.randn(64, 7))).all()


@pytest.mark.parametrize(("n_in", "n_genes"), [(3, 40), (30, 12)])
def test_the_decoder_is_a_layer_by_either_way(n_in, n_genes):
    torch.manual_seed(0)
    graph, h = around(), torch.randn(64, n_in, requires_grad=True)
    decoder = TransformerDecoder(n_in, n_genes, Neighborhoods(graph))
    assert decoder.folds == (n_genes == 40)
    left, right = decoder(h)
    n, used = 2 * n_in, right[:, : 2 * n_in + 2]
    assert right.shape == (n_genes, decoder_width(n_in)) and right.shape[1] % 16 == 0
    assert not left[:, n + 2 :].any() and not right[:, n + 2 :].any(), "filled up with zeros, which no gradient moves"
    parts = used[:, :n_in], used[:, n_in:n], [decoder.query_bias, used[:, n], used[:, n + 1]]
    expected = written(h, torch.from_numpy(graph.toarray()) > 0, decoder.query, decoder.key, *parts)
    torch.testing.assert_close(left @ right.T, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("density", [0.1, 0.6])
def test_the_error_is_the_same_whether_the_product_is_made_or_not(density):
    torch.manual_seed(0)
    x = sparse.random(90, 70, density, format="csr", random_state=0, dtype=np.float32)
    both = ProductTarget(x, 8), ProductTarget(x, 500)
    assert [target.writes_out for target in both] == [False, True]
    left, right = (torch.randn(n, 8, requires_grad=True) for n in (90, 70))
    expected = F.mse_loss(left @ right.T, torch.from_numpy(x.toarray()))
    for target in both:
        error = target.error(left, right)
        assert error.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(*(torch.autograd.grad(e, [left, right], retain_graph=True) for e in (error, expected)),
                                strict=True):  # fmt: skip
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_the_fused_branch_is_trained_and_reads_both():
    torch.manual_seed(0)
    x = sparse.random(64, 30, 0.3, format="csr", random_state=0, dtype=np.float32)
    net = PictureGraphNet(x, np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32), around(), 8, 5, WEIGHTS)
    found = net.terms()
    assert found["loss"].item() == pytest.approx(sum(found[name].item() for name in WEIGHTS), rel=1e-5)
    assert net.branches["fused"].first.weight.shape == (10, 20)
    found["fused"].backward(retain_graph=True)
    for name in WEIGHTS:
        for part in ("first", "code"):
            assert getattr(net.branches[name], part).weight.grad.abs().sum() > 0, (name, part)
    code, left, right = net.outputs()
    error = np.square(left @ right.T - x.toarray()).mean()
    assert error == pytest.approx(found["fused"].item(), rel=1e-4)
    np.testing.assert_array_equal(code, net.codes()["fused"].detach())


def test_patches_are_the_pixels_around_a_cell():
    adata = pictured(tissue(8))
    shown = adata.uns["spatial"]["one"]
    shown["images"]["hires"] = np.random.default_rng(0).integers(0, 256, (400, 400, 3)).astype(np.uint8)
    shown["scalefactors"]["tissue_hires_scalef"] = 1.0
    adata.obsm["spatial"] = adata.obsm["spatial"] * 40 + 50.5
    slide = slides_of(Inputs(adata, {}), positions(adata))[0]
    found = patches(slide, float(ACROSS)).reshape(64, ACROSS, ACROSS, 3)
    x, y = (adata.obsm["spatial"][9] - 0.5).astype(int)
    np.testing.assert_allclose(found[9], slide.image[y - 5 : y + 7, x - 5 : x + 7] / 255, rtol=1e-6)
    coarse = patches(slide, 3.0 * ACROSS).reshape(64, ACROSS, ACROSS, 3)
    corner = slide.image[y - 17 : y - 14, x - 17 : x - 14].mean(axis=(0, 1)) / 255
    np.testing.assert_allclose(coarse[9, 0, 0], corner, rtol=1e-5)
    slide.image[:] = 255
    assert (patches(slide, 90.0) == 1).all()


def test_it_finds_halves_and_what_the_picture_adds(tmp_path):
    adata = pictured(tissue(noise=6.0))
    options = {"epochs": 40, **QUICK}
    model = tf.domains.SiGra(**options).fit(adata, progress=False, checkpoint=tmp_path)
    blind = tf.domains.SiGra(histology="no", **options).fit(adata, progress=False)
    scores = [tf.metrics.ari(m.cluster(), adata.obs["domain"]) for m in (model, blind)]
    assert model.saw_picture_ and not blind.saw_picture_
    assert scores[0] > 0.8 and scores[0] >= scores[1]
    assert set(model.history["term"]) == {"loss", *WEIGHTS} and set(blind.history["term"]) == {"loss", "genes"}
    last = model.history.query("term == 'fused'")["train"]
    assert last.iloc[-1] < 0.8 * last.iloc[0]
    again = tf.domains.SiGra(**options).fit(adata, progress=False, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.embed(), model.embed())


def test_denoised_expression_is_smoother_and_marked_where_unknown(tmp_path):
    adata = tissue(14)
    model = tf.domains.SiGra(epochs=80, n_top_genes=30, histology="no", **QUICK).fit(adata, progress=False)
    found = model.denoise()
    known = np.isfinite(found).all(axis=0)
    assert (
        found.shape == adata.shape
        and known.sum() == 30
        and np.isnan(found[:, ~known]).all()
        and found[:, known].min() >= 0
    )
    truth = Inputs(adata, {}).lognorm.toarray()
    half = adata.obs["domain"].to_numpy().astype(int)
    means = np.stack([truth[half == code].mean(axis=0) for code in (0, 1)])[half]
    error = [np.square(x - means)[:, known].mean() for x in (found, truth)]
    assert error[0] < 0.5 * error[1]
    model.write(adata, "denoise")
    np.testing.assert_array_equal(adata.layers["sigra"], found)
    np.testing.assert_array_equal(tf.load(model.save(tmp_path / "model")).denoise(), found)
    with pytest.raises(DataError, match="cannot place cells"):
        model.denoise(tissue(8))


def test_bad_input_is_told():
    with pytest.raises(ParameterError, match="nothing to read"):
        tf.domains.SiGra(expression=False, histology="no").fit(tissue(8), progress=False)
    with pytest.raises(KeyMissingError, match="no picture"):
        tf.domains.SiGra(expression=False).fit(tissue(8), progress=False)
    with pytest.warns(UserWarning, match="expression alone"):
        tf.domains.SiGra(epochs=1, **QUICK).fit(tissue(8), progress=False)
