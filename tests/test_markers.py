"""Labels from marker genes: scores by definition, overlap of clusters, what is Unknown, forms of the table."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tenfold as tf
from tenfold.annotate.markers import Markers
from tenfold.data.marker_genes import BLOOD, read_markers
from tenfold.data.preprocess import normalize_log1p
from tenfold.errors import DataError, FileFormatError, RoleError


@pytest.fixture(scope="module")
def blood() -> ad.AnnData:
    adata = tf.data.pbmc()
    adata.obs["group"] = adata.obs["cell_type"].astype(str)
    return adata


def fit(adata: ad.AnnData, **roles) -> Markers:
    return Markers().fit(adata, progress=False, **roles)


SETS = {"B": ["MS4A1", "CD79A", "HLA-DRA"], "NK": ["NKG7", "GNLY"], "Mono": ["CD14", "LYZ", "HLA-DRA", "absent"]}


def test_scores_are_those_of_the_definition(blood):
    model = fit(blood, markers=SETS)
    assert list(model.genes_) == sorted({gene for genes in SETS.values() for gene in genes} - {"absent", "CD14"})
    dense = pd.DataFrame(normalize_log1p(blood.X).toarray(), columns=blood.var_names)[model.genes_].astype(float)
    z = (dense - dense.mean()) / dense.std(ddof=0)
    rare, common = np.log(3) + 1e-3, np.log(1.5) + 1e-3
    norm = np.sqrt(2 * rare**2 + common**2)
    expected = (rare * (z["MS4A1"] + z["CD79A"]) + common * z["HLA-DRA"]) / norm
    found = model.scores(normalize_log1p(blood.X)[:, blood.var_names.get_indexer(model.genes_)])
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-3)
    np.testing.assert_allclose(found[:, 1], (z["NKG7"] + z["GNLY"]) / np.sqrt(2), atol=1e-3)
    first, second = np.sort(found, axis=1)[:, ::-1][:, :2].T
    np.testing.assert_array_equal(model.predict() == "Unknown", (first <= 0) | (first - second < 0.1))


def test_major_groups_of_blood(blood):
    told = pd.Series(fit(blood, markers=BLOOD).predict())
    cell_type = blood.obs["cell_type"].astype(str).to_numpy()
    for name, label in {"CD19+ B": "B cell", "CD14+ Monocyte": "Monocyte", "CD56+ NK": "NK cell"}.items():
        assert told[cell_type == name].mode()[0] == label
        assert (told[cell_type == name] == label).mean() > 0.7


def test_clusters_get_the_label_whose_markers_are_raised(blood):
    model = fit(blood, markers=BLOOD, clusters="group")
    table = model.overlaps(blood)
    own = table[table["cluster"] == "CD19+ B"].set_index("label")
    assert own["given"].iloc[0] == "B cell" and "CD79A" in own.loc["B cell", "genes"]
    overlap = len(own.loc["B cell", "genes"].split(", "))
    size = len(set(BLOOD["B cell"]) & set(blood.var_names))
    assert own.loc["B cell", "pvalue"] == pytest.approx(stats.hypergeom.sf(overlap - 1, 765, size, 50))
    told = pd.crosstab(blood.obs["group"], model.predict(blood))
    assert (told > 0).sum(axis=1).eq(1).all()  # a cluster, a label
    assert (model.predict() == model.predict(blood)).all()


def test_clusters_without_significant_overlap_are_unknown(blood):
    shuffled = blood.copy()
    shuffled.var_names = np.random.default_rng(0).permutation(blood.var_names)
    assert (fit(shuffled, markers=BLOOD, clusters="group").predict() == "Unknown").mean() > 0.6
    with pytest.raises(RoleError, match="clusters="):
        fit(blood, markers=BLOOD).overlaps(blood)


def test_markers_from_labelled_cells():
    cells = tf.data.simulate(300, 100, n_types=4, type_strength=1.3, seed=2)
    truth = cells.obs["cell_type"].astype(str).to_numpy()[200:]
    model = fit(cells[:200].copy(), labels="cell_type")
    assert (model.sets_.sum(axis=1) <= 20).all() and model.sets_.any(axis=1).all()
    right = (model.predict(cells[200:]) == truth).mean()
    assert right > 0.6
    shuffled = cells[:200].copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(shuffled.obs["cell_type"].astype(str))
    assert (fit(shuffled, labels="cell_type").predict(cells[200:]) == truth).mean() < 0.45


def test_tables_and_files_say_the_same_as_a_dict(tmp_path):
    table = pd.DataFrame([(label, gene) for label, genes in SETS.items() for gene in genes], columns=["type", "gene"])
    table.to_csv(tmp_path / "markers.tsv", sep="\t", index=False)
    (tmp_path / "markers.gmt").write_text("".join("\t".join([k, "", *genes]) + "\n" for k, genes in SETS.items()))
    for form in (table, str(tmp_path / "markers.tsv"), tmp_path / "markers.gmt"):
        assert read_markers(form) == SETS


def test_bad_markers_are_named(blood, tmp_path):
    with pytest.raises(RoleError, match="markers="):
        fit(blood)
    with pytest.raises(RoleError, match="single label"):
        fit(blood, markers={"B": ["MS4A1"]})
    with pytest.raises(RoleError, match="not int"):
        fit(blood, markers=3)
    with pytest.raises(FileFormatError, match="is not a file"):
        fit(blood, markers="nowhere.csv")
    with pytest.raises(DataError, match="human symbols"):
        fit(blood, markers={"a": ["ENSG00000000001"], "b": ["ENSG00000000002"]})
    with pytest.warns(UserWarning, match="No marker of c"):
        fit(blood, markers={**SETS, "c": ["absent"]})
