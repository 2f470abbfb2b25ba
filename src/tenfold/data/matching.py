"""Cells brought to the genes of a model that was fitted before: by name, with zeros for a few that are missing."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tenfold.errors import DataError

#: Least share of the genes that must be there.
LEAST_SHARE = 0.8


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
