"""Genes by name: what two data sets share, and other names for them."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.data.genes import kind_of_names, match_genes
from tenfold.errors import DataError, FileFormatError

ENSEMBL = [f"ENSG{i:011d}" for i in range(30)]
SYMBOLS = [f"GENE{i}" for i in range(30)]


def test_kinds_of_names():
    assert kind_of_names(ENSEMBL) == "Ensembl ids"
    assert kind_of_names(["CD3D", "MS4A1", "HLA-DRA", "LYZ"]) == "human symbols"
    assert kind_of_names(["Cd3d", "Ms4a1", "Lyz2"]) == "mouse symbols"


def test_shared_genes_in_the_order_of_the_model():
    match = match_genes(pd.Index(SYMBOLS[::-1][:25]), np.array(SYMBOLS, dtype=object))
    assert list(match.places) == list(range(5, 30)) and list(match.columns) == list(range(24, -1, -1))
    assert match.share == pytest.approx(25 / 30)


def test_versions_of_ensembl_ids_are_left_aside():
    versioned = pd.Index([f"{name}.{i}" for i, name in enumerate(ENSEMBL)])
    assert len(match_genes(versioned, np.array(ENSEMBL, dtype=object)).places) == 30


def test_half_of_the_genes_is_worth_a_warning_and_none_an_error():
    with pytest.warns(UserWarning, match="12 of the 30 genes"):
        match_genes(pd.Index(SYMBOLS[:12]), np.array(SYMBOLS, dtype=object))
    with pytest.raises(DataError, match=r"the data have Ensembl ids, the model human symbols.*rename_genes"):
        match_genes(pd.Index(ENSEMBL), np.array(SYMBOLS, dtype=object))


@pytest.fixture
def cells():
    return ad.AnnData(sparse.csr_matrix(np.arange(12.0).reshape(3, 4)), var=pd.DataFrame(index=[*ENSEMBL[:3], "x.2"]))


def test_renamed_genes_are_summed_where_they_meet(cells, tmp_path):
    table = pd.DataFrame({"old": [*ENSEMBL[:3], "x"], "new": ["A", "B", "A", "C"]})
    path = tmp_path / "names.tsv"
    table.to_csv(path, sep="\t", index=False)
    for given in (table, path, dict(zip(table["old"], table["new"], strict=True))):
        renamed = tf.data.rename_genes(cells, given)
        assert list(renamed.var_names) == ["A", "B", "C"]
        np.testing.assert_array_equal(renamed.X.toarray(), [[2, 1, 3], [10, 5, 7], [18, 9, 11]])


def test_tables_that_do_not_fit(cells):
    with pytest.raises(DataError, match="none of the genes"):
        tf.data.rename_genes(cells, {"other": "A"})
    with pytest.raises(FileFormatError, match="two columns"):
        tf.data.rename_genes(cells, pd.DataFrame({"old": ENSEMBL[:3]}))
