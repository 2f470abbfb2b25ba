"""BASS: cell types and the domains that are made of them, sampled together over several sections."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.data.heads import clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions, spatial_graph, symmetrised
from tenfold.errors import ParameterError
from tenfold.kernels import potts
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.base import largest_first
from tenfold.spatial_models.sampling import SampledDomains, log2_components
from tenfold.spatial_models.types_in_domains import LARGEST_BETA, TypesInDomains

if TYPE_CHECKING:
    import pandas as pd


class BASS(SampledDomains):
    """Bayesian model of cell types, and of domains as regions of one composition of types, over several sections.

    Principal components of a cell are Gaussian around the mean of its type, with one covariance for all types; a domain
    has its own proportions of types, in all sections alike; neighbours tend to lie in the same domain (Potts model).
    All of it, the strength of that tendency included, is sampled by Gibbs sampling, domains by the sweeps of Swendsen
    and Wang, which turn whole patches at once. The result are the most frequent domain of each cell, and how frequent
    it was: an uncertainty that no network gives.

    **Use it** for contiguous domains in several sections of single cells, which it finds jointly, and where the types
    within domains are wanted too.

    **Do not use it** without looking at ``history`` and at several seeds, nor for components of which the first do not
    carry the domains: the shared covariance whitens them, and the result can be smooth, stable and wrong (leave genes
    unscaled, or take fewer components). It is no clear gain over `SmoothPCA`: in three sections of mouse cortex
    together it reached an adjusted Rand index of 0.76, `SmoothPCA` 0.72 with 2 and 0.77 with 5 rounds, in a second; it
    was above both in the section that is hardest, by 0.05 and more.

    **Cost**: cells × components × types × sweeps; some milliseconds a sweep for 3,000 cells. Memory is linear in cells:
    samples are counted, not kept.

    **Writes** ``obs["bass"]`` (domains) and ``obsm["bass_probabilities"]`` (their posterior probabilities).

    Parameters
    ----------
    n_types
        Number of cell types, generous: at least that of domains.
    n_components
        Principal components; those of ``use_rep`` are taken as they are.
    n_neighbors
        Nearest cells of the graph, which is made symmetric.
    scale
        Whether genes get a variance of 1 first. The authors do not for layers of cortex in Visium.
    n_top_genes
        Variable genes, where there are more; ``None`` takes all.
    align
        ``"centre"`` gives components the same mean in every section; ``"none"`` leaves them. The original runs Harmony
        on them: to do so, run it and name its result with ``use_rep``.
    beta
        Strength of the interaction, between 0 and 4; ``None`` estimates it while burning in.
    start
        First types and domains: ``"kmeans"`` or ``"mclust"``.
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
    As in the original, the strength is estimated from the first section alone. Labels that change their names along
    the chain are matched to the most frequent labels so far, sample by sample, where the original stores all samples
    and matches them at the end. Genes are variable ones, not those of SPARK-X.

    Warns
    -----
    UserWarning
        The strength had not settled when burning in ended, or the two halves of the samples disagree.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.BASS(n_clusters=3, n_types=8, epochs=50).fit(adata)
    >>> model.composition().shape
    (8, 3)

    References
    ----------
    Li and Zhou (2022), doi 10.1186/s13059-022-02734-7.
    """

    info = MethodInfo(
        title="BASS",
        tasks=("domains",),
        family="bayesian",
        year=2022,
        doi="10.1186/s13059-022-02734-7",
        accepts=("spatial", "sample", "batch", "use_rep"),
        gives=("domains", "probabilities", "cell types"),
        readiness="usable",
        advice="Contiguous domains of several sections together, with cell types and uncertainty; look at the chain.",
    )

    n_types: int = param(20, low=2)
    n_components: int = param(20, low=2)
    n_neighbors: int = param(4, low=1)
    scale: bool = True
    n_top_genes: int | None = param(2000, low=10)
    align: Literal["centre", "none"] = "centre"
    beta: float | None = param(None, low=0.0, high=LARGEST_BETA)
    start: Literal["kmeans", "mclust"] = "kmeans"
    epochs: int = param(7000, low=1)
    burn_in: float = param(2 / 7, low=0.0, high=0.95)

    def _domains(self, data: Inputs, positions: Positions) -> np.ndarray:
        x = log2_components(data, self.n_components, self.n_top_genes, self.scale, self.seed)
        if self.align == "centre":
            for cells in positions.each():
                x[cells] -= x[cells].mean(axis=0)
        types = clusters_of(x, self.n_types, self.start, self.seed)
        domains = clusters_of(x, self.n_clusters, self.start, self.seed)
        n_domains = self.n_clusters or int(domains.max()) + 1
        if self.n_types < n_domains:
            raise ParameterError(f"BASS: n_types={self.n_types} is less than the {n_domains} domains made of them.")
        graph = symmetrised(spatial_graph(positions, "knn", self.n_neighbors))
        first = positions.each()[0]
        chain = TypesInDomains(x, types, domains, (self.n_types, n_domains), potts.edge_list(graph),
                               (first, potts.edge_list(graph[first][:, first])), self.beta, self.seed)  # fmt: skip
        tallies = self._sample(chain, data)
        self.types_, _ = largest_first(tallies["types"].modes, tallies["types"].counts)
        self.beta_ = chain.beta
        if not chain.settled:
            warnings.warn(
                f"The strength of the interaction had not settled in {self.n_burn_in_:,} sweeps and was taken as the "
                f"mean of the last ones, {self.beta_:.3f}. Look at its course in `history`; raise epochs.",
                stacklevel=4,
            )
        return self._most_frequent(tallies)

    def types(self) -> np.ndarray:
        """Return the cell type of each cell, integers from 0 (largest), shape (n_cells,)."""
        self._check_fitted()
        return self.types_

    def composition(self) -> pd.DataFrame:
        """Return the proportion of each type in each domain, shape (n_types, n_domains); columns sum to 1."""
        import pandas as pd

        self._check_fitted()
        table = np.zeros((self.n_types, self.probabilities_.shape[1]))
        np.add.at(table, (self.types_, self.domains_), 1)
        table /= np.maximum(table.sum(axis=0), 1)
        return pd.DataFrame(table, columns=[str(level) for level in range(table.shape[1])])
