"""cellDancer: rates of every gene in every cell, from a small network of its own for each gene."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.kinetics import two_phases
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.cell_rates import CellRates

if TYPE_CHECKING:
    from tenfold.nn.gene_networks import GeneNetworks, Plane

Start = Literal["circle", "branch"]
#: β as a share of its bound, α of a gene without any, and what shares are kept away from, in genes to start from.
BETA, ALPHA_BOUND, EDGE = 0.5, 2.0, 0.03
#: Simulated genes, cells of each, and updates from which networks start.
GENES, CELLS, UPDATES = 60, 40, 300
#: A gene has been at a steady state if more than this share of cells lies above this share of both maxima.
CORNER_CELLS, CORNER = 0.001, 0.9


class CellDancer(CellRates):
    """Rates of their own for every gene in every cell, by a small network for each gene.

    In the plane of a gene's unspliced and spliced counts, a network gives each place rates α, β and γ, and these a
    velocity, which is to point to one of the places near by where there are cells. The places are those of the
    averages, each taken once. Genes train together, in one network of grouped layers, and each stops by itself.

    A velocity and its opposite are as good, since there are cells on both sides: which way is forward is decided by the
    networks that training starts from. Here these have learnt the rates of simulated genes that go on and off
    (``start="circle"``: spliced counts rise where there is more unspliced RNA than at a steady state, and fall where
    there is less), or of genes that go on at different rates in two lineages (``"branch"``: they rise nearly
    everywhere).

    **Use it** to look at rates of single genes along a process whose direction is known.

    **Do not use it** to find out which way a process goes, or as evidence that cells move. On simulated genes that go
    on and off it had the signs right (99.8 %), but so had the start without any training, and from a start turned round
    it had 47 %, if at a loss nine times as high. Where a simulation branches it had 70 % right, `ScVeloStochastic`
    76 %. Its flow is as coherent on permuted counts (0.79 on 238 genes of a real pancreas set, 0.84 with genes
    mismatched), but the known direction there was above them (0.25 in gene space, at most 0.09; 0.17 where counts were
    permuted within groups). Look at the null models of ``tf.compare("velocity", ...)``.

    **Cost**: linear in genes × epochs, and in the square of an eighth of the cells: 200 epochs of 1,000 genes × 3,000
    cells about six minutes of one busy core; an update of 12 genes took a sixtieth of the original's time.

    **Writes** ``layers["celldancer_velocity"]`` (NaN for genes that are not fitted), ``obs["celldancer_time"]``
    (pseudotime along the velocity graph) and ``obs["celldancer_confidence"]``.

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
        Least R² and γ of the steady-state fit of a gene that is fitted.
    n_hidden
        Width of the two hidden layers of each gene.
    sampled
        Share of a gene's places that an epoch takes, at random, but `phase_neighbors` at least.
    phase_neighbors
        Places (itself counted) to one of which a velocity is to point, nearest in counts.
    start
        Of which simulated genes training starts; ``"auto"``: as the original, those with a steady state where more than
        0.1 % of the cells lie above 90 % of both maxima, and branches elsewhere.
    epochs
        Updates at most. A gene is done when its smoothed loss has not fallen in three looks, ten epochs apart.
    learning_rate, weight_decay
        Of Adam.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of simulated genes, weights and places.

    Notes
    -----
    The original ships weights to start from, trained on simulations of its own; these are others. It divides u and s by
    their maxima but bounds α and γ as if it had not, so that where spliced counts are several times the unspliced ones
    its training starts from velocities of spliced counts that are positive nearly everywhere; here bounds and axes
    agree, and β u is the same in du/dt and in ds/dt. It also thins out cells on a grid in the embedding, which the
    rounding of places makes needless.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=40, seed=0)
    >>> model = tf.velocity.CellDancer(n_neighbors=15, epochs=5, n_hidden=20).fit(adata)
    >>> sorted(model.cell_rates())
    ['alpha', 'beta', 'gamma']

    References
    ----------
    Li et al. (2024), doi 10.1038/s41587-023-01728-5.
    """

    info = MethodInfo(
        title="cellDancer",
        tasks=("velocity",),
        family="deep",
        year=2024,
        doi="10.1038/s41587-023-01728-5",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        readiness="research",
        advice="Rates of each cell; which way is forward comes from where its training starts, not from the data.",
    )

    epochs: int = param(200, low=1)
    weight_decay: float = param(0.004, low=0.0)
    n_hidden: int = param(100, low=1)
    sampled: float = param(0.125, low=0.001, high=1.0)
    phase_neighbors: int = param(30, low=3)
    start: Literal["circle", "branch", "auto"] = "circle"

    def _learnt(self, data: Inputs, s: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        from tenfold.engine import Phase, seeded
        from tenfold.kernels.adam import Adam
        from tenfold.nn.gene_networks import CosineTraining, plane_of

        plane = plane_of(u, s)
        corner = ((u > CORNER * u.max(axis=0)) & (s > CORNER * s.max(axis=0))).mean(axis=0)
        circle = corner > CORNER_CELLS if self.start == "auto" else np.full(s.shape[1], self.start == "circle")
        with seeded(self.seed):
            training = CosineTraining(self._begun(circle), plane, factors_of(plane), self.sampled, self.phase_neighbors)
        phase = Phase(
            "train", self.epochs, lambda net, batch, progress: net.terms(progress.epoch),
            optimizer=partial(Adam, lr=self.learning_rate, weight_decay=self.weight_decay),
            parameters=lambda net: net.rates.parameters(), until=lambda history: bool(training.done.all()),
        )  # fmt: skip
        cells = {"totals": np.stack([s.sum(axis=1), u.sum(axis=1)], axis=1)}
        self._train(training, data, cells, [phase], batch_size=None)
        self.net_ = training.finished()
        rates = self._rates_at(s, u)
        numbers = {"loss": training.smoothed.numpy(), "circle": circle, "corner": corner}
        return rates["beta"] * u - rates["gamma"] * s, numbers

    def _begun(self, circle: np.ndarray) -> GeneNetworks:
        """Return networks that start from those of simulated genes, of one of two kinds."""
        import torch

        from tenfold.nn.gene_networks import GeneNetworks

        net = GeneNetworks(len(circle), self.n_hidden)
        kinds: tuple[Start, ...] = ("circle", "branch")
        for kind, genes in zip(kinds, (circle, ~circle), strict=True):
            if genes.any():
                taught = pretrained(*simulated(kind, np.random.default_rng(self.seed)), self.n_hidden)
                net.take(taught, torch.from_numpy(genes), torch.zeros(genes.sum(), dtype=torch.int64))
        return net

    def _build(self) -> GeneNetworks:
        from tenfold.nn.gene_networks import GeneNetworks

        return GeneNetworks(int(self.fitted_.sum()), self.n_hidden)

    def cell_rates(self) -> dict[str, np.ndarray]:
        """Return α, β and γ of each fitted gene in each cell: du/dt = α - β u, ds/dt = β u - γ s.

        Returns
        -------
        ``"alpha"``, ``"beta"``, ``"gamma"``, each (n_cells, g), float32, with columns for the genes in ``fitted_``; in
        units in which β is at most 1.
        """
        self._check_fitted()
        return self._rates_at(*(x[:, self.fitted_] for x in (self.spliced_, self.unspliced_)))

    def _rates_at(self, s: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        u_max, s_max = (np.maximum(x.max(axis=0), 1e-12) for x in (u, s))
        beta, gamma, alpha = self.net_.everywhere(u / u_max, s / s_max)
        return {"alpha": alpha * (ALPHA_BOUND * u_max), "beta": beta, "gamma": gamma * (u_max / s_max)}


def factors_of(plane: Plane) -> np.ndarray:
    """Return what α, β u and γ s are multiplied with where both axes are divided by their maxima, (n_genes, 3).

    With α up to twice the highest u, β up to 1 and γ up to highest u by highest s: du/dt = 2 a - b u and
    ds/dt = (highest u / highest s) (b u - g s), a, b and g from 0 to 1.
    """
    ratio = plane.highest[:, 0] / plane.highest[:, 1]
    return np.stack([np.full_like(ratio, ALPHA_BOUND), ratio, ratio], axis=1)


def simulated(kind: Start, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return places in the plane of u and s, maxima 1, and β, γ and α there as shares of their bounds.

    ``"circle"``: genes go on, reach a steady state, and go off. ``"branch"``: genes go on at different rates in two
    lineages, one of which makes more unspliced, the other more spliced counts; nowhere do they go off.
    """
    points, shares = [], []
    for _ in range(GENES):
        gamma = np.exp(rng.uniform(np.log(0.3), np.log(3)))
        if kind == "circle":
            switch = rng.uniform(3, 8) / min(1, gamma)
            t = np.concatenate([rng.uniform(0, switch, CELLS), switch + rng.uniform(0, 4 / min(1, gamma), CELLS)])
            u, s = two_phases(t, np.array(switch), np.array(1.0), np.array(1.0), np.array(gamma))
            alpha, gammas = (t < switch).astype(float), np.full(len(t), gamma)
        else:
            rise, lineage = rng.uniform(0.2, 0.6), np.repeat([0, 1], CELLS)
            alpha = np.where(lineage, rise, 1.0)
            gammas = np.where(lineage, gamma * rise * rng.uniform(0.2, 0.7), gamma)
            t = rng.uniform(0, 6, 2 * CELLS) / np.minimum(1, gammas)
            u, s = two_phases(t, np.full(len(t), np.inf), alpha, np.ones(len(t)), gammas)
        points.append(np.stack([u / u.max(), s / s.max()], axis=1))
        shares.append(np.stack([np.ones(len(t)), gammas * s.max() / u.max(), alpha / u.max() / ALPHA_BOUND], axis=1))
    found = np.clip(BETA * np.concatenate(shares), EDGE, 1 - EDGE)
    return np.concatenate(points).astype(np.float32), found.astype(np.float32)


def pretrained(points: np.ndarray, shares: np.ndarray, n_hidden: int) -> GeneNetworks:
    """Return one network that has learnt shares of rates at points; from it all genes start."""
    import torch

    from tenfold.nn.gene_networks import GeneNetworks

    net = GeneNetworks(1, n_hidden)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, wanted = torch.from_numpy(points), torch.from_numpy(shares)
    for _ in range(UPDATES):
        drawn = torch.randint(len(x), (256,))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(x[None, drawn])[0], wanted[drawn]).backward()
        optimizer.step()
    return net
