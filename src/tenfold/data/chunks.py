"""One-dimensional arrays on disk, read by ranges: each chunk that is touched is fetched and decoded once."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.errors import FileFormatError

#: Elements fetched at a time from an array that has no chunks.
STEP = 2**16
_DEFLATE, _SHUFFLE = 1, 2  # HDF5's numbers of its filters


class ChunkedArray:
    """An array in memory, HDF5 or Zarr that is read chunk by chunk, by slicing it."""

    def __init__(self, array: Any, chunk: int | None = None):
        self.array, self.dtype, self.length = array, np.dtype(array.dtype), int(array.shape[0])
        own = getattr(array, "chunks", None)
        self.chunk = max(1, chunk or (own[0] if own else STEP))

    def load(self, number: int, needed: int) -> np.ndarray:
        """Return the elements of one chunk, the first `needed` of them at least."""
        return np.asarray(self.array[number * self.chunk : (number + 1) * self.chunk])

    def read(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return the elements of these ranges, which ascend, one after another."""
        out = np.empty(int((stops - starts).sum()), self.dtype)
        ranges = list(zip(starts.tolist(), stops.tolist(), strict=True))
        # How much of a chunk is needed, where a range ends in it: the last range that touches a chunk decides.
        needed: dict[int, int] = {}
        for start, stop in ranges:
            last = (stop - 1) // self.chunk
            needed[start // self.chunk] = self.chunk
            needed[last] = stop - last * self.chunk
        done, held = 0, -1
        values = out
        for start, stop in ranges:
            while start < stop:
                number = start // self.chunk
                if number != held:
                    held, values = number, self.load(number, needed.get(number, self.chunk))
                first = number * self.chunk
                end = min(stop, first + self.chunk)
                out[done : done + end - start] = values[start - first : end - first]
                done, start = done + end - start, end
        return out


class HDF5Array(ChunkedArray):
    """An HDF5 dataset read past the HDF5 library, which is slow on scattered ranges and lets one thread in at a time.

    Parameters
    ----------
    dataset
        The h5py dataset, for its path, type and length.
    offsets, sizes
        Where each chunk is in the file, and the bytes it takes there.
    chunk
        Elements in a chunk.
    filters
        HDF5's numbers of the filters that were applied on writing, in their order: byte shuffle and deflate at most.
    """

    def __init__(self, dataset: Any, offsets: np.ndarray, sizes: np.ndarray, chunk: int, filters: list[int]):
        super().__init__(dataset, chunk)
        self.path = Path(dataset.file.filename)
        self.offsets, self.sizes, self.filters = offsets, sizes, filters
        self._file = self.path.open("rb", buffering=0)
        needed = -(-self.length // self.chunk)
        ends = offsets + sizes
        if len(offsets) < needed or (len(ends) and ends.max() > os.fstat(self._file.fileno()).st_size):
            raise damaged(self.path, "part of the matrix is missing: copying or downloading it was cut short")

    def load(self, number: int, needed: int) -> np.ndarray:
        """Return the elements of one chunk, the first `needed` of them at least."""
        raw, width = self._bytes(int(self.offsets[number]), int(self.sizes[number])), self.dtype.itemsize
        try:
            if self.filters == [_DEFLATE]:  # the beginning can be had without the rest
                return np.frombuffer(zlib.decompressobj().decompress(raw, needed * width), self.dtype)
            for code in reversed(self.filters):
                raw = zlib.decompress(raw) if code == _DEFLATE else _unshuffled(raw, width)
            return np.frombuffer(raw, self.dtype)
        except (zlib.error, ValueError) as error:
            raise damaged(self.path, str(error)) from error

    def read(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Return the elements of these ranges, which ascend, one after another."""
        if self.filters:
            return super().read(starts, stops)
        out = np.empty(int((stops - starts).sum()), self.dtype)
        view, done, width = out.view(np.uint8).data, 0, self.dtype.itemsize
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            while start < stop:
                number = start // self.chunk
                end = min(stop, (number + 1) * self.chunk)
                offset = int(self.offsets[number]) + (start - number * self.chunk) * width
                size = (end - start) * width
                if os.preadv(self._file.fileno(), [view[done : done + size]], offset) != size:
                    raise damaged(self.path, "it ends too early")
                done, start = done + size, end
        return out

    def _bytes(self, offset: int, size: int) -> bytes:
        found = os.pread(self._file.fileno(), size, offset)
        if len(found) != size:
            raise damaged(self.path, "it ends too early")
        return found


def chunked(array: Any) -> ChunkedArray:
    """Return the fastest reader that there is for an array: NumPy, h5py dataset or Zarr.

    Raises
    ------
    FileFormatError
        Part of the array is missing on disk.
    """
    import h5py

    if isinstance(array, np.ndarray):
        return ChunkedArray(array, len(array))
    if not isinstance(array, h5py.Dataset):
        if array.nchunks_initialized < array.nchunks:
            raise damaged(Path(str(array.store_path)), "part of the matrix is missing: copying it was cut short")
        return ChunkedArray(array)
    return _mapped(array) or ChunkedArray(array)


def _mapped(dataset: Any) -> HDF5Array | None:
    """Return a reader past the HDF5 library, or None for what only the library can read."""
    file, layout = dataset.file, dataset.id.get_create_plist()
    filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
    regular = file.driver in ("sec2", "stdio") and file.userblock_size == 0 and hasattr(os, "preadv")
    if not regular or not dataset.dtype.isnative or dataset.dtype.kind not in "iuf" or dataset.ndim != 1:
        return None
    if not set(filters) <= {_DEFLATE, _SHUFFLE} or dataset.size == 0:
        return None
    if file.mode != "r":
        file.flush()  # what was written a moment ago may still be in the library's memory
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        size = dataset.size * dataset.dtype.itemsize
        return None if offset is None else HDF5Array(dataset, np.array([offset]), np.array([size]), dataset.size, [])
    found: list[tuple[int, int, int, int]] = []
    dataset.id.chunk_iter(lambda c: found.append((c.chunk_offset[0], c.byte_offset, c.size, c.filter_mask)))
    table = np.array(sorted(found), dtype=np.int64).reshape(-1, 4)
    if table[:, 3].any():  # filters were skipped for some chunks
        return None
    return HDF5Array(dataset, table[:, 1], table[:, 2], dataset.chunks[0], filters)


def _unshuffled(raw: bytes, width: int) -> bytes:
    return np.frombuffer(raw, np.uint8).reshape(width, -1).T.tobytes()


def damaged(path: Path, reason: str) -> FileFormatError:
    """Return the error for a file that is not what it should be."""
    return FileFormatError(f"'{path}' is damaged or incomplete ({reason}). Copy, download or export it again.")
