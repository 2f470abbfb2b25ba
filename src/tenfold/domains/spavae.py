"""spaVAE: a variational autoencoder of counts, part of whose latent space is a Gaussian process over the tissue."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import unit_variance
from tenfold.data.spatial import Positions
from tenfold.errors import ParameterError
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.fields import EXTENT, FieldMethod

if TYPE_CHECKING:
    import pandas as pd

    from tenfold.nn.spatial_vae import SpatialVAE

#: Cells → cells in a minibatch, where none are given.
SIZES = {1024: 128, 2048: 256}
LARGEST_SIZE = 512
#: Passes over the cells where none are given: at most so many, and so many cells in all of them.
MOST_EPOCHS, TRAINED_CELLS = 5_000, 20_000_000


class SpaVAE(FieldMethod):
    """Latent space of counts, part of which varies smoothly over the tissue, and expression between the spots.

    Counts of a spot are negative binomial with mean l·f(z): l is its size factor, z has two dimensions that are
    Gaussian processes over the tissue and eight that each spot has for itself. An encoder tells of every spot what its
    own counts say of both; what it says of the smooth ones is then pooled over the tissue, in closed form, through a
    lattice of inducing points. Where nothing was measured the processes are known all the same, and so is expression:
    see `at`.

    **Use it** for expression at places that were not measured, in tissue that varies smoothly: on a simulated tissue of
    smooth fields its correlation with the true expression of cells left out was 0.91, that of the nearest cell's counts
    0.42, of the mean of the six nearest 0.66; with the counts themselves of spots left out of a cortex, 0.19, 0.09 and
    0.16. And for layered or otherwise contiguous domains, beside `SmoothPCA` (2 rounds), above which it was in two of
    four annotated sections of cortex, number of domains known (adjusted Rand index 0.53 against 0.43; 0.55 against
    0.46), and below in two (0.74 against 0.76; 0.39 against 0.42), the last three after a fraction of the epochs.

    **Do not use it** where domains are small or scattered: little is left to the dimensions that are not smooth, since
    the KL is held near 0.25 nats. Nor to call genes variable in space without a test.

    **Cost**: spots × genes × epochs, some 1,700 of them until early stopping on a Visium slice of 4,634 spots × 500
    genes (nine minutes of one core). For equal epochs it took 15 times less CPU time there than the original, and 8
    times less with 3,500 simulated spots × 3,000 genes. Memory is linear in spots: 0.72 GB for 20,000 spots × 3,000
    genes, 0.90 GB for 40,000.

    **Writes** ``obsm["X_spavae"]`` (smooth dimensions first) and ``obs["spavae"]`` (domains), or ``layers["spavae"]``
    (task denoise: expected counts of a spot with the median number of counts).

    Parameters
    ----------
    n_latent, n_spatial
        Latent dimensions, and how many of them are smooth.
    n_hidden
        Width of the hidden layers; the encoder's second has half of it.
    n_grid
        Inducing points a side, in each section. What varies over less than the distance between them is not smooth.
    kernel_scale
        First value of s in the covariance 1 / (1 + d² / s), where a section is 20 long and 20 wide; it is trained.
    kl_start, kl_min, kl_max, kl_target
        First and extreme weights of the KL terms, and the KL per latent dimension, in nats, that they are to lead to.
    n_top_genes
        Variable genes to model; ``None`` takes all.
    epochs
        At most. ``None``: 5,000, fewer above 4,000 cells (20,000,000 / n_cells).
    patience
        Epochs without a better validation loss after which training ends, with the weights of the best.
    train_fraction
        Share of cells to train on; the others tell when to stop. With 1, all epochs are run.
    batch_size
        ``None``: 128 up to 1,024 cells, 256 up to 2,048, else 512.
    learning_rate, weight_decay
        Of the optimiser, Adam.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the embedding: ``"kmeans"``, as the authors do, ``"mclust"`` or ``"leiden"``.
    refinement, n_refining
        ``"outvoted"`` with 6 (4 on a square lattice) changes labels that have less than half and another more than half
        of the votes of the nearest cells, as the authors do; ``"majority"`` gives every cell their most frequent label;
        ``"none"`` leaves them.
    linear_decoder
        Expression is a sum over latent dimensions, each × positive loadings of genes, instead of a network of them, so
        that `spatial_share` can be told; as in spaLDVAE.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights, split, minibatches and clustering.

    Notes
    -----
    Batches (``batch``) bear on the choice of genes alone. Several sections (``sample``) have processes of their own,
    with one kernel, and both networks are told the section. The divergence of the processes is computed as that at the
    inducing points, to which the original's terms reduce; the posterior at the end is that given all spots, where the
    original's depends on the minibatch that a spot falls into. Held-out spots are judged with the running means of
    batch norm, and the weight of the KL terms does not wind up at its bounds. Left out: inducing points by k-means or
    trained, the noise term (off in the original), a kernel scale by section, comparison of groups, and the kinds for
    chromatin and for proteins; of spaLDVAE, the Matérn kernels with a scale each.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.SpaVAE(n_clusters=4, n_top_genes=200, epochs=2).fit(adata)
    >>> model.at(np.array([[0.5, 0.5], [0.2, 0.9]])).shape
    (2, 200)

    References
    ----------
    Tian et al. (2024), doi 10.1038/s41592-024-02257-y.
    """

    info = MethodInfo(
        title="spaVAE",
        tasks=("domains", "denoise"),
        family="deep",
        year=2024,
        doi="10.1038/s41592-024-02257-y",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains", "expression", "expression at places not measured"),
        readiness={"domains": "usable", "denoise": "caution"},
        advice="Counts over contiguous tissue, and expression at places that were not measured.",
    )

    n_latent: int = param(10, low=1)
    n_hidden: int = param(128, low=2)
    n_grid: int = param(7, low=2)
    kernel_scale: float = param(20.0, low=1e-3)
    kl_start: float = param(10.0, low=0.0)
    kl_min: float = param(4.0, low=0.0)
    kl_max: float = param(25.0, low=0.0)
    kl_target: float = param(0.025, low=0.0)
    epochs: int | None = param(None, low=1)
    patience: int = param(200, low=1)
    train_fraction: float = param(0.95, low=0.01, high=1.0)
    batch_size: int | None = param(None, low=3)
    learning_rate: float = param(1e-3, low=0.0)
    weight_decay: float = param(1e-6, low=0.0)
    linear_decoder: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.n_spatial > self.n_latent:
            raise ParameterError(
                f"n_spatial={self.n_spatial} of n_latent={self.n_latent}: n_latent counts all latent variables, of "
                "which n_spatial vary smoothly over the tissue."
            )
        if not self.kl_min <= self.kl_start <= self.kl_max:
            raise ParameterError(
                f"kl_start={self.kl_start:g} must lie between kl_min={self.kl_min:g} and kl_max={self.kl_max:g}."
            )

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        from tenfold.engine import EarlyStopping, Phase, fit, seeded
        from tenfold.kernels.adam import Adam

        cells = self._read(data, positions)
        with seeded(self.seed):
            net = self._build()
        size = next((size for most, size in SIZES.items() if data.n_cells <= most), LARGEST_SIZE)
        epochs = self.epochs or max(1, min(MOST_EPOCHS, TRAINED_CELLS // data.n_cells))
        phase = Phase(
            "train", epochs, loss=lambda net, batch, progress: net.terms(batch),
            optimizer=partial(Adam, lr=self.learning_rate, weight_decay=self.weight_decay),
            early_stopping=EarlyStopping(self.patience, restore_best=True) if self.train_fraction < 1 else None,
        )  # fmt: skip
        history = fit(
            net, cells, [phase], batch_size=self.batch_size or size, train_fraction=self.train_fraction,
            seed=self.seed, device=self.device, run=data.run, name=self.name(), fingerprint=self.parameters,
        )  # fmt: skip
        self._keep(net, history.to_dict())
        return self._condition(cells)

    def _read(self, data: Inputs, positions: Positions) -> dict[str, Any]:
        """Return what the network reads of each cell, log expression with unit variance per gene among it."""
        if self.linear_decoder and len(positions.sections.names) > 1:
            raise ParameterError("linear_decoder=True takes one section at a time; leave sample= out or fit each.")
        cells = self._take(data, positions)
        logged = sparse.csr_matrix(sparse.diags_array(np.exp(-cells["log_size"])) @ cells["counts"], dtype=np.float32)
        logged.data = np.log1p(logged.data)
        expression = unit_variance(logged)
        self.centre_ = np.asarray(expression.mean(axis=0), dtype=np.float32).ravel()
        return cells | {"expression": expression}

    def _build(self) -> SpatialVAE:
        import torch

        from tenfold.nn.sparse_gp import SparseGP, grid
        from tenfold.nn.spatial_vae import Control, SpatialVAE

        points = grid(self.n_grid, self.low_.shape[1], EXTENT)
        field = SparseGP(points, self.n_spatial, len(self.sections_), self.kernel_scale)
        control = Control(self.kl_start, self.kl_min, self.kl_max, self.kl_target * self.n_latent)
        centre = torch.from_numpy(self.centre_)
        sizes = (self.n_hidden, self.n_latent)
        return SpatialVAE(centre, *sizes, field, len(self.section_), control, self.linear_decoder)

    def _condition(self, cells: dict[str, Any]) -> np.ndarray:
        """Infer the processes from all cells at once; return the embedding."""
        import torch

        from tenfold.engine import predict
        from tenfold.nn.priors import Gaussian

        told = predict(self.net_, cells, lambda net, batch: net.encode(batch)._asdict())
        observed, own = self.net_.halves(Gaussian(*(torch.from_numpy(told[name]) for name in ("mean", "variance"))))
        places = torch.from_numpy(cells["position"]), torch.from_numpy(self.section_)
        self.net_.field.condition(*places, observed)
        return np.hstack([self.net_.field(*places).mean.numpy(), own.mean.numpy()])

    def spatial_share(self) -> pd.Series:
        """Return how much of the variance of each modelled gene that the model explains is smooth over the tissue.

        Smooth and other latent dimensions add up in a linear decoder; the variances over spots of what each adds are
        compared. (The original compares sums over spots, to which a process adds that is the same everywhere.)

        Returns
        -------
        Between 0 and 1, indexed by gene, the highest first, float32.

        Raises
        ------
        ParameterError
            The decoder is not linear.
        """
        import pandas as pd

        self._check_fitted()
        if not self.linear_decoder:
            raise ParameterError("The share of a gene needs a linear decoder: fit with linear_decoder=True.")
        loadings = np.exp(self.net_.decoder.weight.detach().numpy())
        n, amounts = self.n_spatial, np.exp(self.embedding_)
        smooth = (amounts[:, :n] @ loadings[:n]).var(axis=0)
        own = (amounts[:, n:] @ loadings[n:]).var(axis=0)
        share = smooth / np.maximum(smooth + own, 1e-30)
        return pd.Series(share, index=self.genes_, name="spatial_share").sort_values(ascending=False)
