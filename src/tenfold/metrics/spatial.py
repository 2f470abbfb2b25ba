"""Scores of spatial domains that need no annotation, and spatial autocorrelation of genes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import ndtr

from tenfold.errors import DataError
from tenfold.kernels.knn import drop_self, knn
from tenfold.metrics._checks import groups, points, several

#: Cells around each cell that `pas` looks at.
AROUND = 10
#: Cells around each cell that `contiguity` looks at: those of a spot in a hexagonal lattice.
BESIDE = 6


class Autocorrelation(NamedTuple):
    """Spatial autocorrelation of genes.

    Attributes
    ----------
    statistic
        Moran's I of each gene, shape (n_genes,), float64; NaN for a gene without variation.
    pvalue
        Of a larger I where values lie at random (normal approximation), shape (n_genes,); NaN likewise.
    """

    statistic: np.ndarray
    pvalue: np.ndarray


def chaos(positions: np.ndarray, domains: np.ndarray, sections: np.ndarray | None = None) -> float:
    """Spatial chaos score: how far cells lie from the nearest cell of their own domain.

    Each axis is standardised. Sum over cells of the distance to the nearest cell of the same domain, divided by the
    number of cells; domains of one or two cells add nothing. From 0; low is smooth. It has no absolute scale, and on a
    lattice it is nearly flat. **The yardstick is the annotation's own value** on the same cells (for example 0.069 and
    0.074 in two sections of mouse cortex, where k-means of PCs has 0.097): domains below it are smoother than the
    tissue is. A single domain for everything has the lowest value of all.

    Parameters
    ----------
    positions
        Coordinates, shape (n_cells, 2 or 3).
    domains
        Domain of every cell, shape (n_cells,).
    sections
        Section of every cell, shape (n_cells,); the score is then the mean over sections, weighted by their cells.

    References
    ----------
    Shang & Zhou, Nature Communications 2022, doi:10.1038/s41467-022-34879-1; as computed by Yuan et al., Nature Methods
    2024, doi:10.1038/s41592-024-02215-8.
    """
    where, domain = _where(positions, domains)
    total = 0.0
    for rows in _rows_of(sections, len(where)):
        own = where[rows] - where[rows].mean(axis=0)
        own /= np.maximum(own.std(axis=0), 1e-12)
        for code in np.unique(domain[rows]):
            inside = own[domain[rows] == code]
            if len(inside) > 2:
                total += float(drop_self(*knn(inside, k=2))[1].sum(dtype=np.float64))
    return total / len(where)


def pas(positions: np.ndarray, domains: np.ndarray, sections: np.ndarray | None = None) -> float:
    """Share of abnormal spots: cells whose surroundings are mostly of other domains.

    Share of cells for which more than half of the 10 nearest cells have another label; from 0 to 1, low is smooth.
    **The yardstick is the annotation's own value** on the same cells (0.006 to 0.03 in layered cortex): a
    majority vote, or one giant domain, drives it to 0, and domains below the annotation's value are smoother than the
    tissue is. A low value proves nothing.

    Parameters
    ----------
    positions
        Coordinates, shape (n_cells, 2 or 3).
    domains
        Domain of every cell, shape (n_cells,).
    sections
        Section of every cell, shape (n_cells,); neighbours are sought within it.

    References
    ----------
    Shang & Zhou, Nature Communications 2022, doi:10.1038/s41467-022-34879-1; as computed by Yuan et al., Nature Methods
    2024, doi:10.1038/s41592-024-02215-8.
    """
    where, domain = _where(positions, domains)
    abnormal = 0
    for rows in _rows_of(sections, len(where)):
        n_around = min(AROUND, len(rows) - 1)
        if n_around:
            near = drop_self(*knn(where[rows], k=n_around + 1))[0]
            other = domain[rows][near] != domain[rows][:, None]
            abnormal += int((other.sum(axis=1) > n_around / 2).sum())
    return abnormal / len(where)


def contiguity(positions: np.ndarray, domains: np.ndarray, sections: np.ndarray | None = None) -> float:
    """How much more often cells share the domain of those around them than chance would have it.

    ``(observed - expected) / (1 - expected)`` of the share of the 6 nearest cells that have a cell's own domain, with
    ``expected = sum_k p_k^2`` of the shares of domains. 0 where domains lie at random, 1 where every neighbour is of
    the same domain; NaN for a single domain. **The yardstick is what the same method reaches on shuffled positions**:
    averaging over neighbours makes domains contiguous, also where there are none.

    Parameters
    ----------
    positions
        Coordinates, shape (n_cells, 2 or 3).
    domains
        Domain of every cell, shape (n_cells,).
    sections
        Section of every cell, shape (n_cells,); neighbours are sought within it.

    References
    ----------
    Join counts: Moran, Journal of the Royal Statistical Society B 1948, doi:10.1111/j.2517-6161.1948.tb00012.x.
    """
    where, domain = _where(positions, domains)
    shared = counted = 0
    for rows in _rows_of(sections, len(where)):
        n_around = min(BESIDE, len(rows) - 1)
        if n_around:
            near = drop_self(*knn(where[rows], k=n_around + 1))[0]
            shared += int((domain[rows][near] == domain[rows][:, None]).sum())
            counted += near.size
    expected = float(np.square(np.bincount(domain) / len(domain)).sum())
    return (shared / counted - expected) / (1 - expected) if counted and expected < 1 else float("nan")


def shared_domains(domains: np.ndarray, sections: np.ndarray) -> float:
    """Whether the sections of a tissue have the same domains.

    ``1 - mean over sections of half the summed differences`` between the shares of domains in a section and in all
    others. 1: every domain takes the same share everywhere; 0: no domain is in two sections. Sections may truly differ:
    **the yardstick is the annotation's own value**.

    Parameters
    ----------
    domains
        Domain of every cell, shape (n_cells,).
    sections
        Section of every cell, shape (n_cells,); at least two.
    """
    found = several(groups(sections, "sections", len(domains)), "sections")
    domain = groups(domains, "domains", len(domains))
    table = np.zeros((len(found.levels), len(domain.levels)))
    np.add.at(table, (found.codes, domain.codes), 1)
    others = table.sum(axis=0) - table
    own, other = (part / part.sum(axis=1, keepdims=True) for part in (table, others))
    return float(1 - np.abs(own - other).sum(axis=1).mean() / 2)


def domain_markers(expression: np.ndarray | sparse.spmatrix, domains: np.ndarray, n_top: int = 5) -> np.ndarray:
    """Return the genes that stand out in each domain: those with the largest t against all other cells.

    Parameters
    ----------
    expression
        Log-normalised, shape (n_cells, n_genes).
    domains
        Domain of every cell, shape (n_cells,); domains of three cells or fewer have no markers.
    n_top
        Genes of each domain.

    Returns
    -------
    Columns of the markers of any domain, sorted, each once. They were chosen by the domains: no p-value holds for them.
    """
    found = groups(domains, "domains", expression.shape[0])
    x = sparse.csr_matrix(expression, dtype=np.float64)
    member = sparse.csr_matrix((np.ones(x.shape[0]), (found.codes, np.arange(x.shape[0]))))
    size = np.bincount(found.codes, minlength=len(found.levels))[:, None].astype(np.float64)
    total, squares = np.asarray((member @ x).todense()), np.asarray((member @ x.multiply(x)).todense())
    rest, rest_size = total.sum(axis=0) - total, size.sum() - size
    means = (total / size, rest / np.maximum(rest_size, 1))
    spreads = (
        squares / size - means[0] ** 2,
        (squares.sum(axis=0) - squares) / np.maximum(rest_size, 1) - means[1] ** 2,
    )
    error = np.sqrt(np.maximum(spreads[0], 0) / size + np.maximum(spreads[1], 0) / np.maximum(rest_size, 1) + 1e-12)
    t = (means[0] - means[1]) / error
    large = np.flatnonzero((size[:, 0] > 3) & (rest_size[:, 0] > 0))
    return np.unique(np.argsort(-t[large], axis=1, kind="stable")[:, :n_top])


def moran(expression: np.ndarray | sparse.spmatrix, graph: sparse.spmatrix) -> Autocorrelation:
    """Moran's I: whether cells that lie side by side express a gene alike; all genes at once.

    ``I = (N / S) sum_ij w_ij z_i z_j / sum_i z_i^2`` with weights w of sum S and deviations z from the gene's mean.
    About -1 to 1; -1 / (N - 1) is expected of values at random, high is patterned. Compute it on counts or
    log-normalised counts, never on values that a spatial method has smoothed: smoothing alone raises it, also of noise.
    To judge domains by the I of their markers is circular where the markers were chosen by the domains; **the yardstick
    is the same figure for the annotation's markers**.

    Parameters
    ----------
    expression
        Cells × genes, shape (n_cells, n_genes); stays sparse.
    graph
        Weights between cells, without the cells themselves, shape (n_cells, n_cells).

    Returns
    -------
    `Autocorrelation`; the p-values assume normal values and are rough for genes that few cells express.

    References
    ----------
    Moran, Biometrika 1950, doi:10.2307/2332142; Cliff & Ord, Spatial Processes, 1981 (variance).
    """
    n = expression.shape[0]
    weights = sparse.csr_matrix(graph, dtype=np.float64)
    if weights.shape != (n, n) or weights.nnz == 0:
        raise DataError(f"`graph` must join the {n:,} cells; its shape is {weights.shape}, {weights.nnz:,} edges.")
    x = sparse.csc_matrix(expression, dtype=np.float64)
    mean = np.asarray(x.mean(axis=0)).ravel()
    out, into = (np.asarray(weights.sum(axis=axis)).ravel() for axis in (1, 0))
    total = weights.sum()
    # sum_ij w_ij (x_i - m)(x_j - m), without a dense matrix of deviations
    within = np.asarray((weights @ x).multiply(x).sum(axis=0)).ravel()
    within = within - mean * (x.T @ (out + into)) + mean**2 * total
    spread = np.asarray(x.multiply(x).sum(axis=0)).ravel() - n * mean**2
    varies = spread > 1e-10 * np.maximum(n * mean**2, 1e-300)
    statistic = np.full(x.shape[1], np.nan)
    statistic[varies] = n / total * within[varies] / spread[varies]
    both = (weights + weights.T).tocsr()
    s1, s2 = (both.data**2).sum() / 2, ((out + into) ** 2).sum()
    expected = -1 / (n - 1)
    variance = (n * n * s1 - n * s2 + 3 * total**2) / ((n * n - 1) * total**2) - expected**2
    return Autocorrelation(statistic, ndtr(-(statistic - expected) / np.sqrt(variance)))


def _where(positions: np.ndarray, domains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    where = points(positions, "positions").astype(np.float64)
    return where, groups(domains, "domains", len(where)).codes


def _rows_of(sections: np.ndarray | None, n: int) -> list[np.ndarray]:
    if sections is None:
        return [np.arange(n)]
    found = groups(sections, "sections", n)
    return [np.flatnonzero(found.codes == code) for code in range(len(found.levels))]
