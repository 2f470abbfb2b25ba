"""Reading and writing: every kind of file, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import sys
import warnings

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite

import tenfold as tf
from tenfold.data import writing
from tenfold.errors import DataError, FileFormatError, KeyMissingError


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    made = tf.data.simulate(60, 40, n_types=3, depth=60)
    made.layers["counts"] = made.X.copy()
    made.obsm["X_pca"] = np.random.default_rng(0).normal(size=(60, 4))
    made.raw = made.copy()
    return made


# ---- the kinds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("error")
def test_written_data_come_back(adata, tmp_path, suffix):
    path = tf.data.write(adata, tmp_path / "new" / f"cells{suffix}")
    back = tf.data.read(str(path))
    assert (back.X != adata.X).nnz == 0 and back.X.format == "csr"
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    np.testing.assert_array_equal(back.obsm["X_pca"], adata.obsm["X_pca"])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
def test_a_modality_is_taken_from_mudata(adata, tmp_path, suffix):
    rna, protein = adata.copy(), adata[:, :5].copy()
    protein.var_names = [f"P{i}" for i in range(5)]
    del rna.raw, protein.raw
    with md.set_options(pull_on_update=False):
        mdata = md.MuData({"rna": rna, "prot": protein})
        mdata.obs["donor"] = pd.Categorical(np.where(np.arange(60) % 2, "a", "b"))
        path = tf.data.write(mdata, tmp_path / f"both{suffix}")
    read = tf.data.read(path)
    assert read.shape == (60, 40) and list(read.obs["donor"]) == list(mdata.obs["donor"])
    assert tf.data.read(path, modality="prot").shape == (60, 5)
    assert set(tf.data.read_mudata(path).mod) == {"rna", "prot"}
    with pytest.raises(KeyMissingError, match="Did you mean 'prot'"):
        tf.data.read(path, modality="port")
    with pytest.raises(FileFormatError, match=r"not a MuData"):
        tf.data.read_mudata(tf.data.write(rna, tmp_path / "one.h5ad"))


def test_real_mudata(shared_data):
    adata = tf.data.read(shared_data("pbmc_cite_mini.h5mu"))
    assert adata.shape == (400, 12351) and adata.obs["batch"].nunique() == 2


COUNTS = np.array([[1, 0, 2, 7], [0, 3, 0, 0], [4, 0, 0, 5]])  # three cells; the last feature is an antibody
SYMBOLS, IDS, CELLS = ["A", "B", "A", "CD3"], ["G1", "G2", "G3", "ab1"], ["AAA-1", "AAC-1", "AAG-1"]
TYPES = ["Gene Expression"] * 3 + ["Antibody Capture"]


def _write_h5(path, legacy=False):
    matrix = sparse.csr_matrix(COUNTS.astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38" if legacy else "matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array([4, 3])
        group["barcodes"] = np.array(CELLS, dtype="S")
        if legacy:
            group["genes"], group["gene_names"] = np.array(IDS, dtype="S"), np.array(SYMBOLS, dtype="S")
        else:
            features = group.create_group("features")
            features["id"], features["name"] = np.array(IDS, dtype="S"), np.array(SYMBOLS, dtype="S")
            features["feature_type"] = np.array(TYPES, dtype="S")
            features["genome"] = np.array(["GRCh38"] * 4, dtype="S")
            file.attrs["library_ids"] = np.array([b"slice1"])


def _write_mtx(folder, new=True, compressed=True, prefix="", cells=CELLS):
    folder.mkdir(parents=True, exist_ok=True)
    mmwrite(folder / "m.mtx", sparse.coo_matrix(COUNTS.T))
    lines = [
        "\t".join(row) for row in (zip(IDS, SYMBOLS, TYPES, strict=True) if new else zip(IDS, SYMBOLS, strict=True))
    ]
    parts = {
        "matrix.mtx": (folder / "m.mtx").read_text(),
        "features.tsv" if new else "genes.tsv": "\n".join(lines) + "\n",
        "barcodes.tsv": "\n".join(cells) + "\n",
    }
    (folder / "m.mtx").unlink()
    for name, text in parts.items():
        if compressed:
            (folder / f"{prefix}{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"{prefix}{name}").write_text(text)


def _assert_tenx(adata, features=3):
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[:, :features])
    assert sparse.issparse(adata.X) and adata.X.format == "csr"
    assert list(adata.obs_names) == CELLS
    assert list(adata.var_names) == ["A", "B", "A-1", "CD3"][:features]
    assert list(adata.var["gene_ids"]) == IDS[:features]


def test_tenx_h5(tmp_path):
    _write_h5(tmp_path / "new.h5")
    with pytest.warns(UserWarning, match="left out: Antibody Capture"):
        _assert_tenx(tf.data.read(tmp_path / "new.h5"))
    _write_h5(tmp_path / "old.h5", legacy=True)
    _assert_tenx(tf.data.read(tmp_path / "old.h5"), features=4)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("prefix", ["", "GSM1_"])
@pytest.mark.filterwarnings("ignore:Only gene expression")
def test_tenx_folder(tmp_path, new, compressed, prefix):
    _write_mtx(tmp_path / "filtered_feature_bc_matrix", new, compressed, prefix)
    for folder in (tmp_path, tmp_path / "filtered_feature_bc_matrix"):
        _assert_tenx(tf.data.read(folder), features=3 if new else 4)


def test_tenx_folder_with_parts_that_do_not_fit(tmp_path):
    _write_mtx(tmp_path / "a", cells=CELLS[:2])
    with pytest.raises(FileFormatError, match="do not belong together"):
        tf.data.read(tmp_path / "a")
    (tmp_path / "a" / "barcodes.tsv.gz").unlink()
    with pytest.raises(FileFormatError, match=r"no barcodes\.tsv"):
        tf.data.read(tmp_path / "a")
    _write_mtx(tmp_path / "b", prefix="one_")
    _write_mtx(tmp_path / "b", prefix="two_")
    with pytest.raises(FileFormatError, match="several matrices"):
        tf.data.read(tmp_path / "b")


def _write_visium(folder, header):
    from matplotlib.image import imsave

    (folder / "spatial").mkdir(parents=True)
    _write_h5(folder / "filtered_feature_bc_matrix.h5")
    rows = [f"{cell},1,{i},{2 * i},{10 * i},{100 * i}" for i, cell in enumerate(reversed(CELLS))]
    head = ["barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"] if header else []
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    (folder / "spatial" / name).write_text("\n".join([*head, *rows]) + "\n")
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps({"tissue_hires_scalef": 0.5}))
    imsave(folder / "spatial" / "tissue_hires_image.png", np.zeros((4, 5, 3)))


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.filterwarnings("ignore:Only gene expression")
def test_visium_folder(tmp_path, header):
    _write_visium(tmp_path / "outs", header)
    adata = tf.data.read(tmp_path / "outs")
    _assert_tenx(adata)
    np.testing.assert_array_equal(adata.obsm["spatial"], [[200, 20], [100, 10], [0, 0]])  # x, y
    assert list(adata.obs["array_row"]) == [2, 1, 0]
    stored = adata.uns["spatial"]["slice1"]
    assert stored["scalefactors"] == {"tissue_hires_scalef": 0.5} and stored["images"]["hires"].shape[:2] == (4, 5)
    tf.data.read(tf.data.write(adata, tmp_path / "visium.h5ad"))


@pytest.mark.filterwarnings("ignore:Only gene expression")
def test_visium_folder_with_parts_missing(tmp_path):
    _write_visium(tmp_path / "outs", header=True)
    positions = tmp_path / "outs" / "spatial" / "tissue_positions.csv"
    text = positions.read_text()
    positions.write_text(text.replace("AAC-1", "TTT-1"))
    with pytest.raises(FileFormatError, match="1 of 3 spots"):
        tf.data.read(tmp_path / "outs")
    positions.unlink()
    with pytest.raises(FileFormatError, match=r"no tissue_positions\.csv"):
        tf.data.read(tmp_path / "outs")
    positions.write_text(text)
    (tmp_path / "outs" / "filtered_feature_bc_matrix.h5").unlink()
    with pytest.raises(FileFormatError, match="no counts"):
        tf.data.read(tmp_path / "outs")


def _write_spatialdata(folder, tables=("table",), spatial=True):
    import anndata as ad
    import zarr

    zarr.open_group(folder, mode="w").attrs["spatialdata_attrs"] = {"version": "0.1"}
    adata = ad.AnnData(COUNTS.astype(np.float32))
    if spatial:
        adata.obsm["spatial"] = np.arange(2.0 * len(COUNTS)).reshape(-1, 2)
    for name in tables:
        adata.write_zarr(folder / "tables" / name)
    (folder / "shapes").mkdir()
    return adata


def test_spatialdata_gives_its_table(tmp_path):
    written = _write_spatialdata(tmp_path / "a.zarr")
    found = tf.data.read(tmp_path / "a.zarr")
    np.testing.assert_array_equal(found.X, written.X)
    np.testing.assert_array_equal(found.obsm["spatial"], written.obsm["spatial"])
    (tmp_path / "a.zarr" / "images").mkdir()
    with pytest.warns(UserWarning, match="Pictures"):
        tf.data.read(tmp_path / "a.zarr")


def test_spatialdata_without_what_is_needed(tmp_path):
    _write_spatialdata(tmp_path / "a.zarr", spatial=False)
    with pytest.raises(FileFormatError, match="no positions"):
        tf.data.read(tmp_path / "a.zarr")
    _write_spatialdata(tmp_path / "b.zarr", tables=("cells", "bins"))
    with pytest.raises(FileFormatError, match="tables bins, cells"):
        tf.data.read(tmp_path / "b.zarr")
    assert tf.data.read(tmp_path / "b.zarr" / "tables" / "bins").n_obs == len(COUNTS)
    _write_spatialdata(tmp_path / "c.zarr", tables=())
    with pytest.raises(FileFormatError, match="without a table"):
        tf.data.read(tmp_path / "c.zarr")


def test_visium_folder_with_its_counts_in_a_folder(tmp_path):
    _write_visium(tmp_path / "outs", header=True)
    expected = tf.data.read(tmp_path / "outs")
    (tmp_path / "outs" / "filtered_feature_bc_matrix.h5").unlink()
    _write_mtx(tmp_path / "outs" / "filtered_feature_bc_matrix")
    found = tf.data.read(tmp_path / "outs")
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert (found.X != expected.X).nnz == 0 and "outs" in found.uns["spatial"]
    (tmp_path / "outs" / "spatial" / "scalefactors_json.json").unlink()
    with pytest.raises(FileFormatError, match=r"no scalefactors_json\.json"):
        tf.data.read(tmp_path / "outs")


def test_loom(tmp_path):
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"] = COUNTS.T.astype(np.float32)
        file["layers/spliced"] = (2 * COUNTS.T).astype(np.int32)
        file["col_attrs/CellID"] = np.array(CELLS, dtype=object)
        file["col_attrs/age"] = np.array([1.0, 2.0, 3.0])
        file["col_attrs/X_umap"] = np.ones((3, 2))
        file["row_attrs/Gene"] = np.array(SYMBOLS, dtype="S")
        file["row_attrs/Accession"] = np.array(IDS, dtype="S")
    adata = tf.data.read(tmp_path / "a.loom")
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    np.testing.assert_array_equal(adata.layers["spliced"].toarray(), 2 * COUNTS)
    assert list(adata.obs_names) == CELLS and list(adata.obs["age"]) == [1, 2, 3]
    assert (
        list(adata.var_names) == SYMBOLS and list(adata.var["Accession"]) == IDS
    )  # repeated names stay: checks name them
    assert adata.obsm["X_umap"].shape == (3, 2)


# ---- what can be wrong -----------------------------------------------------------------------------------------------


def test_missing_files_name_the_closest(adata, tmp_path):
    tf.data.write(adata, tmp_path / "cells.h5ad")
    with pytest.raises(FileFormatError, match=r"Did you mean 'cells\.h5ad'"):
        tf.data.read(tmp_path / "cels.h5ad")
    with pytest.raises(FileFormatError, match=r"folder .* does not exist"):
        tf.data.read(tmp_path / "nowhere" / "cells.h5ad")
    with pytest.raises(FileFormatError, match="It is empty"):
        (tmp_path / "void").mkdir()
        tf.data.read(tmp_path / "void")
    with pytest.raises(FileFormatError, match=r"It holds 'cells\.h5ad'"):
        tf.data.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.h5ad", b"", "empty"),
        ("a.h5ad", b"gene,c1\nA,1\n", "damaged, or something else"),
        ("a.csv", b"gene,c1\nA,1\n", "text table"),
        ("a.h5ad.gz", gzip.compress(b"x", mtime=0), "gunzip"),
        ("a.zip", b"PK\x03\x04", "unzip"),
        ("a.rds", b"\x1f\x8bxyz", "R object"),
        ("matrix.mtx", b"%%MatrixMarket matrix", "folder"),
        ("a.pkl", pickle.dumps([1]), "any code"),
        ("a.xyz", b"hello", r"\.h5ad, \.h5mu"),
    ],
)
def test_other_kinds_of_file(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=words):
        tf.data.read(tmp_path / name)


def test_hdf5_of_another_kind(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(FileFormatError, match="holds 'weights'"):
        tf.data.read(tmp_path / "a.h5")


def test_the_content_tells_the_kind_not_the_name(adata, tmp_path):
    shutil.move(tf.data.write(adata, tmp_path / "a.h5ad"), tmp_path / "a.h5")
    assert tf.data.read(tmp_path / "a.h5").shape == adata.shape


@pytest.mark.parametrize("share", [0.002, 0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files(adata, tmp_path, share):
    path = tf.data.write(adata, tmp_path / "a.h5ad")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match="damaged"):
        tf.data.read(path)


@pytest.mark.parametrize("part", ["obs/_index", "var", "X/indptr", "X/data", "obs/batch/codes", "obsm/X_pca"])
def test_files_with_a_part_missing_or_of_the_wrong_length(adata, tmp_path, part):
    path = tf.data.write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        values = file[part][:-1] if isinstance(file[part], h5py.Dataset) else None
        attributes = dict(file[part].attrs)
        del file[part]
        if values is not None:
            file[part] = values
            file[part].attrs.update(attributes)
    with pytest.raises(FileFormatError) as caught:
        tf.data.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_indices_that_point_outside_are_refused(adata, tmp_path):
    path = tf.data.write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["layers/counts/indices"][3] = 10**6
    with pytest.raises(FileFormatError, match="layer 'counts' has impossible indices"):
        tf.data.read(path)


def test_damaged_zarr(adata, tmp_path):
    path = tf.data.write(adata, tmp_path / "a.zarr")
    shutil.rmtree(path / "obs")
    with pytest.raises(FileFormatError, match="damaged"):
        tf.data.read(path)


class _Bomb:
    def __reduce__(self):
        return (sys.modules[__name__].test_pickles_in_zarr_are_not_opened.__setattr__, ("exploded", True))


def test_pickles_in_zarr_are_not_opened(adata, tmp_path):
    path = tf.data.write(adata, tmp_path / "a.zarr")
    evil = path / "uns" / "evil"
    evil.mkdir(parents=True)
    (evil / ".zarray").write_text(
        json.dumps({
            "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C",
            "compressor": None, "filters": [{"id": "pickle", "protocol": 5}],
        })
    )  # fmt: skip
    (evil / "0").write_bytes(pickle.dumps(np.array([_Bomb()], dtype=object)))
    with pytest.raises(FileFormatError, match="pickles"):
        tf.data.read(path)
    assert not hasattr(test_pickles_in_zarr_are_not_opened, "exploded")


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(adata, tmp_path, monkeypatch):
    path = tf.data.write(adata, tmp_path / "a.h5ad")
    before = path.read_bytes()
    broken = adata.copy()
    broken.uns["strange"] = object()
    with pytest.raises(DataError, match="strange"):
        tf.data.write(broken, path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["a.h5ad"]

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anndata.io.write_h5ad", full)
    with pytest.raises(FileFormatError, match="No space left"):
        writing.write_h5ad(adata, path)
    assert path.read_bytes() == before


def test_writing_replaces_results_but_not_other_folders(adata, tmp_path):
    for suffix in (".h5ad", ".zarr"):
        tf.data.write(adata, tmp_path / f"a{suffix}")
        tf.data.write(adata[:10].copy(), tmp_path / f"a{suffix}")
        assert tf.data.read(tmp_path / f"a{suffix}").n_obs == 10
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileFormatError, match="other content"):
        tf.data.write(adata, tmp_path / "mine.zarr")
    assert (tmp_path / "mine.zarr" / "thesis.txt").exists()


def test_writing_does_not_change_the_data(adata, tmp_path):
    text = adata.copy()
    text.obs["note"] = np.array(["x", "y"] * 30, dtype=object)
    tf.data.write(text, tmp_path / "a.h5ad")
    assert text.obs["note"].dtype == object


def test_unknown_suffix(adata, tmp_path):
    with pytest.raises(FileFormatError, match=r"\.h5ad or \.zarr"):
        tf.data.write(adata, tmp_path / "a.csv")


def test_repeated_names_are_left_for_the_checks(adata, tmp_path):
    double = adata.copy()
    double.var_names = ["A", "A", *double.var_names[2:]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = tf.data.read(tf.data.write(double, tmp_path / "a.h5ad"))
    assert list(back.var_names[:2]) == ["A", "A"]
