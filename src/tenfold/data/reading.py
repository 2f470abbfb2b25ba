"""Reading of files and folders: the kind is told from the content, and what is wrong is said in plain words."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scipy import sparse

from tenfold.errors import FileFormatError, KeyMissingError, ResourceError, TenfoldError, closest

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

Result = TypeVar("Result")

KINDS = ".h5ad, .h5mu, .zarr (or SpatialData), 10x .h5, a 10x folder (matrix.mtx), a Visium folder, or .loom"
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04")  # gzip, zip


def read(path: str | Path, modality: str = "rna", backed: bool = False) -> AnnData:
    """Read single-cell or spatial data; the kind of file is told from its content.

    Parameters
    ----------
    path
        .h5ad, .h5mu or .zarr; 10x .h5 (Cell Ranger, Space Ranger); a folder with 10x ``matrix.mtx``, barcodes and
        features or genes, compressed or not; a Space Ranger folder (counts and ``spatial/``); a SpatialData store
        (.zarr), of which the table and a picture of each of its regions are read; .loom.
    modality
        Which modality to take from a MuData file; other kinds hold one only and ignore it.
    backed
        Leave X and layers of an .h5ad or .zarr on disk: for data larger than memory. Methods that read counts from
        disk (scvi) then never load them. For results larger than memory see `tenfold.data.results`.

    Returns
    -------
    Cells × genes as they are stored. Of 10x data the "Gene Expression" features are kept; repeated gene symbols get
    a number, and ``var["gene_ids"]`` keeps the identifiers. Visium spots have ``obsm["spatial"]`` (x, y in pixels of
    the full image) and images and scale factors in ``uns["spatial"]``, as cells of a SpatialData store have.

    Raises
    ------
    FileFormatError
        Missing, empty, damaged, or of a kind that cannot be read. Nothing is ever unpickled.
    KeyMissingError
        The MuData file has no such modality.
    ResourceError
        The data do not fit in memory.
    """
    if backed:
        from tenfold.data.backed import open_backed

        return open_backed(path)
    path = Path(path).expanduser()
    kind = kind_of(path)
    if kind in ("h5mu", "zarr-mudata"):
        return _modality(read_mudata(path), modality, path)
    with warnings.catch_warnings():
        # Repeated names are refused, with the remedy, where they do harm: by the checks of a method's input.
        warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
        adata = guarded(path, lambda: _readers()[kind](path))
    _refuse_broken_matrices(adata, path)
    return adata


def read_mudata(path: str | Path) -> MuData:
    """Read all modalities of a MuData file (.h5mu or .zarr); raises what `read` raises."""
    path = Path(path).expanduser()
    kind = kind_of(path)
    if kind not in ("h5mu", "zarr-mudata"):
        raise FileFormatError(f"'{path}' holds one modality, not a MuData; read it with tenfold.data.read.")
    import mudata

    with mudata.set_options(pull_on_update=False):
        load = mudata.read_h5mu if kind == "h5mu" else mudata.read_zarr
        mdata = guarded(path, lambda: load(path))
    for adata in mdata.mod.values():
        _refuse_broken_matrices(adata, path)
    return mdata


def _readers() -> dict[str, Callable[[Path], AnnData]]:
    import anndata

    from tenfold.data import loom, spatial_store, tenx, velocity_folders

    return {
        "h5ad": anndata.read_h5ad,
        "zarr": anndata.read_zarr,
        "10x-h5": tenx.read_h5,
        "10x-mtx": tenx.read_mtx,
        "visium": tenx.read_visium,
        "spatialdata": spatial_store.read_store,
        "loom": loom.read_loom,
        "velocity": velocity_folders.read_velocity_folder,
    }


def guarded(path: Path, load: Callable[[], Result]) -> Result:
    """Call `load`; whatever a library raises on a damaged file becomes a FileFormatError."""
    try:
        return load()
    except TenfoldError:
        raise
    except MemoryError as error:
        raise ResourceError(
            f"'{path}' does not fit in memory; read it on a larger machine or take fewer cells."
        ) from error
    except PermissionError as error:
        raise FileFormatError(f"'{path}' may not be read by you; ask its owner for permission.") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileFormatError(
            f"'{path}' could not be read: it is damaged or incomplete ({reason}). Copy, download or export it again."
        ) from error


def kind_of(path: Path) -> str:
    """Tell the kind of a file or folder from its content.

    Raises
    ------
    FileFormatError
        Missing, empty, or of no known kind.
    """
    if not path.exists():
        raise FileFormatError(_missing(path))
    return _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"There is no '{path}': the folder '{folder}' does not exist."
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    similar = closest(path.name, names)
    return f"There is no '{path}'.{similar or ' Check the spelling, and the folder that you are in.'}"


def _kind_of_folder(path: Path) -> str:
    from tenfold.data import spatial_store, tenx, velocity_folders

    if any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")):
        _refuse_pickles(path)
        if _zarr_encoding(path) == "MuData":
            return "zarr-mudata"
        return "spatialdata" if spatial_store.is_store(path) else "zarr"
    if (path / "spatial").is_dir():
        return "visium"
    if velocity_folders.velocity_folder(path) is not None:
        return "velocity"
    if tenx.matrix_folder(path) is not None:
        return "10x-mtx"
    inside = sorted(entry.name for entry in path.iterdir())
    held = (
        f"It holds {', '.join(map(repr, inside[:8]))}{' and more' if len(inside) > 8 else ''}."
        if inside
        else "It is empty."
    )
    raise FileFormatError(
        f"The folder '{path}' is none that can be read: neither .zarr, nor a 10x folder with matrix.mtx, barcodes.tsv "
        f"and features.tsv, nor a Visium folder with 'spatial', nor spliced and unspliced counts. {held}"
    )


def _kind_of_file(path: Path) -> str:
    import h5py

    with guarded(path, lambda: path.open("rb")) as handle:
        start = handle.read(16)
    if not start:
        raise FileFormatError(f"'{path}' is empty (0 bytes): copying or downloading it failed. Fetch it again.")
    if h5py.is_hdf5(path):  # not told by the first bytes: MuData puts a line of its own before
        return guarded(path, lambda: _kind_of_hdf5(path))
    if start.startswith(_COMPRESSED) and path.suffix in (".gz", ".zip"):
        advice = f"It is compressed; unpack it first ({'gunzip' if path.suffix == '.gz' else 'unzip'} '{path.name}')."
    elif start.startswith(b"%%MatrixMarket"):
        advice = "It is a bare matrix; give the folder that holds it with its barcodes and features."
    elif path.suffix.lower() in (".rds", ".rda", ".rdata", ".h5seurat"):
        advice = "It is an R object; convert it in R first, e.g. with zellkonverter::writeH5AD."
    elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
        advice = (
            "It is a text table; make it an AnnData first: anndata.io.read_csv(path) (cells in rows), then .write_h5ad."
        )
    elif path.suffix.lower() in (".pkl", ".pickle", ".npy", ".npz", ".joblib"):
        advice = "Python pickles and arrays are not read, because a pickle can run any code. Save the AnnData as .h5ad."
    elif path.suffix.lower() in (".h5ad", ".h5mu", ".h5", ".loom"):
        advice = (
            "It does not begin like an HDF5 file: it is damaged, or something else under this name. Fetch it again."
        )
    else:
        advice = f"What can be read: {KINDS}."
    raise FileFormatError(f"'{path}' cannot be read. {advice}")


def _kind_of_hdf5(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        encoding = str(file.attrs.get("encoding-type", "")).lower()
        if encoding == "mudata" or "mod" in file:
            return "h5mu"
        if encoding == "anndata" or {"obs", "var"} <= set(file):
            return "h5ad"
        if {"matrix", "row_attrs", "col_attrs"} <= set(file):
            return "loom"
        groups = [entry for entry in file.values() if isinstance(entry, h5py.Group)]
        if any("barcodes" in group and "indptr" in group for group in groups):
            return "10x-h5"
        held = ", ".join(map(repr, file)) or "nothing"
    raise FileFormatError(
        f"'{path}' is an HDF5 file, but none that can be read: it holds {held}. What can be read: {KINDS}."
    )


def _zarr_encoding(path: Path) -> str:
    import zarr

    return str(guarded(path, lambda: zarr.open_group(path, mode="r").attrs.get("encoding-type", "")))


def _refuse_pickles(path: Path) -> None:
    """Refuse a store with the pickle codec, which would run code from the file."""
    for folder, _, names in os.walk(path):
        for name in {".zarray", ".zmetadata", "zarr.json"}.intersection(names):
            file = Path(folder) / name
            try:
                codecs = _codecs(json.loads(file.read_text(errors="replace")))
            except ValueError as error:
                raise FileFormatError(f"'{file}' is damaged ({error}). Copy the whole folder again.") from error
            if any("pickle" in codec for codec in codecs):
                raise FileFormatError(
                    f"'{path}' stores Python pickles ('{file.relative_to(path)}'), which can run any code; they are "
                    "not read. Write the data again without object arrays."
                )


def _codecs(value: Any) -> list[str]:
    """Names of all codecs anywhere in Zarr metadata."""
    if isinstance(value, dict):
        own = [str(value[key]).lower() for key in ("id", "name") if key in value]
        return own + [codec for key, entry in value.items() if key != "attributes" for codec in _codecs(entry)]
    if isinstance(value, list):
        return [codec for entry in value for codec in _codecs(entry)]
    return []


def _modality(mdata: MuData, modality: str, path: Path) -> AnnData:
    if modality not in mdata.mod:
        raise KeyMissingError(
            f"'{path}' has no modality '{modality}'.{closest(modality, mdata.mod)} "
            f"It has {', '.join(map(repr, mdata.mod))}: name one with modality=."
        )
    adata = mdata.mod[modality]
    # Columns that describe the cell whatever was measured are often kept once, above the modalities.
    shared = [c for c in mdata.obs.columns if ":" not in str(c) and c not in adata.obs]
    if shared and mdata.obs_names.is_unique:
        for column in shared:
            adata.obs[column] = mdata.obs[column].reindex(adata.obs_names)
    return adata


def _refuse_broken_matrices(adata: AnnData, path: Path) -> None:
    """Refuse sparse matrices whose indices point outside: compiled code would read foreign memory."""
    matrices = {"X": adata.X, **{f"layer '{k}'": m for k, m in adata.layers.items()}}
    matrices |= {f"obsp['{k}']": m for k, m in adata.obsp.items()}
    if adata.raw is not None:
        matrices["raw"] = adata.raw.X
    for name, matrix in matrices.items():
        if sparse.issparse(matrix) and matrix.format in ("csr", "csc"):
            try:
                matrix.check_format(full_check=True)
            except ValueError as error:
                raise FileFormatError(
                    f"'{path}' is damaged: {name} has impossible indices ({error}). Copy, download or export it again."
                ) from error
