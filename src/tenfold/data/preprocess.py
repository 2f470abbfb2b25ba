"""Standard preprocessing of counts, sparse from end to end: depth normalisation, log1p, variable genes, PCA."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, eigsh

from tenfold.data.variable_genes import highly_variable_genes as highly_variable_genes
from tenfold.errors import DataError

# A covariance of this size (in genes or cells) is decomposed densely; beyond it Lanczos iterations are faster.
LARGEST_DENSE = 4000
# Of a covariance larger than this, few eigenvectors are found faster by Lanczos iterations than by a dense solver:
# 50 of 3,000 in 1.8 CPU seconds rather than 2.6, eigenvalues equal to 1e-14.
LARGEST_SOLVED = 2500
BLOCK = 2048


class PCAResult(NamedTuple):
    """Principal components of log-normalised expression.

    Attributes
    ----------
    embedding
        Coordinates of the cells, shape (n_cells, n_components), float32.
    components
        Loadings, orthonormal rows, shape (n_components, n_genes), float32.
    mean
        Mean of each gene, shape (n_genes,), float32.
    genes
        Column of each gene in the data that the matrix was cut from, shape (n_genes,).
    variance, variance_ratio
        Variance along each component (divisor n - 1), and its share of the total, shape (n_components,), float32.
    """

    embedding: np.ndarray
    components: np.ndarray
    mean: np.ndarray
    genes: np.ndarray
    variance: np.ndarray
    variance_ratio: np.ndarray


#: Counts per cell that expression is scaled to before the logarithm.
DEPTH = 1e4


def normalize_log1p(
    counts: sparse.csr_matrix, target_sum: float = DEPTH, totals: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Scale each cell to the same depth and take log(1 + x).

    Parameters
    ----------
    counts
        Cells × genes, CSR, shape (n_cells, n_genes); not changed.
    target_sum
        Sum of each cell before the logarithm.
    totals
        What counts as the sum of each cell now, shape (n_cells,), where `counts` are of some genes only.

    Returns
    -------
    CSR, float32; shares the index arrays of `counts`. A cell without counts stays zero.
    """
    counts = sparse.csr_matrix(counts)
    if totals is None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0).astype(np.float32)
    values = counts.data.astype(np.float32)
    values *= np.repeat(scale, np.diff(counts.indptr))
    np.log1p(values, out=values)
    return sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)


def pca(lognorm: sparse.csr_matrix, n_components: int, seed: int = 0) -> PCAResult:
    """Principal components of a sparse matrix, centred exactly without making it dense.

    Up to 4,000 genes (or cells) the covariance is summed over blocks of 2,048 centred cells and its leading
    eigenvectors are taken by a dense solver; a larger matrix is decomposed by Lanczos iterations with implicit
    centring. Measured at 20,000 cells × 2,000 genes, 14 % non-zero, 50 components, one core: covariance 3.6 CPU
    seconds, Lanczos with implicit centring 8.4, ``scanpy.pp.pca`` 5.6 (its ``covariance_eigh`` 16.6, ``lobpcg`` 25.8).
    Relative error of the eigenvalues against float64 throughout: 3e-7.

    Parameters
    ----------
    lognorm
        Cells × genes, CSR, shape (n_cells, n_genes), float32.
    n_components
        Number of components; at most min(n_cells, n_genes) - 1.
    seed
        Start of the Lanczos iterations; it does not change the result beyond rounding.

    Returns
    -------
    `PCAResult` with ``genes`` counting from 0. Each component's largest loading in size is positive.

    Raises
    ------
    DataError
        Fewer than three cells or genes.

    Warns
    -----
    UserWarning
        `n_components` was too large and has been lowered.
    """
    lognorm = sparse.csr_matrix(lognorm)
    n_cells, n_genes = lognorm.shape
    most = min(n_cells, n_genes) - 1
    if most < 2:
        raise DataError(f"{n_cells} cells × {n_genes} genes are too few for a PCA; at least 3 of each are needed.")
    if n_components > most:
        warnings.warn(
            f"n_components={n_components} is more than {n_cells:,} cells × {n_genes:,} genes have; "
            f"{most} are computed.",
            stacklevel=2,
        )
        n_components = most
    mean = np.asarray(lognorm.sum(axis=0, dtype=np.float64)).ravel() / n_cells
    squares = np.bincount(lognorm.indices, weights=lognorm.data.astype(np.float64) ** 2, minlength=n_genes)
    total = float(np.maximum(squares - n_cells * mean**2, 0).sum()) / (n_cells - 1)
    values, vectors = _leading_eigenvectors(lognorm, mean, n_components, seed)
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[largest, np.arange(n_components)] < 0, -1.0, 1.0)
    variance = np.maximum(values, 0) / (n_cells - 1)
    result = PCAResult(
        embedding=np.empty((0, n_components), np.float32),
        components=np.ascontiguousarray(vectors.T, dtype=np.float32),
        mean=mean.astype(np.float32),
        genes=np.arange(n_genes),
        variance=variance.astype(np.float32),
        variance_ratio=(variance / total if total > 0 else np.zeros_like(variance)).astype(np.float32),
    )
    return result._replace(embedding=project(lognorm, result))


def project(lognorm: sparse.csr_matrix, result: PCAResult) -> np.ndarray:
    """Place cells on fitted components.

    Parameters
    ----------
    lognorm
        Log-normalised expression of the genes of `result`, in their order, shape (n_cells, n_genes).
    result
        Fitted components.

    Returns
    -------
    Shape (n_cells, n_components), float32.

    Raises
    ------
    DataError
        Another number of genes.
    """
    if lognorm.shape[1] != len(result.mean):
        raise DataError(
            f"The components were fitted on {len(result.mean):,} genes, and this matrix has {lognorm.shape[1]:,}. "
            "Give the same genes in the same order."
        )
    loadings = np.ascontiguousarray(result.components.T)
    return np.asarray(lognorm @ loadings - result.mean @ loadings, dtype=np.float32)


def _leading_eigenvectors(
    lognorm: sparse.csr_matrix, mean: np.ndarray, n_components: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the scatter matrix, largest first, and its eigenvectors, shape (n_genes, n_components)."""
    n_cells, n_genes = lognorm.shape
    if n_genes <= LARGEST_DENSE:
        scatter = np.zeros((n_genes, n_genes))
        for start in range(0, n_cells, BLOCK):
            block = lognorm[start : start + BLOCK].toarray()
            block -= mean.astype(block.dtype)  # centring first keeps float32 exact enough: nothing large cancels
            scatter += block.T @ block
        if n_genes > LARGEST_SOLVED and 20 * n_components < n_genes:
            start = np.random.default_rng(seed).normal(size=n_genes)
            values, vectors = eigsh(scatter, k=n_components, ncv=2 * n_components + 20, v0=start)
        else:
            values, vectors = linalg.eigh(
                scatter, subset_by_index=(n_genes - n_components, n_genes - 1), overwrite_a=True, check_finite=False
            )
        return values[::-1], vectors[:, ::-1]
    matrix = lognorm.astype(np.float64)
    transposed = matrix.T.tocsr()

    def scatter_times(vector: np.ndarray) -> np.ndarray:
        image = matrix @ vector - mean @ vector
        return transposed @ image - mean * image.sum()

    start = np.random.default_rng(seed).normal(size=n_genes)
    operator = LinearOperator((n_genes, n_genes), matvec=scatter_times, dtype=np.float64)
    values, vectors = eigsh(operator, k=n_components, v0=start)
    order = np.argsort(values)[::-1]
    return values[order], vectors[:, order]


def unit_variance(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Divide genes by their standard deviation, without centring; constant ones stay. Float32."""
    mean = np.asarray(x.mean(axis=0)).ravel()
    squares = np.bincount(x.indices, weights=x.data.astype(np.float64) ** 2, minlength=x.shape[1])
    deviation = np.sqrt(np.maximum(squares / x.shape[0] - mean**2, 0))
    values = x.data / np.where(deviation > 1e-6, deviation, 1)[x.indices]
    return sparse.csr_matrix((values.astype(np.float32), x.indices, x.indptr), shape=x.shape)
