"""BayesSpace: clusters of spots by a mixture of t-distributions whose labels neighbours share."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.data.heads import clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.lattice import Lattice, lattice_of
from tenfold.data.spatial import Positions
from tenfold.kernels.draws import gaussian, wishart
from tenfold.kernels.potts import site_sweep
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.sampling import SampledDomains, log2_components

#: Precision of the prior of means; degrees of freedom and inverse scale of that of the precision.
PRIOR, FREEDOM, INVERSE_SCALE = 0.01, 1.0, 0.01
#: Degrees of freedom of the t-distribution.
TAILS = 4.0
#: Strength of smoothing by lattice, in the original.
SMOOTHING = {"hexagonal": 3.0, "square": 2.0, "none": 3.0}


class BayesSpace(SampledDomains):
    """Mixture of t-distributions of principal components, with a prior that neighbours share their cluster.

    Components of a spot follow a t-distribution with 4 degrees of freedom around the mean of its cluster, with one
    precision for all clusters; the prior of a label grows with the share of the neighbours that have it, with a fixed
    strength. Means, precision, weights of spots and labels are sampled in turn. The result is the most frequent label
    of each spot, and how frequent it was.

    **Use it** for contiguous domains of spots on a lattice (Visium, Spatial Transcriptomics) where an uncertainty is
    wanted. In the two annotated slices of spots that were measured it was above `SmoothPCA` (2 and 5 rounds), with the
    number of domains known: an adjusted Rand index of 0.49 beside 0.43 in layers of cortex, 0.46 beside 0.18 in a
    breast tumour.

    **Do not use it** for single cells whose types are mixed within domains, since its clusters are of expression: in a
    section of mouse cortex it reached 0.49, `SmoothPCA` 0.76 and more; `BASS` is made for these. Nor where the first
    components do not carry the domains: one precision for all clusters whitens them. It keeps much of the clustering
    that it starts from, so compare seeds.

    **Cost**: cells × components × domains × sweeps; about two milliseconds a sweep for 4,000 spots. Memory is linear in
    cells: samples are counted, not kept.

    **Writes** ``obs["bayesspace"]`` (domains) and ``obsm["bayesspace_probabilities"]`` (their posterior probabilities).

    Parameters
    ----------
    n_components
        Principal components; those of ``use_rep`` are taken as they are.
    lattice
        ``"hexagonal"``, ``"square"`` or ``"none"`` (six nearest cells); ``"auto"`` reads it off the columns
        ``array_row`` and ``array_col`` of obs, or off the positions.
    smoothing
        Strength γ of the prior; ``None`` takes 3, and 2 on a square lattice.
    errors
        ``"t"`` or ``"normal"``.
    n_top_genes
        Variable genes; ``None`` takes all.
    start
        First labels: ``"mclust"`` or ``"kmeans"``.
    epochs, burn_in
        Sweeps over all cells, and the share of them that is left out at the start.
    n_clusters
        Number of domains; ``None`` takes the number that `start` chooses on components, which is a poor guess.
    refinement, n_refining
        ``"majority"`` gives every cell the most frequent label of so many nearest cells, ``"outvoted"`` changes labels
        that have less than half and another more than half of the votes; ``"none"`` leaves them.
    seed
        Of the start and the chain.

    Notes
    -----
    A label is drawn from all at once, given its neighbours, where the original proposes one other label at a time and
    needs 50,000 sweeps. Its division of whole numbers, which rounds the shape of the weights' distribution down, is not
    repeated. Sections are not joined, and batches not corrected: name the result of `Harmony` with ``use_rep``.
    Sub-spot resolution is left out.

    Warns
    -----
    UserWarning
        The two halves of the samples disagree.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.BayesSpace(n_clusters=3, epochs=50).fit(adata)
    >>> model.probabilities().shape
    (700, 3)

    References
    ----------
    Zhao et al. (2021), doi 10.1038/s41587-021-00935-2.
    """

    info = MethodInfo(
        title="BayesSpace",
        tasks=("domains",),
        family="bayesian",
        year=2021,
        doi="10.1038/s41587-021-00935-2",
        accepts=("spatial", "sample", "batch", "use_rep"),
        gives=("domains", "probabilities"),
        readiness="usable",
        advice="Spots on a lattice with a known number of domains, where uncertainty is wanted; beside smooth_pca.",
    )

    n_components: int = param(15, low=2)
    lattice: Literal["auto", "hexagonal", "square", "none"] = "auto"
    smoothing: float | None = param(None, low=0.0)
    errors: Literal["t", "normal"] = "t"
    n_top_genes: int | None = param(2000, low=10)
    start: Literal["mclust", "kmeans"] = "mclust"
    epochs: int = param(2000, low=1)

    def _domains(self, data: Inputs, positions: Positions) -> np.ndarray:
        y = log2_components(data, self.n_components, self.n_top_genes, seed=self.seed)
        first = clusters_of(y, self.n_clusters, self.start, self.seed)
        found: Lattice = lattice_of(data, positions, self.lattice)
        self.lattice_ = found.shape
        strength = SMOOTHING[found.shape] if self.smoothing is None else self.smoothing
        n_domains = self.n_clusters or int(first.max()) + 1
        chain = SmoothMixture(y, first, n_domains, found.graph, strength, self.errors == "t", self.seed)
        return self._most_frequent(self._sample(chain, data))


class SmoothMixture:
    """The chain: means, precision, weights and labels, drawn in turn given all others.

    Parameters
    ----------
    y
        Components, shape (n_cells, d), float64.
    labels
        First labels, shape (n_cells,).
    n_domains
        Number of labels.
    graph
        Neighbours, symmetric.
    strength
        Of the prior of labels.
    tails
        Whether errors are t-distributed; else normal.
    seed
        Of the chain.
    """

    course = ("log_likelihood",)

    def __init__(
        self, y: np.ndarray, labels: np.ndarray, n_domains: int, graph: sparse.csr_matrix, strength: float, tails: bool,
        seed: int,
    ):  # fmt: skip
        self.y, self.domains, self.n_domains = y, labels.astype(np.int64), n_domains
        self.sizes, self.labels = {"domains": n_domains}, {"domains": self.domains}  # changed in place
        self.indptr, self.indices, self.strength, self.tails = graph.indptr, graph.indices, strength, tails
        self.rng, self.weights, self.centre = np.random.default_rng(seed), np.ones(len(y)), y.mean(axis=0)
        self.precision = np.eye(y.shape[1]) * PRIOR

    def sweep(self, burning_in: bool) -> tuple[float]:
        """Draw everything once; return the log-likelihood of the components, without the constant."""
        self.draw_means()
        self.draw_precision()
        squares = self.squares()
        own = squares[np.arange(len(self.y)), self.domains]
        if self.tails:
            self.weights = self.rng.gamma((self.y.shape[1] + TAILS) / 2, 2 / (own + TAILS))
        site_sweep(-0.5 * self.weights[:, None] * squares, self.indptr, self.indices, self.domains, self.strength,
                   self.rng)  # fmt: skip
        own = squares[np.arange(len(self.y)), self.domains]
        spread = len(self.y) * np.linalg.slogdet(self.precision)[1] + self.y.shape[1] * np.log(self.weights).sum()
        return (float(0.5 * (spread - (self.weights * own).sum())),)

    def draw_means(self) -> None:
        """Means of domains, around that of all cells."""
        belongs = np.zeros((len(self.y), self.n_domains))
        belongs[np.arange(len(self.y)), self.domains] = self.weights
        mass, sums = belongs.sum(axis=0), belongs.T @ self.y
        precision = mass[:, None, None] * self.precision + PRIOR * np.eye(self.y.shape[1])
        self.means = gaussian(precision, sums @ self.precision + PRIOR * self.centre, self.rng)

    def draw_precision(self) -> None:
        """Precision shared by all domains."""
        away = self.y - self.means[self.domains]
        scatter = (away * self.weights[:, None]).T @ away
        self.precision = wishart(len(away) + FREEDOM, scatter + INVERSE_SCALE * np.eye(len(scatter)), self.rng)

    def squares(self) -> np.ndarray:
        """Return the squared distance of every cell to every mean in units of the spread, (n_cells, n_domains)."""
        root = np.linalg.cholesky(self.precision)
        y, means = self.y @ root, self.means @ root
        cross = np.square(y).sum(axis=1)[:, None] - 2 * y @ means.T + np.square(means).sum(axis=1)
        return np.maximum(cross, 0.0)
