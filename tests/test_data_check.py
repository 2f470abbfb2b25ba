"""Checks of what users hand in: the message says what is wrong and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.data import check
from tenfold.data.counts import check_counts, counts_of
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, KeyMissingError, NotCountsError, RoleError


@pytest.fixture
def adata() -> ad.AnnData:
    return tf.data.simulate(90, 50, n_types=3, depth=100)


def _lognormal(counts: sparse.csr_matrix, target: float = 1e4) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.log1p(counts.toarray() / counts.sum(axis=1) * target), dtype=np.float32)


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_log_normalised_data_name_the_layer_with_counts(adata):
    adata.layers["raw_counts"] = adata.X.copy()
    adata.layers["scaled"] = adata.X.toarray() - 1.5
    adata.X = _lognormal(adata.X)
    with pytest.raises(NotCountsError, match=r"log-normalised.*pass layer='raw_counts'"):
        counts_of(adata)
    with pytest.raises(NotCountsError, match=r"scaled \(centred.*pass layer='raw_counts'"):
        counts_of(adata, "scaled")
    del adata.layers["scaled"]
    adata.layers["log"] = adata.X
    adata.X = adata.layers.pop("raw_counts")
    with pytest.raises(NotCountsError, match="X looks like counts: leave layer= out"):
        counts_of(adata, "log")


def test_counts_in_raw_are_found(adata):
    adata.raw = adata.copy()
    adata.X = _lognormal(adata.X)
    with pytest.raises(NotCountsError, match=r"adata\.raw\.to_adata"):
        counts_of(adata)
    adata.raw = None
    with pytest.raises(NotCountsError, match="No other layer holds counts either"):
        counts_of(adata)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda c: _lognormal(c), "log-normalised"),
        (lambda c: _lognormal(c, 1e6), "log-normalised"),
        (lambda c: sparse.csr_matrix(c.toarray() / c.sum(axis=1) * 1e4), "depth-normalised"),
        (lambda c: sparse.csr_matrix(np.log2(c.toarray() + 1)), r"log2\(x \+ 1\) of counts"),
        (lambda c: c.log1p(), "log1p of counts"),
        (lambda c: c.toarray() - c.toarray().mean(axis=0), "scaled"),
        (lambda c: c.toarray() + 0.37 * (c.toarray() > 0) * np.random.default_rng(0).random(c.shape), "round them"),
    ],
)
def test_what_the_values_look_like(adata, make, words):
    adata.X = make(adata.X)
    with pytest.raises(NotCountsError, match=words):
        counts_of(adata)


@pytest.mark.parametrize(
    ("value", "words"),
    [(-1, r"1 entry is negative \(e\.g\. -1 in cell 'cell_4', gene 'gene_6'\)"), (np.nan, "missing .NaN."),
     (np.inf, "infinite"), (2.5, "not whole"), (2**40, "2\\^31")],
)  # fmt: skip
@pytest.mark.parametrize("dense", [True, False])
def test_an_impossible_entry_is_named_with_its_place(adata, value, words, dense):
    matrix = adata.X.toarray().astype(np.float64)
    matrix[3, 5] = value
    adata.X = matrix if dense else sparse.csr_matrix(matrix)
    with pytest.raises(NotCountsError, match=words):
        counts_of(adata)


def test_empty_cells_and_genes(adata):
    matrix = adata.X.toarray()
    matrix[:, 7] = 0
    adata.X = matrix
    with pytest.warns(UserWarning, match="1 of 50 genes have no counts"):
        counts_of(adata)
    matrix[2:4] = 0
    adata.X = matrix
    with pytest.raises(DataError, match=r"2 cells have no counts in X \(e\.g\. cell 'cell_3'\).*filter_cells"):
        counts_of(adata)


def test_text_is_not_a_matrix():
    with pytest.raises(DataError, match="not numbers"):
        check_counts(np.array([["a", "b"]]))


def test_missing_layers(adata):
    adata.layers["counts"] = adata.X
    with pytest.raises(KeyMissingError, match="Did you mean 'counts'"):
        counts_of(adata, "count")
    no_x = ad.AnnData(None, obs=adata.obs, var=adata.var, layers={"counts": adata.X})
    with pytest.raises(KeyMissingError, match=r"X is empty.*'counts'"):
        counts_of(no_x)
    assert counts_of(no_x, "counts").nnz == adata.X.nnz


FORMS: dict[str, Callable[[sparse.csr_matrix], object]] = {
    "csr": lambda m: m,
    "csc": lambda m: m.tocsc(),
    "coo, repeated": lambda m: sparse.coo_matrix(
        (np.tile(m.tocoo().data / 2, 2), (np.tile(m.tocoo().row, 2), np.tile(m.tocoo().col, 2))), shape=m.shape
    ),
    "array": lambda m: sparse.csr_array(m),
    "dense": lambda m: m.toarray(),
    "fortran": lambda m: np.asfortranarray(m.toarray()),
    "float64": lambda m: m.astype(np.float64),
    "int64": lambda m: m.astype(np.int64),
    "uint16": lambda m: m.astype(np.uint16).toarray(),
    "float16": lambda m: m.toarray().astype(np.float16),
    "stored zeros": lambda m: sparse.csr_matrix(
        (np.append(m.data, 0), np.append(m.indices, m.shape[1] - 1), [*m.indptr[:-1], m.nnz + 1]), shape=m.shape
    ),
    "unsorted": lambda m: sparse.csr_matrix(
        (np.concatenate([m.data[a:b][::-1] for a, b in zip(m.indptr, m.indptr[1:], strict=False)]),
         np.concatenate([m.indices[a:b][::-1] for a, b in zip(m.indptr, m.indptr[1:], strict=False)]), m.indptr),
        shape=m.shape,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_storage_gives_the_same_counts(adata, form):
    given = FORMS[form](adata.X)
    before = given.copy()
    found = check_counts(given)
    assert type(found) is sparse.csr_matrix and found.dtype == np.float32 and found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), adata.X.toarray())
    assert found.data.all()
    assert (before != given).sum() == 0 and (not sparse.issparse(given) or given.nnz == before.nnz)


@pytest.mark.parametrize("stored", ["csr", "csc", "dense"])
def test_backed_data_are_checked_like_any_other(adata, tmp_path, stored):
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    good, bad = adata.copy(), adata.copy()
    good.X = {"csr": adata.X, "csc": adata.X.tocsc(), "dense": adata.X.toarray()}[stored]
    bad.X = _lognormal(adata.X)
    tf.data.write(good, tmp_path / "good.h5ad")
    tf.data.write(bad, tmp_path / "bad.h5ad")
    backed = ad.read_h5ad(tmp_path / "good.h5ad", backed="r")
    data = Inputs(backed, {"batch": "batch"}, needed=("batch",))
    np.testing.assert_array_equal(data.counts.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(Inputs(backed[5:20], {}).counts.toarray(), adata.X[5:20].toarray())
    np.testing.assert_allclose(
        data.pca(5, 30).embedding, Inputs(adata, {"batch": "batch"}).pca(5, 30).embedding, atol=1e-5
    )
    broken = ad.read_h5ad(tmp_path / "bad.h5ad", backed="r")
    with pytest.raises(NotCountsError, match="pass layer='counts'"):
        counts_of(broken)
    del backed.layers["counts"]
    with pytest.raises(NotCountsError, match="X looks like counts"):
        backed.layers["log"] = _lognormal(adata.X)
        counts_of(backed, "log")


# ---- names and columns -----------------------------------------------------------------------------------------------


def test_repeated_names(adata):
    adata.var_names = ["A", "A", *adata.var_names[2:]]
    with pytest.raises(DataError, match=r"1 gene names occur more than once \(e\.g\. 'A'\).*var_names_make_unique"):
        check.check_names(adata)
    adata.var_names_make_unique()
    adata.obs_names = ["c", "c", *adata.obs_names[2:]]
    with pytest.raises(DataError, match="obs_names_make_unique"):
        Inputs(adata, {})


def test_misspelt_columns(adata):
    with pytest.raises(KeyMissingError, match=r"Did you mean 'cell_type'\? obs has 'cell_type', 'batch'"):
        Inputs(adata, {"labels": "celltype"})
    with pytest.raises(RoleError, match="name of an obs column"):
        Inputs(adata, {"batch": 3})


@pytest.mark.parametrize(
    ("column", "error"),
    [
        (["x"] * 90, "single level, 'x'"),
        ([np.nan, *["x", "y"] * 44, "x"], "no value .NaN. in 1 of 90 cells"),
        (np.linspace(0, 1, 90), "continuous"),
        ([f"c{i}" for i in range(90)], "different value in every one"),
        (pd.Categorical(["x"] * 90, ["x", "y"]), "single level"),
    ],
)
def test_columns_that_are_no_batch(adata, column, error):
    adata.obs["b"] = column
    with pytest.raises(DataError, match=error):
        Inputs(adata, {"batch": "b"}, needed=("batch",))


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ([2.0, 10.0, 2.0] * 30, ["2", "10"]),
        ([10, 2, 2] * 30, ["2", "10"]),
        ([True, False, True] * 30, ["False", "True"]),
        (pd.Categorical(["b", "a", "a"] * 30, ["b", "unused", "a"]), ["b", "a"]),
        (pd.array(["b", "a", "a"] * 30, dtype="string"), ["a", "b"]),
    ],
)
def test_columns_as_codes(adata, column, names):
    adata.obs["b"] = column
    codes = check.categories(adata, "b", "batch")
    assert codes.names == names and codes.values.dtype == np.int32
    assert [names[code] for code in codes.values] == [str(int(v) if isinstance(v, float) else v) for v in column]


def test_numeric_columns(adata):
    adata.obs["age"] = np.arange(90)
    assert check.numeric_column(adata, "age", "covariate").dtype == np.float32
    adata.obs["age"] = adata.obs["age"].astype(str) + " years"
    with pytest.raises(DataError, match="must hold numbers"):
        check.numeric_column(adata, "age", "covariate")
    adata.obs["age"] = [np.inf] + [1.0] * 89
    with pytest.raises(DataError, match="infinite in 1 cells"):
        check.numeric_column(adata, "age", "covariate")


def test_representation(adata):
    adata.obsm["X_pca"] = np.ones((90, 4))
    assert check.representation(adata, "X_pca").dtype == np.float32
    with pytest.raises(KeyMissingError, match="Did you mean 'X_pca'"):
        check.representation(adata, "X_pac")
    adata.obsm["X_pca"][3, 1] = np.nan
    with pytest.raises(DataError, match=r"1 cells \(e\.g\. 'cell_4'\)"):
        check.representation(adata, "X_pca")


def test_genes_by_name(adata):
    np.testing.assert_array_equal(check.gene_columns(adata, ["gene_3", "gene_1"]), [2, 0])
    with pytest.raises(KeyMissingError, match="1 of the 2 genes"):
        check.gene_columns(adata, ["gene_3", "TP53"])
    with pytest.raises(KeyMissingError, match="other identifiers"):
        check.gene_columns(adata, ["ENSG1", "ENSG2"])


def test_too_few_cells_for_neighbours():
    check.check_neighbors(16, 15)
    with pytest.raises(DataError, match="Set n_neighbors to at most 14"):
        check.check_neighbors(15, 15)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_inputs_never_change_the_data(adata):
    before = adata.copy()
    data = Inputs(adata, {"batch": "batch", "labels": "cell_type"})
    _ = data.lognorm, data.pca(5, 20), data.batch, data.labels, data.batch_or_one
    assert (before.X != adata.X).nnz == 0 and list(adata.obs) == list(before.obs) and not adata.obsm
    assert Inputs(adata, {}).batch is None and Inputs(adata, {}).batch_or_one.names == ["all"]


def test_inputs_start_from_a_given_embedding(adata):
    adata.obsm["mine"] = np.random.default_rng(0).normal(size=(90, 3))
    assert Inputs(adata, {"use_rep": "mine"}).embedding(5, None).shape == (90, 3)
    assert Inputs(adata, {}).embedding(5, None).shape == (90, 5)


def test_inputs_want_an_anndata(adata):
    with pytest.raises(DataError, match=r"tenfold\.data\.read"):
        Inputs("cells.h5ad", {})
    with pytest.raises(DataError, match="0 cells"):
        Inputs(adata[:0], {})


def test_views_and_copies_have_the_same_digest(adata):
    assert Inputs(adata[:40], {}).digest == Inputs(adata[:40].copy(), {}).digest != Inputs(adata, {}).digest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Inputs(adata[:, ::-1], {}).counts.has_canonical_format
