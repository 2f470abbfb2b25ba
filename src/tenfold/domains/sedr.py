"""SEDR: codes of features and of the spatial graph, trained to fill in masked cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import highly_variable_genes, pca, unit_variance
from tenfold.data.spatial import Positions, normalised, spatial_graph, symmetrised
from tenfold.errors import DataError
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.graph_training import GraphMethod

if TYPE_CHECKING:
    from tenfold.engine.phases import Progress
    from tenfold.nn.masked_graph_net import MaskedGraphAutoencoder

#: Genes seen in fewer cells than this, or than this share of them in small data, are left out, and those with fewer
#: counts than the last.
FEWEST_CELLS, FEWEST_SHARE, FEWEST_COUNTS = 50, 0.05, 10
#: Counts that cells are scaled to; no logarithm is taken.
TOTAL = 1e6
#: Epochs from one target of the clustering to the next.
REFRESH = 20


class SEDR(GraphMethod):
    """Two codes of each cell: one of its expression, one of that of its neighbourhood.

    Components of scaled counts pass a perceptron; its output, a variational autoencoder of the spatial graph, which
    must tell neighbours from other cells. From both codes, averaged over neighbours, the components are reconstructed;
    in 80 % of the cells they are disguised by a learnt vector. A second phase draws the codes together around cluster
    centres. The two codes, side by side, are clustered.

    **Use it** for contiguous domains, beside `SmoothPCA` and with several seeds.

    **Do not use it** as the only method. It does not beat `SmoothPCA`: in two annotated sections of mouse cortex,
    clustered by ``"mclust"`` as the authors do, it was above PCA with Leiden but below `SmoothPCA`, also after the
    majority vote of 50 neighbours (which raised it by 0.13 in adjusted Rand index) in one of them, and five seeds
    differed by up to 0.18.

    **Cost**: linear in cells and edges × epochs; no matrix of cells × cells is made.

    **Writes** ``obsm["X_sedr"]`` (both codes) and ``obs["sedr"]`` (domains).

    Parameters
    ----------
    n_latent, n_hidden
        Widths of each code and of the hidden layers.
    n_components
        Components of standardised counts that the network sees.
    n_neighbors
        Nearest cells in space; the graph is made symmetric.
    mask_rate
        Share of the cells that are disguised in each round.
    dropout
        Share of units that are silenced in training.
    reconstruction_weight, edge_weight, masked_weight, cluster_weight
        Of the terms of the loss: components of all cells; neighbours told from strangers; components of disguised
        cells, by their cosine (first phase); membership in clusters (second phase).
    n_centres
        Cluster centres of the second phase; not the number of domains.
    n_top_genes
        Variable genes; ``None`` takes all.
    epochs
        Of each of the two phases.
    clustering
        Whether there is a second phase; the authors leave it out where sections are to be integrated.
    learning_rate, weight_decay
        Of the training, by Adam, which begins anew in the second phase.
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
        Of weights, masks, noise and clustering.

    Notes
    -----
    Strangers, as many as neighbours, are drawn anew in every epoch, from cells that are not neighbours; the original
    draws them once, and neighbours may be among them. The embedding is computed with the mask at its expectation, where
    the original's masks cells at random once more. Batches are not corrected: give ``obsm["X_sedr"]`` to `Harmony` as
    ``use_rep``, as the authors do.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.SEDR(n_clusters=4, epochs=10, n_components=30).fit(adata)
    >>> model.embed().shape
    (700, 32)

    References
    ----------
    Xu et al. (2024), doi 10.1186/s13073-024-01283-x.
    """

    info = MethodInfo(
        title="SEDR",
        tasks=("domains",),
        family="deep",
        year=2024,
        doi="10.1186/s13073-024-01283-x",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="usable",
        advice="Contiguous domains, beside smooth_pca and with several seeds.",
    )

    n_latent: int = param(16, low=1)
    n_hidden: int = param(64, low=1)
    n_components: int = param(200, low=2)
    n_neighbors: int = param(12, low=1)
    mask_rate: float = param(0.8, low=0.0, high=1.0)
    dropout: float = param(0.2, low=0.0, high=0.95)
    reconstruction_weight: float = param(10.0, low=0.0)
    edge_weight: float = param(0.1, low=0.0)
    masked_weight: float = param(1.0, low=0.0)
    cluster_weight: float = param(1.0, low=0.0)
    n_centres: int = param(10, low=2)
    n_top_genes: int | None = param(2000, low=10)
    epochs: int = param(200, low=1)
    clustering: bool = True
    learning_rate: float = param(0.01, low=0.0)
    weight_decay: float = param(0.01, low=0.0)

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        from tenfold.engine import seeded
        from tenfold.nn.masked_graph_net import MaskedGraphAutoencoder, Weights, Widths

        features = standardised_components(data, self.n_top_genes, self.n_components, self.seed)
        graph = normalised(symmetrised(spatial_graph(positions, "knn", self.n_neighbors)))
        weights = Weights(self.reconstruction_weight, self.edge_weight, self.masked_weight, self.cluster_weight)
        n_centres = min(self.n_centres, data.n_cells)
        with seeded(self.seed):
            widths = Widths(self.n_hidden, self.n_latent, n_centres)
            net = MaskedGraphAutoencoder(features, graph, widths, weights, self.mask_rate, self.dropout)
        held = {"features": sparse.csr_matrix(features), "graph": graph}
        self._train(net, data, held, then=self._clustering(n_centres))
        return net.latent().numpy()

    def _clustering(self, n_centres: int) -> list[dict[str, Any]]:
        """Return the second phase, in which codes are drawn together."""
        from sklearn.cluster import KMeans

        def find(latent: np.ndarray) -> np.ndarray:
            return KMeans(n_centres, n_init=20, random_state=self.seed).fit(latent).cluster_centers_

        def before(net: MaskedGraphAutoencoder, data: dict[str, Any], progress: Progress) -> None:
            if progress.epoch == 0:
                net.place_centres(find)
            if progress.epoch % REFRESH == 0:
                net.refresh()

        if not self.clustering:
            return []
        return [{"name": "cluster", "epochs": self.epochs, "before_epoch": before,
                 "loss": lambda net, batch, progress: net.terms(clustering=True)}]  # fmt: skip


def standardised_components(data: Inputs, n_top_genes: int | None, n_components: int, seed: int) -> np.ndarray:
    """Return components of counts per million of variable genes, each gene standardised, shape (n_cells, n_components).

    Raises
    ------
    DataError
        Fewer than three genes are seen in enough cells.
    """
    least = min(FEWEST_CELLS, max(1, round(FEWEST_SHARE * data.n_cells)))
    counts = data.counts
    totals = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    genes = np.flatnonzero((counts.getnnz(axis=0) >= least) & (totals >= FEWEST_COUNTS))
    if len(genes) < 3:
        raise DataError(
            f"Only {len(genes)} genes are seen in {least} cells or more with {FEWEST_COUNTS} counts in all; at least "
            "3 are needed. Are these counts, and all cells of the tissue?"
        )
    kept = counts[:, genes]
    per_cell = np.asarray(kept.sum(axis=1, dtype=np.float64)).ravel()
    if n_top_genes is not None and n_top_genes < len(genes):
        kept = kept[:, highly_variable_genes(kept, n_top_genes, data.batch)]
    scaled = sparse.csr_matrix(sparse.diags_array(TOTAL / np.maximum(per_cell, 1)) @ kept)
    return pca(unit_variance(scaled), n_components, seed).embedding
