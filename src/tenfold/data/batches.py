"""What is odd about batches, in words: too few cells, absent genes, labels that follow from them."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import sparse

from tenfold.types import Codes

EXPECTED_CELLS = 20  # in which a gene should be seen before its absence is more than chance
FEW_CELLS = 10


def warn_of_lone_cell(batch: Codes) -> None:
    """Warn where a batch has a single cell, unless that is all there is."""
    alone = np.bincount(batch.values, minlength=len(batch.names)) == 1
    if alone.any() and len(batch.values) > 1:
        warnings.warn(
            f"Batch '{batch.names[int(alone.argmax())]}' has a single cell: its batch effect cannot be told from what "
            "the cell is. Merge it with another batch, or leave it out.",
            stacklevel=3,
        )


def warn_of_confounded(labels: np.ndarray, batch: np.ndarray) -> None:
    """Warn where labels are found in two batches, but no label in more than one.

    Parameters
    ----------
    labels, batch
        Codes of each cell, shape (n_cells,); a label that is not known is negative.
    """
    pairs = np.unique(np.stack([labels, batch])[:, labels >= 0], axis=1)
    of_labels = np.unique(pairs[0], return_counts=True)[1]
    if len(of_labels) > 1 and len(np.unique(pairs[1])) > 1 and of_labels.max() == 1:
        warnings.warn(
            "No label is found in two batches, so what differs between labels cannot be told from what differs "
            "between batches: do not trust that cells lie apart, or together, in the result. Give labels with the same "
            "names in all batches, or leave them out.",
            stacklevel=3,
        )


def absent_genes(counts: sparse.csr_matrix, batch: Codes, gene_names: np.ndarray) -> list[str]:
    """Return a sentence for each batch that has no count at all of genes which the other batches have in many cells.

    A gene is absent where, were it as frequent as in the other batches, 20 cells of the batch should show it.

    Parameters
    ----------
    counts
        Raw counts, shape (n_cells, n_genes).
    batch
        Batch of each cell.
    gene_names
        Shape (n_genes,).
    """
    n_batches = len(batch.names)
    sizes = np.bincount(batch.values, minlength=n_batches).astype(np.float64)
    member = sparse.csr_matrix(
        (np.ones(len(batch.values), np.float32), (batch.values, np.arange(len(batch.values)))),
        shape=(n_batches, len(batch.values)),
    )
    seen = np.asarray((member @ (counts > 0).astype(np.float32)).todense(), dtype=np.float64)
    found = []
    for code, name in enumerate(batch.names):
        elsewhere = (seen.sum(axis=0) - seen[code]) / max(sizes.sum() - sizes[code], 1)
        absent = np.flatnonzero((seen[code] == 0) & (elsewhere * sizes[code] >= EXPECTED_CELLS))
        if len(absent) == 0:
            continue
        first = absent[np.argsort(-elsewhere[absent], kind="stable")[:5]]
        named = ", ".join(str(gene) for gene in gene_names[first])
        more = f" and {len(absent) - 5:,} more" if len(absent) > 5 else ""
        found.append(
            f"Batch '{name}' has no count at all of {len(absent):,} gene{'s' if len(absent) > 1 else ''} that the "
            f"other batches have in many cells: {named}{more}. If they were not measured there, the zeros are read as "
            "a batch effect: keep only the genes that all batches share."
        )
    return found


def small_batches(batch: Codes) -> list[str]:
    """Return a sentence on batches of fewer than 10 cells, none where there are none."""
    sizes = np.bincount(batch.values, minlength=len(batch.names))
    small = [f"'{name}' ({size})" for name, size in zip(batch.names, sizes, strict=True) if size < FEW_CELLS]
    if not small:
        return []
    return [
        f"Batches of fewer than {FEW_CELLS} cells: {', '.join(small)}. Their batch effect cannot be told from what the "
        "cells are, and some methods refuse them. Merge them with a similar batch, or leave them out."
    ]
