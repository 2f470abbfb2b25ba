"""BASS: cell types and the domains that are made of them, sampled together over several sections."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.data.bar import Bar
from tenfold.data.heads import clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import normalize_log1p, pca
from tenfold.data.spatial import Positions, spatial_graph, symmetrised
from tenfold.errors import ParameterError
from tenfold.kernels import potts
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.base import DomainFinder, SoftDomains, largest_first
from tenfold.spatial_models.types_in_domains import LARGEST_BETA, TypesInDomains

if TYPE_CHECKING:
    import pandas as pd

#: Sweeps whose mean strength is compared with that of as many before; a smaller change ends the search.
WINDOW, SETTLED = 100, 1e-3
#: Below this agreement between the two halves of the samples the chain is called unsettled.
AGREE = 0.9


class BASS(SoftDomains, DomainFinder):
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
    unscaled, or take fewer components). Averages of components over neighbours with k-means, `SmoothPCA` with 5 rounds,
    do about as well in layered tissue, in a second: see the evidence.

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
        x = self._features(data)
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
        self._sample(chain, data)
        labels, self.probabilities_ = largest_first(self._tally.modes, self._tally.probabilities())
        self.types_, _ = largest_first(self._type_tally.modes, self._type_tally.counts)
        del self._tally, self._type_tally
        return labels

    def _features(self, data: Inputs) -> np.ndarray:
        """Return components of log2 of counts per mean depth, genes scaled where asked, float64."""
        if "use_rep" in data.roles:
            return data.embedding(self.n_components, self.n_top_genes).astype(np.float64)
        depth = float(data.counts.sum(dtype=np.float64)) / data.n_cells
        x = normalize_log1p(data.counts, depth)[:, data.variable_genes(self.n_top_genes)]
        x.data /= np.float32(np.log(2))
        if self.scale:
            mean = np.asarray(x.mean(axis=0)).ravel()
            squares = np.bincount(x.indices, weights=x.data.astype(np.float64) ** 2, minlength=x.shape[1])
            deviation = np.sqrt(np.maximum(squares - len(data.cell_names) * mean**2, 0) / max(x.shape[0] - 1, 1))
            x.data /= np.where(deviation > 1e-6, deviation, 1)[x.indices].astype(np.float32)
        return pca(x, self.n_components, self.seed).embedding.astype(np.float64)

    def _sample(self, chain: TypesInDomains, data: Inputs) -> None:
        """Run the chain, counting labels after the burn-in."""
        n_cells, n_burn_in = data.n_cells, int(self.epochs * self.burn_in)
        self._tally, self._type_tally = potts.Tally(n_cells, chain.n_domains), potts.Tally(n_cells, chain.n_types)
        half, course = np.zeros(n_cells, np.int64), np.empty((self.epochs, 2))
        bar = Bar(self.info.title, self.epochs, data.run.progress)
        settled, before = self.beta is not None, chain.beta
        try:
            for step in range(self.epochs):
                if step == n_burn_in and not settled and n_burn_in:
                    chain.beta = float(course[max(0, step - WINDOW) : step, 0].mean())
                chain.sweep()
                if step < n_burn_in and not settled:
                    chain.draw_beta()
                course[step] = chain.beta, chain.log_likelihood()
                if step < n_burn_in and not settled and (step + 1) % WINDOW == 0:
                    mean = float(course[step + 1 - WINDOW : step + 1, 0].mean())
                    settled, before = abs(mean - before) < SETTLED, mean
                    chain.beta = mean if settled else chain.beta
                if step >= n_burn_in:
                    self._tally.add(chain.domains)
                    self._type_tally.add(chain.types)
                    if step == (n_burn_in + self.epochs) // 2:
                        half[:] = self._tally.modes
                bar.show(step + 1, now="burning in" if step < n_burn_in else "sampling", result=f"β {chain.beta:.2f}")
        finally:
            bar.close()
        self.beta_, self.course_, self.n_burn_in_ = chain.beta, course, n_burn_in
        self._judge(settled, float((half == self._tally.modes).mean()))

    def _judge(self, settled: bool, agreement: float) -> None:
        self.agreement_ = agreement
        if not settled:
            warnings.warn(
                f"The strength of the interaction had not settled in {self.n_burn_in_:,} sweeps and was taken as the "
                f"mean of the last {WINDOW}, {self.beta_:.3f}. Look at its course in `history`; raise epochs.",
                stacklevel=5,
            )
        if agreement < AGREE:
            warnings.warn(
                f"Half of the samples puts {100 * (1 - agreement):.0f} % of the cells into another domain than all of "
                "them: the chain has not settled. Raise epochs, and compare seeds.",
                stacklevel=5,
            )

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

    @property
    def history(self) -> pd.DataFrame:
        """Strength of the interaction and log-likelihood of the components, one row a sweep."""
        import pandas as pd

        self._check_fitted()
        return pd.DataFrame(self.course_, columns=["beta", "log_likelihood"])
