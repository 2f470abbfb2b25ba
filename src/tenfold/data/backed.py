"""AnnData whose matrices stay on disk, and results written beside them piece by piece, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.data import streamed
from tenfold.data.streamed import free_memory, stays_on_disk
from tenfold.errors import FileFormatError, ResourceError

if TYPE_CHECKING:
    from anndata import AnnData

_IN_MEMORY = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")
#: Parts that results go to.
_RESULTS = ("obs", "obsm", "obsp", "uns")


@contextmanager
def results(path: str | Path, out: str | Path) -> Iterator[AnnData]:
    """Copy a file, and open the copy for results with its matrices left on disk: for data larger than memory.

    Parameters
    ----------
    path
        .h5ad file or .zarr store.
    out
        The copy, of the same format. It gets this name when the block has ended and all is written; if the block fails
        or is stopped, nothing is left of it.

    Yields
    ------
    AnnData to fit a method to and to ``write`` its results into; large results go to disk piece by piece.

    Raises
    ------
    FileFormatError
        Another format, a damaged file, or no space.

    Examples
    --------
    >>> import tenfold as tf
    >>> with tf.data.results("cells.h5ad", "denoised.h5ad") as adata:  # doctest: +SKIP
    ...     tf.denoise.SCVI().fit(adata, batch="donor").write(adata, task="denoise")
    """
    from tenfold.data.reading import guarded, kind_of
    from tenfold.data.writing import replacing

    path, out = Path(path).expanduser(), Path(out).expanduser()
    kind = kind_of(path)
    if kind not in ("h5ad", "zarr") or out.suffix != f".{kind}":
        raise FileFormatError(
            f"Data that stay on disk are copied as they are: give '{path.name}' an output of the same format "
            f"(.h5ad or .zarr), not '{out.name}'."
        )
    with replacing(out) as fresh:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, fresh)
        root = guarded(path, lambda: _root(fresh, kind, "r+"))
        try:
            adata = guarded(path, lambda: _opened(root))
            yield adata
            _store_results(root, adata)
        finally:
            if kind == "h5ad":
                root.close()


def open_backed(path: str | Path) -> AnnData:
    """Open an .h5ad file or .zarr store for reading, matrices left on disk; raises what `tenfold.data.read` does."""
    from tenfold.data.reading import guarded, kind_of

    path = Path(path).expanduser()
    kind = kind_of(path)
    if kind not in ("h5ad", "zarr"):
        raise FileFormatError(f"'{path}' cannot stay on disk: only .h5ad and .zarr can. Read it without backed=True.")
    return guarded(path, lambda: _opened(_root(path, kind, "r")))


def is_large(path: str | Path) -> bool:
    """Whether a file holds X or a layer that is too large to load; raises what `open_backed` does."""
    from tenfold.data.reading import guarded, kind_of

    path = Path(path).expanduser()
    kind = kind_of(path)
    if kind not in ("h5ad", "zarr"):
        return False
    root = guarded(path, lambda: _root(path, kind, "r"))
    try:
        stored = [root["X"]] if "X" in root else []
        stored += [root["layers"][name] for name in root["layers"]] if "layers" in root else []
        return any(stays_on_disk(_lazy(matrix)) for matrix in stored if "encoding-type" in matrix.attrs)
    finally:
        if kind == "h5ad":
            root.close()


def write_layer(adata: AnnData, key: str, pieces: Iterable[np.ndarray]) -> None:
    """Put a dense layer into an AnnData: in memory, or on disk where it is large and `results` opened the file.

    Parameters
    ----------
    adata
        Where it goes.
    key
        Name of the layer.
    pieces
        Consecutive rows, float32.

    Raises
    ------
    ResourceError
        It fits nowhere.
    """
    size, free = 4 * adata.n_obs * adata.n_vars, free_memory()
    root = _writable_root(adata)
    target: Any
    if root is not None and size > min(streamed.LARGEST_LOADED, free / 8):
        target = _new_layer(root, key, adata.shape)
    elif size > free:
        raise ResourceError(
            f"The layer '{key}' takes {size / 2**30:.1f} GB, and {free / 2**30:.1f} GB of memory are free. Write it to "
            "disk instead: with tf.data.results(path, out) as adata: ... (in Python), or tenfold run ... -o OUT."
        )
    else:
        target = np.empty(adata.shape, np.float32)
    done = 0
    for piece in pieces:
        target[done : done + len(piece)] = piece
        done += len(piece)
    adata.layers[key] = target


def _root(path: Path, kind: str, mode: Any) -> Any:
    if kind == "h5ad":
        import h5py

        return h5py.File(path, mode)
    import zarr

    return zarr.open_group(path, mode=mode, use_consolidated=False)


def _opened(root: Any) -> AnnData:
    """Read everything but the matrices."""
    import anndata
    from anndata.io import read_elem

    parts = {name: read_elem(root[name]) for name in _IN_MEMORY if name in root}
    layers = {name: _lazy(root["layers"][name]) for name in root["layers"]} if "layers" in root else {}
    x = _lazy(root["X"]) if "X" in root else None
    if "raw" in root and hasattr(root["raw"], "keys"):  # a stored None has none
        parts["raw"] = {"X": _lazy(root["raw"]["X"]), "var": read_elem(root["raw"]["var"])}
    return anndata.AnnData(X=x, layers=layers, **parts)


def _lazy(stored: Any) -> Any:
    """Return a matrix on disk: sparse as anndata's dataset, dense as the array itself."""
    from anndata.io import read_elem, sparse_dataset

    encoding = str(stored.attrs.get("encoding-type", ""))
    if encoding in ("csr_matrix", "csc_matrix"):
        return sparse_dataset(stored)
    return stored if encoding == "array" else read_elem(stored)


def _writable_root(adata: AnnData) -> Any:
    """Return the file that the matrices of an AnnData are in, if it was opened for writing by `results`."""
    if adata.isbacked or adata.is_view:
        return None
    for matrix in (adata.X, *adata.layers.values()):
        group: Any = getattr(matrix, "group", None)
        if hasattr(group, "file"):
            return group.file if group.file.mode == "r+" else None
        if group is not None:
            import zarr

            return None if group.read_only else zarr.open_group(group.store, mode="r+", use_consolidated=False)
    return None


def _new_layer(root: Any, key: str, shape: tuple[int, int]) -> Any:
    from anndata.io import write_elem

    if "layers" not in root:
        write_elem(root, "layers", {})
    layers = root["layers"]
    if key in layers:
        del layers[key]
    create = layers.create_dataset if hasattr(root, "filename") else layers.create_array
    chunks = max(1, min(shape[0], 2**18 // shape[1])), shape[1]
    array = create(key, shape=shape, dtype="float32", chunks=chunks)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def _store_results(root: Any, adata: AnnData) -> None:
    """Write what a method may have added to an AnnData whose matrices are in this file."""
    from anndata.io import write_elem

    for part in _RESULTS:
        value = getattr(adata, part)
        write_elem(root, part, value if part == "obs" else dict(value))
    for name, layer in adata.layers.items():
        if isinstance(layer, np.ndarray):  # the others are on disk already
            if "layers" not in root:
                write_elem(root, "layers", {})
            write_elem(root["layers"], name, layer)
    if not hasattr(root, "filename"):
        import zarr

        zarr.consolidate_metadata(root.store)
