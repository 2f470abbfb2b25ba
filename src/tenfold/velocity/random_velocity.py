"""Random velocities: what a picture of arrows looks like when nothing is behind it."""

from __future__ import annotations

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.base import Rates, VelocityMethod


class RandomVelocity(VelocityMethod):
    """Normal noise with the spread of each gene, averaged over neighbours as counts are: the baseline without signal.

    **Use it** beside every other method. Its confidence, its smooth arrows and its "time" come from averaging over
    neighbours alone; what another method shows beyond that may be velocity.

    **Do not use it** for anything else: no number that it gives is about the cells.

    **Cost**: that of a PCA and a neighbour search.

    **Writes** ``layers["random_velocity_velocity"]``, ``obs["random_velocity_time"]`` and
    ``obs["random_velocity_confidence"]``.

    Parameters
    ----------
    n_top_genes
        Variable genes among those with enough counts; ``None`` takes all.
    min_shared_counts
        Least counts of a gene, spliced and unspliced, in cells that have both.
    n_components, n_neighbors
        Principal components in which neighbours are searched, and neighbours of a cell (itself counted).
    max_unspliced
        Share of unspliced counts above which the layers are taken for swapped.
    normalize
        Divide each layer by its own totals.
    seed
        Of the noise.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.RandomVelocity(n_neighbors=15).fit(adata)
    >>> bool(model.confidence().mean() > 0.3)
    True

    References
    ----------
    Zheng et al. (2023), doi 10.1186/s13059-023-03065-9 (arrows as interpolation on the neighbour graph).
    """

    info = MethodInfo(
        title="Random velocities",
        tasks=("velocity",),
        family="baseline",
        year=2023,
        doi="10.1186/s13059-023-03065-9",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        readiness="research",
        advice="The baseline that a velocity must beat: noise, averaged over neighbours.",
    )

    seed: int = param(0, low=0)

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        spread = moments.spliced.std(axis=0)
        noise = np.random.default_rng(self.seed).normal(size=moments.spliced.shape).astype(np.float32)
        velocity = (moments.mean @ noise) * spread
        return Rates(velocity, spread > 0, {"r2": np.zeros(len(spread))})
