"""What methods on log-expression share: normalisation and scaling in memory and from disk, decoders, outputs."""

from __future__ import annotations

from typing import Any, ClassVar

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse
from torch.distributions import Normal
from torch.nn import functional as F

import tenfold as tf
from tenfold.data import streamed
from tenfold.data.expression import GeneScale, StreamedExpression, expression_of, grouped_means
from tenfold.data.inputs import Inputs
from tenfold.engine import Minibatches, Phase
from tenfold.errors import DataError, KeyMissingError, ParameterError
from tenfold.expression_models.base import ExpressionMethod
from tenfold.kernels.rows import all_rows
from tenfold.method import MethodInfo, param
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.expression_decoders import BernoulliDecoder, NormalDecoder, SquaredErrorDecoder
from tenfold.nn.expression_vae import ExpressionVAE
from tenfold.nn.mlp import Covariates

ROLES = {"batch": "batch", "labels": "cell_type"}


class Plain(ExpressionMethod):
    """A method with nothing of its own."""

    info = MethodInfo(
        title="Plain", tasks=("integrate",), family="deep", year=2020, doi="10.0/0", accepts=("batch", "labels"),
        gives=("embedding",), readiness="research", advice="None.",
    )  # fmt: skip
    n_top_genes: int | None = param(30, low=10)
    epochs: int | None = 2
    scaling: str = "none"
    _blind: ClassVar[bool] = True

    def _build(self) -> ExpressionVAE:
        n_genes, n_batches = len(self.columns_), len(self._design.batch)
        return ExpressionVAE(
            GaussianEncoder(n_genes, 3, 16), SquaredErrorDecoder(3, n_genes, 16, categories=(n_batches,))
        )

    def _fit(self, data: Inputs) -> None:
        cells = self._take(data, self.scaling)
        phase = Phase("train", self.epochs, loss=lambda net, batch, progress: net.terms(batch))
        self._train(data, cells, [phase])


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return tf.data.simulate(200, 60, n_types=3, n_batches=2, depth=100.0, seed=1)


@pytest.fixture()
def on_disk(cells, tmp_path, monkeypatch) -> ad.AnnData:
    monkeypatch.setattr(streamed, "LARGEST_LOADED", 1000)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")


# ---- normalisation and scaling ---------------------------------------------------------------------------------------


def test_expression_is_normalised_by_the_counts_of_all_genes(cells):
    data, columns = Inputs(cells, {}), np.array([3, 7, 50])
    np.testing.assert_allclose(expression_of(data, columns).toarray(), data.lognorm[:, columns].toarray(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["none", "max", "batch max"])
def test_expression_from_disk_is_that_in_memory(kind, cells, on_disk):
    columns, found = np.arange(5, 40), []
    for adata in (cells, on_disk):
        data = Inputs(adata, ROLES)
        expression, batch = expression_of(data, columns), data.batch
        scale = GeneScale.of(kind, expression, batch.values, batch.names)
        found.append((scale.width, scale.apply(expression, batch.values, batch.names)))
    assert sparse.issparse(found[0][1]) and isinstance(found[1][1], StreamedExpression)
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    read = next(iter(Minibatches({"expression": found[1][1]}, None, shuffle=False)))["expression"]
    np.testing.assert_allclose(found[0][1].toarray(), read.dense().numpy(), rtol=1e-6)
    group = batch.values.astype(np.int64)
    means = [grouped_means(values, group, group, (2, 2)) for _, values in found]
    np.testing.assert_allclose(means[0], means[1], rtol=1e-5)
    expected = found[0][1].toarray()[group == 1].mean(axis=0)
    np.testing.assert_allclose(means[0][1, 1], expected, rtol=1e-5)
    assert np.isnan(means[0][0, 1]).all()
    assert (found[1][1].checksum == expression.checksum) == (kind == "none")  # a checkpoint tells scalings apart


def test_scales(cells):
    data = Inputs(cells, ROLES)
    batch, x = data.batch, data.lognorm.toarray()
    by_batch = [batch.values == code for code in range(2)]
    expected = {
        "max": x / x.max(axis=0),
        "batch max": np.concatenate([x[rows] / x[rows].max(axis=0) for rows in by_batch]),
        "standard": (x - x.mean(axis=0)) / x.std(axis=0),
    }
    for kind, value in expected.items():
        scale = GeneScale.of(kind, data.lognorm, batch.values, batch.names)
        found = scale.apply(data.lognorm, batch.values, batch.names)
        found = found.toarray() if sparse.issparse(found) else found
        np.testing.assert_allclose(found, value, atol=1e-4, err_msg=kind)
        back = scale.undo(found[by_batch[1]], 1, np.arange(60))
        np.testing.assert_allclose(back, x[by_batch[1]], atol=2e-5, err_msg=kind)


def test_a_batch_that_is_new_is_scaled_by_its_own_cells(cells):
    data = Inputs(cells, ROLES)
    scale = GeneScale.of("batch max", data.lognorm, data.batch.values, data.batch.names)
    new, known = data.lognorm[:40], np.zeros(40, np.int32)
    found = scale.apply(new, known, ["other"]).toarray()
    np.testing.assert_allclose(found.max(axis=0)[found.any(axis=0)], 1, rtol=1e-6)
    same = scale.apply(data.lognorm, data.batch.values, data.batch.names)[:40]
    np.testing.assert_allclose(scale.apply(new, known, ["batch_1"]).toarray(), same.toarray(), rtol=1e-6)


def test_a_dense_scale_loads_what_is_on_disk_or_says_that_it_cannot(on_disk, monkeypatch):
    with pytest.raises(tf.errors.ResourceError, match="needs all counts in memory"):
        monkeypatch.setattr(streamed, "free_memory", lambda: 100)
        Plain(scaling="standard").fit(on_disk, progress=False)


# ---- decoders --------------------------------------------------------------------------------------------------------


def test_decoders_give_the_losses_they_say():
    torch.manual_seed(0)
    x = sparse.random(20, 9, density=0.3, random_state=0, format="csr", dtype=np.float32)
    rows, observed = all_rows(x), torch.from_numpy(x.toarray())
    z, told = torch.randn(20, 3), Covariates(torch.randint(2, (20, 1)))
    squared, normal, root, bernoulli = (
        kind(3, 9, 8, categories=(2,), **options).eval()
        for kind, options in (
            (SquaredErrorDecoder, {}), (NormalDecoder, {}), (NormalDecoder, {"root": True}), (BernoulliDecoder, {})
        )
    )  # fmt: skip
    torch.nn.init.normal_(normal.raw_variance)
    root.load_state_dict(normal.state_dict())
    mean = squared.scale(z, told)
    torch.testing.assert_close(squared.nll(rows, z, covariates=told), 0.5 * ((mean - observed) ** 2).sum(1))
    for decoder, variance in (
        (normal, F.softplus(normal.raw_variance)),
        (root, F.softplus(normal.raw_variance).sqrt()),
    ):
        expected = -Normal(decoder.scale(z, told), variance.sqrt()).log_prob(observed).sum(1)
        torch.testing.assert_close(decoder.nll(rows, z, covariates=told), expected)
        torch.testing.assert_close(decoder.nll(observed, z, covariates=told), expected)
    expected = F.binary_cross_entropy(bernoulli.scale(z, told), observed, reduction="none").sum(1)
    torch.testing.assert_close(bernoulli.nll(rows, z, covariates=told), expected)


def test_the_loss_of_an_autoencoder_of_expression_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    x = sparse.random(20, 9, density=0.3, random_state=0, format="csr", dtype=np.float32)
    net = ExpressionVAE(GaussianEncoder(9, 3, 8), SquaredErrorDecoder(3, 9, 8, categories=(2,)))
    batch = {"expression": all_rows(x), "levels": torch.randint(2, (20, 1))}
    terms = net.terms(batch, 0.25)
    torch.testing.assert_close(terms["loss"], terms["nll"] + 0.25 * terms["kl"])
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.draw_prior(batch).shape == (20, 3)


# ---- the base of methods ---------------------------------------------------------------------------------------------


def test_genes_that_are_not_modelled_are_nan(cells):
    model = Plain().fit(cells, batch="batch", progress=False)
    found = model.correct()
    modelled = np.isin(cells.var_names, model.modelled_genes)
    assert found.shape == cells.shape and modelled.sum() == 30
    assert np.isfinite(found[:, modelled]).all() and np.isnan(found[:, ~modelled]).all()
    some = [str(cells.var_names[i]) for i in (40, 3, 41)]
    np.testing.assert_array_equal(model.correct(some), found[:, [40, 3, 41]])


@pytest.mark.parametrize("scaling", ["none", "max", "batch max", "standard"])
def test_expression_in_a_batch_is_decoded_for_it_and_corrected_is_the_average(scaling, cells):
    model = Plain(scaling=scaling, epochs=30, batch_size=20, learning_rate=0.01).fit(
        cells, batch="batch", progress=False
    )
    each = [model.expression(transform_batch=name) for name in ("batch_1", "batch_2")]
    assert not np.allclose(each[0], each[1], equal_nan=True)
    np.testing.assert_allclose(model.correct(), (each[0] + each[1]) / 2, atol=1e-5)
    level = np.nanmean(model.correct()) / Inputs(cells, {}).lognorm[:, model.columns_].mean()
    assert 0.5 < level < 2  # in units of log-expression, whatever the network reads
    with pytest.raises(ParameterError, match="Did you mean 'batch_1'"):
        model.expression(transform_batch="batch1")


def test_new_cells_are_placed_with_the_fitted_genes_and_scale(cells):
    model = Plain(scaling="max").fit(cells, batch="batch", progress=False)
    new = cells[50:80, ::-1].copy()
    del new.obs["batch"]  # the encoder is not told
    np.testing.assert_allclose(model.embed(new), model.embed()[50:80], atol=1e-5)
    np.testing.assert_allclose(model.expression(new), model.expression()[50:80], atol=1e-5)
    without = cells[:, cells.var_names != model.modelled_genes[0]].copy()
    with pytest.raises(KeyMissingError, match=str(model.modelled_genes[0])):
        model.embed(without)


def test_training_from_disk(on_disk, cells):
    model = Plain(scaling="batch max").fit(on_disk, batch="batch", progress=False)
    assert isinstance(model._cells(on_disk)["expression"], StreamedExpression)
    np.testing.assert_allclose(model.embed(cells), model.embed(), atol=1e-5)
    assert set(model.history["term"]) == {"loss", "nll", "kl"}


@pytest.mark.parametrize("name", ["scalex", "sysvi", "scgen"])
def test_products_in_bfloat16_give_about_the_same(name, cells):
    labels = {"labels": "cell_type"} if name == "scgen" else {}
    found = []
    for precision in ("32-true", "bf16-mixed"):
        model = tf.method("integrate", name, epochs=2, n_hidden=16, n_latent=3, n_top_genes=30, precision=precision)
        model.fit(cells, batch="batch", progress=False, **labels)
        found.append(model.history[model.history["term"] == "loss"]["train"].to_numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=0.02)


def test_what_cannot_be_learnt_from_is_named(cells):
    with pytest.raises(DataError, match="4 cells are too few"):
        Plain().fit(cells[:4].copy(), progress=False)
    lone = cells[:30].copy()
    lone.obs["batch"] = np.where(np.arange(30) == 4, "lone", "rest")
    with pytest.warns(UserWarning, match="'lone' has a single cell"):
        Plain().fit(lone, batch="batch", progress=False)
    dark = cells.copy()
    x: Any = dark.X.toarray()
    x[3, Plain().fit(cells, progress=False).columns_] = 0
    dark.X = sparse.csr_matrix(x)
    with pytest.warns(UserWarning, match="1 cells have no counts in the"):
        Plain().fit(dark, progress=False)
