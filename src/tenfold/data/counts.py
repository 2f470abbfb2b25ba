"""Raw counts out of an AnnData: fetched from wherever they are kept, checked, as one canonical CSR matrix."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from tenfold.errors import DataError, FileFormatError, KeyMissingError, NotCountsError, closest

LARGEST_COUNT = 2**31
# log1p of a value above e^25 is 7e10: no count matrix gets there, so larger values were never log-transformed.
LARGEST_LOG = 25.0


def counts_of(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix:
    """Fetch and check the counts of an AnnData.

    Parameters
    ----------
    adata
        Cells × genes; in memory, a view, or backed by a file.
    layer
        Layer that holds the counts; ``None`` for ``X``.

    Returns
    -------
    CSR, float32, shape (n_cells, n_genes), sorted, without stored zeros.

    Raises
    ------
    KeyMissingError
        No such layer.
    NotCountsError
        The matrix does not hold whole, non-negative, finite numbers.
    DataError
        A cell is empty.
    """
    where = "X" if layer is None else f"layer '{layer}'"
    others = alternatives(adata, layer)
    return check_counts(counts_layer(adata, layer), where, others, adata.obs_names, adata.var_names)


def alternatives(adata: AnnData, layer: str | None) -> dict[str, Any]:
    """Return the other matrices of an AnnData that may hold its counts, by the names that messages give them."""
    others = {} if layer is None or adata.X is None else {"X": adata.X}
    others |= {f"layer '{name}'": adata.layers[name] for name in adata.layers if name != layer}
    with suppress(AttributeError):  # no raw, or one that is an empty entry in a file
        others["raw"] = adata.raw.X
    return others


def counts_layer(adata: AnnData, layer: str | None = None) -> sparse.csr_matrix:
    """Fetch ``X`` or a layer into memory, unchecked.

    Parameters
    ----------
    adata
        Cells × genes; in memory, a view, or backed by a file.
    layer
        Name of the layer; ``None`` for ``X``.

    Returns
    -------
    Plain CSR matrix of the dtype that is stored, shape (n_cells, n_genes). May share memory with `adata`.

    Raises
    ------
    KeyMissingError
        No such layer, or no ``X``.
    DataError
        The matrix does not hold numbers.
    """
    return in_memory(stored_layer(adata, layer))


def stored_layer(adata: AnnData, layer: str | None = None) -> Any:
    """Return ``X`` or a layer as it is kept, which may be on disk; raises KeyMissingError as `counts_layer` does."""
    if layer is not None and layer not in adata.layers:
        names = list(adata.layers)
        have = f"It has {', '.join(map(repr, names))}." if names else "It has no layers; leave layer= out to use X."
        raise KeyMissingError(f"The data have no layer '{layer}'.{closest(layer, names)} {have}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        layers = ", ".join(map(repr, adata.layers)) or "none"
        raise KeyMissingError(f"X is empty. Name the layer that holds the counts with layer= (layers: {layers}).")
    return matrix


def in_memory(matrix: Any) -> sparse.csr_matrix:
    """Return any matrix (dense, sparse of any format, a view, on disk, lazy) as a plain CSR matrix of its own dtype."""
    for load in ("to_memory", "compute"):  # anndata's sparse data sets on disk; dask
        if not sparse.issparse(matrix) and hasattr(matrix, load):
            matrix = getattr(matrix, load)()
            _refuse_broken(matrix)
    if not sparse.issparse(matrix):
        matrix = np.atleast_2d(np.asarray(matrix))
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"The matrix holds {matrix.dtype}, not numbers; convert it, e.g. adata.X.astype('float32').")
    if matrix.dtype == bool:
        matrix = matrix.astype(np.uint8)
    elif matrix.dtype == np.float16:  # SciPy has no half precision
        matrix = matrix.astype(np.float32)
    return sparse.csr_matrix(matrix)


def _refuse_broken(matrix: Any) -> None:
    """Refuse a sparse matrix from disk whose indices point outside: compiled code would read foreign memory."""
    if sparse.issparse(matrix) and matrix.format in ("csr", "csc"):
        try:
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise FileFormatError(
                f"The matrix on disk has impossible indices ({error}). Copy, download or export the file again."
            ) from error


def check_counts(
    matrix: Any,
    where: str = "X",
    alternatives: Mapping[str, Any] | None = None,
    cell_names: Any = None,
    gene_names: Any = None,
) -> sparse.csr_matrix:
    """Check that a matrix holds raw counts, and say in plain words what it holds if not.

    Parameters
    ----------
    matrix
        Cells × genes, of any dtype and storage.
    where
        What to call the matrix in messages: ``"X"`` or ``"layer 'counts'"``.
    alternatives
        Other matrices of the same cells, by the same kind of name (and ``"raw"``), that may hold the counts.
    cell_names, gene_names
        Names to use in examples.

    Returns
    -------
    CSR, float32, sorted, without stored zeros; the input itself is never changed. Shares memory with the input
    where that is in this form already.

    Raises
    ------
    NotCountsError
        Fractional, negative, NaN, infinite or absurdly large (over 2³¹) entries.
    DataError
        No cells, no genes, or a cell without counts.

    Warns
    -----
    UserWarning
        Genes that are zero in every cell.
    """
    csr = canonical(in_memory(matrix))
    if 0 in csr.shape:
        size = f"{csr.shape[0]:,} cells and {csr.shape[1]:,} genes"
        raise DataError(f"{where} has {size}; at least one of each is needed.")
    refuse_impossible(csr, where, alternatives or {}, cell_names, gene_names)
    refuse_empty(csr, where, cell_names)
    warn_of_silent_genes(np.bincount(csr.indices, minlength=csr.shape[1]) > 0, where)
    return csr.astype(np.float32, copy=False)


def refuse_empty(csr: sparse.csr_matrix, where: str, cell_names: Any) -> None:
    """Raise DataError if a cell has no counts."""
    empty = np.flatnonzero(np.diff(csr.indptr) == 0)
    if len(empty):
        raise DataError(
            f"{_count(empty, 'cell has', 'cells have')} no counts in {where} "
            f"(e.g. {_name(empty[0], cell_names, 'cell')}). "
            "Remove empty cells first: sc.pp.filter_cells(adata, min_counts=1)."
        )


def warn_of_silent_genes(seen: np.ndarray, where: str) -> None:
    """Warn of genes that no cell has counts of; `seen` is a mask of those that are."""
    silent = np.count_nonzero(~seen)
    if silent:
        warnings.warn(
            f"{silent:,} of {len(seen):,} genes have no counts in any cell of {where}; they carry no information. "
            "sc.pp.filter_genes(adata, min_counts=1) removes them.",
            stacklevel=3,
        )


def looks_like_counts(matrix: Any, n_rows: int = 200) -> bool:
    """Tell from some rows whether a matrix holds counts: whole, non-negative numbers, not only zeros and ones."""
    n = matrix.shape[0]
    step = max(1, n // n_rows)
    values = in_memory(matrix[: step * n_rows : step]).data
    return bool(len(values) and values.min() >= 0 and 1 < values.max() <= LARGEST_COUNT and _whole(values).all())


def canonical(csr: sparse.csr_matrix) -> sparse.csr_matrix:
    """Sort, sum duplicates and drop stored zeros, in a copy where any of that is needed."""
    if not (csr.has_canonical_format and csr.data.all()):
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def _whole(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape, bool) if values.dtype.kind in "biu" else np.rint(values) == values


def refuse_impossible(
    csr: sparse.csr_matrix, where: str, alternatives: Mapping[str, Any], cell_names: Any, gene_names: Any
) -> None:
    """Raise NotCountsError with one sentence on each kind of entry that no count can be."""
    values = csr.data
    # One pass each; NaN makes both comparisons false.
    if not len(values) or (values.min() >= 0 and values.max() <= LARGEST_COUNT and _whole(values).all()):
        return
    sentences = []
    with np.errstate(invalid="ignore"):
        kinds = (
            (np.isnan(values), "missing (NaN)"),
            (np.isinf(values), "infinite"),
            ((values < 0) & np.isfinite(values), "negative"),
            (np.isfinite(values) & (values > LARGEST_COUNT), "over 2^31, which no sequencer counts to"),
            (np.isfinite(values) & ~_whole(values), "not whole numbers"),
        )
    for bad, what in kinds:
        positions = np.flatnonzero(bad)
        if len(positions):
            first = int(positions[0])
            cell = _name(int(np.searchsorted(csr.indptr, first, side="right")) - 1, cell_names, "cell")
            gene = _name(int(csr.indices[first]), gene_names, "gene")
            sentences.append(
                f"{_count(positions, 'entry is', 'entries are')} {what} (e.g. {values[first]:.6g} in {cell}, {gene})."
            )
    raise NotCountsError(
        f"Raw counts are needed, and {where} does not hold them. {' '.join(sentences)} "
        f"{_diagnosis(csr)}{_advice(where, alternatives)}"
    )


def _diagnosis(csr: sparse.csr_matrix) -> str:
    """Say what the matrix looks like, with the remedy where it has one of its own; ends with a space."""
    values = csr.data[np.isfinite(csr.data)]
    if len(values) < len(csr.data):
        return "Set or remove these entries before the analysis. "
    if _whole(values).all():
        return "" if values.max() > LARGEST_COUNT else "Was a background subtracted? "
    if values.min() < 0:
        return "It looks scaled (centred, or z-scored per gene). "
    for undo, name in ((np.expm1, "log1p"), (lambda logs: np.exp2(logs) - 1, "log2(x + 1)")):
        if values.max() <= LARGEST_LOG and _nearly_whole(undo(values.astype(np.float64))):
            return f"It is the {name} of counts: undo that, round, and put the result into a layer. "
    if values.max() <= LARGEST_LOG and _rows_are_multiples(csr, np.expm1):
        return "It looks log-normalised (log1p of scaled counts). "
    if _rows_are_multiples(csr, np.asarray):
        return "It looks depth-normalised (counts per cell scaled to a common total). "
    if values.max() <= LARGEST_LOG and not _whole(values).any():
        return "It looks log-transformed. "
    return (
        "If these are estimated counts (RSEM, kallisto, Salmon, ambient-RNA correction), round them: "
        "adata.layers['counts'] = np.rint(adata.X), then pass layer='counts'. "
    )


def _nearly_whole(values: np.ndarray) -> bool:
    """Tell whether values are whole numbers but for the rounding of float32 logarithms."""
    small = values[values < 1e4]
    return bool(len(small)) and float(np.abs(small - np.rint(small)).max()) < 1e-2


def _rows_are_multiples(csr: sparse.csr_matrix, undo: Any, n_rows: int = 100) -> bool:
    """Tell whether most rows are whole multiples of their smallest entry after `undo`: scaled counts are."""
    agree = []
    for row in np.unique(np.linspace(0, csr.shape[0] - 1, n_rows).astype(int)):
        values = undo(csr.data[csr.indptr[row] : csr.indptr[row + 1]].astype(np.float64))
        # A row whose smallest count is 2 gives halves; float32 storage costs about 1e-6 of the largest multiple.
        multiples = 2 * values / values.min() if len(values) > 1 else np.array([])
        multiples = multiples[multiples < 200]
        if len(np.unique(multiples)) > 1:
            agree.append(np.abs(multiples - np.rint(multiples)).max() < 1e-2)
    return bool(agree) and float(np.mean(agree)) > 0.8


def _advice(where: str, alternatives: Mapping[str, Any]) -> str:
    """Name the place that looks like counts, or what to do if there is none."""
    found = [name for name, matrix in alternatives.items() if looks_like_counts(matrix)]
    if not found:
        return (
            "No other layer holds counts either: put the raw counts into a layer and name it with layer=, or, with a "
            "method that takes it, start from an existing embedding with use_rep= (e.g. use_rep='X_pca')."
        )
    best = min(found, key=lambda name: ("count" not in name.lower(), name.startswith("layer"), found.index(name)))
    if best == "X":
        return f"X looks like counts: leave layer= out (you gave {where})."
    if best == "raw":
        return "adata.raw looks like counts: pass adata.raw.to_adata() instead."
    best = best.removeprefix("layer ").strip("'")
    return f"Layer '{best}' looks like counts: pass layer='{best}'."


def _count(positions: np.ndarray, one: str, many: str) -> str:
    return f"{len(positions):,} {one if len(positions) == 1 else many}"


def _name(index: int, names: Any, kind: str) -> str:
    return f"{kind} {index}" if names is None else f"{kind} '{names[index]}'"
