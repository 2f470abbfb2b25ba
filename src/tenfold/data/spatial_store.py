"""SpatialData stores: their table of cells and its pictures, read without the spatialdata package."""

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

    The table of several is the one that is called ``table``. A picture of each region that has one goes to
    ``uns["spatial"]``, in about 2,000 pixels, unless the table brings its own.

    Warns
    -----
    UserWarning
        There are pictures, and some region has none that can be placed; the warning says why.

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
    import zarr

    entry = found.get("table") or next(iter(found.values()))
    adata = read_zarr(entry)
    if "spatial" not in adata.obsm:
        raise FileFormatError(
            f"The table of the SpatialData store '{path}' has no positions in obsm['spatial']; they are in its shapes. "
            "With the spatialdata package (pip install spatialdata): sdata = spatialdata.read_zarr(path); put "
            "spatialdata.get_centroids(sdata[name]) of its shapes or labels, in the order of the table, into "
            "sdata['table'].obsm['spatial'], and write that table as .h5ad."
        )
    if (path / "images").is_dir() and not adata.uns.get("spatial"):
        _add_pictures(path, adata, str(zarr.open_group(entry, mode="r").attrs.get("region_key")))
    return adata


def _add_pictures(path: Path, adata: AnnData, region_key: str) -> None:
    """Put a picture of each region into ``uns["spatial"]``, and say where there is none."""
    from tenfold.data.spatial_pictures import pictures_of

    if region_key in adata.obs:
        found, missing = pictures_of(path, adata.obs[region_key])
    else:
        found, missing = {}, ["the table does not say which element its cells are in (region_key)"]
    if found:
        adata.uns["spatial"] = found
    if missing:
        warnings.warn(
            f"Pictures in the SpatialData store '{path}' that are not read: {'; '.join(missing)}. Methods that look at "
            "pictures need uns['spatial'] in Scanpy's form.",
            stacklevel=3,
        )
