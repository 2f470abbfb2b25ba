"""The base of every method: roles, fit, write, provenance, warnings, save and load."""

from __future__ import annotations

import json
import os
import warnings
from typing import Literal

import anndata as ad
import numpy as np
import pytest

import tenfold as tf
from tenfold import catalog
from tenfold.errors import (
    DataError,
    FileFormatError,
    KeyMissingError,
    NotFittedError,
    ParameterError,
    RoleError,
)
from tenfold.method import Clusterer, Denoiser, Embedder, Generator, Grapher, Method, MethodInfo, param


class Toy(Method, Embedder, Clusterer, Denoiser, Grapher, Generator):
    info = MethodInfo(
        title="Toy", tasks=("integrate", "embed", "denoise"), family="deep", year=2024, doi="10.1000/toy",
        needs=("batch",), accepts=("labels",), gives=("embedding",), readiness="research", advice="Never.",
    )  # fmt: skip

    n_latent: int = param(2, low=1)
    hidden: tuple[int, ...] = (4, 3)
    kind: Literal["plain", "noisy", "broken"] = "plain"
    seed: int = 0

    def _fit(self, data):
        import torch

        for _ in range(2):
            if self.kind != "plain":
                self._complain()
        if self.kind == "broken":
            raise DataError("broken on purpose")
        self.embedding_ = np.asarray(data.counts[:, : self.n_latent].todense(), dtype=np.float32)
        self.clusters_ = np.arange(data.n_cells) % 2
        self.counts_ = data.counts
        self.genes_ = data.gene_names
        torch.manual_seed(0)
        self.net_ = self._build().eval()
        self._scratch_ = object()

    def _complain(self):
        warnings.warn("batches overlap little", UserWarning, stacklevel=2)
        warnings.warn("log of zero", RuntimeWarning, stacklevel=2)

    def _build(self):
        from torch import nn

        return nn.Sequential(nn.Linear(self.n_latent, 3), nn.BatchNorm1d(3))

    def embed(self, adata=None):
        self._require_fitted_cells(adata)
        return self.embedding_

    def cluster(self):
        return self.clusters_

    def denoise(self, adata=None):
        return self.counts_.toarray()

    def graph(self):
        overlap = (self.counts_ @ self.counts_.T).tocsr()
        return overlap, overlap

    def sample(self, n):
        return ad.AnnData(np.ones((n, 3)))


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, size=(30, 12)).astype(np.float32) + 1
    adata = ad.AnnData(counts, layers={"raw": counts + 1})
    adata.obs["donor"] = np.where(np.arange(30) % 2, "a", "b")
    return adata


@pytest.fixture
def in_catalog(monkeypatch):
    locations, load_class = catalog._locations, catalog._load_class
    monkeypatch.setattr(catalog, "_locations", lambda: {**locations(), Toy.name(): "tests"})
    monkeypatch.setattr(catalog, "_load_class", lambda name: Toy if name == Toy.name() else load_class(name))


# ---- roles -----------------------------------------------------------------------------------------------------------


def test_roles_are_checked_by_name(adata):
    toy = Toy()
    with pytest.raises(RoleError, match=r"Toy needs batch=\.\.\.: the obs column with the batch"):
        toy.fit(adata)
    with pytest.raises(RoleError, match=r"'batch_key' is not a data role\. Did you mean 'batch'\?"):
        toy.fit(adata, batch_key="donor")
    with pytest.raises(RoleError, match=r"does not use 'spatial', only batch, labels, layer, key_added\. Leave"):
        toy.fit(adata, batch="donor", spatial="spatial")
    with pytest.raises(KeyMissingError, match="Did you mean 'donor'"):
        toy.fit(adata, batch="doner")
    for role in ("layer", "key_added"):
        with pytest.raises(RoleError, match=f"{role}= takes a name, not list"):
            toy.fit(adata, batch="donor", **{role: ["x"]})
    assert toy.fit(adata, batch="donor", labels=None) is toy  # None means not given


def test_layer_is_used_and_the_input_is_left_alone(adata):
    before = adata.copy()
    toy = Toy().fit(adata, batch="donor", layer="raw")
    np.testing.assert_array_equal(toy.embed(), adata.layers["raw"][:, :2])
    np.testing.assert_array_equal(adata.X, before.X)
    assert adata.obs.equals(before.obs) and not adata.uns and not adata.obsm


# ---- results ---------------------------------------------------------------------------------------------------------


def test_write_fills_the_slots_of_its_task_and_survives_a_file(adata, tmp_path):
    toy = Toy(n_latent=3, hidden=(8,)).fit(adata, batch="donor")
    toy.write(adata)
    name = Toy.name()
    assert list(adata.obsm) == [f"X_{name}"]
    assert set(adata.obsp) == {f"{name}_distances", f"{name}_connectivities"}
    assert not adata.layers.keys() - {"raw"}
    toy.write(adata, task="denoise")
    assert f"{name}" in adata.layers
    toy.write(adata, task="embed")
    assert adata.obs[name].cat.categories.tolist() == ["0", "1"]
    adata.write_h5ad(tmp_path / "x.h5ad")
    stored = ad.read_h5ad(tmp_path / "x.h5ad").uns["tenfold"][name]
    assert json.loads(stored["parameters"]) == {"n_latent": 3, "hidden": [8], "kind": "plain", "seed": 0}
    assert json.loads(stored["roles"]) == {"batch": "donor"}
    assert json.loads(stored["warnings"]) == []
    assert (stored["method"], stored["task"], stored["seed"], stored["doi"]) == (name, "embed", 0, "10.1000/toy")
    assert stored["version"] == tf.__version__
    assert 0 < stored["seconds"] < 60 and stored["peak_memory_mb"] > 10


def test_key_added_names_the_slots_and_runs_stand_beside_each_other(adata):
    Toy().fit(adata, batch="donor").write(adata)
    Toy().fit(adata, batch="donor", key_added="second").write(adata)
    assert set(adata.uns["tenfold"]) == {Toy.name(), "second"}
    assert "X_second" in adata.obsm and "second_distances" in adata.obsp


def test_graph_is_found_by_scanpy(adata):
    sc = pytest.importorskip("scanpy")
    Toy().fit(adata, batch="donor").write(adata)
    sc.tl.diffmap(adata, neighbors_key=Toy.name())
    assert "X_diffmap" in adata.obsm


def test_results_before_fit_and_of_other_cells_are_refused(adata, tmp_path):
    for use in (lambda toy: toy.write(adata), lambda toy: toy.save(tmp_path / "m"), lambda toy: toy.embed()):
        with pytest.raises(NotFittedError, match=r"call \.fit\(adata"):
            use(Toy())
    toy = Toy().fit(adata, batch="donor")
    for other in (adata[:20], adata[::-1]):
        with pytest.raises(DataError, match="fitted on other cells"):
            toy.write(other.copy())
        with pytest.raises(DataError, match="cannot place cells"):
            toy.embed(other)
    with pytest.raises(RoleError, match="does not serve 'generate'; it serves integrate, embed, denoise"):
        toy.write(adata, task="generate")


def test_a_failed_fit_leaves_no_results_of_the_fit_before(adata):
    toy = Toy().fit(adata, batch="donor")
    toy.kind = "broken"
    with pytest.raises(DataError, match="on purpose"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        toy.fit(adata, batch="donor")
    with pytest.raises(NotFittedError):
        toy.write(adata)


# ---- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noisy", "broken"])
def test_warnings_reach_the_caller_once_and_the_provenance(adata, kind):
    toy = Toy(kind=kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kind == "broken":
            with pytest.raises(DataError):
                toy.fit(adata, batch="donor")
        else:
            toy.fit(adata, batch="donor")
    seen = [(str(w.message), w.category) for w in caught if w.category in (UserWarning, RuntimeWarning)]
    assert sorted(seen, key=str) == [("batches overlap little", UserWarning), ("log of zero", RuntimeWarning)]
    assert {os.path.basename(w.filename) for w in caught if w.category is UserWarning} == {"test_method.py"}
    if kind == "noisy":
        assert json.loads(toy.provenance("embed")["warnings"]) == ["batches overlap little"]


def test_the_callers_filters_hold(adata):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        toy = Toy(kind="noisy").fit(adata, batch="donor")
    assert not caught
    assert json.loads(toy.provenance("embed")["warnings"]) == ["batches overlap little"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="overlap little"):
            Toy(kind="noisy").fit(adata, batch="donor")


# ---- save and load ---------------------------------------------------------------------------------------------------


def test_save_and_load_give_the_same_method(adata, tmp_path, in_catalog):
    toy = Toy(n_latent=3, hidden=(8,), seed=4).fit(adata, batch="donor", key_added="mine")
    folder = toy.save(tmp_path / "deep" / "model")
    loaded = tf.load(folder)
    assert type(loaded) is Toy
    assert loaded.parameters == toy.parameters
    np.testing.assert_array_equal(loaded.embed(), toy.embed())
    assert (loaded.counts_ != toy.counts_).nnz == 0
    assert loaded.genes_.tolist() == toy.genes_.tolist()
    assert not loaded.net_.training
    for key, value in toy.net_.state_dict().items():
        assert loaded.net_.state_dict()[key].equal(value), key
    assert not hasattr(loaded, "_scratch_")
    again = adata.copy()
    toy.write(adata), loaded.write(again)
    assert adata.uns["tenfold"]["mine"] == again.uns["tenfold"]["mine"]
    assert sorted(os.listdir(folder)) == ["method.json", "state.safetensors"]
    assert not any(b"pickle" in path.read_bytes() or path.read_bytes()[:2] == b"PK" for path in folder.iterdir())


def test_task_is_kept_when_saved(adata, tmp_path, in_catalog):
    toy = tf.method("embed", Toy.name()) if Toy.name() in catalog.names("embed") else Toy()
    toy.task = "embed"
    loaded = tf.load(toy.fit(adata, batch="donor").save(tmp_path / "m"))
    loaded.write(adata)
    assert adata.uns["tenfold"][Toy.name()]["task"] == "embed"


def test_damaged_and_foreign_folders_are_named(adata, tmp_path, in_catalog, monkeypatch):
    folder = Toy().fit(adata, batch="donor").save(tmp_path / "model")
    whole = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors").write_bytes(whole[:100])
    with pytest.raises(FileFormatError, match="is damaged"):
        tf.load(folder)
    (folder / "state.safetensors").write_bytes(whole)
    monkeypatch.setattr(catalog, "_locations", dict)
    with pytest.raises(FileFormatError, match=f"holds a model of '{Toy.name()}', which this tenfold does not have"):
        tf.load(folder)
    with pytest.raises(FileFormatError, match="not a saved tenfold model"):
        tf.load(tmp_path / "nothing")


def test_repr_shows_the_parameters():
    assert repr(Toy(n_latent=5)) == "Toy(n_latent=5, hidden=(4, 3), kind='plain', seed=0)"
    with pytest.raises(ParameterError, match="Did you mean 'plain'"):
        Toy(kind="plan")
