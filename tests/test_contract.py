"""The contract that every method of the catalog passes (docs: "The contract")."""

from __future__ import annotations

import inspect
import pickle
import re
import socket
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tenfold as tf
from tenfold import catalog
from tenfold.capabilities import VelocityModel
from tenfold.errors import DataError, KeyMissingError, NotCountsError, NotFittedError, ParameterError, RoleError
from tenfold.method import (
    TASKS,
    Annotator,
    Clusterer,
    Corrector,
    Denoiser,
    Embedder,
    Generator,
    Grapher,
    Method,
)

CLASSES = list(catalog.classes())
#: What makes a method quick on a hundred cells; names that recur have one meaning everywhere.
QUICK = {
    "epochs": 3, "n_components": 8, "n_latent": 4, "n_hidden": 16, "n_top_genes": 60, "n_clusters": 5, "n_factors": 3,
    "n_rounds": 5, "n_sets": 30, "translation_steps": 20,
}  # fmt: skip


def every(classes: list[type[Method]] = CLASSES) -> Any:
    return pytest.mark.parametrize("cls", classes, ids=[cls.name() for cls in classes])


def tiny(seed: int = 0) -> ad.AnnData:
    """120 cells × 80 genes of three types in two batches that differ."""
    adata = tf.data.simulate(n_cells=120, n_genes=80, n_types=3, n_batches=2, batch_strength=0.3, seed=seed)
    adata.obs["site"] = pd.Categorical(np.where(np.arange(120) % 3 == 0, "x", "y"))
    adata.obs["age"] = np.random.default_rng(seed).normal(size=120)
    adata.obsm["spatial"] = np.random.default_rng(seed).uniform(size=(120, 2))
    intronic = np.random.default_rng(seed).binomial(adata.X.data.astype(int), 0.25)
    adata.layers["unspliced"] = sparse.csr_matrix((intronic, adata.X.indices, adata.X.indptr), adata.shape)
    adata.layers["spliced"] = sparse.csr_matrix(adata.X - adata.layers["unspliced"])
    return adata


def make(cls: type[Method], seed: int = 0) -> Method:
    params = {name: value for name, value in QUICK.items() if name in cls.parameter_names()}
    if "seed" in cls.parameter_names():
        params["seed"] = seed
    return cls(**params)


def roles_of(cls: type[Method]) -> dict[str, str]:
    known = {"batch": "batch", "labels": "cell_type"}
    return {role: known[role] for role in (*cls.info.needs, *cls.info.accepts) if role in known}


def fitted(cls: type[Method], adata: ad.AnnData | None = None, seed: int = 0, **roles: Any) -> Method:
    return make(cls, seed).fit(tiny() if adata is None else adata, progress=False, **{**roles_of(cls), **roles})


def results(method: Method) -> dict[str, np.ndarray]:
    """Everything that the method's capabilities give, as dense arrays."""
    found: dict[str, np.ndarray] = {}
    if isinstance(method, Embedder):
        found["embed"] = method.embed()
    if isinstance(method, Clusterer):
        found["cluster"] = method.cluster()
    if isinstance(method, Grapher):
        found["distances"], found["connectivities"] = (part.toarray() for part in method.graph())
    if isinstance(method, Corrector):
        found["correct"] = method.correct()
    if isinstance(method, Denoiser):
        found["denoise"] = method.denoise()
    if isinstance(method, Annotator):
        found["probabilities"] = method.probabilities().to_numpy()
    if isinstance(method, VelocityModel):
        found["velocity"], found["time"], found["confidence"] = method.velocity(), method.time(), method.confidence()
    if isinstance(method, Generator):
        found["sample"] = method.sample(20).X.toarray()
    return found


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray], atol: float = 0.0) -> None:
    assert first.keys() == second.keys() and first
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def once() -> Callable[[type[Method]], Method]:
    """A method fitted to the tiny data, fitted once for all tests that only look at it."""
    kept: dict[type[Method], Method] = {}

    def get(cls: type[Method]) -> Method:
        if cls not in kept:
            kept[cls] = fitted(cls)
        return kept[cls]

    return get


# ---- results ---------------------------------------------------------------------------------------------------------


@every()
def test_results_have_one_row_a_cell_and_are_finite(cls, once):
    method = once(cls)
    for name, value in results(method).items():
        assert len(value) == (20 if name == "sample" else 120), name
        kept = value[:, np.isfinite(value).all(axis=0)] if name in ("denoise", "correct", "velocity") else value
        assert kept.size and np.isfinite(kept).all(), name
        if name in ("embed", "correct", "denoise", "probabilities", "velocity", "time", "confidence"):
            assert value.dtype == np.float32, name
        if name == "sample":
            assert (value >= 0).all() and (value == np.rint(value)).all()


@every()
def test_same_seed_same_result_other_seed_other_result(cls, once):
    first, again = results(once(cls)), fitted(cls)
    assert_same(first, results(again))
    assert again.run_["seconds"] < 60  # of the second fit: the first compiles what it needs
    if cls.info.stochastic:
        other = results(fitted(cls, seed=1))
        assert any(not np.array_equal(first[name], other[name]) for name in first)


@every()
def test_write_fills_the_documented_slots_and_nothing_else(cls, once):
    adata = tiny()
    before = adata.copy()
    for task in cls.info.tasks:
        written = adata.copy()
        once(cls).write(written, task)
        new = {
            f"{part}[{key!r}]"
            for part in ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
            for key in set(getattr(written, part)) - set(getattr(before, part))
        }
        key = cls.name()
        slots = {f"obsm['X_{key}']", f"obs['{key}']", f"layers['{key}']", f"obsp['{key}_distances']",
                 f"obsp['{key}_connectivities']", f"uns['{key}']", "uns['tenfold']", f"obs['{key}_label']",
                 f"obs['{key}_confidence']", f"obsm['{key}_probabilities']", f"layers['{key}_velocity']",
                 f"obs['{key}_time']"}  # fmt: skip
        assert "uns['tenfold']" in new and new <= slots
        documented = re.sub(r"\s+", " ", cls.__doc__).replace('"', "'")
        assert all(slot in documented for slot in new - {"uns['tenfold']", f"uns['{key}']"}), new
        assert (written.X != before.X).nnz == 0
        pd.testing.assert_frame_equal(written.obs[before.obs.columns], before.obs)
        run = written.uns["tenfold"][key]
        assert {"parameters", "seed", "version", "seconds", "peak_memory_mb", "warnings", "doi"} <= set(run)


@every()
def test_fit_leaves_the_data_alone(cls):
    adata = tiny()
    before = adata.copy()
    fitted(cls, adata)
    assert (adata.X != before.X).nnz == 0 and adata.X.dtype == before.X.dtype
    for part in ("obs", "var", "obsm", "varm", "obsp", "layers", "uns"):
        assert set(getattr(adata, part)) == set(getattr(before, part)), part
    pd.testing.assert_frame_equal(adata.obs, before.obs)


@every()
def test_key_added_names_the_slots(cls):
    adata = tiny()
    method = fitted(cls, adata, key_added="mine")
    method.write(adata)
    assert "mine" in adata.uns["tenfold"] and cls.name() not in adata.uns["tenfold"]
    assert not any(cls.name() in str(key) for key in [*adata.obsm, *adata.obsp, *adata.layers])


@every()
def test_written_results_survive_a_file(cls, once, tmp_path):
    adata = tiny()
    once(cls).write(adata)
    adata.write_h5ad(tmp_path / "written.h5ad")
    back = ad.read_h5ad(tmp_path / "written.h5ad")
    assert dict(back.uns["tenfold"][cls.name()])["doi"] == cls.info.doi


@every()
def test_save_and_load_give_the_same_results_without_pickle(cls, once, tmp_path, monkeypatch):
    method = once(cls)
    method.save(tmp_path / "model")
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a user's file was unpickled")

    with monkeypatch.context() as patched:
        patched.setattr(pickle, "load", refuse)
        patched.setattr(pickle, "loads", refuse)
        loaded = tf.load(tmp_path / "model")
    assert type(loaded) is cls and loaded.parameters == method.parameters
    assert_same(results(method), results(loaded))


# ---- inputs ----------------------------------------------------------------------------------------------------------


def _backed(adata: ad.AnnData, folder: Any) -> ad.AnnData:
    adata.write_h5ad(folder / "tiny.h5ad")
    return ad.read_h5ad(folder / "tiny.h5ad", backed="r")


def _with(adata: ad.AnnData, convert: Callable[[Any], Any]) -> ad.AnnData:
    layers = {name: convert(matrix) for name, matrix in adata.layers.items()}
    return ad.AnnData(
        convert(adata.X), obs=adata.obs.copy(), var=adata.var.copy(), obsm=dict(adata.obsm), layers=layers
    )


FORMS: dict[str, Callable[[ad.AnnData, Any], ad.AnnData]] = {
    "csc": lambda a, _: _with(a, lambda x: x.tocsc()),
    "dense": lambda a, _: _with(a, lambda x: x.toarray()),
    "float64": lambda a, _: _with(a, lambda x: x.astype(np.float64)),
    "int64": lambda a, _: _with(a, lambda x: x.astype(np.int64)),
    "sparse array": lambda a, _: _with(a, sparse.csr_array),
    "view": lambda a, _: ad.concat([a, a[:7]], index_unique="-")[: a.n_obs],
    "backed": _backed,
}


@every()
@pytest.mark.parametrize("form", FORMS)
def test_every_storage_gives_the_same_result(cls, form, once, tmp_path):
    adata = tiny()
    if form == "view":
        adata.obs_names = [f"{name}-0" for name in adata.obs_names]  # concat's names; the digest is over names
        adata.obs_names = tiny().obs_names
    stored = FORMS[form](adata, tmp_path)
    assert_same(results(once(cls)), results(fitted(cls, stored)), atol=1e-5)


@every()
def test_counts_in_a_layer(cls, once):
    adata = tiny()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    assert_same(results(once(cls)), results(fitted(cls, adata, layer="counts")))
    if "use_rep" not in cls.info.accepts:
        with pytest.raises(NotCountsError, match="layer='counts'"):
            fitted(cls, adata)


def _spoil(change: Callable[[ad.AnnData], ad.AnnData | None]) -> Callable[[], ad.AnnData]:
    def build() -> ad.AnnData:
        adata = tiny()
        changed = change(adata)
        return adata if changed is None else changed

    return build


def _set_entry(value: float) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        dense = adata.X.toarray().astype(np.float64)
        dense[3, 5] = value
        adata.X = sparse.csr_matrix(dense)

    return change


def _empty_cell(adata: ad.AnnData) -> None:
    dense = adata.X.toarray()
    dense[4] = 0
    adata.X = sparse.csr_matrix(dense)


def _lognormalise(adata: ad.AnnData) -> None:
    dense = adata.X.toarray()
    adata.X = sparse.csr_matrix(np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True)))


def _repeat_gene(adata: ad.AnnData) -> None:
    adata.var_names = ["GeneA", "GeneA", *adata.var_names[2:]]


def _repeat_cell(adata: ad.AnnData) -> None:
    adata.obs_names = ["c", "c", *adata.obs_names[2:]]


BAD_DATA: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "log-normalised": (_spoil(_lognormalise), NotCountsError, "log-normalised"),
    "negative": (_spoil(_set_entry(-1)), NotCountsError, "negative"),
    "NaN": (_spoil(_set_entry(np.nan)), NotCountsError, "NaN"),
    "infinite": (_spoil(_set_entry(np.inf)), NotCountsError, "infinite"),
    "fraction": (_spoil(_set_entry(1.5)), NotCountsError, "whole"),
    "over 2^31": (_spoil(_set_entry(3e9)), NotCountsError, "2\\^31"),
    "empty cell": (_spoil(_empty_cell), DataError, "no counts"),
    "repeated gene": (_spoil(_repeat_gene), DataError, "GeneA"),
    "repeated cell": (_spoil(_repeat_cell), DataError, "obs_names_make_unique"),
    "no cells": (_spoil(lambda a: a[:0].copy()), DataError, "0 cells"),
    "no genes": (_spoil(lambda a: a[:, :0].copy()), DataError, "0 genes"),
    "not an AnnData": (lambda: np.ones((5, 5)), DataError, "AnnData"),
}


@every()
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_get_a_named_error(cls, case):
    build, error, words = BAD_DATA[case]
    with pytest.raises(error, match=words):
        fitted(cls, build())


@every()
def test_too_few_cells_get_a_named_error_or_a_result(cls):
    few = tiny()[[0, 1, 60, 61]].copy()
    few.obs["batch"] = pd.Categorical(["a", "b", "a", "b"])
    try:
        method = fitted(cls, few)
    except tf.errors.TenfoldError as error:
        assert "cells" in str(error)
    else:
        assert all(np.isfinite(value).any() for value in results(method).values())


@every([cls for cls in CLASSES if "batch" in (*cls.info.needs, *cls.info.accepts)])
def test_bad_batches_get_a_named_error(cls):
    with pytest.raises(KeyMissingError, match="Did you mean 'batch'"):
        fitted(cls, batch="bacth")
    adata = tiny()
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    adata.obs.loc[adata.obs_names[3], "batch"] = np.nan
    with pytest.raises(DataError, match="NaN"):
        fitted(cls, adata)
    if "batch" in cls.info.needs:
        adata = tiny()
        adata.obs["batch"] = "one"
        with pytest.raises(DataError, match="single level"):
            fitted(cls, adata)
        with pytest.raises(RoleError, match="needs batch"):
            make(cls).fit(tiny())


ANNOTATORS = [cls for cls in CLASSES if "annotate" in cls.info.tasks]


@every(ANNOTATORS)
def test_labels_of_other_cells(cls, once):
    method, new = once(cls), tiny(seed=5)
    new.obs = new.obs.drop(columns="cell_type")
    new = new[:, ::-1][:, :70].copy()  # another order of genes, and some missing
    probabilities = method.probabilities(new)
    assert list(probabilities.index) == list(new.obs_names) and len(method.predict(new)) == 120
    method.write(new, "annotate")
    assert new.obsm[f"{cls.name()}_probabilities"].equals(probabilities)
    with pytest.raises(DataError, match="genes that the model was fitted with"):
        method.predict(ad.AnnData(new.X, new.obs[[]], pd.DataFrame(index=[f"other{i}" for i in range(70)])))


@every([cls for cls in ANNOTATORS if "reference" in cls.info.accepts])
def test_labels_from_a_reference(cls):
    query = tiny(seed=5)
    query.obs = query.obs.drop(columns="cell_type")
    method = make(cls).fit(query, reference=tiny(), labels="cell_type", progress=False)
    np.testing.assert_allclose(method.probabilities(), method.probabilities(query), atol=1e-5)
    method.write(query, "annotate")
    assert query.obs[f"{cls.name()}_label"].notna().all()


@every([cls for cls in CLASSES if "use_rep" in cls.info.accepts])
def test_starting_from_an_embedding(cls):
    adata = tiny()
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
    method = fitted(cls, adata, use_rep="X_mine")
    if isinstance(method, Embedder):
        assert method.embed().shape == (120, 6)
    with pytest.raises(KeyMissingError, match="X_mine"):
        fitted(cls, adata, use_rep="X_min")
    adata.obsm["X_mine"][2, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        fitted(cls, adata, use_rep="X_mine")


@every()
def test_wrong_words_are_named(cls):
    name = cls.parameter_names()[0]
    with pytest.raises(ParameterError, match=f"Did you mean '{name}'"):
        cls(**{name + "x": 1})
    with pytest.raises(ParameterError, match="by name"):
        cls(5)
    with pytest.raises(RoleError, match="Did you mean 'batch'"):
        make(cls).fit(tiny(), bacth="batch")
    unfitted = make(cls)
    with pytest.raises(NotFittedError, match="fit"):
        unfitted.write(tiny())
    if not all(TASKS[task].new_cells for task in cls.info.tasks):
        task = next(task for task in cls.info.tasks if not TASKS[task].new_cells)
        with pytest.raises(DataError, match="other cells"):
            fitted(cls).write(tiny()[:50].copy(), task)


@every()
def test_nothing_goes_to_the_network(cls, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    fitted(cls)


# ---- words -----------------------------------------------------------------------------------------------------------


@every()
def test_docstring_says_what_a_user_needs(cls):
    doc = inspect.getdoc(cls) or ""
    for part in ("**Use it**", "**Do not use it**", "**Cost**", "Parameters\n---", "Examples\n---",
                 "References\n---", "doi 10."):  # fmt: skip
        assert part in doc, part
    assert "**Writes**" in doc or not any(issubclass(cls, c) for t in cls.info.tasks for c in TASKS[t].capabilities)
    for name in set(cls.parameter_names()):
        assert re.search(rf"^(\w+, )*{name}(, \w+)*$", doc, flags=re.M), f"{name} is not described"
    assert cls.info.doi.startswith("10.") and cls.info.advice.endswith(".")


def test_catalog_lists_every_method_under_each_task():
    table = tf.methods()
    assert list(table.columns) == ["task", "name", "title", "family", "year", "needs", "gives", "readiness", "doi",
                                   "evidence"]  # fmt: skip
    assert {(task, cls.name()) for cls in CLASSES for task in cls.info.tasks} == set(
        zip(table["task"], table["name"], strict=True)
    )
    assert table["evidence"].isin(["parity", "published", "check", "none"]).all()
    assert table["readiness"].isin(["recommended", "usable", "caution", "research"]).all()
