"""Loom files, read block by block so that the dense matrix in them is never in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    import h5py

BLOCK = 512
_CELL_NAMES = ("CellID", "obs_names", "cell_names", "Barcode", "barcodes")
_GENE_NAMES = ("Gene", "var_names", "gene_names", "GeneName", "Accession")


def read_loom(path: Path) -> AnnData:
    """Read a loom file (genes × cells there, cells × genes here); graphs of cells and genes are left out."""
    import h5py

    with h5py.File(path, "r") as file:
        obs, obsm = _attributes(file["col_attrs"], _CELL_NAMES, "cell")
        var, varm = _attributes(file["row_attrs"], _GENE_NAMES, "gene")
        layers = {name: _transposed(matrix) for name, matrix in file.get("layers", {}).items()}
        return AnnData(_transposed(file["matrix"]), obs=obs, var=var, obsm=obsm, varm=varm, layers=layers)


def _transposed(matrix: h5py.Dataset) -> sparse.csr_matrix:
    blocks = [sparse.csr_matrix(matrix[:, start : start + BLOCK].T) for start in range(0, matrix.shape[1], BLOCK)]
    return sparse.vstack(blocks, format="csr")


def _attributes(
    group: h5py.Group, index_names: tuple[str, ...], kind: str
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Columns of one number or word each, and the wider ones apart."""
    columns: dict[str, Any] = {}
    wide: dict[str, np.ndarray] = {}
    n_rows = 0
    for name, dataset in group.items():
        values = dataset.asstr()[:] if dataset.dtype.kind in "OS" else dataset[:]
        n_rows = len(values)
        (columns if values.ndim == 1 else wide)[name] = values
    index = next((columns.pop(name) for name in index_names if name in columns), None)
    if index is None:
        index = [f"{kind}_{i + 1}" for i in range(n_rows)]
    return pd.DataFrame(columns, index=pd.Index(np.asarray(index, dtype=object).astype(str))), wide
