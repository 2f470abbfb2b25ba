"""scVelo's steady-state model: a line through the highest cells of each gene."""

from __future__ import annotations

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.base import Rates, VelocityMethod
from tenfold.velocity_models.steady_state import by_blocks, distance, steady_state


class ScVeloDeterministic(VelocityMethod):
    """Velocity as the distance from the steady state, u = γ s, fitted to the highest cells of each gene.

    Spliced and unspliced counts are averaged over neighbours. Cells above the 95th percentile of s / max + u / max are
    taken to be at the steady state of an active gene; γ is the slope of a line from the origin through them, and
    the velocity is v = u - γ s in units of the splicing rate. Genes with R² > 0.01 and γ > 0.01 are used.

    **Use it** as the simplest model that has a name: no iterations, nothing to go wrong, results in seconds.

    **Do not use it** where genes were not seen at a steady state (short processes), or where splicing or degradation
    change between cell types: the sign of v is wrong then. One splicing rate is assumed for all genes. On a
    real pancreas set its coherence (0.69) was below that of permuted counts (0.79), and so was the known direction in
    gene space (0.12, permuted up to 0.23); what told data and permuted counts apart was the number of genes with
    dynamics (898 against 101). On exact kinetics the direction was far above (0.62 against 0.16). Look at the null
    models of ``tf.compare("velocity", ...)`` before you believe an arrow.

    **Cost**: that of a PCA and a neighbour search; the model itself takes a second for 2,000 genes.

    **Writes** ``layers["scvelo_deterministic_velocity"]`` (NaN for genes that are not used),
    ``obs["scvelo_deterministic_time"]`` (velocity pseudotime) and ``obs["scvelo_deterministic_confidence"]``.

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
        Least R² and γ of a gene that is used.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.ScVeloDeterministic(n_neighbors=15).fit(adata)
    >>> model.velocity().shape
    (200, 60)

    References
    ----------
    Bergen et al. (2020), doi 10.1038/s41587-020-0591-3; La Manno et al. (2018), doi 10.1038/s41586-018-0414-6.
    """

    info = MethodInfo(
        title="scVelo (deterministic)",
        tasks=("velocity",),
        family="classical",
        year=2020,
        doi="10.1038/s41587-020-0591-3",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        stochastic=False,
        readiness="caution",
        advice="The simplest velocity model; a baseline for every other one.",
    )

    percentile: float = param(95.0, low=50.0, high=100.0)
    min_r2: float = 0.01
    min_ratio: float = 0.01

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        s, u = moments.spliced, moments.unspliced
        gamma, r2, _ = by_blocks(lambda s, u: steady_state(s, u, self.percentile), s, u)
        trusted = (r2 > self.min_r2) & (gamma > self.min_ratio)
        return Rates(distance(s, u, gamma), trusted, {"gamma": gamma, "r2": r2})
