"""STAGATE: a graph autoencoder that learns how much each neighbour counts."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.attention import AttentionMethod


class STAGATE(AttentionMethod):
    """Latent space of an autoencoder that averages over neighbours with learnt weights.

    Log-expression is mapped to a hidden layer, averaged over the cells around each cell with attention weights, and
    mapped to 30 numbers, which are clustered; the decoder has the same weights, transposed, and the same attention.
    Attention logits pass a sigmoid, so that a neighbour counts at most e times as much as another: the average is close
    to a plain one, in the original as here.

    **Use it** for contiguous domains of spots or cells, beside `SmoothPCA`.

    **Do not use it** as the only method, nor for small or scattered domains. It does not beat `SmoothPCA` (2 rounds)
    with the same head in the annotated sections of mouse cortex that we measured, and two seeds differed by up to 0.17
    in adjusted Rand index.

    **Cost**: linear in non-zero counts and edges × epochs; the reconstruction, cells × genes, is never made.

    **Writes** ``obsm["X_stagate"]`` (latent space) and ``obs["stagate"]`` (domains).

    Parameters
    ----------
    n_latent, n_hidden
        Widths of the latent space and of the hidden layer.
    graph
        Neighbours in space: ``"radius"``, ``"knn"`` (made symmetric) or ``"delaunay"``.
    radius
        Of the graph ``"radius"``, in units of the distance to the nearest cell; 1.5 reaches the six neighbours of a
        Visium spot. Cells without a regular spacing need more: the original's example has 5.8 neighbours a spot.
    n_neighbors
        Of the graph ``"knn"``.
    tie
        ``"clean"``: encoder and decoder share weights. ``"double"``: as in the original's PyTorch code, whose optimiser
        steps twice on the shared weights, with the encoder's and with the decoder's gradients.
    n_top_genes
        Variable genes; ``None`` takes all.
    epochs, learning_rate, weight_decay
        Of the training, by Adam; gradients are clipped at a norm of 5.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the embedding: ``"mclust"``, ``"kmeans"`` or ``"leiden"``.
    refinement, n_refining
        ``"majority"`` gives every cell the most frequent label of so many nearest cells, ``"outvoted"`` changes labels
        that have less than half and another more than half of the votes; ``"none"`` leaves them, as the authors do.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights and clustering.

    Notes
    -----
    The cell-type-aware attention of the TensorFlow version is left out. So is training on tiles of the tissue: as the
    reconstruction is never made, all cells fit at once.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.STAGATE(n_clusters=4, graph="knn", epochs=10, n_hidden=32).fit(adata)
    >>> model.embed().shape[1]
    30

    References
    ----------
    Dong and Zhang (2022), doi 10.1038/s41467-022-29439-6.
    """

    info = MethodInfo(
        title="STAGATE",
        tasks=("domains",),
        family="deep",
        year=2022,
        doi="10.1038/s41467-022-29439-6",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="usable",
        advice="Contiguous domains, beside smooth_pca.",
    )

    tie: Literal["clean", "double"] = "clean"
    epochs: int = param(1000, low=1)

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        expression = data.lognorm[:, data.variable_genes(self.n_top_genes)]
        return self._autoencoded(data, positions, expression, self.tie)
