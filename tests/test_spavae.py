"""spaVAE: its loss against a plain one, the control of the KL weight, interpolation, sections, resuming, bad input."""

from math import exp

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.minibatches import Minibatches
from tenfold.data.spatial import positions_of
from tenfold.errors import DataError, ParameterError
from tenfold.kernels.rows import all_rows
from tenfold.nn.mlp import NOTHING, Layer
from tenfold.nn.spatial_vae import CentredLayer, Control, KLWeight
from test_spatial import tissue

QUICK = {"n_hidden": 32, "n_latent": 4, "n_grid": 4, "learning_rate": 5e-3, "n_clusters": 2}


def built(adata, **roles):
    """An untrained network of a data set, and its cells as one minibatch."""
    model = tf.domains.SpaVAE(**QUICK)
    data = Inputs(adata, roles)
    cells = model._read(data, positions_of(data))
    torch.manual_seed(0)
    return model._build(), next(iter(Minibatches(cells, None, shuffle=False)))


def dense(net, adata):
    """Mean and variance of the encoder's output, from log counts standardised gene by gene."""
    counts = adata.X.toarray().astype(np.float64)
    size = counts.sum(axis=1) / np.median(counts.sum(axis=1))
    y = np.log1p(counts / size[:, None])
    h = torch.from_numpy(((y - y.mean(axis=0)) / y.std(axis=0)).astype(np.float32))
    for layer in net.encoder.hidden.layers:
        norm = layer.batch_norm
        h = F.elu(F.batch_norm(h @ layer.weight, None, None, norm.weight, norm.bias, training=True, eps=1e-5))
    mean, raw = net.encoder.heads(h).chunk(2, dim=1)
    return mean, raw.clamp(-15, 15).exp(), torch.from_numpy(counts), torch.from_numpy(size)


def test_loss_is_the_plain_one():
    adata = tissue(8)
    net, batch = built(adata)
    net.n_cells = 200  # a minibatch of 64 stands for so many
    torch.manual_seed(1)
    found = net.train().terms(batch)
    mean, variance, counts, size = dense(net, adata)
    a = net.field.features(batch["position"])
    observed = type(net.encode(batch))(mean[:, :2], variance[:, :2])
    known = net.field.posterior(*net.field.seen(a, None, observed), times=200 / 64)
    smooth = net.field.at(known, a, None)
    torch.manual_seed(1)
    z = torch.cat([smooth.sample().float(), mean[:, 2:] + variance[:, 2:].sqrt() * torch.randn(64, 2)], dim=1)
    layer = net.decoder.hidden.layers[0]
    norm = layer.batch_norm
    h = F.elu(F.batch_norm(z @ layer.weight, None, None, norm.weight, norm.bias, training=True, eps=1e-5))
    m = net.decoder.mean_head(h).exp().double() * size[:, None]
    theta = net.decoder.log_theta.exp().double()
    nll = torch.lgamma(theta) + torch.lgamma(counts + 1) - torch.lgamma(counts + theta)
    nll = nll + (theta + counts) * (1 + m / theta).log() + counts * (theta.log() - m.log())
    own = 0.5 * (mean[:, 2:] ** 2 + variance[:, 2:] - variance[:, 2:].log() - 1).sum(1).mean()
    assert found["nll"].item() == pytest.approx(nll.sum(1).mean().item(), rel=1e-4)
    assert found["kl_own"].item() == pytest.approx(own.item(), rel=1e-3)
    assert found["kl_space"].item() == pytest.approx(known.kl_from_prior().item() / 200, rel=1e-3)
    whole = found["nll"] + 10 * (found["kl_space"] + found["kl_own"])
    assert found["loss"].item() == pytest.approx(whole.item(), rel=1e-6)
    assert (variance >= exp(-15)).all()


def test_sparse_input_is_centred_as_dense_input_is():
    rng = np.random.default_rng(0)
    x = sparse.random(40, 12, 0.4, format="csr", random_state=rng, dtype=np.float32)
    centre = torch.from_numpy(np.asarray(x.mean(axis=0), dtype=np.float32).ravel())
    ours, plain = CentredLayer(centre, 5), Layer(12, 5)
    plain.load_state_dict({key: value for key, value in ours.state_dict().items() if key != "centre"})
    centred = torch.from_numpy(x.toarray()) - centre
    weight = torch.randn(40, 5)
    for mode in (True, False):
        outs = [layer.train(mode)(given, NOTHING) for layer, given in ((ours, all_rows(x)), (plain, centred))]
        torch.testing.assert_close(*outs)
        if mode:
            grads = [torch.autograd.grad((out * weight).sum(), layer.weight)[0]
                     for out, layer in zip(outs, (ours, plain), strict=True)]  # fmt: skip
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.batch_norm.running_mean, plain.batch_norm.running_mean)


def test_the_kl_weight_follows_the_controller_and_does_not_wind_up():
    control = KLWeight(Control(10.0, 4.0, 25.0, 0.25))
    value, before, seen = 10.0, 0.0, []
    for kl in np.random.default_rng(0).uniform(0, 2, 40):
        control.update(torch.tensor(kl))
        seen.append(kl)
        error = 5 * (0.25 - np.mean(seen[-10:]))
        value += 0.01 * (1 / (1 + exp(error)) - 1 / (1 + exp(before))) - 0.005 * error
        value, before = min(max(value, 4.0), 25.0), error
        assert control.value.item() == pytest.approx(value, rel=1e-5)
    for _ in range(500):
        control.update(torch.tensor(9.0))
    assert control.value.item() == 25.0
    for _ in range(11):
        control.update(torch.tensor(0.0))
    assert control.value.item() < 25.0, "500 minibatches above the target must not have to be made up for"


def test_held_out_cells_are_judged_in_evaluation_mode_even_a_single_one():
    adata = tissue(8)
    model = tf.domains.SpaVAE(**QUICK, epochs=3, train_fraction=0.98).fit(adata, progress=False)
    loss = model.history.query("term == 'loss'")
    assert loss["validation"].notna().all() and len(loss) == 3
    _, batch = built(adata)
    first, second = (model.net_.eval().terms({**batch, "counts": batch["counts"]})["kl_own"] for _ in range(2))
    assert first == second, "no running mean, and no weight, may move while held-out cells are judged"


def test_it_finds_halves_of_a_tissue_and_resumes(tmp_path):
    adata = tissue(14, noise=2.0)
    model = tf.domains.SpaVAE(**QUICK, epochs=30).fit(adata, progress=False, checkpoint=tmp_path)
    assert tf.metrics.ari(model.cluster(), adata.obs["domain"]) > 0.8
    assert model.embed().shape == (196, 4)
    again = tf.domains.SpaVAE(**QUICK, epochs=30).fit(adata, progress=False, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.embed(), model.embed())


def test_places_left_out_are_told_from_those_around_and_do_not_depend_on_the_order_of_cells():
    adata = tissue(16, noise=2.0)
    left_out = np.zeros(256, bool)
    left_out[np.random.default_rng(0).choice(256, 40, replace=False)] = True
    model = tf.domains.SpaVAE(**QUICK, epochs=40).fit(adata[~left_out].copy(), progress=False)
    where = adata.obsm["spatial"]
    found = model.at(where[left_out])
    assert list(found.columns) == list(adata.var_names) and found.shape == (40, 40)
    right = adata.obs["domain"].to_numpy()[left_out] == "1"
    by_side = found.to_numpy()[:, 8:16].mean(axis=1) - found.to_numpy()[:, :8].mean(axis=1)
    assert ((by_side > 0) == right).mean() > 0.9
    same = model.at(where[~left_out])
    np.testing.assert_allclose(same, model.denoise(), rtol=1e-4)
    reverse = slice(None, None, -1)
    np.testing.assert_allclose(model.at(where[left_out][reverse]), found.to_numpy()[reverse], rtol=1e-5)


def test_sections_are_learnt_together_and_kept_apart():
    both = ad.concat({"a": tissue(8, noise=2.0), "b": tissue(8, seed=1, noise=2.0)}, label="section", index_unique="-")
    both.obsm["spatial"] = both.obsm["spatial"] * np.where(both.obs["section"] == "b", 3.0, 1.0)[:, None]
    both.obsm["spatial"][both.obs["section"] == "b"] += 100
    model = tf.domains.SpaVAE(**QUICK, epochs=60).fit(both, sample="section", progress=False)
    assert model.net_.field.mean.shape == (2, 2, 16) and model.net_.decoder.hidden.layers[0].told == [0]
    for part in ("a", "b"):
        rows = both.obs["section"] == part
        assert tf.metrics.ari(model.cluster()[rows], both.obs["domain"][rows]) > 0.6
    where = both.obsm["spatial"][both.obs["section"] == "b"]
    np.testing.assert_allclose(model.at(where, "b"), model.denoise()[64:], rtol=1e-4)
    with pytest.raises(ParameterError, match=r"no section is named\. Fitted were: a, b"):
        model.at(where)
    with pytest.raises(ParameterError, match=r"no section 'B'\. Did you mean 'b'"):
        model.at(where, "B")


def test_genes_that_are_not_modelled_are_not_denoised():
    adata = tissue(8)
    model = tf.domains.SpaVAE(**QUICK, epochs=2, n_top_genes=10).fit(adata, progress=False)
    found = model.denoise()
    assert found.shape == (64, 40) and np.isfinite(found).all(axis=0).sum() == 10
    assert list(model.at(adata.obsm["spatial"][:3]).columns) == list(adata.var_names[model.columns_])
    with pytest.raises(DataError, match="not fitted on"):
        model.denoise(adata[:50].copy())


def test_bad_places_are_told():
    adata = tissue(8)
    model = tf.domains.SpaVAE(**QUICK, epochs=2).fit(adata, progress=False)
    with pytest.raises(DataError, match="2 columns"):
        model.at(np.zeros((4, 3)))
    with pytest.raises(DataError, match="finite"):
        model.at(np.array([[0.0, np.nan]]))
    with pytest.warns(UserWarning, match="1 of 2 places lie farther"):
        model.at(np.array([[1.0, 1.5], [30.0, 0.0]]))


def test_more_smooth_variables_than_latent_ones_are_refused():
    with pytest.raises(ParameterError, match="n_spatial=5 of n_latent=4"):
        tf.domains.SpaVAE(n_latent=4, n_spatial=5)
    with pytest.raises(ParameterError, match="kl_start=10 must lie between"):
        tf.domains.SpaVAE(kl_max=8.0)


def test_all_latent_variables_may_be_smooth_and_tissue_may_be_a_line():
    adata = tissue(8)
    adata.obsm["spatial"] = np.column_stack([np.arange(64.0), np.zeros(64)])
    model = tf.domains.SpaVAE(**{**QUICK, "n_latent": 2}, epochs=2).fit(adata, progress=False)
    assert model.embed().shape == (64, 2) and np.isfinite(model.denoise()).all()
    assert isinstance(model.at(adata.obsm["spatial"][:2]), pd.DataFrame)


def test_a_linear_decoder_tells_genes_of_the_tissue_from_genes_of_single_cells():
    rng = np.random.default_rng(0)
    x, y = (part.ravel() for part in np.meshgrid(np.arange(20.0), np.arange(20.0)))
    smooth, own = np.exp(np.sin(x / 4)), np.exp(rng.choice([-1.0, 1.0], 400))
    mean = np.ones((400, 60)) * 3
    mean[:, :10] = 4 * smooth[:, None]
    mean[:, 10:20] = 4 * own[:, None]
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)))
    adata.obsm["spatial"] = np.column_stack([x, y])
    options = {**QUICK, "learning_rate": 0.02, "linear_decoder": True}
    model = tf.domains.SpaVAE(**options, epochs=60).fit(adata, progress=False)
    share = model.spatial_share()[adata.var_names[:20]]
    assert share.iloc[:10].min() > share.iloc[10:].max()
    counts = model.denoise()
    assert np.corrcoef(counts[:, 0], smooth)[0, 1] > 0.7
    with pytest.raises(ParameterError, match="linear_decoder=True"):
        tf.domains.SpaVAE(**QUICK, epochs=1).fit(adata, progress=False).spatial_share()
    adata.obs["half"] = np.where(x < 10, "a", "b")
    with pytest.raises(ParameterError, match="one section at a time"):
        tf.domains.SpaVAE(**QUICK, linear_decoder=True).fit(adata, sample="half", progress=False)
