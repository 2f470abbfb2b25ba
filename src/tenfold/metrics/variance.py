"""Principal component regression: how much of the variance a batch (or another covariate) explains."""

from __future__ import annotations

import numpy as np

from tenfold.errors import DataError
from tenfold.metrics._checks import groups, points


def pcr(cells: np.ndarray, covariate: np.ndarray, categorical: bool = True) -> float:
    """Principal component regression: share of the variance of an embedding that a covariate explains.

    ``sum_i Var(PC_i) R2(PC_i ~ covariate) / sum_i Var(PC_i)`` over all principal components of `cells`. Neither sum
    depends on the rotation, so no PCA is needed: it is the variance between groups over the total variance. From 0 to
    1. After integration low is good, yet 0 is not the aim where batches hold different cell types: their difference
    is then also called a batch effect.

    Parameters
    ----------
    cells
        Embedding, shape (n, d).
    covariate
        Group of every cell, shape (n,); or a number per cell, shape (n,), or several, shape (n, m).
    categorical
        ``False`` takes `covariate` as numbers.

    Raises
    ------
    DataError
        All cells lie on one spot; or lengths differ, or entries are missing.

    References
    ----------
    Büttner et al., Nature Methods 2019, doi:10.1038/s41592-018-0254-1.
    """
    found = points(cells, "cells").astype(np.float64)
    centred = found - found.mean(axis=0)
    total = float((centred**2).sum())
    if total <= 1e-12 * float((found**2).sum()):
        raise DataError("All cells lie on one spot, so there is no variance to explain. Check the embedding.")
    if categorical:
        batch = groups(covariate, "covariate", len(found))
        onehot = np.zeros((len(batch.levels), len(found)), dtype=np.float64)
        onehot[batch.codes, np.arange(len(found))] = 1.0
        explained = float(((onehot @ centred) ** 2 / batch.sizes[:, None]).sum())
    else:
        numbers = np.asarray(covariate, dtype=np.float64)
        if len(numbers) != len(found) or not np.isfinite(numbers).all():
            raise DataError(f"`covariate` must hold finite numbers for each of the {len(found)} cells.")
        numbers = numbers.reshape(len(found), -1)
        numbers = numbers - numbers.mean(axis=0)
        basis, size, _ = np.linalg.svd(numbers, full_matrices=False)
        basis = basis[:, size > 1e-10 * max(float(size.max(initial=0.0)), 1e-300)]
        explained = float(((basis.T @ centred) ** 2).sum())
    return min(1.0, explained / total)


def pcr_comparison(before: np.ndarray, after: np.ndarray, covariate: np.ndarray, categorical: bool = True) -> float:
    """PCR comparison: share of the variance explained by batch that integration removed.

    ``(pcr(before) - pcr(after)) / pcr(before)``, set to 0 where integration made it larger. From 0 to 1; high is good.
    It rewards mixing of different cell types as much as of equal ones, and where the batch explained almost nothing
    before, the ratio is noise.

    Parameters
    ----------
    before
        Principal components before integration, shape (n, d).
    after
        Embedding after integration, shape (n, d2).
    covariate
        Group of every cell, or a number per cell, shape (n,).
    categorical
        ``False`` takes `covariate` as a number.

    Raises
    ------
    DataError
        The covariate explains nothing before (a single batch), or the errors of `pcr`.

    References
    ----------
    Büttner et al., Nature Methods 2019, doi:10.1038/s41592-018-0254-1; Luecken et al., Nature Methods 2022,
    doi:10.1038/s41592-021-01336-8.
    """
    at_first = pcr(before, covariate, categorical)
    if at_first < 1e-12:
        raise DataError("The covariate explains no variance before integration (a single batch?): nothing to compare.")
    return max(0.0, (at_first - pcr(after, covariate, categorical)) / at_first)
