"""Counts without velocity: unspliced counts permuted so that nothing, or only groups, ties them to spliced ones."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.errors import ParameterError
from tenfold.types import Codes

Null = Literal["cells", "groups", "genes"]


def permuted(unspliced: sparse.csr_matrix, kind: Null, groups: Codes | None = None, seed: int = 0) -> sparse.csr_matrix:
    """Permute unspliced counts.

    Parameters
    ----------
    unspliced
        Cells × genes.
    kind
        ``"cells"``: every gene's counts are dealt out anew to cells. ``"groups"``: the same within each group, which
        keeps what differs between groups. ``"genes"``: genes exchange their counts, which keeps cells together.
    groups
        Group of each cell, for ``"groups"``.
    seed
        The same seed gives the same permutation.

    Returns
    -------
    CSR with the same entries elsewhere.

    Raises
    ------
    ParameterError
        ``"groups"`` without groups.
    """
    rng = np.random.default_rng(seed)
    if kind == "genes":
        return unspliced[:, _derangement(unspliced.shape[1], rng)].tocsr()
    if kind == "groups" and groups is None:
        raise ParameterError("Counts are permuted within groups, and no groups were given.")
    n = unspliced.shape[0]
    codes = np.zeros(n, dtype=np.int64) if kind == "cells" or groups is None else groups.values
    members = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    out = unspliced.tocsc(copy=True)
    place = np.empty(n, dtype=out.indices.dtype)
    for gene in range(out.shape[1]):
        for cells in members:
            place[cells] = rng.permutation(cells)
        part = slice(out.indptr[gene], out.indptr[gene + 1])
        out.indices[part] = place[out.indices[part]]
    out.has_sorted_indices = False
    return out.tocsr()


def _derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation without fixed points: each gene takes the place of the next in a random order."""
    order = rng.permutation(n)
    out = np.empty(n, dtype=np.int64)
    out[order] = np.roll(order, 1)
    return out
