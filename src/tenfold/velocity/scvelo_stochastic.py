"""scVelo's stochastic model: first and second moments share one degradation ratio."""

from __future__ import annotations

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.base import Rates, VelocityMethod
from tenfold.velocity_models.steady_state import by_blocks, distance, generalised, steady_state

#: Genes whose second moments exist at a time.
SECOND = 256


class ScVeloStochastic(VelocityMethod):
    """Velocity as the distance from the steady state, with γ from means and variances together.

    As `ScVeloDeterministic`, but where transcription, splicing and degradation are random events, the covariance of
    unspliced and spliced counts is tied to their variance by the same γ: both relations are fitted at once, each
    weighted by its residual (generalised least squares). The velocity graph is that of signed square roots.

    **Use it** where scVelo's default is asked for, as the reference point that most published velocities have.

    **Do not use it** for what the deterministic model cannot do either: transient genes, changing rates, short
    processes. On a real pancreas set its coherence (0.82) was below that of permuted counts (0.84), and its
    direction in gene space inside theirs (0.10, permuted up to 0.11): what told data and permuted counts apart was the
    number of genes with dynamics (898 against 101). On exact kinetics the direction was far above (0.72 against 0.22).
    Look at the null models of ``tf.compare("velocity", ...)`` before you believe an arrow.

    **Cost**: twice the averages of the deterministic model; seconds.

    **Writes** ``layers["scvelo_stochastic_velocity"]`` (NaN for genes that are not used),
    ``obs["scvelo_stochastic_time"]`` (velocity pseudotime) and ``obs["scvelo_stochastic_confidence"]``.

    Parameters
    ----------
    n_top_genes
        Variable genes among those with enough counts; ``None`` takes all.
    min_shared_counts
        Least counts of a gene, spliced and unspliced, in cells that have both.
    n_components, n_neighbors
        Principal components in which neighbours are searched, and neighbours of a cell (itself counted) to average
        over.
    max_unspliced
        Share of unspliced counts above which the layers are taken for swapped; raise it for nuclei.
    normalize
        Divide each layer by its own totals; False for data that were not sampled, such as exact simulations.
    percentile
        Cells above it are taken for the steady state.
    min_r2, min_ratio
        Least R² and γ, of the deterministic fit, of a gene that is used.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.ScVeloStochastic(n_neighbors=15).fit(adata)
    >>> model.time().shape
    (200,)

    References
    ----------
    Bergen et al. (2020), doi 10.1038/s41587-020-0591-3.
    """

    info = MethodInfo(
        title="scVelo (stochastic)",
        tasks=("velocity",),
        family="classical",
        year=2020,
        doi="10.1038/s41587-020-0591-3",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        stochastic=False,
        readiness="caution",
        advice="scVelo's default: the velocities that most publications show.",
    )
    _root = True

    percentile: float = param(95.0, low=50.0, high=100.0)
    min_r2: float = 0.01
    min_ratio: float = 0.01

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        s, u = moments.spliced, moments.unspliced
        gamma, r2, _ = by_blocks(lambda s, u: steady_state(s, u, self.percentile), s, u)
        trusted = (r2 > self.min_r2) & (gamma > self.min_ratio)
        fitted = np.flatnonzero(trusted) if trusted.any() else np.arange(len(trusted))
        ratio = gamma.copy()
        for start in range(0, len(fitted), SECOND):
            genes = fitted[start : start + SECOND]
            own_s, own_u = s[:, genes], u[:, genes]
            squares, products = moments.second(genes)
            ratio[genes] = by_blocks(
                lambda s, u, v, c: generalised(s, u, v, c, self.percentile),
                own_s, own_u, 2 * squares - own_s, 2 * products + own_u,
            )[0]  # fmt: skip
        return Rates(distance(s, u, ratio), trusted, {"gamma": ratio, "qreg_ratio": gamma, "r2": r2})
