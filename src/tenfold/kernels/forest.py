"""Trees read from arrays: the leaf that each cell ends in, tree by tree."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numba


@numba.njit(cache=True, nogil=True)
def add_leaves(first, last, cells, roots, left, right, gene, threshold, start, label, share, found):  # pragma: no cover
    """Add the shares of labels in the leaf that each cell reaches in each tree.

    Parameters
    ----------
    first, last
        Range of cells.
    cells
        Expression, shape (n_cells, n_genes), float32.
    roots
        First node of each tree.
    left, right, gene, threshold
        Of each node: where a cell goes whose expression of the gene is at most the threshold, and where any other;
        `left` is below 0 at a leaf.
    start, label, share
        Labels in each node as in a CSR matrix; nothing where it is no leaf.
    found
        What is added to, shape (n_cells, n_labels), float64.
    """
    for tree in range(roots.shape[0]):
        for i in range(first, last):
            node = roots[tree]
            while left[node] >= 0:
                node = left[node] if cells[i, gene[node]] <= threshold[node] else right[node]
            for k in range(start[node], start[node + 1]):
                found[i, label[k]] += share[k]
