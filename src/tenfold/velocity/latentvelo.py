"""LatentVelo: codes of spliced and unspliced counts that a flow must reach, with one time for all genes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.data.velocity_graph import terminal_states
from tenfold.kernels.velocity_graph import neighbor_cosines
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.base import Rates
from tenfold.velocity_models.steady_state import all_cells, by_blocks, steady_state
from tenfold.velocity_models.trained import TrainedVelocity

if TYPE_CHECKING:
    from tenfold.engine.phases import Progress
    from tenfold.nn.latent_ode import LatentODE

#: Averages are divided by this times one more than their standard deviation.
SCALE = 4.0
#: Schedule of the learning rate, which watches the squared error.
PLATEAU: dict[str, Any] = {"factor": 0.75, "patience": 5, "threshold": 0.05, "min_lr": 1e-5}


class LatentVelo(TrainedVelocity):
    """A variational autoencoder of spliced and unspliced counts, with a flow among the codes that reaches every cell.

    Averages over neighbours of both layers are encoded apart; from both codes follow a time of the cell, between 0 and
    1, and a context. One flow starts from one learnt state and must be, at a cell's time and in its context, where the
    cell is: the spliced code moves linearly with both codes, the unspliced one with itself and a regulation that
    spliced code and context drive. Velocities of genes are the slopes of the spliced code, decoded (the decoder is
    linear, so that its Jacobian is its weights). Alone, such a flow may as well run backwards: velocities are rewarded
    for going with unspliced and against spliced counts, and cells that a steady-state model takes for beginnings are
    held at time 0.

    **Use it** to look at branches beside a steady-state model, with several seeds, and with ``batch=`` where batches
    have to be joined: encoders then see the batch, and each batch has a decoder of its own.

    **Do not use it** for an order of cells on its own: the latent time is not reliable. The context lets a cell be
    reached in other ways than along the process, so that times differ between seeds and settings. On simulations its
    rank correlation with the true time was 0.90 and 0.75 (two seeds) where it branches, 0.48 and 0.62 with exact
    kinetics of one process and 0.00 for dyngen's (20 epochs), where `ScVeloDeterministic` had 0.95, 1.00 and 0.77. Nor
    is it evidence of a direction, which is the steady-state model's (``root_weight``): on a real pancreas set (300
    genes, 20 epochs) its known direction in gene space was 0.16, with permuted counts up to 0.25, and neighbours'
    velocities agreed to 1.00 in both, since codes are smooth.

    **Cost**: linear in cells, genes and epochs; a step of training takes a sixth of the original's time (100 cells ×
    1,000 genes, one core: 0.06 seconds).

    **Writes** ``layers["latentvelo_velocity"]`` (NaN for genes that are not used), ``obs["latentvelo_time"]``
    (its latent time, from 0 to 1) and ``obs["latentvelo_confidence"]``.

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
    n_latent, n_hidden
        Width of each of the two codes, and of the hidden layers of their encoders.
    n_regulation, n_context
        Width of the regulation and of the context.
    n_steps
        Steps of the Runge-Kutta rule from time 0 to that of a cell.
    with_unspliced, with_spliced
        Weights of the mean correlation over cells of a gene's velocity with its unspliced, and against its spliced,
        counts; 0.1 in the original.
    root_weight
        Of the squared time of cells that are beginnings by the steady-state model; 0 leaves the direction to the
        correlations, as the original does where no beginning is named.
    kl_epochs
        Epochs in which the weight of the prior rises to 1.
    min_r2, max_r2, min_ratio
        Least and largest R², and least γ, of the steady-state fit of a gene whose velocity is used.
    epochs, batch_size, learning_rate, weight_decay
        Of the training by Adam; the rate falls where the error no longer does. The epoch with the least error is kept.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights, noise and the order of cells.

    Notes
    -----
    The original solves the flow for every cell at the times of all cells of a minibatch; here time is stretched for
    each cell, so that the cost is linear. Neighbours are averaged within a random minibatch in training, as there, and
    over the whole graph in the result, there within 500 cells in their order in the file. The result is that of mean
    codes, there of ten draws. The original keeps a tenth of the cells out of the loss.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.LatentVelo(n_neighbors=15, epochs=2).fit(adata)
    >>> model.time().shape
    (200,)

    References
    ----------
    Farrell et al. (2023), doi 10.1093/bioinformatics/btad389.
    """

    info = MethodInfo(
        title="LatentVelo",
        tasks=("velocity",),
        family="deep",
        year=2023,
        doi="10.1093/bioinformatics/btad389",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        readiness="research",
        advice="Branches, beside a steady-state model whose direction it takes; its latent time is not reliable.",
    )

    n_latent: int = param(20, low=1)
    n_hidden: int = param(25, low=1)
    n_regulation: int = param(2, low=1)
    n_context: int = param(2, low=1)
    n_steps: int = param(8, low=1)
    with_unspliced: float = param(1.0, low=0.0)
    with_spliced: float = param(1.0, low=0.0)
    root_weight: float = param(1e4, low=0.0)
    kl_epochs: int = param(25, low=0)
    min_r2: float = 0.01
    max_r2: float = 0.95
    min_ratio: float = 0.01
    epochs: int = param(50, low=1)
    batch_size: int | None = param(100, low=2)
    learning_rate: float = param(1e-2, low=0.0)

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        from tenfold.engine import predict, seeded

        s, u, layers = moments.spliced, moments.unspliced, moments.layers
        r2, gamma = by_blocks(all_cells, s, u)[0], by_blocks(steady_state, s, u)[0]
        self.dynamic_ = (r2 > self.min_r2) & (r2 < self.max_r2) & (gamma > self.min_ratio)
        self.n_batches_ = len(data.batch_or_one.names)
        self.distances_, self.connectivities_ = moments.graph
        scales = [SCALE * (1 + part.std(axis=0)) for part in (s, u)]
        cells = {
            "spliced": s / scales[0], "unspliced": u / scales[1], "batch": data.batch_or_one.values,
            "seen": ((layers.spliced + layers.unspliced) > 0).toarray(),
            "root": self._roots(moments, gamma),
        }  # fmt: skip
        with seeded(self.seed):
            net = self._build()
        self._train(net, data, cells, [self._phase()])
        found = predict(net, cells, lambda net, batch: net.outputs(batch), batch_size=data.n_cells)
        first, span = found["time"].min(), np.ptp(found["time"]) or 1.0
        self.codes_, self.slopes_ = found["code"], found["slope"] * span
        velocity = found["velocity"] * (span * scales[0])
        return Rates(velocity, self.dynamic_, {"gamma": gamma, "r2": r2}, (found["time"] - first) / span)

    def _roots(self, moments: Moments, gamma: np.ndarray) -> np.ndarray:
        """Return how much each cell is a beginning by the steady-state model, shape (n_cells,), from 0 to 1."""
        own = self.dynamic_ if self.dynamic_.sum() > 1 else np.ones_like(self.dynamic_)
        s, u = moments.spliced[:, own], moments.unspliced[:, own]
        cosines = neighbor_cosines(s, u - gamma[own].astype(np.float32) * s, moments.neighbors)
        return terminal_states(cosines, moments.mean).roots

    def _phase(self) -> Any:
        from torch.optim.lr_scheduler import ReduceLROnPlateau

        from tenfold.engine import EarlyStopping, Phase
        from tenfold.kernels.adam import Adam

        def loss(net: LatentODE, batch: Any, progress: Progress) -> Any:
            return net.terms(batch, progress.ramp(0.0, 1.0, over_epochs=self.kl_epochs), self.root_weight)

        # Errors are comparable once the prior has its weight.
        best = EarlyStopping(self.epochs, restore_best=True, start_epoch=min(self.kl_epochs, self.epochs - 1))
        return Phase(
            "train", self.epochs, loss, monitor="error", early_stopping=best,
            optimizer=partial(Adam, lr=self.learning_rate, weight_decay=self.weight_decay),
            scheduler=partial(ReduceLROnPlateau, **PLATEAU),
        )  # fmt: skip

    def _build(self) -> LatentODE:
        from tenfold.nn.latent_flow import Widths
        from tenfold.nn.latent_ode import LatentODE, Weights

        widths = Widths(self.n_latent, self.n_hidden, self.n_regulation, self.n_context)
        weights = Weights(self.with_unspliced, self.with_spliced)
        return LatentODE(self.connectivities_, self.dynamic_, self.n_batches_, widths, weights, self.n_steps)

    def latent(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the spliced codes of the fitted cells and their velocities, each (n_cells, n_latent), float32."""
        self._check_fitted()
        return self.codes_, self.slopes_
