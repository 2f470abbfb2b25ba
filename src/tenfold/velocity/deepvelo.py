"""DeepVelo (Cui et al.): rates of every gene in every cell, from graph convolutions."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from tenfold.data.check import check_neighbors
from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import pca
from tenfold.data.spatial import normalised
from tenfold.data.velocity import layers_of
from tenfold.kernels.knn import knn
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.cell_rates import CellRates

if TYPE_CHECKING:
    from tenfold.nn.deepvelo_net import DeepVeloNet

#: Share of spliced counts up to which the correlation with them has this weight; above the last, 1.
SPLICED_WEIGHTS = {0.70: 0.5, 0.85: 0.75}
#: Averages are cut off at this percentile of those above 0, and scaled to this mean.
HIGHEST, MEAN = 99.5, 0.4
#: The learning rate is multiplied by this after every epoch.
DECAY = 0.97


class DeepVelo(CellRates):
    """Rates of their own for every gene in every cell, by graph convolutions over cells that are alike.

    Three graph convolutions turn the averages of a cell and of those around it into β and γ of each gene, and these
    into a velocity. It is to be the mean way to those cells near by that lie ahead of it, by the velocity itself, and
    the opposite of the way to those behind; a second term has it go up with unspliced and down with spliced counts of
    the gene over all cells. The second term alone says which way is forward.

    **Use it** to ask whether rates that change along a lineage alter what a model with constant rates says, beside
    `ScVeloStochastic`.

    **Do not use it** as evidence that cells move: it learns from its own guess and averages over neighbours, so that
    its flow is smooth whatever the data. On simulated genes that go on and off it had 77 % of the signs right where
    `ScVeloStochastic` had all, and 79 % (76 %) where the simulation branches; on a real pancreas set its known
    direction in gene space was 0.07 (0.11), within that of permuted counts (up to 0.20), on which it is as coherent
    (0.96, real 0.94) and has fewer genes (101, real 898); on the simulation that branches it was 0.40, permuted at most
    0.20, at a coherence of 0.98 for both.

    **Cost**: linear in cells × genes × epochs; no cell is copied for its neighbours. An update takes a ninth of
    the original's time (739 cells × 859 genes, one core: 0.1 seconds).

    **Writes** ``layers["deepvelo_velocity"]`` (NaN for genes that are not fitted), ``obs["deepvelo_time"]`` (pseudotime
    along the velocity graph) and ``obs["deepvelo_confidence"]``.

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
    n_hidden, n_layers, dropout
        Width and number of hidden convolutions, and the share of units (and of rates) silenced in training.
    graph_neighbors, target_neighbors
        Cells (itself counted), nearest in components of the averages, over which convolutions go, and among which
        those ahead and behind are sought.
    with_unspliced
        Also estimate α and du/dt = α - β u, and use ds/dt = β u - γ s; otherwise ds/dt = β u + γ s.
    min_r2, min_ratio
        Least R² and γ of the steady-state fit of a gene that is fitted; the original takes all genes by default.
    clip_and_norm
        Cut averages off at the 99.5th percentile and scale s and u to one mean; the original leaves it to the user.
    direction_weight
        Weight of the correlation with counts.
    coeff_u, coeff_s
        Parts of unspliced and spliced counts in it; ``"auto"``: 0.5 where less than 70 % of counts are spliced, 0.75
        below 85 %, else 1.
    epochs
        Updates, each from all cells.
    learning_rate, weight_decay
        Of Adam (AMSGrad); the rate falls by 3 % an epoch.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights and dropout.

    Notes
    -----
    `cell_rates` gives the rates, `continuity` the model's own confidence. In the original the latter compares with the
    way to the cells behind where the opposite is meant; here it is the opposite, as in the loss.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.DeepVelo(n_neighbors=15, epochs=10).fit(adata)
    >>> sorted(model.cell_rates())
    ['beta', 'gamma']

    References
    ----------
    Cui et al. (2024), doi 10.1186/s13059-023-03148-9.
    """

    info = MethodInfo(
        title="DeepVelo (Cui)",
        tasks=("velocity",),
        family="deep",
        year=2024,
        doi="10.1186/s13059-023-03148-9",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        readiness="research",
        advice="Rates that differ between cells; its flow is as smooth and as sure on permuted counts.",
    )

    n_hidden: int = param(64, low=1)
    n_layers: int = param(2, low=1)
    dropout: float = param(0.2, low=0.0, high=0.95)
    graph_neighbors: int = param(20, low=2)
    target_neighbors: int = param(30, low=3)
    with_unspliced: bool = False
    clip_and_norm: bool = True
    direction_weight: float = param(18.0, low=0.0)
    coeff_u: float = param(1.0, low=0.0)
    coeff_s: float | Literal["auto"] = param("auto", low=0.0)

    def _learnt(self, data: Inputs, s: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        from torch.optim import Adam
        from torch.optim.lr_scheduler import ExponentialLR

        from tenfold.engine import Phase, seeded

        scale, (s, u) = self._scale(s), (self._scaled(s), self._scaled(u))
        k = max(self.graph_neighbors, self.target_neighbors)
        check_neighbors(data.n_cells, k)
        self.coeff_s_ = spliced_weight(data) if self.coeff_s == "auto" else float(self.coeff_s)
        self.near_ = nearest(s, self.n_components, k)
        with seeded(self.seed):
            net = self._network(s, u)
        optimizer = partial(Adam, lr=self.learning_rate, weight_decay=self.weight_decay, amsgrad=True)
        phase = Phase("train", self.epochs, lambda net, batch, progress: net.terms(), optimizer=optimizer,
                      scheduler=partial(ExponentialLR, gamma=DECAY))  # fmt: skip
        cells = {"totals": np.stack([s.sum(axis=1), u.sum(axis=1)], axis=1)}
        self._train(net, data, cells, [phase], batch_size=None)
        found, errors, correlation = (part.numpy() for part in self.net_.summary())
        of_cells, of_genes = (1 - np.tanh(errors.mean(axis=axis) / (s.mean(axis=axis) + 1e-6)) for axis in (1, 0))
        self.continuity_ = of_cells
        return found * scale, {"correlation": correlation, "continuity": of_genes}

    def _scale(self, averages: np.ndarray) -> float:
        """Return what the network's numbers are to be multiplied with to be those of the averages."""
        return float(np.minimum(averages, _highest(averages)).mean() / MEAN) if self.clip_and_norm else 1.0

    def _scaled(self, averages: np.ndarray) -> np.ndarray:
        """Return averages as the network is to see them."""
        return np.minimum(averages, _highest(averages)) / self._scale(averages) if self.clip_and_norm else averages

    def _network(self, s: np.ndarray, u: np.ndarray) -> DeepVeloNet:
        from tenfold.nn.deepvelo_net import DeepVeloNet, DirectionWeights

        around = _edges(self.near_[:, 1 : self.graph_neighbors])
        # An edge counts twice where each is a neighbour of the other; a cell is its own neighbour both ways.
        graph = normalised(around + around.T + sparse.identity(len(s), dtype=np.float32, format="csr"))
        near = _edges(self.near_[:, 1 : self.target_neighbors])
        weights = DirectionWeights(self.coeff_u, self.coeff_s_, self.direction_weight)
        sizes = (self.n_hidden, self.n_layers, self.dropout)
        return DeepVeloNet(s, u, graph, near, *sizes, self.with_unspliced, weights)

    def _build(self) -> DeepVeloNet:
        return self._network(*(self._scaled(x[:, self.fitted_]) for x in (self.spliced_, self.unspliced_)))

    # ---- results -----------------------------------------------------------------------------------------------------

    def cell_rates(self) -> dict[str, np.ndarray]:
        """Return β and γ (and α) of each fitted gene in each cell, of the averages as scaled by `clip_and_norm`.

        Returns
        -------
        ``"beta"``, ``"gamma"`` and, with `with_unspliced`, ``"alpha"``; shape (n_cells, g), float32, columns as rows of
        `rates`. ds/dt is β u + γ s with rates of any sign, and with `with_unspliced` β u - γ s.
        """
        self._check_fitted()
        names = ("beta", "gamma", "alpha")
        return {name: part.detach().numpy() for name, part in zip(names, self.net_.rates(), strict=False)}

    def continuity(self) -> np.ndarray:
        """Return how well each cell's velocity agrees with cells ahead of it and behind it, (n_cells,), from 0 to 1."""
        self._check_fitted()
        return self.continuity_


def spliced_weight(data: Inputs) -> float:
    """Return the weight of the correlation with spliced counts: lower where fewer of a cell's counts are spliced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they were told once
        layers = layers_of(data, 1.0)
    spliced, unspliced = (np.asarray(layer.sum(axis=1, dtype=np.float64)).ravel() for layer in layers)
    share = float(np.mean(spliced / np.maximum(spliced + unspliced, 1)))
    return next((weight for most, weight in SPLICED_WEIGHTS.items() if share < most), 1.0)


def nearest(s: np.ndarray, n_components: int, k: int) -> np.ndarray:
    """Return the nearest cells of each cell among components of averages, itself first, shape (n_cells, k), int32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer components than asked for: told before
        return knn(pca(sparse.csr_matrix(s), n_components).embedding, k=k)[0]


def _highest(averages: np.ndarray) -> float:
    return float(np.percentile(averages[averages > 0], HIGHEST))


def _edges(near: np.ndarray) -> sparse.csr_matrix:
    n, k = near.shape
    return sparse.csr_matrix((np.ones(n * k, np.float32), near.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
