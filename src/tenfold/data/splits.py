"""Splits of labelled cells that ask an annotator what it will be asked: a new batch, donor, data set or cell type.

A random split puts cells of one sample, and of one cluster that a label was made from, on both sides; what it measures
is optimistic. Each function returns a `Split`: folds of cell numbers, and what a reader must know of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold.data import check
from tenfold.data.folds import Fold, Split
from tenfold.errors import DataError, ParameterError

__all__ = [
    "Fold", "Split", "barcode_groups", "check_nested", "few_shot", "inner_split", "leave_batch_out",
    "leave_cell_type_out", "leave_dataset_out", "leave_donor_out", "random_cv",
]  # fmt: skip

#: Above this many groups they are gathered into folds.
MOST_FOLDS = 10
GATHERED = 5
OPTIMISTIC = "within-batch estimate (optimistic)"


# ---- splits ----------------------------------------------------------------------------------------------------------


def random_cv(adata: AnnData, labels: str, k: int = 5, seed: int = 0) -> Split:
    """Divide cells at random into `k` folds, each label evenly. **Optimistic**: it says nothing of a new batch.

    Parameters
    ----------
    adata
        Labelled cells.
    labels
        obs column with their labels.
    k, seed
        Number of folds; of the shuffling.
    """
    codes = check.categories(adata, labels, "labels")
    if not 2 <= k <= adata.n_obs:
        raise ParameterError(f"k={k} is not valid: between 2 folds and one a cell ({adata.n_obs:,}).")
    fold = np.empty(adata.n_obs, dtype=np.int64)
    start, rng = 0, np.random.default_rng(seed)
    for code in range(len(codes.names)):
        cells = rng.permutation(np.flatnonzero(codes.values == code))
        fold[cells] = (start + np.arange(len(cells))) % k
        start += len(cells)  # the next label goes on where this one ended, so that folds are of equal size
    return _split("random_cv", fold, [f"fold {i + 1}" for i in range(k)], codes, {"k": k, "seed": seed}, OPTIMISTIC)


def leave_batch_out(adata: AnnData, batch: str, labels: str, seed: int = 0) -> Split:
    """Leave out one batch at a time; with more than ten batches, a fifth of them at a time.

    Gathered folds are balanced in cells and labels: batches are dealt out from the largest on, each to the fold that
    stays most like all cells.

    Parameters
    ----------
    adata
        Labelled cells.
    batch, labels
        obs columns.
    seed
        Of the order among batches of one size.

    Raises
    ------
    DataError
        A single batch: nothing can be said of a new one.
    """
    return _leave_out("leave_batch_out", adata, batch, labels, seed)


def leave_donor_out(adata: AnnData, donor: str, labels: str, within: str | None = None, seed: int = 0) -> Split:
    """Leave out one donor at a time, as `leave_batch_out` does batches.

    Parameters
    ----------
    adata
        Labelled cells.
    donor, labels
        obs columns.
    within
        obs column of data sets; each donor must be in one of them only.
    seed
        Of the order among donors of one size.
    """
    if within is not None:
        check_nested(adata, donor, within)
    return _leave_out("leave_donor_out", adata, donor, labels, seed)


def leave_dataset_out(adata: AnnData, dataset: str, labels: str, donor: str | None = None, seed: int = 0) -> Split:
    """Leave out one data set at a time; with `donor`, no donor may be in two of them."""
    if donor is not None:
        check_nested(adata, donor, dataset)
    return _leave_out("leave_dataset_out", adata, dataset, labels, seed)


def leave_cell_type_out(
    adata: AnnData,
    labels: str,
    families: dict[str, list[str]] | None = None,
    batch: str | None = None,
    known: float = 0.3,
    fewest: int = 10,
    seed: int = 0,
) -> Split:
    """Leave out one cell type at a time, and part of the cells of the others: is the type told from known ones?

    Parameters
    ----------
    adata
        Labelled cells.
    labels
        obs column with their labels.
    families
        Labels that go together (siblings, children), by name of the family; default: each label alone.
    batch
        obs column: the known cells to test are whole batches, as many as come nearest to the share, instead of cells at
        random. This is the hardest case and the most realistic one.
    known
        Share of the known cells that are tested.
    fewest
        Types with fewer cells are not left out.
    seed
        Of the choice of cells.
    """
    codes = check.categories(adata, labels, "labels")
    families = families or {name: [name] for name in codes.names}
    strange = [label for family in families.values() for label in family if label not in codes.names]
    if strange:
        raise DataError(f"families names '{strange[0]}', which is no label in obs['{labels}'].")
    tested = _tested(adata, codes, batch, known, seed)
    folds = []
    for name, family in families.items():
        novel = np.isin(codes.values, [codes.names.index(label) for label in family])
        if fewest <= novel.sum() < adata.n_obs - 1:
            folds.append(_fold(name, ~novel & ~tested, novel | tested, codes))
    if not folds:
        raise DataError(f"No label in obs['{labels}'] has {fewest} cells, so that none can be left out.")
    keys = {"labels": labels, "batch": batch or "", "known": known, "seed": seed}
    return Split("leave_cell_type_out", folds, keys, "" if batch else "known cells of the same batches (optimistic)")


def few_shot(adata: AnnData, labels: str, n_per_class: int, seed: int = 0) -> Split:
    """Train on `n_per_class` cells of each label, test on all others; labels with fewer cells keep one for the test."""
    codes = check.categories(adata, labels, "labels")
    if n_per_class < 1:
        raise ParameterError("n_per_class must be at least 1.")
    rng = np.random.default_rng(seed)
    train = np.zeros(adata.n_obs, dtype=bool)
    for code in range(len(codes.names)):
        cells = rng.permutation(np.flatnonzero(codes.values == code))
        train[cells[: min(n_per_class, max(len(cells) - 1, 1))]] = True
    fold = _fold(f"{n_per_class} cells a label", train, ~train, codes)
    return Split("few_shot", [fold], {"labels": labels, "n_per_class": n_per_class, "seed": seed}, OPTIMISTIC)


def inner_split(
    adata: AnnData, labels: str, batch: str | None = None, share: float = 0.25, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, str]:
    """Divide training cells again, to choose hyper-parameters or to calibrate: by whole batches where there are three.

    Returns
    -------
    Numbers of the cells to train on and of the cells to calibrate on, and a warning where these are of the same
    batches; else ``""``.
    """
    groups = None if batch is None else check.categories(adata, batch, "batch")
    if groups is not None and len(groups.names) >= 3:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(groups.names))
        sizes = np.bincount(groups.values)[order]
        n_held = int(np.abs(np.cumsum(sizes)[:-1] - share * adata.n_obs).argmin()) + 1
        held = np.isin(groups.values, order[:n_held])
        return np.flatnonzero(~held), np.flatnonzero(held), ""
    split = random_cv(adata, labels, max(2, round(1 / share)), seed)
    words = "fewer than three batches: cells of the same batches calibrate, which is optimistic for a new batch"
    return split.folds[0].train, split.folds[0].test, words


def barcode_groups(adata: AnnData) -> pd.Series | None:
    """Return what the names of cells say of their samples: the number behind 10x barcodes (``ACGT...-2``).

    Where no column names the batch of each cell, these are the best guess: one number a library.

    Returns
    -------
    One number a cell, as text, for an obs column; ``None`` where the names hold none, or all the same.
    """
    found = adata.obs_names.to_series().astype(str).str.extract(r"^[ACGTN]{8,}-(\d+)$")[0]
    return None if found.isna().any() or found.nunique() < 2 else found


# ---- shared ----------------------------------------------------------------------------------------------------------


def check_nested(adata: AnnData, inner: str, outer: str) -> None:
    """Raise `DataError` where a level of `inner` (donors) is in two levels of `outer` (data sets)."""
    table = pd.crosstab(adata.obs[inner], adata.obs[outer]) > 0
    shared = table.index[table.sum(axis=1) > 1]
    if len(shared):
        raise DataError(
            f"obs['{inner}'] is not nested in obs['{outer}']: '{shared[0]}' is in "
            f"{', '.join(map(str, table.columns[table.loc[shared[0]]]))}, so leaving one out leaves part of it in. "
            "Give each its own name, or leave the other one out."
        )


def _leave_out(kind: str, adata: AnnData, key: str, labels: str, seed: int) -> Split:
    groups, codes = check.categories(adata, key, "batch"), check.categories(adata, labels, "labels")
    if len(groups.names) < 2:
        raise DataError(
            f"obs['{key}'] has a single level, so that nothing can be said of a new one. random_cv gives an optimistic "
            "estimate."
        )
    if len(groups.names) <= MOST_FOLDS:
        return _split(kind, groups.values, groups.names, codes, {"key": key, "labels": labels, "seed": seed}, "")
    gathered = _gathered(groups.values, codes.values, GATHERED, seed)
    names = [f"{(gathered == i).sum()} of {len(groups.names)}, fold {i + 1}" for i in range(GATHERED)]
    return _split(kind, gathered[groups.values], names, codes, {"key": key, "labels": labels, "seed": seed}, "")


def _gathered(groups: np.ndarray, codes: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the fold of each group: from the largest on, each goes where cells of every label stay most even."""
    table = np.zeros((groups.max() + 1, codes.max() + 1))
    np.add.at(table, (groups, codes), 1)
    shares = table / table.sum(axis=0)
    jitter = np.random.default_rng(seed).random(len(table))
    fold, sums = np.empty(len(table), dtype=np.int64), np.zeros((k, table.shape[1] + 1))
    shares = np.column_stack([shares, table.sum(axis=1) / table.sum()])
    for group in np.lexsort((jitter, -table.sum(axis=1))):
        costs = [np.square(sums[i] + shares[group]).sum() - np.square(sums[i]).sum() for i in range(k)]
        fold[group] = int(np.argmin(costs))
        sums[fold[group]] += shares[group]
    return fold


def _split(kind: str, fold: np.ndarray, names: list[str], codes: Any, keys: dict[str, Any], banner: str) -> Split:
    folds = [_fold(name, fold != i, fold == i, codes) for i, name in enumerate(names) if (fold == i).any()]
    return Split(kind, folds, keys, banner)


def _fold(name: str, train: np.ndarray, test: np.ndarray, codes: Any) -> Fold:
    seen, asked = (np.bincount(codes.values[part], minlength=len(codes.names)) > 0 for part in (train, test))
    unseen = [label for label, a, b in zip(codes.names, seen, asked, strict=True) if b and not a]
    untested = [label for label, a, b in zip(codes.names, seen, asked, strict=True) if a and not b]
    return Fold(str(name), np.flatnonzero(train), np.flatnonzero(test), unseen, untested)


def _tested(adata: AnnData, codes: Any, batch: str | None, share: float, seed: int) -> np.ndarray:
    """Return a mask of the cells whose label stays known and that are tested."""
    if not 0 < share < 1:
        raise ParameterError(f"known={share} is not valid: between 0 and 1.")
    tested = np.zeros(adata.n_obs, dtype=bool)
    if batch is not None:
        groups = check.categories(adata, batch, "batch", min_levels=2)
        order = np.random.default_rng(seed).permutation(len(groups.names))
        reached = np.cumsum(np.bincount(groups.values)[order])[:-1]
        n_held = int(np.abs(reached - share * adata.n_obs).argmin()) + 1
        return np.isin(groups.values, order[:n_held])
    rng = np.random.default_rng(seed)
    for code in range(len(codes.names)):
        cells = rng.permutation(np.flatnonzero(codes.values == code))
        tested[cells[: int(share * len(cells))]] = True
    return tested
