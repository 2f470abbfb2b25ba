"""BERMUDA: an autoencoder whose code is matched between similar clusters of different batches, and only there."""

from __future__ import annotations

import warnings
from math import exp
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.data.cluster_similarity import batch_clusters, neighbour_votes, similar_pairs
from tenfold.expression_models.base import ExpressionMethod
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from tenfold.data.inputs import Inputs
    from tenfold.engine import Batch, Progress
    from tenfold.nn.expression_autoencoder import ExpressionAutoencoder

#: Variances of the kernels, 2σ² = 2 × these: σ = 1, 2, 4, 8, 16.
SCALES = (1.0, 4.0, 16.0, 64.0, 256.0)
#: Minibatches and epochs to train for at most; the original has 2,000 epochs.
_MOST_STEPS, _MOST_EPOCHS = 2_000, 2_000


class BERMUDA(ExpressionMethod):
    """Code of many batches in which clusters that resemble each other are matched, and the others left alone.

    Each batch is clustered by itself (20 principal components, Leiden). MetaNeighbor says how alike clusters of
    different batches are: whether the cells of one pick out those of the other by correlation. The code of an
    autoencoder is then trained to have small maximum mean discrepancies between the pairs of clusters that are each
    other's best match, in one direction at least. A type that one batch alone has is in no pair, so nothing is pulled
    onto it.

    **Use it** where batches share some types only, and where clusters of single batches make sense.

    **Do not use it** without a look at `pairs_`: everything hangs on the clusters and the threshold. A type that is
    split between two clusters in one batch, or joined with another type there, is matched wrongly or not at all. Cells
    are not told from their batch inside a cluster without a partner: its batch effect stays. On blood cells of three
    chemistries a type that one batch alone had lost a quarter of its neighbours to types that it was paired with
    (``evidence/bermuda_acceptance.py``). Epochs beyond the default still lower the loss.

    **Cost**: linear in cells × genes × epochs; at most 2,000 minibatches of 50 cells a cluster, whatever the number of
    cells. Similarities are those of at most 3,000 cells, drawn from all clusters.

    **Writes** ``obsm["X_bermuda"]`` and ``layers["bermuda"]`` (decoded log-expression, in the units of the average
    batch; NaN for genes that are not modelled).

    Parameters
    ----------
    n_latent, n_hidden
        Width of the code and of the hidden layer of encoder and decoder.
    resolution, n_components
        Of the clusters: Leiden's resolution, and principal components of each batch.
    similarity
        Least similarity of a pair, between 0.5 (chance) and 1; 0.85 to 0.90 are advised.
    mmd_weight
        Weight that the discrepancies reach; it rises from 0 as 2 / (1 + exp(-10 t)) - 1, t the share of epochs.
    n_top_genes
        Variable genes to model, chosen batch by batch; ``None`` takes all.
    epochs
        ``None``: as many as 2,000 minibatches make, at most 2,000.
    learning_rate
        Of Adam; halved at each tenth of the epochs, as in the original.
    weight_decay
        Of Adam.
    batch_size
        Cells of each cluster in a minibatch, on average.
    train_fraction
        Share of cells to train on; the others are for validation.
    device, precision
        As in ``tenfold.engine.fit``.
    seed
        Of clusters, weights and minibatches.

    Attributes
    ----------
    clusters_
        Cluster of each cell, numbered through all batches, (n_cells,).
    similarity_
        Of each two clusters, (n_clusters, n_clusters); NaN within a batch.

    Warns
    -----
    UserWarning
        No pair of clusters is similar enough: batches are not drawn together.

    Notes
    -----
    The published scaling, a standard score and then the range 0 to 1, gene by gene within a batch, is the second alone:
    what the first does is undone. A gene's least value is taken to be 0, as it is unless every cell of a batch has it.
    The original starts Adam anew at every epoch; here its moments are kept. Minibatches are drawn at random with equal
    chances for all clusters rather than 50 cells of each.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate(300, 100, n_types=3, n_batches=2, type_strength=2.0)
    >>> bermuda = tf.integrate.BERMUDA(epochs=10, n_top_genes=None).fit(adata, batch="batch")
    >>> list(bermuda.pairs_.columns)
    ['first', 'second', 'first_batch', 'second_batch', 'first_cells', 'second_cells', 'similarity']

    References
    ----------
    Wang et al. (2019), doi 10.1186/s13059-019-1764-6.
    """

    info = MethodInfo(
        title="BERMUDA",
        tasks=("integrate",),
        family="deep",
        year=2019,
        doi="10.1186/s13059-019-1764-6",
        needs=("batch",),
        gives=("embedding", "expression", "pairs of similar clusters"),
        readiness="caution",
        advice="Where batches share some types only; look at the pairs of clusters before the embedding.",
    )

    n_latent: int = param(20, low=1)
    n_hidden: int = param(200, low=1)
    resolution: float = param(0.6, low=0.0)
    n_components: int = param(20, low=2)
    similarity: float = param(0.9, low=0.0, high=1.0)
    mmd_weight: float = param(1.0, low=0.0)
    batch_size: int = param(50, low=3)
    weight_decay: float = param(5e-5, low=0.0)

    def _build(self) -> ExpressionAutoencoder:
        import torch

        from tenfold.nn.expression_autoencoder import ExpressionAutoencoder

        net = ExpressionAutoencoder(len(self.columns_), self.n_latent, (self.n_hidden,), positive=True)
        for weight in net.parameters():
            torch.nn.init.xavier_uniform_(weight) if weight.ndim == 2 else torch.nn.init.constant_(weight, 0.01)
        return net

    def _loss(self, net: Any, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Mean squared error of each cluster, summed, and the discrepancies of pairs."""
        import torch

        from tenfold.nn.discrepancy import mmd_of_pairs
        from tenfold.nn.expression_decoders import dense

        cluster, n_clusters = batch["cluster"], len(self.home_)
        z = net.encode(batch["expression"])
        error = (net.decode(z) - dense(batch["expression"])).square().mean(1)
        sizes = torch.bincount(cluster, minlength=n_clusters)
        terms = {"reconstruction": (error / sizes[cluster]).sum()}
        terms["loss"] = terms["reconstruction"]
        if len(self.matched_) and self.mmd_weight:
            pairs = torch.as_tensor(self.matched_, device=z.device)
            terms["mmd"] = mmd_of_pairs(z.float(), cluster, pairs, n_clusters, SCALES).sum()
            terms["loss"] = terms["loss"] + self.mmd_weight * rise(progress) * terms["mmd"]
        return terms

    def _fit(self, data: Inputs) -> None:
        from torch.optim.lr_scheduler import StepLR

        from tenfold.engine import Phase

        cells = self._take(data, "batch max")
        lognorm = data.lognorm[:, self.columns_]
        self._match(lognorm, data.batch_or_one.values)
        sizes = np.bincount(self.clusters_)
        cells_of_step = self.batch_size * len(sizes)
        steps = max(1, round(data.n_cells * self.train_fraction / cells_of_step))
        epochs = self.epochs or max(1, min(_MOST_EPOCHS, round(_MOST_STEPS / steps)))
        self._train(data, {**cells, "cluster": self.clusters_}, [
            Phase("train", epochs, loss=self._loss, optimizer=self._optimizer, validate_every=max(1, epochs // 20),
                  scheduler=lambda optimizer: StepLR(optimizer, max(1, epochs // 10), 0.5)),
        ], batch_size=cells_of_step, weights=1 / sizes[self.clusters_])  # fmt: skip

    def _match(self, lognorm: Any, batch: np.ndarray) -> None:
        """Cluster each batch, compare clusters between batches, and choose pairs."""
        found = batch_clusters(lognorm, batch, self.resolution, self.n_components, self.seed)
        self.clusters_, self.home_ = found
        self.similarity_ = neighbour_votes(lognorm, found, self.seed)
        self.matched_ = similar_pairs(self.similarity_, self.home_, self.similarity)
        alone = sorted(set(range(len(self._design.batch))) - set(self.home_[self.matched_].ravel()))
        if alone:
            names = ", ".join(self._design.batch[code] for code in alone)
            warnings.warn(
                f"No cluster of {names} resembles one of another batch by {self.similarity:g} or more: these cells are "
                "not drawn to others. Look at similarity_; lower similarity=, or change resolution=.",
                stacklevel=2,
            )

    # ---- results -----------------------------------------------------------------------------------------------------

    @property
    def pairs_(self) -> pd.DataFrame:
        """Pairs of clusters that were matched: their numbers, batches, numbers of cells and similarity."""
        import pandas as pd

        self._check_fitted()
        sizes, names = np.bincount(self.clusters_), np.array(self._design.batch, dtype=object)
        first, second = self.matched_.T
        return pd.DataFrame({
            "first": first, "second": second, "first_batch": names[self.home_[first]],
            "second_batch": names[self.home_[second]], "first_cells": sizes[first], "second_cells": sizes[second],
            "similarity": self.similarity_[first, second],
        })  # fmt: skip

    @staticmethod
    def _latent(net: Any, batch: Batch) -> Tensor:
        return net.encode(batch["expression"])

    @staticmethod
    def _decoded(net: Any, batch: Batch) -> Tensor:
        return net.decode(batch["z"])


def rise(progress: Progress) -> float:
    """Return the share of the weight of the discrepancies that an epoch has."""
    return 2 / (1 + exp(-10 * (progress.epoch + 1) / progress.epochs)) - 1
