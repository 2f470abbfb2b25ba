"""scAtlasVAE: heads of several sets of labels, their weights, an encoder that knows no batch."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tenfold as tf
from tenfold.annotate.scatlasvae import ScAtlasVAE
from tenfold.errors import DataError, KeyMissingError, ParameterError

QUICK: dict[str, Any] = {"n_hidden": 32, "learning_rate": 3e-3, "batch_size": 64}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    found = tf.data.simulate(n_cells=400, n_genes=80, n_types=4, n_batches=2, batch_strength=0.3, seed=1)
    kind = found.obs["cell_type"].cat.codes.to_numpy()
    found.obs["broad"] = np.where(kind < 2, "low", "high")
    return found


@pytest.fixture(scope="module")
def model(adata) -> ScAtlasVAE:
    cells = adata.copy()
    first = cells.obs["batch"].cat.codes.to_numpy() == 0
    cells.obs["fine"] = np.where(first, cells.obs["cell_type"].astype(str), "undefined")
    cells.obs["broad"] = np.where(first, "undefined", cells.obs["broad"])
    settings = {**QUICK, "epochs": 60, "label_epochs": 30}
    return ScAtlasVAE(more_labels=["broad"], **settings).fit(cells, batch="batch", labels="fine", progress=False)


def test_two_vocabularies_are_aligned_from_batches_that_share_no_labels(adata, model):
    table = model.alignment("fine", "broad")
    np.testing.assert_allclose(table.sum(axis=1), 1)
    assert table.idxmax(axis=1).tolist() == ["low", "low", "high", "high"]
    assert min(table.max(axis=1)) > 0.6
    swapped = model.alignment("broad", "fine", adata)
    assert swapped.loc["low", ["type_1", "type_2"]].sum() > 0.7
    assert model.history.query("term == 'classification'")["epoch"].min() == 30


def test_the_encoder_knows_no_batch(adata, model):
    other = adata.copy()
    other.obs["batch"] = "elsewhere"
    assert np.array_equal(model.predict(other), model.predict(adata))
    assert not model.net_.encode_covariates and model.net_.batch_vectors.weight.shape == (2, 8)
    mapped = model.map_query(other[:100].copy(), epochs=3, progress=False)
    assert mapped.net_.batch_vectors.weight.shape == (3, 8)
    assert np.array_equal(mapped.embed(adata), model.embed(adata))
    assert not np.array_equal(mapped.net_.batch_vectors.weight[2].detach(), model.net_.batch_vectors.weight.detach()[0])


def test_the_loss_of_the_heads_is_the_weighted_mean_over_labelled_cells(model):
    net = model.net_
    torch.manual_seed(0)
    z = torch.randn(30, 10)
    labels = torch.stack([torch.randint(-1, 4, (30,)), torch.randint(-1, 2, (30,))], dim=1)
    expected = 0.0
    for number, head in enumerate(net.heads):
        known = labels[:, number] >= 0
        own = -F.log_softmax(head(z), dim=1)[known, labels[known, number]]
        expected += (
            float((own * torch.as_tensor(model.label_weights_[number])[labels[known, number]]).mean().detach()) / 2
        )
    assert float(net.classification_loss({"all_labels": labels}, z)) == pytest.approx(expected, rel=1e-5)
    nobody = torch.full_like(labels, -1)
    assert float(net.classification_loss({"all_labels": nobody}, z)) == 0


def test_rare_labels_weigh_more_up_to_a_cap():
    label = np.repeat([0, 1, 2, -1], [90, 9, 1, 50])
    assert ScAtlasVAE(weight_cap=None)._weights(label, 3) == pytest.approx([100 / 90, 100 / 9, 100])
    assert ScAtlasVAE(weight_cap=5.0)._weights(label, 3) == pytest.approx([100 / 90, 100 / 9, 15])


def test_parts_of_the_loss_that_are_asked_for(adata):
    rng = np.random.default_rng(0)
    cells = adata.copy()
    cells.obsm["X_old"] = rng.normal(size=(400, 10)).astype(np.float32)
    cells.obsm["X_old"][200:] = 0
    settings: dict[str, Any] = {**QUICK, "epochs": 30, "n_latent": 10}
    free = ScAtlasVAE(**settings).fit(cells, batch="batch", labels="cell_type", progress=False)
    kept = ScAtlasVAE(keep_embedding="X_old", keep_weight=100.0, mmd_weight=1.0, **settings)
    kept.fit(cells, batch="batch", labels="cell_type", progress=False)
    assert {"gate", "kept", "alignment"} <= set(kept.history["term"]) and "kept" not in set(free.history["term"])
    far = [np.square(each.embed() - cells.obsm["X_old"])[:200].mean() for each in (free, kept)]
    assert far[1] < 0.8 * far[0]
    closed = ScAtlasVAE(gate_weight=50.0, **settings).fit(cells, batch="batch", labels="cell_type", progress=False)
    extra = [each.history.query("term == 'gate'")["train"].iloc[-1] for each in (free, closed)]
    assert extra[1] < 0.7 * extra[0]


def test_permuted_labels_teach_nothing_and_a_reference_labels_a_query(adata):
    train, test = adata[::2].copy(), adata[1::2].copy()
    truth = test.obs["cell_type"].astype(str).to_numpy()
    test.obs = test.obs[["batch"]]
    settings = {**QUICK, "epochs": 40, "label_epochs": 20}
    right = ScAtlasVAE(more_labels=["broad"], **settings)
    right.fit(test, reference=train, batch="batch", labels="cell_type", progress=False)
    assert (right.predict() == truth).mean() > 0.85 and right.embed().shape == (200, 10)
    assert set(right.probabilities_of("broad").columns) == {"low", "high"}
    assert right.predict_sets(test).contains.shape == (200, 4) and len(right.novelty(test)) == 200
    train.obs["cell_type"] = np.random.default_rng(0).permutation(train.obs["cell_type"].to_numpy())
    blind = ScAtlasVAE(**settings).fit(test, reference=train, batch="batch", labels="cell_type", progress=False)
    assert (blind.predict() == truth).mean() < 0.25 + 3 * np.sqrt(0.19 / 200) + 0.03


def test_words_for_what_is_wrong(adata, model):
    def fit(**params: Any) -> None:
        ScAtlasVAE(epochs=1, **params).fit(adata, labels="cell_type", progress=False)

    with pytest.raises(ParameterError, match="given as labels"):
        fit(more_labels=["cell_type"])
    with pytest.raises(KeyMissingError, match="braod"):
        fit(more_labels=["braod"])
    with pytest.raises(KeyMissingError, match="keep_embedding"):
        fit(keep_embedding="X_none")
    cells = adata.copy()
    cells.obs["cell_type"] = np.where(np.arange(400) < 9, "undefined", "same")
    with pytest.raises(DataError, match="single label"):
        ScAtlasVAE(epochs=1).fit(cells, labels="cell_type", progress=False)
    with pytest.raises(ParameterError, match="Did you mean 'broad'"):
        model.probabilities_of("borad")
