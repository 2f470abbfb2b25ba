"""Checks of what a user hands in: each says in plain words what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tenfold.data.counts import check_counts, counts_layer, counts_of
from tenfold.errors import DataError, KeyMissingError, closest
from tenfold.types import Codes

__all__ = [
    "categories",
    "check_counts",
    "check_names",
    "check_neighbors",
    "counts_layer",
    "counts_of",
    "gene_columns",
    "named_columns",
    "numeric_column",
    "representation",
]

# Whole-number floats with more levels than this are a measurement (n_counts), not a batch.
MOST_FLOAT_LEVELS = 50


def check_names(adata: AnnData) -> None:
    """Refuse an AnnData that has no cells, no genes, or two cells or genes of one name.

    Raises
    ------
    DataError
        With an example of the repeated name and the call that mends it.
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        size = f"{adata.n_obs:,} cells and {adata.n_vars:,} genes"
        raise DataError(f"The data have {size}; at least one of each is needed.")
    for names, kind, mend in (
        (adata.obs_names, "cell", "adata.obs_names_make_unique()"),
        (adata.var_names, "gene", "adata.var_names_make_unique()"),
    ):
        if not names.is_unique:
            repeated = names[names.duplicated()]
            raise DataError(
                f"{len(repeated.unique()):,} {kind} names occur more than once (e.g. '{repeated[0]}'). "
                f"Make them unique first: {mend}."
            )


def categories(adata: AnnData, key: str, role: str, min_levels: int = 1) -> Codes:
    """Return a categorical obs column as integer codes.

    Parameters
    ----------
    adata
        Cells × genes.
    key
        Column of ``obs``.
    role
        What the column is used as (``"batch"``), for messages.
    min_levels
        Least number of levels among the cells.

    Returns
    -------
    Codes of shape (n_cells,), int32. A categorical column keeps the order of its categories, any other is sorted;
    categories that no cell has are dropped.

    Raises
    ------
    KeyMissingError
        No such column.
    DataError
        Missing values, a continuous column, a different value in every cell, or fewer than `min_levels` levels.
    """
    column = _obs_column(adata, key, role)
    _refuse_missing(adata, column, key, role)
    _refuse_continuous(column, key, role)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(str if column.dtype == object else column.dtype).astype("category")
    column = column.cat.remove_unused_categories()
    levels = column.cat.categories
    if len(levels) < min_levels:
        raise DataError(
            f"{role}='{key}' has a single level, '{levels[0]}', and at least {min_levels} are needed: with one "
            f"{role} there is nothing to tell apart. Check that this is the right column, and that the data were not "
            "cut down to one level."
        )
    if len(levels) == adata.n_obs > max(min_levels, 2):
        raise DataError(
            f"{role}='{key}' has a different value in every one of the {adata.n_obs:,} cells, so it cannot be used as "
            f"{role}. Name a column whose levels are shared by many cells. {_available(adata)}"
        )
    return Codes(column.cat.codes.to_numpy(dtype=np.int32), [_level_name(level) for level in levels])


def numeric_column(adata: AnnData, key: str, role: str) -> np.ndarray:
    """Return a numeric obs column.

    Returns
    -------
    Shape (n_cells,), float32.

    Raises
    ------
    KeyMissingError
        No such column.
    DataError
        The column holds text, missing or infinite values.
    """
    column = _obs_column(adata, key, role)
    if not (pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype)):
        raise DataError(
            f"{role}='{key}' must hold numbers, and the column holds {column.dtype} (e.g. '{column.iloc[0]}'). "
            f"Convert it with adata.obs['{key}'] = pd.to_numeric(adata.obs['{key}']), or give it as a categorical role."
        )
    _refuse_missing(adata, column, key, role)
    values = column.to_numpy(dtype=np.float64)
    infinite = np.flatnonzero(~np.isfinite(values))
    if len(infinite):
        raise DataError(
            f"{role}='{key}' is infinite in {len(infinite):,} cells (e.g. '{adata.obs_names[infinite[0]]}'). "
            "Replace these values or remove these cells."
        )
    return values.astype(np.float32)


def representation(adata: AnnData, key: str) -> np.ndarray:
    """Return an embedding kept in ``obsm``.

    Parameters
    ----------
    adata
        Cells × genes.
    key
        Key of ``obsm``; the entry may be an array, a DataFrame or a sparse matrix.

    Returns
    -------
    Shape (n_cells, n_dimensions), float32, contiguous, finite, at least two dimensions.

    Raises
    ------
    KeyMissingError
        No such key.
    DataError
        Not numbers, NaN or infinite values, or fewer than two dimensions.
    """
    if key not in adata.obsm:
        names = list(adata.obsm)
        have = f"obsm has {_listed(names)}." if names else "obsm is empty; leave use_rep= out to start from the counts."
        raise KeyMissingError(f"The data have no embedding obsm['{key}'].{closest(key, names)} {have}")
    values: Any = adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    if sparse.issparse(values):
        values = values.toarray()
    try:
        array = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"obsm['{key}'] does not hold numbers ({error}).") from error
    if array.ndim != 2 or array.shape[1] < 2:
        raise DataError(f"obsm['{key}'] has shape {array.shape}; an embedding needs at least two columns.")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise DataError(
            f"obsm['{key}'] has NaN or infinite values in {len(bad):,} cells (e.g. '{adata.obs_names[bad[0]]}'). "
            "Compute it again, or remove these cells."
        )
    return array


def gene_columns(adata: AnnData, genes: Sequence[str] | np.ndarray) -> np.ndarray:
    """Find genes by name.

    Parameters
    ----------
    adata
        Cells × genes.
    genes
        Names of the genes that are needed, in the order that is needed.

    Returns
    -------
    Column of each gene, shape (len(genes),), int64.

    Raises
    ------
    KeyMissingError
        Some genes are not in the data.
    """
    columns = adata.var_names.get_indexer(pd.Index(genes))
    missing = np.flatnonzero(columns < 0)
    if len(missing):
        wanted, have = str(genes[missing[0]]), str(adata.var_names[0])
        hint = (
            f" None match: are these other identifiers, such as symbols and Ensembl ids (the data have '{have}')?"
            if len(missing) == len(genes)
            else ""
        )
        raise KeyMissingError(
            f"{len(missing):,} of the {len(genes):,} genes needed are not in the data (e.g. '{wanted}').{hint} "
            "Give data with the same genes; a gene that was truly not seen may be added as a column of zeros."
        )
    return columns.astype(np.int64)


def named_columns(genes: list[str] | None, known: np.ndarray) -> np.ndarray:
    """Return the columns of `genes` among `known` names, all for None.

    Raises
    ------
    KeyMissingError
        A gene is not among them.
    """
    if genes is None:
        return np.arange(len(known))
    columns = pd.Index(known).get_indexer(genes)
    if (columns < 0).any():
        missing = str(genes[int(columns.argmin())])
        raise KeyMissingError(f"Gene '{missing}' is not in the fitted data.{closest(missing, known)}")
    return columns


def check_neighbors(n_cells: int, n_neighbors: int) -> None:
    """Refuse a neighbour search in too few cells.

    Raises
    ------
    DataError
        If there are not more cells than neighbours.
    """
    if n_cells <= n_neighbors:
        raise DataError(
            f"{n_cells:,} cells are too few for n_neighbors={n_neighbors}: each cell needs that many others. "
            f"Set n_neighbors to at most {max(n_cells - 1, 1)}, or check that the data were not filtered too hard."
        )


def _obs_column(adata: AnnData, key: str, role: str) -> pd.Series:
    if key not in adata.obs.columns:
        raise KeyMissingError(
            f"{role}='{key}': obs has no such column.{closest(key, adata.obs.columns)} {_available(adata)}"
        )
    return adata.obs[key]


def _refuse_missing(adata: AnnData, column: pd.Series, key: str, role: str) -> None:
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise DataError(
            f"{role}='{key}' has no value (NaN) in {len(missing):,} of {adata.n_obs:,} cells "
            f"(e.g. '{adata.obs_names[missing[0]]}'). Fill the values in, or leave these cells out: "
            f"adata = adata[adata.obs['{key}'].notna()].copy()."
        )


def _refuse_continuous(column: pd.Series, key: str, role: str) -> None:
    values = column.cat.categories.to_series() if isinstance(column.dtype, pd.CategoricalDtype) else column
    if not pd.api.types.is_float_dtype(values.dtype):
        return
    levels = values.unique()
    if len(levels) > MOST_FLOAT_LEVELS or (np.rint(levels) != levels).any():
        raise DataError(
            f"{role}='{key}' holds a continuous number ({len(levels):,} different values, e.g. {levels[0]:.6g}), not "
            f"the names of groups. If it is a group after all, convert it: adata.obs['{key}'] = "
            f"adata.obs['{key}'].astype(str).astype('category')."
        )


def _level_name(level: Any) -> str:
    return str(int(level)) if isinstance(level, float) else str(level)


def _available(adata: AnnData) -> str:
    names = list(adata.obs.columns)
    return f"obs has {_listed(names)}." if names else "obs has no columns at all."


def _listed(names: Iterable[object], most: int = 15) -> str:
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most:,} more" if len(quoted) > most else "")
