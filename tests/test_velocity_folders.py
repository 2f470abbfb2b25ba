"""Spliced and unspliced counts as STARsolo, kallisto-bustools, alevin-fry and velocyto write them."""

from __future__ import annotations

import gzip
import json

import h5py
import numpy as np
import pytest
from scipy import sparse
from scipy.io import mmwrite

import tenfold as tf
from tenfold.errors import FileFormatError

CELLS, GENES = ["AAA", "CCC", "GGG"], ["G1", "G2", "G3", "G4"]
RNG = np.random.default_rng(0)
S, U, A = (RNG.poisson(lam, (3, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32) for lam in (3, 1, 0.5))


def lines(path, words):
    path.write_text("".join(f"{word}\n" for word in words))


def same(matrix, wanted):
    np.testing.assert_array_equal(matrix.toarray(), wanted)


def starsolo(folder):
    folder.mkdir(parents=True)
    for name, matrix in (("spliced", S), ("unspliced", U), ("ambiguous", A)):
        mmwrite(folder / f"{name}.mtx", sparse.coo_matrix(matrix.T))
    lines(folder / "barcodes.tsv", CELLS)
    lines(folder / "features.tsv", [f"ENS{i}\t{gene}\tGene Expression" for i, gene in enumerate(GENES)])


@pytest.mark.parametrize("given", ["", "Velocyto", "Velocyto/raw"])
def test_starsolo(tmp_path, given):
    starsolo(tmp_path / "Solo.out" / "Velocyto" / "raw")
    adata = tf.data.read(tmp_path / "Solo.out" / given)
    assert list(adata.obs_names) == CELLS and list(adata.var_names) == GENES and adata.var["gene_ids"].iloc[2] == "ENS2"
    for name, wanted in (("spliced", S), ("unspliced", U), ("ambiguous", A)):
        same(adata.layers[name], wanted)
    same(adata.X, S)


def test_starsolo_compressed_and_without_empty_cells(tmp_path):
    folder = tmp_path / "raw"
    starsolo(folder)
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.write("".join(f"{cell}\n" for cell in CELLS))
    (folder / "barcodes.tsv").unlink()
    for name in ("spliced", "unspliced", "ambiguous"):
        matrix = {"spliced": S, "unspliced": U, "ambiguous": A}[name].copy()
        matrix[1] = 0
        mmwrite(folder / f"{name}.mtx", sparse.coo_matrix(matrix.T))
    assert list(tf.data.read(folder).obs_names) == ["AAA", "GGG"]


def test_kallisto_lamanno_has_barcodes_of_its_own_for_each_matrix(tmp_path):
    folder = tmp_path / "counts_unfiltered"
    folder.mkdir()
    mmwrite(folder / "spliced.mtx", sparse.coo_matrix(S))
    mmwrite(folder / "unspliced.mtx", sparse.coo_matrix(U[::-1][:2]))  # GGG, CCC
    lines(folder / "spliced.barcodes.txt", CELLS)
    lines(folder / "unspliced.barcodes.txt", ["GGG", "CCC"])
    for name in ("spliced", "unspliced"):
        lines(folder / f"{name}.genes.txt", GENES)
    adata = tf.data.read(tmp_path)
    assert list(adata.obs_names) == ["CCC", "GGG"]
    same(adata.layers["spliced"], S[1:])
    same(adata.layers["unspliced"], U[1:])


def test_kallisto_nac(tmp_path):
    for name, matrix in (("mature", S), ("nascent", U), ("ambiguous", A)):
        mmwrite(tmp_path / f"cells_x_genes.{name}.mtx", sparse.coo_matrix(matrix))
    lines(tmp_path / "cells_x_genes.barcodes.txt", CELLS)
    lines(tmp_path / "cells_x_genes.genes.txt", [f"ENS{i}" for i in range(4)])
    lines(tmp_path / "cells_x_genes.genes.names.txt", GENES)
    adata = tf.data.read(tmp_path)
    assert list(adata.var_names) == GENES and adata.var["gene_ids"].iloc[0] == "ENS0"
    same(adata.layers["unspliced"], U)
    same(adata.layers["ambiguous"], A)


def alevin_fry(folder, usa=True):
    (folder / "alevin").mkdir(parents=True)
    mmwrite(folder / "alevin" / "quants_mat.mtx", sparse.coo_matrix(np.hstack([S, U, A])))
    lines(folder / "alevin" / "quants_mat_rows.txt", CELLS)
    lines(folder / "alevin" / "quants_mat_cols.txt", [*GENES, *(f"{g}-U" for g in GENES), *(f"{g}-A" for g in GENES)])
    (folder / "quant.json").write_text(json.dumps({"usa_mode": usa}))


def test_alevin_fry_counts_ambiguous_reads_as_spliced(tmp_path):
    alevin_fry(tmp_path / "quant")
    adata = tf.data.read(tmp_path / "quant")
    assert list(adata.var_names) == GENES
    same(adata.layers["spliced"], S + A)
    same(adata.layers["unspliced"], U)


def test_alevin_fry_must_be_in_usa_mode(tmp_path):
    alevin_fry(tmp_path / "quant", usa=False)
    with pytest.raises(FileFormatError, match="USA mode"):
        tf.data.read(tmp_path / "quant")


def test_files_of_two_runs_are_refused(tmp_path):
    starsolo(tmp_path / "raw")
    lines(tmp_path / "raw" / "barcodes.tsv", CELLS[:2])
    with pytest.raises(FileFormatError, match="do not belong together"):
        tf.data.read(tmp_path / "raw")


def test_layers_of_a_velocyto_loom(tmp_path):
    path = tmp_path / "cells.loom"
    with h5py.File(path, "w") as file:
        file["matrix"] = (S + U).T
        for name, matrix in (("spliced", S), ("unspliced", U), ("ambiguous", A)):
            file[f"layers/{name}"] = matrix.T
        file["col_attrs/CellID"] = np.array(CELLS, dtype="S")
        file["row_attrs/Gene"] = np.array(GENES, dtype="S")
    adata = tf.data.read(path)
    same(adata.layers["spliced"], S)
    same(adata.layers["unspliced"], U)
