"""Counts that stay on disk: checked once from end to end, then read by rows."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from anndata import AnnData
from scipy import sparse

from tenfold.data import counts as checks
from tenfold.data.bar import Bar
from tenfold.data.chunks import chunked, damaged
from tenfold.data.reading import guarded
from tenfold.errors import ResourceError
from tenfold.kernels.counting import cut

#: A matrix on disk that would take more bytes in memory than this stays there. Free memory plays no part: the order of
#: cells in training depends on where they are, and the same seed is to give the same result whatever else runs.
LARGEST_LOADED = 2**29
#: Bytes of a stored entry in memory: a 4-byte column and a 4-byte count.
ENTRY = 8
#: Entries fetched at a time, and gaps between rows that cost less to read than to jump.
AT_ONCE = 2**22
GAP = 2**13


def free_memory() -> int:
    """Return the bytes of memory that are free."""
    return int(psutil.virtual_memory().available)


def stays_on_disk(matrix: Any) -> bool:
    """Whether `matrix` is kept in a file and too large to load.

    Raises
    ------
    ResourceError
        It is too large for this machine, and stored so that cells cannot be read one by one.
    """
    from anndata.abc import CSCDataset, CSRDataset

    if isinstance(matrix, CSRDataset):
        return ENTRY * _stored(matrix) > LARGEST_LOADED
    by_gene = isinstance(matrix, CSCDataset)
    if by_gene or (not isinstance(matrix, np.ndarray) and type(matrix).__name__ in ("Dataset", "Array")):
        size = ENTRY * _stored(matrix) if by_gene else np.dtype(matrix.dtype).itemsize * float(np.prod(matrix.shape))
        free = free_memory()
        if size > free / 2:
            raise ResourceError(
                f"The matrix on disk takes {size / 2**30:.1f} GB in memory, and {free / 2**30:.1f} GB are free. It can "
                f"be read cell by cell only if it is stored as CSR, and it is stored as {'CSC' if by_gene else 'dense'}"
                ". Convert it on a larger machine: adata = anndata.read_h5ad(path); "
                "adata.X = scipy.sparse.csr_matrix(adata.X); adata.write_h5ad(path)."
            )
    return False


def refuse_to_load(matrix: Any) -> None:
    """Refuse to load a matrix that does not fit in free memory, before the attempt ends the process.

    Raises
    ------
    ResourceError
        With what to do instead.
    """
    if stays_on_disk(matrix):
        size, free = ENTRY * _stored(matrix), free_memory()
        if 2 * size > free:
            raise ResourceError(
                f"This method needs all counts in memory: {2 * size / 2**30:.1f} GB, and {free / 2**30:.1f} GB are "
                "free. Use a method that reads them from disk (scvi), fewer cells, or a larger machine."
            )


def _stored(matrix: Any) -> int:
    return int(matrix.group["data"].shape[0])


def open_counts(adata: AnnData, layer: str | None, progress: bool = True) -> StreamedCounts:
    """Open the counts of an AnnData that stay on disk, and check every one of them.

    Parameters
    ----------
    adata
        Cells × genes, with X or the layer as a CSR dataset in HDF5 or Zarr.
    layer
        Layer that holds the counts; ``None`` for X.
    progress
        Show a bar.

    Returns
    -------
    Counts of all genes.

    Raises
    ------
    NotCountsError, DataError
        As `tenfold.data.counts.check_counts`.
    FileFormatError
        The file is damaged.
    """
    matrix = adata.X if layer is None else adata.layers[layer]
    where = "X" if layer is None else f"layer '{layer}'"
    found = StreamedCounts.of(matrix, progress)
    found.check(where, checks.alternatives(adata, layer), adata.obs_names, adata.var_names)
    return found


def cell_sums(counts: sparse.csr_matrix | StreamedCounts) -> np.ndarray:
    """Return the sum of each cell's counts, shape (n_cells,), float64."""
    if isinstance(counts, StreamedCounts):
        return counts.sums
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


class StreamedCounts:
    """Counts on disk, cells × genes, of which rows are read when they are needed.

    Parameters
    ----------
    indptr
        Where each row starts in the two others, shape (n_cells + 1,).
    indices, values
        Column and count of each stored entry, as arrays that can be read by ranges.
    place
        Column of each stored gene here, or -1 where it is left out.
    n_genes
        Number of columns here.
    name
        Of the file, for messages.
    progress
        Show a bar on passes over the whole file.

    Attributes
    ----------
    sums, lengths
        Counts, and entries that are not zero, of each cell; known once `check` has run or by `select`.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self, indptr: np.ndarray, indices: Any, values: Any, place: np.ndarray, n_genes: int, name: Path, progress: bool
    ):
        self.indptr, self.indices, self.values = np.asarray(indptr, dtype=np.int64), indices, values
        self.place, self.name, self.progress = place.astype(np.int32), name, progress
        self.shape = len(self.indptr) - 1, n_genes
        self.tidy = True  # every row sorted, without repeated columns and stored zeros
        self.sums, self.lengths = np.zeros(self.shape[0]), np.diff(self.indptr)
        if self.indptr[0] != 0 or (self.lengths < 0).any() or self.indptr[-1] > min(indices.length, values.length):
            raise damaged(name, "its row pointers do not fit its entries")

    @classmethod
    def of(cls, matrix: Any, progress: bool = True) -> StreamedCounts:
        """Open a CSR matrix: SciPy's, or anndata's dataset in HDF5 or Zarr."""
        n_genes, keys, name = matrix.shape[1], ("indptr", "indices", "data"), Path("memory")
        if sparse.issparse(matrix):
            parts = [getattr(matrix, key) for key in keys]
        else:
            parts = [matrix.group[key] for key in keys]
            name = Path(matrix.group.file.filename if hasattr(matrix.group, "file") else str(matrix.group.store_path))
        return guarded(
            name,
            lambda: cls(parts[0][:], chunked(parts[1]), chunked(parts[2]), np.arange(n_genes), n_genes, name, progress),
        )

    @property
    def checksum(self) -> int:
        """A number that tells these counts from others: of sums and lengths of all cells, and of the genes chosen."""
        checksum = 0
        for part in (self.sums, self.lengths, self.place):
            checksum = zlib.crc32(np.ascontiguousarray(part).data, checksum)
        return checksum

    @property
    def row_bytes(self) -> float:
        """Mean bytes that a row takes in memory."""
        return ENTRY * (float(self.lengths.mean()) + 1)

    # ---- passes over the whole file ----------------------------------------------------------------------------------

    def check(self, where: str, alternatives: dict[str, Any], cell_names: Any, gene_names: Any) -> None:
        """Check every count, cell by cell in the order of the file; raises what `open_counts` raises."""
        seen = np.zeros(self.shape[1], dtype=bool)
        for rows, stored in self.chunks("checking counts", raw=True):
            chunk = checks.canonical(stored)
            self.tidy &= chunk is stored
            checks.refuse_impossible(chunk, where, alternatives, cell_names[rows], gene_names)
            checks.refuse_empty(chunk, where, cell_names[rows])
            seen[chunk.indices] = True
            self._note(rows, chunk)
        checks.warn_of_silent_genes(seen, where)

    def select(self, columns: np.ndarray) -> StreamedCounts:
        """Return these columns, in this order; one pass over the file counts what each cell has there."""
        place = np.full(len(self.place), -1)
        place[np.flatnonzero(self.place >= 0)[columns]] = np.arange(len(columns))
        parts = self.indptr, self.indices, self.values
        chosen = StreamedCounts(*parts, place, len(columns), self.name, self.progress)
        chosen.tidy = self.tidy
        if np.array_equal(chosen.place, self.place):
            chosen.sums, chosen.lengths = self.sums, self.lengths
            return chosen
        for rows, chunk in chosen.chunks("measuring cells"):
            chosen._note(rows, chunk)
        return chosen

    def _note(self, rows: slice, chunk: sparse.csr_matrix) -> None:
        self.sums[rows] = np.asarray(chunk.sum(axis=1, dtype=np.float64)).ravel()
        self.lengths[rows] = np.diff(chunk.indptr)

    def chunks(self, what: str, raw: bool = False) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Iterate over all rows in the order of the file, with a bar that says `what` is done."""
        edges = self._groups(self.indptr[:-1], self.indptr[1:])
        bar = Bar(what, self.shape[0], self.progress)
        try:
            for first, last in pairwise(edges):
                yield slice(first, last), self.rows(np.arange(first, last), raw)
                bar.show(last)
        finally:
            bar.close()

    # ---- rows --------------------------------------------------------------------------------------------------------

    def rows(self, rows: np.ndarray, raw: bool = False) -> sparse.csr_matrix:
        """Read rows.

        Parameters
        ----------
        rows
            Ascending row numbers, none twice.
        raw
            Keep the type on disk and everything that is stored, unsorted, repeated or zero.

        Returns
        -------
        CSR, shape (len(rows), n_genes), float32 unless `raw`.
        """
        starts, stops = self.indptr[rows], self.indptr[rows + 1]
        exact = self.tidy and not raw
        size = int(min(self.lengths[rows].sum(), (stops - starts).sum()) if exact else (stops - starts).sum())
        # For the check, types that float32 would round.
        kind = self.values.dtype if raw and (self.values.dtype.kind in "iu" or self.values.dtype == "f8") else "f4"
        out = np.zeros(len(rows) + 1, np.int64), np.empty(size, np.int32), np.empty(size, kind)
        edges = self._groups(starts, stops)
        for first, last in pairwise(edges):
            part = starts[first:last], stops[first:last], out[0][first : last + 1], *out[1:]
            guarded(self.name, partial(self._fill, *part))
        end = int(out[0][-1])
        wide = np.int32 if end < 2**31 else np.int64
        found = sparse.csr_matrix(
            (out[2][:end], out[1][:end].astype(wide, copy=False), out[0].astype(wide)), (len(rows), self.shape[1])
        )
        return found if raw or self.tidy else checks.canonical(found)

    def _fill(self, starts: np.ndarray, stops: np.ndarray, indptr: np.ndarray, *out: np.ndarray) -> None:
        """Read neighbouring rows at once, and put what is wanted of them where `indptr` says."""
        jump = np.flatnonzero(starts[1:] - stops[:-1] > GAP) + 1
        heads = np.concatenate([[0], jump])
        tails = np.concatenate([jump, [len(starts)]]) - 1
        ranges = starts[heads], stops[tails]
        lengths = ranges[1] - ranges[0]
        # Where each range stands in what is read, less where it stands in the file.
        shift = np.repeat(np.cumsum(lengths) - lengths - ranges[0], tails - heads + 1)
        indices, values = self.indices.read(*ranges), self.values.read(*ranges)
        if values.dtype.kind not in "iuf" or values.dtype.itemsize < 4:  # kinds that the kernel has not
            values = values.astype(np.float32)
        if not cut(starts + shift, stops + shift, indices, values, self.place, indptr, *out):
            raise damaged(self.name, "it names genes that it does not have")

    @staticmethod
    def _groups(starts: np.ndarray, stops: np.ndarray) -> list[int]:
        """Return edges of consecutive groups of rows, with about `AT_ONCE` entries each."""
        gaps = starts - np.concatenate([starts[:1], stops[:-1]])  # those that are read over count as well
        done = np.cumsum(stops - starts + np.where(gaps <= GAP, np.maximum(gaps, 0), 0))
        marks = np.arange(AT_ONCE, int(done[-1]) if len(done) else 0, AT_ONCE)
        return np.unique(np.concatenate([[0], np.searchsorted(done, marks) + 1, [len(starts)]])).tolist()


def row_chunks(
    counts: sparse.csr_matrix | StreamedCounts, what: str, size: int = 8192
) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Iterate over all rows in the order of memory or file; a bar says `what` is done to those in a file.

    Matrices in memory come `size` rows at a time.
    """
    if isinstance(counts, StreamedCounts):
        yield from counts.chunks(what)
        return
    for start in range(0, counts.shape[0], size):
        rows = slice(start, min(start + size, counts.shape[0]))
        yield rows, counts[rows]
