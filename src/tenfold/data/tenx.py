"""Output of Cell Ranger and Space Ranger: .h5, matrix.mtx folders, Visium folders; old and new file names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from tenfold.errors import FileFormatError

EXPRESSION = "Gene Expression"
_POSITIONS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def read_h5(path: Path) -> AnnData:
    """Read the .h5 of Cell Ranger (any version) or Space Ranger."""
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        return _expression(sc.read_10x_h5(path, gex_only=False), path)


def matrix_folder(path: Path) -> Path | None:
    """Return the folder with the matrix: `path`, or the filtered (else raw) matrix of the run that `path` holds."""
    for folder in (path, path / "filtered_feature_bc_matrix", path / "raw_feature_bc_matrix"):
        if folder.is_dir() and _find(folder, "matrix.mtx"):
            return folder
    return None


def read_mtx(path: Path) -> AnnData:
    """Read a folder with matrix.mtx, barcodes.tsv and features.tsv (before Cell Ranger 3: genes.tsv), gzipped or not.

    A prefix before the three names, as in GEO downloads, is allowed.
    """
    from scipy.io import mmread

    folder = matrix_folder(path)
    if folder is None:
        raise FileFormatError(f"'{path}' has no matrix.mtx.")
    matrix_file = _find(folder, "matrix.mtx")
    assert matrix_file is not None
    prefix = matrix_file.name.partition("matrix.mtx")[0]
    features = _table(folder, prefix, ("features.tsv", "genes.tsv"))
    barcodes = _table(folder, prefix, ("barcodes.tsv",))[0]
    counts = sparse.csr_matrix(mmread(matrix_file).T, dtype=np.float32)
    if counts.shape != (len(barcodes), len(features)):
        raise FileFormatError(
            f"The files in '{folder}' do not belong together: the matrix has {counts.shape[1]:,} genes × "
            f"{counts.shape[0]:,} cells, features {len(features):,} lines and barcodes {len(barcodes):,}. "
            "Copy all three files of one run again."
        )
    var = pd.DataFrame({"gene_ids": features[0].to_numpy()}, index=pd.Index(features[1 if 1 in features else 0]))
    var.index.name = None
    if 2 in features:
        var["feature_types"] = features[2].to_numpy()
    return _expression(AnnData(counts, obs=pd.DataFrame(index=pd.Index(barcodes, name=None)), var=var), folder)


def read_visium(path: Path) -> AnnData:
    """Read a Space Ranger folder: counts, positions of the spots, scale factors, images."""
    files = sorted(path.glob("*filtered_feature_bc_matrix.h5")) or sorted(path.glob("*raw_feature_bc_matrix.h5"))
    if files:
        adata, library = read_h5(files[0]), _library(files[0])
    elif matrix_folder(path) is not None:
        adata, library = read_mtx(path), None
    else:
        raise FileFormatError(
            f"'{path}' has a folder 'spatial' but no counts: filtered_feature_bc_matrix.h5 or a folder "
            "filtered_feature_bc_matrix is needed beside it. Give the 'outs' folder of Space Ranger."
        )
    positions = _positions(path / "spatial").reindex(adata.obs_names)
    unplaced = int(positions["in_tissue"].isna().sum())
    if unplaced:
        raise FileFormatError(
            f"{unplaced:,} of {adata.n_obs:,} spots of '{path}' have no position; counts and 'spatial' are of "
            "different runs. Copy the whole folder of one run again."
        )
    for column in ("in_tissue", "array_row", "array_col"):
        adata.obs[column] = positions[column].astype(int).to_numpy()
    adata.obsm["spatial"] = positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=np.float64)
    adata.uns["spatial"] = {library or path.resolve().name: _pictures(path / "spatial")}
    return adata


def _expression(adata: AnnData, path: Path) -> AnnData:
    """Keep gene expression, and make repeated symbols unique: every 10x reference has a few."""
    if "feature_types" in adata.var:
        is_gene = (adata.var["feature_types"] == EXPRESSION).to_numpy()
        if not is_gene.any():
            kinds = ", ".join(map(repr, adata.var["feature_types"].unique()))
            raise FileFormatError(f"'{path}' holds no '{EXPRESSION}', only {kinds}.")
        if not is_gene.all():
            kinds = ", ".join(adata.var["feature_types"][~is_gene].unique())
            warnings.warn(f"Only gene expression is read from '{path}'; left out: {kinds}.", stacklevel=2)
            adata = adata[:, is_gene].copy()
    if not adata.var_names.is_unique:
        adata.var_names = make_index_unique(adata.var_names)
    return adata


def _find(folder: Path, name: str) -> Path | None:
    for suffix in ("", ".gz"):
        found = [folder / (name + suffix)] if (folder / (name + suffix)).is_file() else []
        found = found or sorted(folder.glob(f"*[_.-]{name}{suffix}"))
        if len(found) > 1:
            raise FileFormatError(
                f"'{folder}' holds several matrices ({', '.join(f.name for f in found[:4])}); put each with its "
                "barcodes and features into a folder of its own."
            )
        if found:
            return found[0]
    return None


def _table(folder: Path, prefix: str, names: tuple[str, ...]) -> pd.DataFrame:
    for name in names:
        for file in (folder / f"{prefix}{name}", folder / f"{prefix}{name}.gz"):
            if file.is_file():
                return pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False)
    raise FileFormatError(f"'{folder}' has a matrix but no {' or '.join(prefix + name for name in names)} (or .gz).")


def _library(file: Path) -> str | None:
    import h5py

    with h5py.File(file, "r") as opened:
        identifiers = opened.attrs.get("library_ids")
    if identifiers is None or not len(identifiers):
        return None
    return identifiers[0].decode() if isinstance(identifiers[0], bytes) else str(identifiers[0])


def _positions(folder: Path) -> pd.DataFrame:
    """Positions by barcode; Space Ranger 2 gave the file a header and a shorter name."""
    for name in ("tissue_positions.csv", "tissue_positions_list.csv"):
        if (folder / name).is_file():
            table = pd.read_csv(folder / name, header=None, dtype=str)
            break
    else:
        modern = " tissue_positions.parquet (Visium HD) is not read here; spatialdata-io does." * (
            (folder / "tissue_positions.parquet").is_file()
        )
        raise FileFormatError(f"'{folder}' has no tissue_positions.csv or tissue_positions_list.csv.{modern}")
    if table.shape[1] != len(_POSITIONS):
        raise FileFormatError(f"'{folder / name}' must have {len(_POSITIONS)} columns ({', '.join(_POSITIONS)}).")
    if table.iloc[0, 0] == "barcode":
        table = table.iloc[1:]
    table.columns = _POSITIONS
    return table.set_index("barcode").astype(float)


def _pictures(folder: Path) -> dict[str, Any]:
    """Images (those that are there) and scale factors."""
    images = {}
    for size in ("hires", "lowres"):
        for file in sorted(folder.glob(f"tissue_{size}_image.*")):
            from matplotlib.image import imread

            images[size] = imread(file)
    factors = folder / "scalefactors_json.json"
    if not factors.is_file():
        raise FileFormatError(f"'{folder}' has no scalefactors_json.json.")
    return {"images": images, "scalefactors": json.loads(factors.read_text()), "metadata": {}}
