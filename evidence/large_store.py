"""Simulated counts of any size, written to an .h5ad block by block, sorted by batch and cell type."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

N_GENES, N_BATCHES, N_TYPES = 2000, 10, 12
#: Mean number of counts of a cell: some 140 of 2,000 genes are not zero.
DEPTH = 200
BLOCK = 10_000


def write_cells(
    path: Path, n_cells: int, seed: int = 0, compression: str | None = None, n_genes: int = N_GENES, depth: int = DEPTH
) -> str:
    """Write `n_cells` × `n_genes` counts as `AnnData.write_h5ad` would, holding one block at a time.

    Every batch has a tenth of the cells and every type a twelfth of them. Counts of a cell are multinomial with the
    profile of its type in its batch; depths are log-normal.

    Returns
    -------
    SHA-256 of all counts in their order.
    """
    rng = np.random.default_rng(seed)
    baseline = rng.lognormal(sigma=1.3, size=n_genes)
    types = baseline * np.exp(rng.normal(scale=1.0, size=(N_TYPES, n_genes)) * (rng.random((N_TYPES, n_genes)) < 0.2))
    batches = np.exp(rng.normal(scale=0.3, size=(N_BATCHES, n_genes)))
    profiles = (batches[:, None, :] * types[None, :, :]).reshape(-1, n_genes)
    steps = np.cumsum(profiles / profiles.sum(axis=1, keepdims=True), axis=1)
    steps[:, -1] = 1.0
    steps = (steps + np.arange(len(steps))[:, None]).ravel()  # profile p in p to p + 1, so that one search serves all
    group = np.arange(n_cells) * len(profiles) // n_cells
    digest = hashlib.sha256()
    with h5py.File(path, "w") as file:
        for start in range(0, n_cells, BLOCK):
            block = _draw(steps, group[start : start + BLOCK], rng, n_genes, depth)
            digest.update(block.data.tobytes() + block.indices.tobytes())
            if start == 0:
                write_elem(file, "/", ad.AnnData(sparse.csr_matrix((0, n_genes), dtype=np.float32)))
                del file["raw"]
                write_elem(file, "X", block, dataset_kwargs={"compression": compression})
            else:
                sparse_dataset(file["X"]).append(block)
        names = [f"cell_{i}" for i in range(n_cells)]
        batch, kind = (pd.Categorical([f"{i}" for i in codes]) for codes in np.divmod(group, N_TYPES))
        write_elem(file, "obs", pd.DataFrame({"batch": batch, "cell_type": kind}, index=names))
        write_elem(file, "var", pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))
    return digest.hexdigest()


def forget(path: Path) -> None:
    """Have the system forget what it holds of a file, so that it is read from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _draw(steps: np.ndarray, group: np.ndarray, rng: np.random.Generator, n_genes: int, mean: int) -> sparse.csr_matrix:
    depth = 1 + rng.poisson(mean * rng.lognormal(sigma=0.3, size=len(group)))
    cell = np.repeat(np.arange(len(group)), depth)
    gene = np.searchsorted(steps, group[cell] + rng.random(len(cell)), side="right") % n_genes
    ones = np.ones(len(cell), np.float32)
    found = sparse.coo_matrix((ones, (cell, gene)), (len(group), n_genes)).tocsr()
    found.sort_indices()
    return found
