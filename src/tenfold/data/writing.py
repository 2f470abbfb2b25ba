"""Writing of AnnData and MuData: the whole file or nothing, never half of one."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.errors import DataError, FileFormatError

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

_ZARR_MARKS = ("zarr.json", ".zgroup", ".zattrs")


def write(data: AnnData | MuData, path: str | Path) -> Path:
    """Write data to .h5ad or .zarr, a MuData to .h5mu or .zarr; folders on the way are made.

    An earlier file is replaced only when the new one is complete.

    Parameters
    ----------
    data
        Not changed.
    path
        The suffix says the format.

    Returns
    -------
    The path.

    Raises
    ------
    FileFormatError
        Another suffix, or a folder of other content in the way.
    DataError
        A part of the data cannot be stored; the message names it.
    """
    path = Path(path).expanduser()
    is_mudata = type(data).__name__ == "MuData"
    suffixes = (".h5mu", ".zarr") if is_mudata else (".h5ad", ".zarr")
    if path.suffix not in suffixes:
        kind = "A MuData" if is_mudata else "An AnnData"
        raise FileFormatError(f"{kind} is written to {' or '.join(suffixes)}, not '{path.name}'; change the suffix.")
    if path.suffix == ".h5ad":
        return write_h5ad(data, path)
    if path.suffix == ".h5mu":
        return _atomically(path, data.write_h5mu)
    return _atomically(path, data.write_zarr)


def write_h5ad(adata: AnnData, path: str | Path) -> Path:
    """Write an AnnData to an .h5ad file, whole or not at all; raises what `write` raises."""
    from anndata.io import write_h5ad as write_file

    # By default anndata turns text columns of the caller's own obs into categories.
    return _atomically(Path(path), lambda fresh: write_file(fresh, adata, convert_strings_to_categoricals=False))


def _atomically(path: Path, write_to: Callable[[Path], Any]) -> Path:
    with replacing(path) as fresh:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Writing zarr v2")
                write_to(fresh)
        except OSError:
            raise
        except Exception as error:  # whatever anndata has no way to store
            reason = " ".join([*str(error).splitlines()[:1], *getattr(error, "__notes__", [])])
            raise DataError(
                f"'{path}' could not be written: {reason}. Convert or remove this part of the data."
            ) from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; what is there when the block has ended well takes the place of `path`.

    Raises
    ------
    FileFormatError
        A folder of other content is in the way, or the disk is full or not to be written.
    """
    if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in _ZARR_MARKS):
        raise FileFormatError(f"'{path}' is a folder of other content; choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield fresh
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(fresh, path)
    except OSError as error:
        raise FileFormatError(f"'{path}' could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(fresh) if fresh.is_dir() else fresh.unlink(missing_ok=True)
