"""Velocities from pseudotime: the displacement to later neighbours, without a look at unspliced counts."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.data.velocity_graph import diffusion, diffusion_distance
from tenfold.method import MethodInfo
from tenfold.velocity_models.base import Rates, VelocityMethod


class PseudotimeVelocity(VelocityMethod):
    """The mean displacement of each cell to those neighbours that are later in diffusion pseudotime.

    The beginning is the end of the first diffusion component whose cells express more genes, as immature cells mostly
    do. Unspliced counts are not used.

    **Use it** beside every other method: one that equals it says nothing that the neighbour graph did not say.

    **Do not use it** as velocity: it has direction only from a rule of thumb about the number of genes, which is wrong
    in some tissues: on a pancreas set it runs backwards.

    **Cost**: that of a PCA, a neighbour search and ten eigenvectors.

    **Writes** ``layers["pseudotime_velocity_velocity"]``, ``obs["pseudotime_velocity_time"]`` (diffusion pseudotime)
    and ``obs["pseudotime_velocity_confidence"]``.

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

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.PseudotimeVelocity(n_neighbors=15).fit(adata)
    >>> float(model.time().min())
    0.0

    References
    ----------
    Haghverdi et al. (2016), doi 10.1038/nmeth.3971 (diffusion pseudotime); Gulati et al. (2020),
    doi 10.1126/science.aax0249 (number of expressed genes).
    """

    info = MethodInfo(
        title="Pseudotime direction",
        tasks=("velocity",),
        family="baseline",
        year=2016,
        doi="10.1038/nmeth.3971",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        stochastic=False,
        readiness="research",
        advice="The baseline without unspliced counts: a velocity that equals it adds nothing.",
    )

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        weights = moments.graph.connectivities.astype(np.float64)
        values, vectors = diffusion(weights)
        expressed = moments.mean @ np.diff(moments.counts.spliced[:, moments.columns].indptr).astype(np.float64)
        first = vectors[:, min(1, vectors.shape[1] - 1)] / np.where(np.abs(vectors[:, 0]) > 0, vectors[:, 0], 1)
        ends = [int(first.argmin()), int(first.argmax())]
        time = diffusion_distance(values, vectors, max(ends, key=lambda cell: expressed[cell]))
        edges = sparse.coo_matrix(weights)
        later = time[edges.col] > time[edges.row]
        ahead = sparse.csr_matrix((np.ones(later.sum()), (edges.row[later], edges.col[later])), shape=weights.shape)
        number = np.maximum(np.asarray(ahead.sum(axis=1)), 1)
        moving = np.asarray(ahead.sum(axis=1)) > 0
        velocity = np.where(moving, (ahead @ moments.spliced) / number - moments.spliced, 0)
        everywhere = np.ones(velocity.shape[1], dtype=bool)
        return Rates(velocity.astype(np.float32), everywhere, {"r2": np.zeros(len(everywhere))}, time)
