"""Whether a classifier can read the batch off the cells."""

from __future__ import annotations

import numpy as np

from tenfold.errors import DataError
from tenfold.metrics._checks import groups, points, several

FOLDS = 5
_LEAST = 5  # cells on either side, so that each fold tests one


def separability_auc(cells: np.ndarray, values: np.ndarray, seed: int = 0) -> float:
    """Cross-validated AUC of a logistic regression that reads the group of a cell off its coordinates.

    Five stratified folds, coordinates standardised, ridge penalty 1; the mean over folds of the area under the ROC
    curve. More than two groups: each against the rest, unweighted mean. About 0.5: the groups cannot be told apart by a
    linear rule. 1: perfectly apart. Clearly below 0.5: cells were moved towards the other group (over-mixing). It sees
    linear differences only, and groups with different cell types are told apart without any batch effect: compare with
    groups shuffled among cells of the same kind.

    Parameters
    ----------
    cells
        Coordinates, shape (n, d).
    values
        Group of every cell, shape (n,). A group with fewer than 5 cells, or fewer than 5 cells outside it, is not read.
    seed
        Of the division into folds.

    Raises
    ------
    DataError
        A single group, or no group with 5 cells in it and 5 outside.

    References
    ----------
    Hanley & McNeil, Radiology 1982, doi:10.1148/radiology.143.1.7063747.
    """
    found = points(cells)
    grouping = several(groups(values, "values", len(found)), "values")
    sizes = grouping.sizes
    read = np.flatnonzero((sizes >= _LEAST) & (len(found) - sizes >= _LEAST))
    if len(read) == 0:
        raise DataError(f"No group has {_LEAST} cells in it and {_LEAST} outside: too few to train a classifier.")
    if len(sizes) == 2:
        read = read[-1:]  # the other one has the same AUC
    spread = found.std(axis=0)
    design = (found - found.mean(axis=0)) / np.where(spread > 0, spread, 1)
    design = np.hstack([design, np.ones((len(design), 1))])
    rng = np.random.default_rng(seed)
    return float(np.mean([_cross_validated(design, grouping.codes == code, rng) for code in read]))


def _cross_validated(design: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> float:
    fold = np.empty(len(inside), dtype=np.int64)
    for side in (inside, ~inside):
        fold[rng.permutation(np.flatnonzero(side))] = np.arange(side.sum()) % FOLDS
    found = []
    for held_out in range(FOLDS):
        test = fold == held_out
        found.append(_auc(design[test] @ _fit(design[~test], inside[~test]), inside[test]))
    return float(np.mean(found))


def _fit(design: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Ridge-penalised logistic regression by Newton's method; the last column, the intercept, is not penalised."""
    from scipy.special import expit

    penalty = np.ones(design.shape[1])
    penalty[-1] = 1e-9
    weight = np.zeros(design.shape[1])
    objective = _objective(design, inside, weight, penalty)
    for _ in range(50):
        chance = expit(design @ weight)
        gradient = design.T @ (chance - inside) + penalty * weight
        curvature = (design * np.maximum(chance * (1 - chance), 1e-12)[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-4 and _objective(design, inside, weight - size * step, penalty) > objective:
            size /= 2
        weight = weight - size * step
        before, objective = objective, _objective(design, inside, weight, penalty)
        if before - objective < 1e-6 * abs(before):
            break
    return weight


def _objective(design: np.ndarray, inside: np.ndarray, weight: np.ndarray, penalty: np.ndarray) -> float:
    score = design @ weight
    return float(np.logaddexp(0, np.where(inside, -score, score)).sum() + (penalty * weight**2).sum() / 2)


def _auc(score: np.ndarray, inside: np.ndarray) -> float:
    from scipy.stats import rankdata

    n = int(inside.sum())
    return float((rankdata(score)[inside].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))
