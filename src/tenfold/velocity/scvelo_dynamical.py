"""scVelo's dynamical model: two-phase kinetics of each gene, and one time for all genes."""

from __future__ import annotations

from tempfile import TemporaryFile
from typing import Literal

import numpy as np
from scipy.sparse.csgraph import reverse_cuthill_mckee

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.data.velocity_graph import TerminalStates
from tenfold.kernels.two_phase_genes import SCANNED, fit_genes
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.base import Rates, VelocityMethod
from tenfold.velocity_models.steady_state import all_cells, by_blocks, steady_state
from tenfold.velocity_models.two_phase import followed, latent_time

#: Genes, and numbers (cells × genes), that are fitted before their times are reduced to what is kept: bounds memory.
BLOCK, LARGEST = 200, 4_000_000


class ScVeloDynamical(VelocityMethod):
    """Velocity from a fit of splicing kinetics: each gene is switched on once and off once, at rates of its own.

    Every gene with R² > 0.01 of u and s is fitted: rates of transcription, splicing and degradation, the time of the
    switch, a scaling of unspliced counts, and a time and a phase for every cell, where neighbours decide together.
    Times of genes are stretched to a common length and joined to one latent time.

    Two ways to fit: ``"profile"`` starts as scVelo does and then minimises the distance of cells to the curve in the
    plane of u and s, whose shape has four parameters; ``"reference"`` is scVelo's own schedule of few simplex
    steps, compiled, which gives its rates for nearly every gene. A lower loss is not a better time: compare both.

    **Use it** for processes without steady states, where there is one course that all cells follow, and for a time
    that is not tied to a graph.

    **Do not use it** as evidence that cells move: its coherence is the same without velocity (0.89 on 500 genes of a
    real pancreas set, 0.85 with unspliced counts permuted; 0.96 and 0.97 on a simulation that branches), and on
    the real set its known direction in gene space was below that of permuted counts (0.20, permuted up to 0.26). Two
    good fits of a gene can have unrelated velocities, and rates that change between lineages are outside of the model:
    where a simulation branches, the steady-state models found the direction better (0.43 here, 0.72 for
    `ScVeloStochastic`). Look at the null models of ``tf.compare("velocity", ...)``.

    **Cost**: about 4 milliseconds a gene at 700 cells (reference schedule 6), in proportion to the cells; genes are
    fitted in parallel.

    **Writes** ``layers["scvelo_dynamical_velocity"]`` (NaN for genes that are not used),
    ``obs["scvelo_dynamical_time"]`` (latent time) and ``obs["scvelo_dynamical_confidence"]``.

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
    min_r2, min_ratio
        Least R² (of a line through all cells) and γ of the steady-state fit of a gene that is fitted.
    schedule
        ``"profile"`` or ``"reference"``.
    min_likelihood
        Least likelihood of a gene whose velocity is used. Profile fits have higher likelihoods than scVelo's.
    time_likelihood
        Least likelihood of a gene that has a say in the latent time.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.ScVeloDynamical(n_neighbors=15).fit(adata)
    >>> "likelihood" in model.rates()
    True

    References
    ----------
    Bergen et al. (2020), doi 10.1038/s41587-020-0591-3.
    """

    info = MethodInfo(
        title="scVelo (dynamical)",
        tasks=("velocity",),
        family="classical",
        year=2020,
        doi="10.1038/s41587-020-0591-3",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        stochastic=False,
        readiness="caution",
        advice="Kinetics without steady states and a latent time; its confidence is the same on permuted counts.",
    )

    min_r2: float = 0.01
    min_ratio: float = 0.01
    schedule: Literal["profile", "reference"] = "profile"
    min_likelihood: float = param(1e-3, low=0.0)
    time_likelihood: float = param(0.1, low=0.0)

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        s, u = moments.spliced, moments.unspliced
        r2 = by_blocks(all_cells, s, u)[0]
        gamma = by_blocks(steady_state, s, u)[0]
        chosen = np.flatnonzero((r2 > self.min_r2) & (gamma > self.min_ratio))
        velocity = np.full(s.shape, np.nan, np.float32)
        # As much as the velocities, and of no use while their graph is made.
        self._times = TemporaryFile()  # noqa: SIM115
        names = ("alpha", "beta", "gamma", "switch", "scaling", "likelihood", "loss")
        table = {name: np.full(len(r2), np.nan) for name in names}
        # Of many cells, neighbours are put side by side: sums over them are most of the work, and take half the time
        # out of nearer caches. Fewer cells stay, since the order of a sum decides between phases that are equally near.
        many = len(s) >= 2 * SCANNED
        order = reverse_cuthill_mckee(moments.mean, symmetric_mode=True) if many else np.arange(len(s))
        mean = moments.mean[order][:, order]
        mean.sort_indices()
        size = min(BLOCK, max(1, LARGEST // len(s)))
        for genes in np.split(chosen, range(size, len(chosen), size)):
            own_u, own_s = (x[np.ix_(order, genes)] for x in (u, s))
            found = fit_genes(own_u, own_s, mean, profile=self.schedule == "profile")
            rates, times, velocity[np.ix_(order, genes)] = followed(found, own_u, own_s, mean)
            well = (found.likelihood >= self.time_likelihood) & np.isfinite(times).all(axis=1)
            times[well][:, np.argsort(order)].tofile(self._times)
            for name, values in zip(table, (*rates.T, found.likelihood, found.loss), strict=True):
                table[name][genes] = values
        scaling = table["scaling"]
        table["beta"] = table["beta"] / scaling
        trusted = np.zeros(len(r2), dtype=bool)
        if np.isfinite(scaling).any():
            low, high = np.nanpercentile(scaling, [10, 90])
            trusted = (table["likelihood"] > self.min_likelihood) & (scaling > min(low, 0.03))
            trusted &= scaling < max(high, 3)
        return Rates(velocity, trusted, {**table, "r2": r2})

    def _time(self, moments: Moments, states: TerminalStates) -> np.ndarray:
        with self._times as file:
            file.seek(0)
            times = np.fromfile(file, np.float32).reshape(-1, len(states.roots))
        del self._times
        return latent_time(times, states.roots, moments.mean) if len(times) else super()._time(moments, states)
