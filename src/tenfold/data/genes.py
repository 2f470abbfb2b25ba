"""Genes of one data set found in another: by name, with a report of what is missing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tenfold.data.counts import in_memory
from tenfold.errors import DataError, FileFormatError

#: Fewer shared genes than this, or a smaller share, say that the names do not mean the same.
FEWEST_GENES, SMALLEST_SHARE = 10, 0.05
#: Below this share of a model's genes its results are worth a warning.
DOUBTFUL_SHARE = 0.5
#: Least share of its genes that a model needs which reads the missing ones as zeros.
LEAST_SHARE = 0.8
_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")
_MOUSE_LIKE = re.compile(r"^[A-Z][a-z0-9]+(-[A-Za-z0-9]+)?$")


class GeneMatch(NamedTuple):
    """Genes that two data sets share.

    Attributes
    ----------
    columns
        Column of each shared gene in the data, shape (n_shared,), int64.
    places
        Place of each among the wanted genes, ascending, shape (n_shared,), int64.
    n_wanted
        How many genes were wanted.
    """

    columns: np.ndarray
    places: np.ndarray
    n_wanted: int

    @property
    def share(self) -> float:
        """Share of the wanted genes that the data have."""
        return len(self.places) / self.n_wanted

    def widened(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return values of the shared genes over all wanted ones, (n_cells, n_wanted); missing genes are empty."""
        places = self.places.astype(counts.indices.dtype)[counts.indices]
        return sparse.csr_matrix((counts.data, places, counts.indptr), (counts.shape[0], self.n_wanted))


def kind_of_names(names: Sequence[str] | np.ndarray) -> str:
    """Return what gene names look like: ``"Ensembl ids"``, ``"mouse symbols"`` or ``"human symbols"``."""
    some = [str(name) for name in names[:500]]
    shares = [np.mean([bool(pattern.match(name)) for name in some]) for pattern in (_ENSEMBL, _MOUSE_LIKE)]
    if shares[0] > 0.5:
        return "Ensembl ids"
    return "mouse symbols" if shares[1] > 0.5 else "human symbols"


def match_genes(names: pd.Index, wanted: np.ndarray) -> GeneMatch:
    """Find the genes that a model was fitted with; those that are missing are reported, not made up.

    Versions of Ensembl ids (the ``.12`` of ``ENSG00000139618.12``) are left aside where exact names are not found.

    Parameters
    ----------
    names
        Genes of the data.
    wanted
        Genes of the model.

    Returns
    -------
    The shared genes.

    Raises
    ------
    DataError
        Hardly any gene is shared; the message says what the names look like on both sides.

    Warns
    -----
    UserWarning
        The data have less than half of the genes.
    """
    columns = names.get_indexer(pd.Index(wanted))
    if (columns < 0).any() and kind_of_names(wanted) == "Ensembl ids":
        plain = pd.Index([name.partition(".")[0] for name in names])
        if plain.is_unique:
            columns = plain.get_indexer(pd.Index([str(name).partition(".")[0] for name in wanted]))
    places = np.flatnonzero(columns >= 0)
    match = GeneMatch(columns[places].astype(np.int64), places, len(wanted))
    if len(places) < min(FEWEST_GENES, len(wanted)) or match.share < SMALLEST_SHARE:
        raise DataError(_stranger(names, wanted, match))
    if match.share < DOUBTFUL_SHARE:
        warnings.warn(
            f"The data have {len(places):,} of the {len(wanted):,} genes that the model was fitted with "
            f"({100 * match.share:.0f} %). Labels that rest on the missing ones are unsafe: fit the model on the genes "
            "that both have.",
            stacklevel=3,
        )
    return match


def _stranger(names: pd.Index, wanted: np.ndarray, match: GeneMatch) -> str:
    here, there = kind_of_names(names), kind_of_names(wanted)
    shared = f"The data have {len(match.places):,} of the {len(wanted):,} genes that the model was fitted with"
    examples = f"(the data have e.g. '{names[0]}', the model '{wanted[0]}')"
    if here == there:
        return (
            f"{shared} {examples}. Both look like {here}; are the data of the same organism, and var_names the genes?"
        )
    return (
        f"{shared}: the data have {here}, the model {there} {examples}. Rename the genes of one of them with a "
        "two-column table: tenfold.data.rename_genes(adata, table)."
    )


def with_genes(adata: AnnData, genes: np.ndarray, layer: str | None = None) -> AnnData:
    """Return cells with all of some genes.

    Parameters
    ----------
    adata
        Cells × genes.
    genes
        Names of the genes that are needed.
    layer
        Layer that holds the counts; ``None`` for X.

    Returns
    -------
    `adata` itself where it has them all; else its cells × `genes`, the missing ones as zeros.

    Raises
    ------
    DataError
        More than a fifth of the genes are missing.

    Warns
    -----
    UserWarning
        Some are.
    """
    columns = adata.var_names.get_indexer(pd.Index(genes))
    there = np.flatnonzero(columns >= 0)
    n_missing = len(genes) - len(there)
    if not n_missing:
        return adata
    missing, have = str(genes[columns < 0][0]), str(adata.var_names[0])
    if len(there) < LEAST_SHARE * len(genes):
        raise DataError(
            f"{n_missing:,} of the {len(genes):,} genes of the reference are not in the data (e.g. '{missing}'; the "
            f"data have '{have}'), and at most {1 - LEAST_SHARE:.0%} may be missing. Use the same kind of gene names, "
            "give all genes rather than variable ones, or fit a reference on the genes that both have."
        )
    warnings.warn(
        f"{n_missing:,} of the {len(genes):,} genes of the reference are not in the data (e.g. '{missing}'); they "
        "count as not seen in any cell.",
        stacklevel=3,
    )
    kept = adata[:, columns[there]]
    counts = sparse.csr_matrix(kept.X if layer is None else kept.layers[layer])
    wide = sparse.csr_matrix((counts.data, there[counts.indices], counts.indptr), shape=(adata.n_obs, len(genes)))
    wide.sort_indices()
    var = pd.DataFrame(index=pd.Index(genes))
    return AnnData(
        wide if layer is None else None, obs=adata.obs, var=var, layers={} if layer is None else {layer: wide}
    )


def rename_genes(adata: AnnData, table: pd.DataFrame | Mapping[str, str] | str | Path) -> AnnData:
    """Return the data under other gene names, such as symbols for Ensembl ids or human for mouse genes.

    Parameters
    ----------
    adata
        Cells × genes; not changed.
    table
        Old and new name of each gene: a mapping, a DataFrame whose first two columns they are, or the path of such a
        table (.csv, .tsv; its first line names the columns). Versions of Ensembl ids need not be in it.

    Returns
    -------
    X and every layer, in memory, of the genes that the table names. Counts of genes that get the same name are summed.

    Raises
    ------
    DataError
        The table names none of the genes.
    FileFormatError
        The file has fewer than two columns.
    """
    new = _mapping(table)
    names = [str(name) for name in adata.var_names]
    found = [new.get(name, new.get(name.partition(".")[0])) for name in names]
    kept = [column for column, name in enumerate(found) if name]
    if not kept:
        raise DataError(
            f"The table names none of the genes: the data have e.g. '{names[0]}', the table '{next(iter(new), '')}'. "
            "Its first column must hold the names that the data have now."
        )
    codes, after = pd.factorize(np.array([found[column] for column in kept], dtype=object))
    to_new = sparse.csr_matrix((np.ones(len(kept), np.float32), (kept, codes)), (len(names), len(after)))
    renamed = AnnData(in_memory(adata.X) @ to_new, obs=adata.obs.copy(), var=pd.DataFrame(index=after.astype(str)))
    for name in adata.layers:
        renamed.layers[name] = in_memory(adata.layers[name]) @ to_new
    return renamed


def _mapping(table: pd.DataFrame | Mapping[str, str] | str | Path) -> dict[str, str]:
    if isinstance(table, Mapping):
        return {str(old): str(new) for old, new in table.items()}
    if not isinstance(table, pd.DataFrame):
        table = pd.read_csv(table, sep=None, engine="python", dtype=str)
    if table.shape[1] < 2:
        raise FileFormatError("A table of gene names has two columns: the names that the data have now, and the new.")
    pairs = table.iloc[:, :2].dropna().astype(str)
    return dict(zip(pairs.iloc[:, 0], pairs.iloc[:, 1], strict=True))
