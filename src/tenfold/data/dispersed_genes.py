"""Genes that vary between cells more than their technical noise explains: the test of Brennecke and others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse, stats

_NOISY = 0.3  # squared coefficient of variation above which genes say where the trend begins
_QUANTILE = 0.8  # of the means of these genes: the trend is fitted to genes above it
_FEWEST_FOR_FIT = 20
_MOST_STEPS = 100


class Dispersion(NamedTuple):
    """Result of the test of every gene.

    Attributes
    ----------
    significant
        Whether the gene varies more than allowed, (n_genes,), bool.
    ratio
        Variance over the largest one that the null hypothesis allows on average, (n_genes,); 0 for a gene not tested.
    """

    significant: np.ndarray
    ratio: np.ndarray


def dispersion_test(
    counts: sparse.csr_matrix, fdr: float = 0.01, least_biological: float = 0.5, most_zeros: float = 0.9
) -> Dispersion:
    """Test which genes vary more than technical noise and a given biological variation together.

    Squared coefficients of variation follow a0 + a1 / mean, fitted as a gamma model with identity link to the genes
    of high mean. A gene's variance is compared with a chi-squared distribution around that trend plus
    `least_biological`²; p-values are adjusted by Benjamini and Hochberg.

    Parameters
    ----------
    counts
        Cells × genes, CSR.
    fdr
        Largest false discovery rate.
    least_biological
        Biological coefficient of variation that is not yet of interest.
    most_zeros
        Genes with a larger share of zeros are not tested.

    Returns
    -------
    `Dispersion`; nothing is significant where fewer than 3 genes or cells can be tested.

    References
    ----------
    Brennecke et al. (2013), doi 10.1038/nmeth.2645.
    """
    n_cells, n_genes = counts.shape
    tested = np.flatnonzero(counts.getnnz(axis=0) >= max((1 - most_zeros) * n_cells, 1))
    result = Dispersion(np.zeros(n_genes, dtype=bool), np.zeros(n_genes))
    if n_cells < 3 or len(tested) < 3:
        return result
    values = counts[:, tested].astype(np.float64)
    mean = np.asarray(values.mean(axis=0)).ravel()
    squares = np.asarray(values.power(2).sum(axis=0)).ravel()
    variance = np.maximum(squares - n_cells * mean**2, 0) / (n_cells - 1)
    a0, a1 = _trend(mean, variance / mean**2)
    highest = a0 + least_biological**2 * (1 + a0)
    expected = (mean * a1 + mean**2 * highest) / (1 + highest / n_cells)
    ratio = variance / np.maximum(expected, 1e-300)
    p = stats.chi2.sf(ratio * (n_cells - 1), n_cells - 1)
    result.ratio[tested] = ratio
    result.significant[tested] = stats.false_discovery_control(p) < fdr
    return result


def _trend(mean: np.ndarray, cv2: np.ndarray) -> np.ndarray:
    """Return a0 and a1 of cv² = a0 + a1 / mean, by the genes of high mean."""
    noisy = cv2 > _NOISY
    used = mean >= np.quantile(mean[noisy], _QUANTILE) if noisy.any() else np.ones(len(mean), dtype=bool)
    if used.sum() < _FEWEST_FOR_FIT:
        used = np.ones(len(mean), dtype=bool)
    return gamma_regression(np.column_stack([np.ones(used.sum()), 1 / mean[used]]), np.maximum(cv2[used], 1e-12))


def gamma_regression(design: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Fit E(response) = design × coefficients by the gamma likelihood, whose weights are 1 / expected².

    Steps are halved until every expected value is positive and the deviance falls.

    Parameters
    ----------
    design
        (n, d), its first column constant.
    response
        Positive, (n,).
    """
    coefficients = np.zeros(design.shape[1])
    coefficients[0] = response.mean() / design[0, 0]

    def deviance(b: np.ndarray) -> float:
        expected = design @ b
        return float((np.log(expected) + response / expected).sum()) if (expected > 0).all() else np.inf

    now = deviance(coefficients)
    for _ in range(_MOST_STEPS):
        weight = 1 / (design @ coefficients)
        step = np.linalg.lstsq(design * weight[:, None], response * weight, rcond=None)[0] - coefficients
        while (then := deviance(coefficients + step)) > now and np.abs(step).max() > 1e-12:
            step = step / 2
        if then > now:
            break
        coefficients = coefficients + step
        if now - then <= 1e-12 * max(abs(now), 1.0):
            break
        now = then
    return coefficients
