"""SpaCell: one code of expression and of what the picture shows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions
from tenfold.errors import DataError
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.base import DomainMethod
from tenfold.spatial_models.pictures import Histology, seen

if TYPE_CHECKING:
    import pandas as pd

#: Genes seen in fewer than this share of the cells are left out.
SEEN = 0.01


class SpaCell(DomainMethod):
    """Code of an autoencoder that reads expression and picture features of each spot, clustered.

    Shares of counts and picture features, both scaled to between 0 and 1, pass a layer each, meet in 20 numbers, and
    are decoded from these. Nothing is told of where spots lie, or which are neighbours: domains are contiguous as far
    as the picture makes them so.

    **Use it** to see what expression and picture say together, without space.

    **Do not use it** to find contiguous domains: it knows no neighbours. In a breast tumour with its picture, number of
    domains known, it reached an adjusted Rand index of 0.15, `SmoothPCA` 0.17. Do not trust the picture before the
    joint code was seen to be better than that of expression alone (``histology="no"``).

    **Cost**: that of a small autoencoder: non-zero counts × 256 × epochs.

    **Writes** ``obsm["X_spacell"]`` (code) and ``obs["spacell"]`` (domains).

    Parameters
    ----------
    n_latent
        Width of the code.
    histology
        ``"yes"`` needs a picture in ``uns["spatial"]``, ``"auto"`` takes one where there is one, ``"no"`` never.
    network, network_weights
        Network of timm, and the file of its weights, for what the picture shows; ``None`` for stains, histograms and
        texture in squares of one, two and four spots.
    n_top_genes
        Variable genes; ``None`` takes all.
    epochs, batch_size, learning_rate
        Of the training, by Adam.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the code: ``"kmeans"``, ``"mclust"`` or ``"leiden"``.
    refinement, n_refining
        ``"majority"`` gives every cell the most frequent label of so many nearest cells, ``"outvoted"`` changes labels
        that have less than half and another more than half of the votes; ``"none"`` leaves them, as the authors do.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights, minibatches and clustering.

    Notes
    -----
    The original takes the first 2,048 genes for the most variable ones; here they are. Its classifier of disease
    stages, which is not shown the counts by mistake, is left out. Its picture features are those of a network trained
    on photographs: give ``network="resnet50"`` and its weights for them.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.SpaCell(n_clusters=4, histology="no", epochs=2).fit(adata)
    >>> model.embed().shape[1]
    20

    References
    ----------
    Tan et al. (2020), doi 10.1093/bioinformatics/btz914.
    """

    info = MethodInfo(
        title="SpaCell",
        tasks=("domains",),
        family="deep",
        year=2020,
        doi="10.1093/bioinformatics/btz914",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="research",
        advice="Expression and picture in one code, without space; compare with histology='no'.",
    )

    n_latent: int = param(20, low=2)
    histology: Histology = "auto"
    network: str | None = None
    network_weights: str | None = None
    n_top_genes: int | None = param(2048, low=10)
    epochs: int = param(100, low=1)
    batch_size: int = param(32, low=2)
    learning_rate: float = param(1e-3, low=0.0)
    device: str = "auto"

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        from tenfold.engine import Phase, fit, predict, seeded
        from tenfold.kernels.adam import Adam
        from tenfold.nn.joint_autoencoder import JointAutoencoder

        read: dict[str, sparse.csr_matrix | np.ndarray] = {"genes": self._shares(data)}
        picture = seen(data, positions, self.histology, self.network, self.network_weights, "expression alone is read")
        self.saw_picture_ = picture is not None
        if picture is not None:
            low, high = picture.min(axis=0), picture.max(axis=0)
            read["picture"] = ((picture - low) / np.maximum(high - low, 1e-12)).astype(np.float32)
        with seeded(self.seed):
            net = JointAutoencoder(read["genes"].shape[1], 0 if picture is None else picture.shape[1], self.n_latent)
        phase = Phase("train", self.epochs, loss=lambda net, batch, progress: net.terms(batch),
                      optimizer=partial(Adam, lr=self.learning_rate))  # fmt: skip
        history = fit(
            net, read, [phase], batch_size=self.batch_size, train_fraction=1.0, seed=self.seed, device=self.device,
            run=data.run, name=self.name(), fingerprint=dict(self.parameters),
        )  # fmt: skip
        self.history_ = history.to_dict()
        return predict(net, read, lambda net, batch: net.encode(batch))

    def _shares(self, data: Inputs) -> sparse.csr_matrix:
        """Return shares of counts of the genes that are read, scaled by gene to between 0 and 1."""
        often = data.counts.getnnz(axis=0) >= max(SEEN * data.n_cells, 1)
        columns = data.variable_genes(self.n_top_genes)
        columns = columns[often[columns]]
        if not len(columns):
            raise DataError(f"No gene is seen in {100 * SEEN:.0f} % of the cells, so there is nothing to learn from.")
        totals = np.asarray(data.counts.sum(axis=1, dtype=np.float64)).ravel()
        shares = sparse.csr_matrix(sparse.diags_array(1 / totals) @ data.counts[:, columns], dtype=np.float32)
        low, high = (getattr(shares, end)(axis=0).toarray().ravel() for end in ("min", "max"))
        span = np.maximum(high - low, 1e-30)
        shares.data -= low[shares.indices]  # above 0 only where no cell is 0
        shares.data /= span[shares.indices]
        return shares

    @property
    def history(self) -> pd.DataFrame:
        """Losses, one row an epoch and term: columns phase, epoch, term, train, validation."""
        from tenfold.engine import History

        self._check_fitted()
        return History.from_dict(self.history_).terms
