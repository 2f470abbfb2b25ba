"""velocyto: the original RNA velocity, a line with an offset through the extreme cells of each gene."""

from __future__ import annotations

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.base import Rates, VelocityMethod
from tenfold.velocity_models.steady_state import by_blocks, line_with_offset, r_squared, ratio


class Velocyto(VelocityMethod):
    """Velocity as the residual of a line with offset, u = γ s + q, through the lowest and highest cells of each gene.

    Counts are averaged over each cell's own nearest neighbours (2.5 % of the cells). Cells below the 2nd and above the
    98th percentile of s / q99.9 + u / q99.9 are taken to be at steady state, switched off or on; γ and q are the
    weighted least-squares line through them with γ in [0, 20] and q ≥ 0, in closed form. Genes with R² ≥ 0.1,
    γ ≥ 0.01 and a correlation of u and s ≥ 0.1 are used.

    **Use it** as the first published model and the strictest filter of genes of the steady-state models.

    **Do not use it** where no cell is at steady state, or where rates change between cell types. Pooling over 2.5 % of
    the cells mixes branches in large data sets: the neighbour graph decides much of the picture. On a
    real pancreas set its coherence (0.68) was below that of permuted counts (0.76), and so was the known direction in
    gene space (0.13, permuted up to 0.23); on a simulation with exact kinetics that direction was far above (0.55
    against 0.11), the coherence hardly (0.93 against 0.92). Look at the null models of ``tf.compare("velocity", ...)``.

    **Cost**: that of a PCA and a neighbour search; in large data sets 2.5 % of the cells are many: set `n_neighbors`.

    **Writes** ``layers["velocyto_velocity"]`` (NaN for genes that are not used), ``obs["velocyto_time"]`` (velocity
    pseudotime) and ``obs["velocyto_confidence"]``.

    Differences from velocyto.py: variable genes, PCA and the velocity graph are those of the other methods here
    (velocyto's own correlates with a random third of the N/5 nearest cells of a two-dimensional embedding).

    Parameters
    ----------
    n_top_genes
        Variable genes among those with enough counts; ``None`` takes all.
    min_shared_counts
        Least counts of a gene, spliced and unspliced, in cells that have both.
    n_components, n_neighbors
        Principal components in which neighbours are searched, and neighbours of a cell (itself counted) to average
        over; ``None``: 2.5 % of the cells, at least 10 and at most 500.
    max_unspliced
        Share of unspliced counts above which the layers are taken for swapped; raise it for nuclei.
    normalize
        Divide each layer by its own totals; False for data that were not sampled, such as exact simulations.
    min_r2, min_ratio, min_correlation
        Least R² (over all cells), γ, and Pearson correlation of u and s of a gene that is used.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.Velocyto().fit(adata)
    >>> list(model.rates().columns)
    ['gamma', 'q', 'r2', 'correlation', 'trusted']

    References
    ----------
    La Manno et al. (2018), doi 10.1038/s41586-018-0414-6.
    """

    info = MethodInfo(
        title="velocyto",
        tasks=("velocity",),
        family="classical",
        year=2018,
        doi="10.1038/s41586-018-0414-6",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        stochastic=False,
        readiness="caution",
        advice="The original steady-state model with offset and strict gene filters.",
    )
    _mutual = False

    n_neighbors: int | None = param(None, low=3)
    min_r2: float = 0.1
    min_ratio: float = 0.01
    min_correlation: float = 0.1

    def _pooled(self, n_cells: int) -> int:
        return self.n_neighbors or int(np.clip(0.025 * n_cells, 10, 500)) + 1

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        s, u = moments.spliced, moments.unspliced
        gamma, q, r2, correlation = by_blocks(_line, s, u)
        trusted = (r2 >= self.min_r2) & (gamma >= self.min_ratio) & (correlation >= self.min_correlation)
        velocity = u - gamma.astype(np.float32) * s - q.astype(np.float32)
        return Rates(velocity, trusted, {"gamma": gamma, "q": q, "r2": r2, "correlation": correlation})


def _line(s: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return slope, offset, R² and the correlation of u and s of each gene."""
    high = [np.maximum(np.percentile(x, 99.9, axis=0), 1e-9) for x in (s, u)]
    both = s / high[0] + u / high[1]
    low, top = np.percentile(both, [2, 98], axis=0)
    gamma, q = line_with_offset(s, u, ((both <= low) | (both >= top)).astype(np.float64))
    a, b = s - s.mean(axis=0), u - u.mean(axis=0)
    correlation = ratio((a * b).sum(axis=0), np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0)))
    return gamma, q, r_squared(u - gamma * s - q, u), correlation
