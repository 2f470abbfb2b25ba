"""SpatialData stores: their table of cells, read without the spatialdata package."""

from __future__ import annotations

import warnings
from pathlib import Path

from anndata import AnnData, read_zarr

from tenfold.errors import FileFormatError

#: Folders of the elements of a store; older versions wrote a single table under another name.
_TABLES = ("tables", "table")
_ELEMENTS = ("images", "labels", "points", "shapes")


def is_store(path: Path) -> bool:
    """Tell whether a Zarr folder is a SpatialData store: elements side by side, and no matrix of its own."""
    return not (path / "X").exists() and any((path / name).is_dir() for name in (*_TABLES, *_ELEMENTS))


def read_store(path: Path) -> AnnData:
    """Read the table of a SpatialData store; cells need positions in its ``obsm["spatial"]``.

    The table of several is the one that is called ``table``. Pictures stay where they are, which is said.

    Raises
    ------
    FileFormatError
        No table, several of which none is called ``table``, or a table without positions.
    """
    found = {entry.name: entry for name in _TABLES if (path / name).is_dir() for entry in (path / name).iterdir()
             if entry.is_dir() and (entry / "obs").is_dir()}  # fmt: skip
    if not found:
        raise FileFormatError(f"'{path}' is a SpatialData store without a table of cells: nothing there can be read.")
    if len(found) > 1 and "table" not in found:
        raise FileFormatError(
            f"'{path}' is a SpatialData store with the tables {', '.join(sorted(found))}; give the folder of one of "
            "them, e.g. "
            f"'{sorted(found.values())[0]}'."
        )
    adata = read_zarr(found.get("table") or next(iter(found.values())))
    if "spatial" not in adata.obsm:
        raise FileFormatError(
            f"The table of the SpatialData store '{path}' has no positions in obsm['spatial']; they are in its shapes. "
            "With the spatialdata package (pip install spatialdata): sdata = spatialdata.read_zarr(path); put "
            "spatialdata.get_centroids(sdata[name]) of its shapes or labels, in the order of the table, into "
            "sdata['table'].obsm['spatial'], and write that table as .h5ad."
        )
    if (path / "images").is_dir():
        warnings.warn(
            f"Pictures in the SpatialData store '{path}' are not read; methods that look at them need uns['spatial'].",
            stacklevel=2,
        )
    return adata
