"""VeloAE: a steady state of each dimension of a latent space that spliced and unspliced counts share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import pca
from tenfold.data.velocity import Moments
from tenfold.method import MethodInfo, param
from tenfold.velocity_models.base import Rates
from tenfold.velocity_models.steady_state import by_blocks, r_squared
from tenfold.velocity_models.trained import TrainedVelocity

if TYPE_CHECKING:
    from tenfold.nn.velo_autoencoder import VeloAutoencoder

#: Share of the learning rate that is left in the last epoch; it falls linearly.
LAST = 0.02


class VeloAE(TrainedVelocity):
    """One encoder for both layers, attention over neighbours, and a line u = γ s in each dimension of its latent space.

    Averages of spliced and of unspliced counts pass the same network: two hidden layers, two attentions over cells that
    are alike, a linear map. Each gene is decoded as a weighted mean of latent dimensions; the weights, another
    attention, follow from components of the gene and from the codes of all cells. Beside both reconstructions, cells
    that are high in a dimension are to lie on a line; the residual of the line is the velocity in that dimension.

    Velocities of genes are those of the spliced code, decoded with the weights held: v = P (u - γ s) for the weights P
    of the gene. This is the decoder's Jacobian for one cell, since no cell alone moves P. The velocity graph, and with
    it time, confidence and transitions, is that of the latent space, as in the original.

    **Use it** beside the same regression of principal components, of which it is the nonlinear form, and with several
    seeds.

    **Do not use it** on its own: no gain was shown. On a real pancreas set (300 genes, 150 epochs) its known direction
    was in none of four seeds beyond that of the same regression of components, and both pointed backwards, where
    `ScVeloStochastic` goes forward. Dimensions have no sign or unit of their own: a line through the origin means
    little in them, and unspliced counts are encoded as if they were spliced.

    **Cost**: linear in cells × genes × epochs, all cells at once; an epoch takes a quarter of the original's time (700
    cells × 800 genes, one core: 0.14 seconds). A decoder's weight for each cell, so that no cell can be added.

    **Writes** ``layers["veloae_velocity"]`` (NaN for genes that are not used), ``obs["veloae_time"]`` (pseudotime along
    the velocity graph) and ``obs["veloae_confidence"]``.

    Parameters
    ----------
    n_top_genes
        Variable genes among those with enough counts; ``None`` takes all.
    min_shared_counts
        Least counts of a gene, spliced and unspliced, in cells that have both.
    n_components, n_neighbors
        Principal components in which neighbours are searched, and neighbours of a cell (itself counted) to average
        over and to attend to.
    max_unspliced
        Share of unspliced counts above which the layers are taken for swapped; raise it for nuclei.
    normalize
        Divide each layer by its own totals; False for data that were not sampled, such as exact simulations.
    n_latent, n_hidden, n_keys
        Widths of the latent space, of hidden layers, and of the keys and queries by which genes choose dimensions.
    n_gene_components
        Components of genes over cells, of which queries are made.
    percentile
        Of s + u, each relative to its range, from which on a cell takes part in the regression of a dimension.
    regression_weight
        Of the error of the regressions in the loss.
    min_r2
        Least share of the variance of a gene's averages that is reconstructed, for its velocity to be used.
    epochs, learning_rate, weight_decay
        Of the training by Adam on all cells at once; the rate falls linearly.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights and noise.

    Notes
    -----
    The original trains for 20,000 epochs at a rate of 1e-5, which was not run; after 300 epochs of both, the loss at
    the rate here is lower. It encodes every layer twice in each epoch, and can draw latent velocities towards those of
    scVelo, which is off by default and left out here. Its regression has no offset by default and then uses the upper
    percentile alone, as here. Its attention goes over a neighbour search of its own, on both layers; here over that of
    the averages.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.VeloAE(n_neighbors=15, epochs=30).fit(adata)
    >>> model.latent()[1].shape
    (200, 100)

    References
    ----------
    Qiao and Huang (2021), doi 10.1073/pnas.2105859118.
    """

    info = MethodInfo(
        title="VeloAE",
        tasks=("velocity",),
        family="deep",
        year=2021,
        doi="10.1073/pnas.2105859118",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        readiness="research",
        advice="Velocities of a latent space; compare with the same regression of principal components.",
    )

    n_latent: int = param(100, low=2)
    n_hidden: int = param(256, low=1)
    n_keys: int = param(100, low=1)
    n_gene_components: int = param(100, low=2)
    percentile: float = param(95.0, low=50.0, high=100.0)
    regression_weight: float = param(1.0, low=0.0)
    min_r2: float = 0.0
    epochs: int = param(500, low=1)
    batch_size: ClassVar[None] = None  # type: ignore[misc]  # the decoder sees all cells
    learning_rate: float = param(3e-4, low=0.0)

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        from tenfold.engine import seeded

        s, u = moments.spliced, moments.unspliced
        n, k = moments.neighbors.shape
        # A cell attends to the cells that count it among their nearest, as in the original, and to itself.
        entries = (np.ones(n * k, np.float32), (moments.neighbors.ravel(), np.repeat(np.arange(n), k)))
        self.around_ = sparse.csr_matrix(entries, shape=(n, n)) + sparse.identity(n, np.float32, format="csr")
        self.profiles_ = self._profiles(moments)
        self.spliced_, self.unspliced_ = s, u
        with seeded(self.seed):
            net = self._build()
        self._train(net, data, {"cell": np.arange(data.n_cells)}, [self._phase()])
        found = self.net_.outputs()
        self.codes_, self.slopes_, self.mixtures_ = found["codes"], found["slopes"], found["weights"]
        r2 = by_blocks(lambda s, back: (r_squared(s - back, s),), s, found["decoded"])[0]
        return Rates(found["velocity"], r2 > self.min_r2, {"r2": r2})

    def _profiles(self, moments: Moments) -> np.ndarray:
        """Return components of genes over cells: log-expression and both averages, (n_genes, n_components)."""
        parts = [
            moments.layers.spliced.log1p(),
            sparse.csr_matrix(moments.spliced),
            sparse.csr_matrix(moments.unspliced),
        ]
        by_gene = sparse.csr_matrix(sparse.vstack(parts).T)
        return pca(by_gene, min(self.n_gene_components, min(by_gene.shape) - 1)).embedding

    def _phase(self) -> Any:
        from torch.optim.lr_scheduler import LinearLR

        from tenfold.engine import Phase
        from tenfold.kernels.adam import Adam

        return Phase(
            "train", self.epochs, lambda net, batch, progress: net.terms(),
            optimizer=partial(Adam, lr=self.learning_rate, weight_decay=self.weight_decay),
            scheduler=partial(LinearLR, start_factor=1.0, end_factor=LAST, total_iters=self.epochs),
        )  # fmt: skip

    def _build(self) -> VeloAutoencoder:
        from tenfold.nn.velo_autoencoder import VeloAutoencoder, Widths

        widths = Widths(self.n_hidden, self.n_latent, self.n_keys)
        return VeloAutoencoder(
            self.spliced_,
            self.unspliced_,
            self.around_,
            self.profiles_,
            widths,
            self.percentile,
            self.regression_weight,
        )

    def _space(self) -> tuple[np.ndarray, np.ndarray, None]:
        return self.codes_, self.slopes_, None

    def latent(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the spliced codes of the fitted cells and their velocities, each (n_cells, n_latent), float32."""
        self._check_fitted()
        return self.codes_, self.slopes_
