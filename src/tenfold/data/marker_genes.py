"""Marker genes of labels: given by the user, or a short list for human blood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tenfold.data.gene_sets import read_gene_sets
from tenfold.errors import FileFormatError, RoleError

#: Well-known markers of the major groups of human blood cells, where nothing better is at hand.
BLOOD: dict[str, list[str]] = {
    "B cell": ["MS4A1", "CD79A", "CD79B", "CD19", "CD37", "HLA-DRA", "BANK1"],
    "CD4 T cell": ["CD3D", "CD3E", "IL7R", "CD4", "LTB", "TCF7"],
    "CD8 T cell": ["CD3D", "CD3E", "CD8A", "CD8B", "GZMK", "CCL5"],
    "NK cell": ["NKG7", "GNLY", "KLRD1", "KLRF1", "GZMB", "PRF1", "NCAM1", "FCGR3A"],
    "Monocyte": ["CD14", "LYZ", "S100A8", "S100A9", "FCN1", "MS4A7", "CST3", "VCAN"],
    "Dendritic cell": ["FCER1A", "CLEC10A", "CD1C", "HLA-DQA1", "HLA-DPB1", "CST3"],
    "Plasmacytoid dendritic cell": ["LILRA4", "IL3RA", "CLEC4C", "GZMB", "IRF7", "ITM2C"],
    "Platelet": ["PPBP", "PF4", "GP9", "ITGA2B", "SDPR", "NRGN"],
    "Progenitor": ["CD34", "SOX4", "KIT", "GATA2", "PRSS57", "STMN1"],
}


def read_markers(markers: Any) -> dict[str, list[str]]:
    """Return the marker genes of each label.

    Parameters
    ----------
    markers
        A mapping from labels to genes; a table (DataFrame, or path of a .csv or .tsv file) whose first two columns are
        label and gene, a row a marker; or the path of a .gmt file.

    Raises
    ------
    FileFormatError
        There is no such file, or it is not of these forms.
    RoleError
        Something else was given, or fewer than two labels.
    """
    if isinstance(markers, pd.DataFrame):
        found = _of_table(markers)
    elif isinstance(markers, (str, Path)) and not str(markers).endswith(".gmt"):
        if not Path(markers).is_file():
            raise FileFormatError(f"'{markers}' is not a file. markers= takes the path of a table, or a dict.")
        found = _of_table(pd.read_csv(markers, sep=None, engine="python", dtype=str))
    elif isinstance(markers, (str, Path, Mapping)):
        found = read_gene_sets(markers)
    else:
        raise RoleError(f"markers= takes a dict of gene lists, a table or a path, not {type(markers).__name__}.")
    if len(found) < 2:
        raise RoleError("markers= names a single label; at least two are needed: with one there is nothing to choose.")
    return found


def _of_table(table: pd.DataFrame) -> dict[str, list[str]]:
    if table.shape[1] < 2:
        raise FileFormatError("A table of markers has two columns, label and gene, and a row for each marker.")
    pairs = table.iloc[:, :2].dropna().astype(str)
    return {str(label): list(dict.fromkeys(rows.iloc[:, 1])) for label, rows in pairs.groupby(pairs.columns[0])}
