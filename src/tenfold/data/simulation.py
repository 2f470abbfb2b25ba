"""Counts whose truth is known: simulated cells, and a batch effect planted on real ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tenfold.errors import DataError, ParameterError

BLOCK = 1000


def simulate(
    n_cells: int = 1000,
    n_genes: int = 500,
    n_types: int = 5,
    n_batches: int = 2,
    *,
    type_strength: float = 1.0,
    batch_strength: float = 0.3,
    depth: float | None = None,
    dispersion: float = 0.2,
    dropout: float = 0.0,
    proportions: np.ndarray | None = None,
    seed: int = 0,
) -> AnnData:
    """Simulate counts of known cell types in known batches.

    A gene has a log-normal mean. In each type a fifth of the genes, drawn at random, is changed by a log-normal factor;
    in each batch but the first, all are. Cells differ in depth (log-normal, sd 0.3 of the logarithm), and counts are
    negative binomial: variance mean + dispersion × mean².

    Parameters
    ----------
    n_cells, n_genes, n_types, n_batches
        Sizes. Batches are of equal size.
    type_strength, batch_strength
        Standard deviation of the natural logarithm of the factors; 0 for no difference.
    depth
        Mean number of counts a cell. Default: one for each gene, about what variable genes of blood cells have.
    dispersion
        0 for Poisson counts.
    dropout
        Chance that an entry is lost altogether, whatever its mean.
    proportions
        Share of the types: shape (n_types,), or (n_batches, n_types) to give each batch its own. A zero leaves the
        type out of that batch. Rows are scaled to one. Default: equal shares.
    seed
        The same seed gives the same counts.

    Returns
    -------
    Cells × genes with counts in ``X`` (CSR, float32); no cell is empty, a rare gene may be. ``obs["cell_type"]``,
    ``obs["batch"]``; the truth in ``varm["type_profiles"]`` (share of each gene, genes × types) and
    ``varm["batch_factors"]`` (genes × batches), the arguments in ``uns["simulation"]``.

    Raises
    ------
    ParameterError
        Sizes below one, or values out of range.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate(300, 200, n_types=3, proportions=[[1, 1, 1], [1, 1, 0]])
    >>> int(((adata.obs["batch"] == "batch_2") & (adata.obs["cell_type"] == "type_3")).sum())
    0
    """
    depth = float(n_genes) if depth is None else depth
    _check_simulation(locals())
    rng = np.random.default_rng(seed)
    shares = _shares(proportions, n_types, n_batches)
    baseline = rng.lognormal(sigma=1.0, size=n_genes)
    changed = rng.random((n_types, n_genes)) < 0.2
    profiles = baseline * np.exp(np.where(changed, rng.normal(scale=type_strength, size=changed.shape), 0.0))
    profiles /= profiles.sum(axis=1, keepdims=True)
    factors = np.exp(rng.normal(scale=batch_strength, size=(n_batches, n_genes)))
    factors[0] = 1.0
    batch = np.sort(np.arange(n_cells) % n_batches)
    types = np.concatenate([_whole_shares(shares[b], int((batch == b).sum()), rng) for b in range(n_batches)])
    library = depth * np.exp(rng.normal(scale=0.3, size=n_cells) - 0.3**2 / 2)
    blocks = [
        _draw(profiles, factors, types[rows], batch[rows], library[rows], dispersion, dropout, rng)
        for rows in np.array_split(np.arange(n_cells), -(-n_cells // BLOCK))
    ]
    type_names = [f"type_{i + 1}" for i in range(n_types)]
    batch_names = [f"batch_{i + 1}" for i in range(n_batches)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(types, type_names),
            "batch": pd.Categorical.from_codes(batch, batch_names),
        },
        index=[f"cell_{i + 1}" for i in range(n_cells)],
    )
    adata = AnnData(
        sparse.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=[f"gene_{i + 1}" for i in range(n_genes)])
    )
    adata.varm["type_profiles"] = pd.DataFrame(profiles.T, index=adata.var_names, columns=type_names)
    adata.varm["batch_factors"] = pd.DataFrame(factors.T, index=adata.var_names, columns=batch_names)
    adata.uns["simulation"] = {
        "type_strength": type_strength, "batch_strength": batch_strength, "depth": depth, "dispersion": dispersion,
        "dropout": dropout, "proportions": shares, "seed": seed,
    }  # fmt: skip
    return adata


def _check_simulation(given: dict) -> None:
    for name in ("n_cells", "n_genes", "n_types", "n_batches"):
        if given[name] < 1:
            raise ParameterError(f"{name} must be at least 1; it is {given[name]}.")
    for name in ("type_strength", "batch_strength", "dispersion"):
        if given[name] < 0:
            raise ParameterError(f"{name} must not be negative; it is {given[name]}.")
    if given["depth"] <= 0:
        raise ParameterError(f"depth must be positive; it is {given['depth']}.")
    if not 0 <= given["dropout"] < 1:
        raise ParameterError(f"dropout must be in [0, 1); it is {given['dropout']}.")


def _shares(proportions: np.ndarray | None, n_types: int, n_batches: int) -> np.ndarray:
    shares = np.ones(n_types) if proportions is None else np.asarray(proportions, dtype=np.float64)
    if shares.shape not in ((n_types,), (n_batches, n_types)):
        raise ParameterError(
            f"proportions must have the shape ({n_types},) or ({n_batches}, {n_types}); it has {shares.shape}."
        )
    shares = np.broadcast_to(shares, (n_batches, n_types))
    if not np.isfinite(shares).all() or (shares < 0).any() or (shares.sum(axis=1) == 0).any():
        raise ParameterError("proportions must not be negative, and at least one type in each batch must be positive.")
    return shares / shares.sum(axis=1, keepdims=True)


def _whole_shares(shares: np.ndarray, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Types of the cells of one batch in random order; each type as near to its share as whole cells allow."""
    sizes = np.floor(shares * n_cells).astype(int)
    rest = shares * n_cells - sizes
    sizes[np.argsort(-rest, kind="stable")[: n_cells - sizes.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(len(shares)), sizes))


def _draw(
    profiles: np.ndarray,
    factors: np.ndarray,
    types: np.ndarray,
    batch: np.ndarray,
    library: np.ndarray,
    dispersion: float,
    dropout: float,
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    mean = profiles[types] * factors[batch]
    mean *= (library / mean.sum(axis=1))[:, None]
    rate = mean
    if dispersion > 0:  # a Poisson variable with a gamma-distributed rate is negative binomial
        rate = mean * dispersion * rng.standard_gamma(1 / dispersion, size=mean.shape, dtype=np.float32)
    counts = rng.poisson(rate)
    if dropout > 0:
        counts[rng.random(counts.shape, dtype=np.float32) < dropout] = 0
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    counts[empty, mean[empty].argmax(axis=1)] = 1
    return sparse.csr_matrix(counts.astype(np.float32))


class PlantedBatch(NamedTuple):
    """Counts with a known batch effect, and what was done to them.

    Attributes
    ----------
    counts
        CSR, float32, whole numbers, same shape as before; untouched cells are as they were.
    factors
        Factor of each gene in the planted cells, depth and ambient share not included, shape (n_genes,).
    ambient_profile
        Share of each gene in the ambient RNA, shape (n_genes,).
    """

    counts: sparse.csr_matrix
    factors: np.ndarray
    ambient_profile: np.ndarray


def plant_batch(
    counts: sparse.csr_matrix,
    halves: np.ndarray,
    strength: float = 0.4,
    ambient: float = 0.05,
    depth: float = 0.5,
    seed: int = 0,
) -> PlantedBatch:
    """Give some cells a known batch effect: a factor for each gene, lower depth, ambient RNA.

    The mean of every planted count is ``depth × ((1 - ambient) × factor × count + ambient × cell total × profile)``.
    Counts are thinned binomially (a factor above one first repeats them), ambient molecules are added at random.
    The cells keep their neighbours in truth, so a method that removes the effect must find them again.

    Parameters
    ----------
    counts
        Raw counts, cells × genes, CSR; not changed.
    halves
        1 for cells that get the effect, 0 for the others, shape (n_cells,).
    strength
        Standard deviation of the natural logarithm of the factors.
    ambient
        Share of a cell's counts that is ambient.
    depth
        Share of the counts that is kept, in (0, 1].
    seed
        The same seed gives the same counts.

    Returns
    -------
    Counts, factors and ambient profile. A cell that would lose its last count keeps one of its most frequent gene.

    Raises
    ------
    DataError
        `halves` does not have one entry of 0 or 1 for every cell.
    ParameterError
        Values out of range.
    """
    halves = np.asarray(halves)
    if halves.shape != (counts.shape[0],) or not np.isin(halves, (0, 1)).all():
        raise DataError(f"halves must hold 0 or 1 for each of the {counts.shape[0]:,} cells.")
    if strength < 0 or not 0 <= ambient < 1 or not 0 < depth <= 1:
        raise ParameterError("Needed: strength ≥ 0, 0 ≤ ambient < 1, 0 < depth ≤ 1.")
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(halves == 1)
    before = sparse.csr_matrix(counts)[rows].astype(np.float64)
    totals = np.asarray(before.sum(axis=0)).ravel()
    factors = np.exp(strength * rng.standard_normal(counts.shape[1]))
    if totals.any():
        factors *= totals.sum() / (totals @ factors)  # the depth is changed by `depth` alone
    profile = totals * factors / max(totals @ factors, 1e-12)
    after = before.copy()
    expected = depth * (1 - ambient) * factors[before.indices]
    whole = np.floor(expected)
    after.data = whole * before.data + rng.binomial(before.data.astype(np.int64), expected - whole)
    if ambient > 0 and totals.any():
        after = after + _ambient(before, profile, ambient * depth, rng)
    after = _keep_one_count(after.tocsr(), before)
    everything = sparse.csr_matrix(counts).astype(np.float32)
    order = np.argsort(np.concatenate([np.flatnonzero(halves == 0), rows]), kind="stable")
    planted = sparse.vstack([everything[halves == 0], after.astype(np.float32)], format="csr")[order]
    planted.eliminate_zeros()
    planted.sort_indices()
    return PlantedBatch(planted, factors.astype(np.float32), profile.astype(np.float32))


def _ambient(
    before: sparse.csr_matrix, profile: np.ndarray, share: float, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Molecules of the ambient profile, as many in each cell as `share` of its counts on average."""
    numbers = rng.poisson(share * np.asarray(before.sum(axis=1)).ravel())
    genes = rng.choice(len(profile), size=int(numbers.sum()), p=profile)
    cells = np.repeat(np.arange(len(numbers)), numbers)
    return sparse.csr_matrix((np.ones(len(genes)), (cells, genes)), shape=before.shape)


def _keep_one_count(after: sparse.csr_matrix, before: sparse.csr_matrix) -> sparse.csr_matrix:
    lost = np.flatnonzero((np.asarray(after.sum(axis=1)).ravel() == 0) & (np.asarray(before.sum(axis=1)).ravel() > 0))
    if not len(lost):
        return after
    genes = np.asarray(before[lost].argmax(axis=1)).ravel()
    return after + sparse.csr_matrix((np.ones(len(lost)), (lost, genes)), shape=after.shape)
