"""Mapping cells onto a fitted model: what is new is learnt, what was known does not move."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import tenfold as tf
from tenfold.data.transfer import label_threshold, transfer_labels
from tenfold.embed import SCVI
from tenfold.errors import DataError, ParameterError, RoleError
from tenfold.integrate.scanvi import SCANVI
from tenfold.nn.autoencoder import ConditionalVAE
from tenfold.nn.decoders import CountDecoder
from tenfold.nn.encoders import GaussianEncoder
from tenfold.nn.mlp import MLP
from tenfold.nn.surgery import graft, heal

PRESET = {
    "n_layers": 2, "layer_norm": "both", "batch_norm": "none", "encode_covariates": True,
    "deeply_inject_covariates": False, "dropout": 0.2,
}  # fmt: skip
SMALL = {"n_latent": 5, "n_hidden": 32, "n_top_genes": None, "kl_warmup_epochs": 2, "epochs": 4}


def fit(adata: ad.AnnData, kind: type = SCVI, roles: dict[str, Any] | None = None, **params: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(**{**SMALL, **params}).fit(adata, progress=False, **(roles or {"batch": "batch"}))


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    adata = tf.data.simulate(
        600, 80, n_types=3, n_batches=3, batch_strength=0.3, type_strength=2.0, depth=500.0, seed=1
    )
    adata.obs["site"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 4 == 0, "x", "y"))
    adata.obs["age"] = np.random.default_rng(0).normal(size=adata.n_obs)
    return adata


@pytest.fixture(scope="module")
def parts(cells) -> tuple[ad.AnnData, ad.AnnData]:
    """The reference, two batches, and the query, the third."""
    third = (cells.obs["batch"] == "batch_3").to_numpy()
    return cells[~third].copy(), cells[third].copy()


@pytest.fixture(scope="module")
def reference(parts) -> SCVI:
    return fit(parts[0], epochs=60, kl_warmup_epochs=20, learning_rate=5e-3, **PRESET)


OPTIONS = [
    PRESET,
    {},
    {"dispersion": "gene-batch", "likelihood": "zinb"},
    {"batch_embedding": 3, "encode_covariates": True},
    {"library": "latent", "encode_covariates": True},
    {"dispersion": "gene-cell", "latent_distribution": "ln", "precision": "bf16-mixed"},
]


@pytest.mark.parametrize("params", OPTIONS, ids=str)
def test_the_reference_does_not_move_and_the_mapped_model_survives_a_file(parts, tmp_path, params):
    known, query = parts
    model = fit(known, weight_decay=0.1, **params)
    before = {name: value.clone() for name, value in model.net_.state_dict().items()}
    z, fitted = model.embed(known), model.embed().copy()
    mapped = model.map_query(query, epochs=5, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.net_.state_dict().items())
    np.testing.assert_array_equal(mapped.embed(known), z)
    np.testing.assert_array_equal(model.embed(), fitted)
    np.testing.assert_array_equal(mapped.denoise(known), model.denoise(known))
    assert mapped.embed().shape == (query.n_obs, 5)
    mapped.save(tmp_path / "mapped")
    loaded = tf.load(tmp_path / "mapped")
    for adata in (None, query, known):
        np.testing.assert_array_equal(loaded.embed(adata), mapped.embed(adata))
    assert np.isfinite(loaded.elbo(query))
    mapped.write(query.copy())


def test_a_reference_loaded_without_its_data(parts, reference, tmp_path):
    reference.save(tmp_path / "reference")
    mapped = tf.load(tmp_path / "reference").map_query(parts[1], epochs=5, progress=False)
    again = reference.map_query(parts[1], epochs=5, progress=False)
    np.testing.assert_array_equal(mapped.embed(), again.embed())
    assert not np.array_equal(again.embed(), reference.map_query(parts[1], epochs=5, seed=7, progress=False).embed())


def test_the_query_is_learnt(parts, reference):
    """Its likelihood rises, and its cells come to lie with the reference's of their type."""
    known, query = parts
    mapped = reference.map_query(query, epochs=60, progress=False)
    losses = mapped.history.query("term == 'loss'").train.to_numpy()
    assert (mapped.history.phase == "query").all()
    start = reference.map_query(query, epochs=1, learning_rate=0.0, progress=False)
    assert losses[-5:].mean() < start.history.query("term == 'loss'").train.iloc[0] - 0.2
    assert mapped.reconstruction_error(query) < start.reconstruction_error(query) - 0.3
    found = mapped.transfer_labels(known.obs["cell_type"].to_numpy())
    assert (found["label"].to_numpy() == query.obs["cell_type"].to_numpy()).mean() > 0.9
    assert found["unknown"].mean() < 0.3
    stored = fit(known, roles={"batch": "batch", "labels": "cell_type"}).map_query(query, epochs=1, progress=False)
    assert set(stored.transfer_labels()["label"]) <= set(query.obs["cell_type"])


def test_dispersions_and_library_priors_of_new_batches(parts):
    known, query = parts
    model = fit(known, dispersion="gene-batch", library="latent")
    mapped = model.map_query(query, epochs=20, learning_rate=0.05, progress=False)
    theta, before = mapped.net_.decoder.log_theta, model.net_.decoder.log_theta
    assert theta.shape == (3, 80)
    assert torch.equal(theta[:2], before)
    assert (theta[2] - before.mean(dim=0)).abs().max() > 0.05
    log_sizes = np.log(np.asarray(query.X.sum(axis=1)).ravel())
    np.testing.assert_allclose(mapped.library_prior_[:, 2], [log_sizes.mean(), log_sizes.var()], rtol=1e-3)
    assert torch.equal(mapped.net_.library_prior, torch.from_numpy(mapped.library_prior_))


def test_from_one_batch_to_several_and_further_covariates(parts):
    known, query = parts
    one = known[known.obs["batch"] == "batch_1"].copy()
    roles = {"batch": "batch", "categorical_covariates": ["site"], "continuous_covariates": ["age"]}
    model = fit(one, roles=roles, **PRESET)
    z = model.embed(one)
    other = query.copy()
    other.obs["site"] = other.obs["site"].cat.rename_categories({"y": "z"})
    mapped = model.map_query(other, epochs=3, progress=False)
    np.testing.assert_array_equal(mapped.embed(one), z)
    assert mapped.design_["batch"] == ["batch_1", "batch_3"]
    assert mapped.design_["categorical"] == [["x", "y", "z"]]
    further = mapped.map_query(known[known.obs["batch"] == "batch_2"].copy(), epochs=3, progress=False)
    assert further.design_["batch"] == ["batch_1", "batch_3", "batch_2"]
    np.testing.assert_array_equal(further.embed(one), z)
    np.testing.assert_array_equal(further.embed(other), mapped.embed(other))
    assert len(further.transfer_labels(one.obs["cell_type"].to_numpy())) == further.embed().shape[0]


def test_nothing_is_trained_for_batches_that_are_known(parts, reference):
    known, query = parts
    some = known[::3].copy()
    mapped = reference.map_query(some, progress=False)
    np.testing.assert_array_equal(mapped.embed(), reference.embed(some))
    assert mapped.design_["batch"] == reference.design_["batch"]
    both = ad.concat([some, query])
    mixed = reference.map_query(both, epochs=3, progress=False)
    alone = reference.map_query(query, epochs=3, progress=False)
    np.testing.assert_array_equal(mixed.embed(query), alone.embed(query))  # known cells take no part in training


def test_genes_by_name(parts, reference):
    query = parts[1]
    shuffled = query[:, np.random.default_rng(0).permutation(80)].copy()
    expected = reference.map_query(query, epochs=2, progress=False)
    np.testing.assert_allclose(
        reference.map_query(shuffled, epochs=2, progress=False).embed(), expected.embed(), atol=1e-4
    )
    fewer = query[:, 8:].copy()
    with pytest.warns(UserWarning, match="8 of the 80 genes"):
        mapped = reference.map_query(fewer, epochs=2, progress=False)
    assert "8 of the 80 genes" in mapped.run_["warnings"][0]
    zeroed = query.copy()
    zeroed.X = sparse.csr_matrix(zeroed.X.toarray() * (np.arange(80) >= 8))
    np.testing.assert_allclose(mapped.embed(), reference.map_query(zeroed, epochs=2, progress=False).embed(), atol=1e-5)
    with pytest.warns(UserWarning, match="8 of the 80 genes"):
        np.testing.assert_allclose(mapped.embed(fewer), mapped.embed(), atol=1e-5)
    mapped.write(fewer, "denoise")
    np.testing.assert_array_equal(fewer.layers["scvi"], mapped.denoise())
    assert np.corrcoef(mapped.denoise().ravel(), expected.denoise()[:, 8:].ravel())[0, 1] > 0.9
    with pytest.raises(DataError, match=r"20 of the 80 genes.*at most 20%"):
        reference.map_query(query[:, 20:].copy(), progress=False)


def test_a_query_in_a_layer(parts, reference):
    query = parts[1].copy()
    query.layers["counts"] = query.X.copy()
    query.X = np.log1p(query.X.toarray())
    with pytest.warns(UserWarning, match="4 of the 80 genes"):
        mapped = reference.map_query(query[:, 4:].copy(), epochs=2, layer="counts", progress=False)
    assert np.isfinite(mapped.embed()).all()


def test_an_interrupted_mapping_goes_on(parts, reference, tmp_path):
    straight = reference.map_query(parts[1], epochs=6, progress=False)
    folder = tmp_path / "state"
    stored = reference.map_query(parts[1], epochs=6, progress=False, checkpoint=folder)
    assert (folder / "scvi_query.safetensors").exists()
    np.testing.assert_array_equal(stored.embed(), straight.embed())
    again = reference.map_query(parts[1], epochs=6, progress=False, checkpoint=folder)
    np.testing.assert_array_equal(again.embed(), straight.embed())


def test_what_cannot_be_mapped(parts, reference):
    query = parts[1]
    with pytest.raises(DataError, match="3 cells have a batch"):
        reference.map_query(query[:3].copy(), progress=False)
    with pytest.raises(RoleError, match="Did you mean 'batch'"):
        reference.map_query(query, bacth="batch")
    with pytest.raises(ParameterError, match="epochs=0"):
        reference.map_query(query, epochs=0)
    with pytest.raises(DataError, match="Map others onto it first"):
        reference.transfer_labels()
    mapped = reference.map_query(query, epochs=1, progress=False)
    with pytest.raises(DataError, match="without labels"):
        mapped.transfer_labels()
    with pytest.raises(DataError, match="the reference has"):
        mapped.transfer_labels(query.obs["cell_type"].to_numpy())


def test_scanvi_maps_and_labels_a_query_without_labels(parts, tmp_path):
    known, query = parts
    roles = {"batch": "batch", "labels": "cell_type"}
    model = fit(known, SCANVI, roles, epochs=40, joint_epochs=20, learning_rate=5e-3, **PRESET)
    table = model.probabilities(known)
    mapped = model.map_query(query, epochs=20, progress=False)
    pd.testing.assert_frame_equal(mapped.probabilities(known), table)
    assert (mapped.predict() == query.obs["cell_type"].to_numpy()).mean() > 0.9
    odd = query.copy()
    odd.obs["cell_type"] = np.where(np.arange(odd.n_obs) % 2, odd.obs["cell_type"].astype(str), "strange")
    with pytest.warns(UserWarning, match="'strange', which the reference does not know"):
        told = model.map_query(odd, epochs=2, labels="cell_type", progress=False)
    assert (told.fitted_["label"] >= 0).sum() == odd.n_obs // 2
    mapped.save(tmp_path / "mapped")
    assert (tf.load(tmp_path / "mapped").predict() == mapped.predict()).all()


# ---- the network -----------------------------------------------------------------------------------------------------


def network(n_batches: int, seed: int = 0) -> ConditionalVAE:
    torch.manual_seed(seed)
    told = {"categories": (n_batches, 3)}
    encoder = GaussianEncoder(7, 2, [8, 6], **told)
    return ConditionalVAE(
        encoder,
        CountDecoder(2, 7, [6, 8], dispersion="gene-batch", n_levels=n_batches, **told),
        encode_covariates=True,
    )


def test_only_rows_of_new_levels_are_trained():
    trained, larger = network(2), network(4, seed=1)
    assert graft(trained, larger)
    free = {name: tuple(value.shape) for name, value in larger.named_parameters() if value.requires_grad}
    assert len(free) == 5  # a table of each of the four layers, and the dispersions
    assert all(shape[0] == 2 for shape in free.values())
    heal(larger)
    for name, value in larger.state_dict().items():
        before = trained.state_dict()[name]
        assert torch.equal(value[: len(before)] if value.ndim else value, before), name
        if value.shape != before.shape:
            torch.testing.assert_close(value[2:], before.mean(dim=0).expand(2, -1))
    same = network(2, seed=2)
    assert not graft(trained, same)


def test_widths_of_layers():
    block = MLP(7, [16, 4], 9)
    assert [tuple(layer.weight.shape) for layer in block.layers] == [(7, 16), (16, 4)]
    assert GaussianEncoder(7, 2, [16, 4]).heads.weight.shape == (4, 4)
    assert CountDecoder(2, 7, [4, 16]).mean_head.weight.shape == (7, 16)


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_by_neighbours_know_disagreement_and_distance():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + np.array([8, 0, 0, 0])]).astype(
        np.float32
    )
    labels = np.repeat(["a", "b"], 200)
    queries = np.array([[0, 0, 0, 0], [8, 0, 0, 0], [4, 0, 0, 0], [0, 30, 0, 0]], dtype=np.float32)
    found = transfer_labels(points, labels, queries)
    assert list(found["label"][:2]) == ["a", "b"]
    assert (found["uncertainty"][:2] < 0.05).all()
    assert found["uncertainty"][2] > 0.3
    assert found["disagreement"][3] < 0.05 and found["uncertainty"][3] > 0.8  # far, although neighbours agree
    threshold = label_threshold(points, labels, error=0.1)
    own = label_threshold(points, labels, np.tile(["u", "v"], 200), error=0.1)
    assert 0 < threshold < 0.5 and 0 < own < 0.5
    apart = np.repeat(["u", "v"], 200)  # no label is in two batches: by all others, then
    assert label_threshold(points, labels, apart, error=0.1) == threshold
    with pytest.raises(DataError, match="too few"):
        transfer_labels(points[:10], labels[:10], queries)


def test_neighbours_weigh_less_the_farther_they_are():
    points = np.array([[0.0, 0], [1, 0], [1.1, 0], [9, 9]], dtype=np.float32)
    found = transfer_labels(points, np.array(["a", "b", "b", "c"]), np.array([[0.01, 0]], dtype=np.float32), 3)
    d = np.array([0.01, 0.99, 1.09])
    weights = np.exp(-0.5 * (d / d.mean()) ** 2)
    assert found["disagreement"][0] == pytest.approx(1 - max(weights[0], weights[1:].sum()) / weights.sum(), rel=1e-4)
