"""Output folders of tools that count spliced and unspliced reads: STARsolo, kallisto-bustools, alevin-fry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from tenfold.errors import FileFormatError

#: Names of the three matrices of kallisto-bustools, of the workflows lamanno and nac.
_KALLISTO = (
    ("spliced", "unspliced", None),
    ("cells_x_genes.mature", "cells_x_genes.nascent", "cells_x_genes.ambiguous"),
)


def velocity_folder(path: Path) -> tuple[str, Path] | None:
    """Tell which tool wrote a folder: its name and the folder with the matrices; None for no such output."""
    for folder in (path, path / "filtered", path / "raw", path / "Velocyto" / "filtered", path / "Velocyto" / "raw"):
        if _file(folder, "spliced.mtx") and _file(folder, "barcodes.tsv"):
            return "starsolo", folder
    for folder in (path, path / "counts_filtered", path / "counts_unfiltered"):
        for spliced, unspliced, _ in _KALLISTO:
            if _file(folder, f"{spliced}.mtx") and _file(folder, f"{unspliced}.mtx"):
                return "kallisto", folder
    for folder in (path, path / "alevin"):
        if _file(folder, "quants_mat.mtx") and (folder / "quants_mat_cols.txt").is_file():
            return "alevin-fry", folder
    return None


def read_velocity_folder(path: Path) -> AnnData:
    """Read spliced and unspliced counts.

    Parameters
    ----------
    path
        STARsolo: ``Solo.out``, its ``Velocyto`` or the folder in that. kallisto-bustools: the output of ``kb count``
        with the workflow ``lamanno`` or ``nac``. alevin-fry: the output of ``alevin-fry quant`` in USA mode.

    Returns
    -------
    Cells × genes: layers ``"spliced"`` and ``"unspliced"``, ``"ambiguous"`` where the tool counts it, and spliced
    counts in X. alevin-fry's ambiguous counts, which are mostly exonic, are added to the spliced ones as its authors
    advise. Cells without any count are left out.

    Raises
    ------
    FileFormatError
        Files are missing, or their sizes do not fit.
    """
    found = velocity_folder(path)
    if found is None:
        raise FileFormatError(f"'{path}' holds no spliced and unspliced counts.")
    tool, folder = found
    read = {"starsolo": _starsolo, "kallisto": _kallisto, "alevin-fry": _alevin_fry}[tool]
    layers, cells, genes, identifiers = read(folder)
    for name, matrix in layers.items():
        if matrix.shape != (len(cells), len(genes)):
            raise FileFormatError(
                f"The files in '{folder}' do not belong together: {name} counts are {matrix.shape[0]:,} cells × "
                f"{matrix.shape[1]:,} genes, for {len(cells):,} barcodes and {len(genes):,} genes. Copy the folder "
                "again."
            )
    var = pd.DataFrame({"gene_ids": np.asarray(identifiers)}, index=make_index_unique(pd.Index(genes.astype(str))))
    adata = AnnData(layers["spliced"].copy(), pd.DataFrame(index=pd.Index(cells.astype(str))), var, layers=layers)
    empty = np.asarray(sum(layer.sum(axis=1) for layer in layers.values())).ravel() == 0
    return adata[~empty].copy() if empty.any() else adata


_Parts = tuple[dict[str, sparse.csr_matrix], np.ndarray, np.ndarray, np.ndarray]


def _starsolo(folder: Path) -> _Parts:
    features, cells = _table(folder, "features.tsv"), _table(folder, "barcodes.tsv")
    names = ("spliced", "unspliced", "ambiguous")
    layers = {name: _matrix(folder, f"{name}.mtx").T.tocsr() for name in names if _file(folder, f"{name}.mtx")}
    if "unspliced" not in layers:
        raise FileFormatError(f"'{folder}' has no unspliced.mtx (or .gz). Copy the folder again.")
    return layers, cells[0].to_numpy(), features[1 if 1 in features else 0].to_numpy(), features[0].to_numpy()


def _kallisto(folder: Path) -> _Parts:
    spliced, unspliced, ambiguous = next(names for names in _KALLISTO if _file(folder, f"{names[0]}.mtx"))
    roles = {"spliced": spliced, "unspliced": unspliced, "ambiguous": ambiguous}
    parts = {}
    for role, name in roles.items():
        if name is not None and _file(folder, f"{name}.mtx"):
            stem = name if (folder / f"{name}.barcodes.txt").is_file() else name.partition(".")[0]
            parts[role] = (
                _matrix(folder, f"{name}.mtx"),
                *(_table(folder, f"{stem}.{kind}.txt")[0].to_numpy() for kind in ("barcodes", "genes")),
            )
    for role, (matrix, cells, genes) in parts.items():
        if matrix.shape != (len(cells), len(genes)):
            raise FileFormatError(
                f"The files in '{folder}' do not belong together: {role} counts are {matrix.shape[0]:,} × "
                f"{matrix.shape[1]:,}, for {len(cells):,} barcodes and {len(genes):,} genes. Copy the folder again."
            )
    # Each matrix of the workflow lamanno has barcodes of its own.
    cells = pd.Index(parts["spliced"][1])
    for _, own, _ in parts.values():
        cells = cells.intersection(pd.Index(own), sort=False)
    genes = pd.Index(parts["spliced"][2])
    if any(not genes.equals(pd.Index(own)) for _, _, own in parts.values()):
        raise FileFormatError(f"The matrices in '{folder}' are of different genes. Copy the folder again.")
    layers = {
        role: matrix[pd.Index(own).get_indexer(cells)].tocsr() for role, (matrix, own, _) in parts.items()
    }  # fmt: skip
    symbols = next((folder / f"{stem}.genes.names.txt" for stem in ("cells_x_genes", "spliced")
                    if (folder / f"{stem}.genes.names.txt").is_file()), None)  # fmt: skip
    names = genes.to_numpy() if symbols is None else _table(folder, symbols.name)[0].to_numpy()
    return layers, cells.to_numpy(), names, genes.to_numpy()


def _alevin_fry(folder: Path) -> _Parts:
    columns, cells = _table(folder, "quants_mat_cols.txt")[0], _table(folder, "quants_mat_rows.txt")[0]
    for name in ("quant.json", "meta_info.json"):
        head = folder.parent / name
        if head.is_file() and not json.loads(head.read_text()).get("usa_mode", True):
            raise FileFormatError(
                f"'{folder}' was not counted in USA mode, so spliced and unspliced counts are not told apart. Run "
                "alevin-fry with a splici or spliceu reference."
            )
    n = len(columns) // 3
    matrix = _matrix(folder, "quants_mat.mtx")
    if len(columns) != 3 * n or matrix.shape != (len(cells), 3 * n):
        raise FileFormatError(
            f"'{folder}' has {matrix.shape[0]:,} × {matrix.shape[1]:,} counts, {len(cells):,} rows and "
            f"{len(columns):,} columns; in USA mode columns are three times the genes."
        )
    spliced, unspliced, ambiguous = (matrix[:, k * n : (k + 1) * n].tocsr() for k in range(3))
    genes = columns[:n].to_numpy()
    layers = {"spliced": sparse.csr_matrix(spliced + ambiguous), "unspliced": unspliced}
    return layers, cells.to_numpy(), genes, genes


def _file(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _matrix(folder: Path, name: str) -> sparse.csr_matrix:
    from scipy.io import mmread

    return sparse.csr_matrix(mmread(_file(folder, name)), dtype=np.float32)


def _table(folder: Path, name: str) -> pd.DataFrame:
    file = _file(folder, name)
    if file is None:
        raise FileFormatError(f"'{folder}' has matrices but no {name} (or .gz). Copy the folder again.")
    return pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False)
