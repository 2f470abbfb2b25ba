"""DeepST: counts helped by cells that look and express alike, and an autoencoder of features and graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from tenfold.data.heads import Head
from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import normalize_log1p, pca, unit_variance
from tenfold.data.similar_cells import similar_cells
from tenfold.data.spatial import Positions, spatial_graph, symmetrised
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.graph_training import GraphMethod
from tenfold.spatial_models.pictures import Histology, seen

if TYPE_CHECKING:
    from tenfold.engine.phases import Progress
    from tenfold.nn.deep_graph_net import DeepGraphNet

#: Nearest cells among which similar ones are sought, and components of counts by which they are.
REACH, SIMILARITY = 30, 100
#: Neighbours in the codes, whose graph is clustered for the centres.
NEAR = 20
#: Epochs from one target of the clustering to the next.
REFRESH = 20


class DeepST(GraphMethod):
    """Two codes of each cell, of its helped expression and of its neighbourhood by attention.

    Counts of a cell are helped by a share of those of the three most similar of its 30 nearest cells, by expression
    and, where there is a picture, by what the tissue looks like. Components of them pass a perceptron; its output, a
    variational autoencoder with attention over neighbours. The components are reconstructed from both codes. A second
    phase draws the codes together around centres, found by Louvain. Where sections are named, a classifier tries to
    tell them by the codes, and the codes are trained to confuse it.

    **Use it** for contiguous domains of stained sections, beside `SmoothPCA` and with several seeds.

    **Do not use it** as the only method. It does not beat `SmoothPCA` before refinement in the two annotated sections
    of mouse cortex that we measured (it is above PCA with Leiden). On three sections together the adversary made them
    impossible to tell, and halved the agreement with the annotation within each: look at ``section_weight=0``, too.

    **Cost**: linear in cells and edges × epochs; no matrix of cells × cells is made.

    **Writes** ``obsm["X_deepst"]`` (both codes) and ``obs["deepst"]`` (domains).

    Parameters
    ----------
    n_latent, n_graph_latent
        Widths of the codes of features and of the graph.
    n_hidden, n_graph_hidden
        Widths of the hidden layers.
    n_components
        Components of helped, standardised counts that the network sees.
    n_neighbors
        Nearest cells in space; the graph is made symmetric.
    n_similar, share
        Similar cells that help a cell, and the share of their mean counts that is added to its own.
    histology
        ``"auto"`` looks at a picture where there is one, ``"yes"`` needs one, ``"no"`` ignores it.
    network, network_weights
        Network of timm for features of the picture and the file of its weights; by default stains and texture, which
        need no weights.
    dropout
        Share of units that are silenced in training.
    reconstruction_weight, edge_weight, cluster_weight, section_weight
        Of the terms of the loss.
    n_top_genes
        Variable genes; ``None`` takes all, as the authors do.
    epochs
        Of each of the two phases; the authors give the first up to twice as many.
    clustering
        Whether there is a second phase.
    learning_rate, weight_decay
        Of the training, by Adam, which begins anew in the second phase; gradients are clipped at a norm of 5.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the embedding: ``"leiden"``, ``"mclust"`` or ``"kmeans"``.
    refinement, n_refining
        ``"outvoted"`` changes labels that have less than half and another more than half of the votes, with 6
        neighbours as the authors do; ``"majority"`` gives every cell the most frequent label of so many nearest cells;
        ``"none"`` leaves them.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights, noise and clustering.

    Notes
    -----
    Inner products of codes are the logits of two cells being neighbours; the original squashes them first, so that this
    term hardly counts, there even less than here. The original looks at pictures by a network trained on photographs,
    with random changes of colour also when domains are found; here features are the same every time. A number of
    domains that is not given is chosen as for other methods with this head, not by the Calinski-Harabasz index.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.DeepST(n_clusters=4, epochs=5, n_components=30, histology="no")
    >>> model.fit(adata).embed().shape
    (700, 28)

    References
    ----------
    Xu et al. (2022), doi 10.1093/nar/gkac901.
    """

    info = MethodInfo(
        title="DeepST",
        tasks=("domains",),
        family="deep",
        year=2022,
        doi="10.1093/nar/gkac901",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="caution",
        advice="Stained sections, also several, beside smooth_pca and with several seeds.",
    )

    n_latent: int = param(20, low=1)
    n_graph_latent: int = param(8, low=1)
    n_hidden: int = param(32, low=1)
    n_graph_hidden: int = param(64, low=1)
    n_components: int = param(200, low=2)
    n_neighbors: int = param(12, low=1)
    n_similar: int = param(3, low=1)
    share: float = param(0.3, low=0.0)
    histology: Histology = "auto"
    network: str | None = None
    network_weights: str | None = None
    dropout: float = param(0.01, low=0.0, high=0.95)
    reconstruction_weight: float = param(1.0, low=0.0)
    edge_weight: float = param(1.0, low=0.0)
    cluster_weight: float = param(1.0, low=0.0)
    section_weight: float = param(1.0, low=0.0)
    n_top_genes: int | None = param(None, low=10)
    head: Head = "leiden"
    n_refining: int = param(6, low=2)
    epochs: int = param(500, low=1)
    clustering: bool = True
    learning_rate: float = param(5e-4, low=0.0)
    weight_decay: float = param(1e-4, low=0.0)

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        from tenfold.engine import seeded
        from tenfold.nn.deep_graph_net import DeepGraphNet, Weights, Widths

        features = self._features(data, positions)
        graph = symmetrised(spatial_graph(positions, "knn", self.n_neighbors))
        graph = sparse.csr_matrix(graph + sparse.identity(data.n_cells, dtype=np.float32, format="csr"))
        widths = Widths(self.n_hidden, self.n_latent, self.n_graph_hidden, self.n_graph_latent)
        weights = Weights(self.reconstruction_weight, self.edge_weight, self.cluster_weight, self.section_weight)
        with seeded(self.seed):
            net = DeepGraphNet(features, graph, positions.sections.values, widths, weights, self.dropout)
        held = {"features": sparse.csr_matrix(features), "graph": graph}
        self._train(net, data, held, clip=5.0, then=self._clustering())
        return net.latent().numpy()

    def _features(self, data: Inputs, positions: Positions) -> np.ndarray:
        """Return components of counts that were helped by similar cells, shape (n_cells, n_components)."""
        counts = data.counts[:, data.variable_genes(self.n_top_genes)]
        without = "neighbours are weighed by expression only"
        picture = seen(data, positions, self.histology, self.network, self.network_weights, without)
        self.saw_picture_ = picture is not None
        expression = pca(counts, min(SIMILARITY, min(counts.shape) - 1), self.seed).embedding
        near = spatial_graph(positions, "knn", REACH)
        factors = ((expression, True), (picture, False))
        similar = similar_cells(near, positions.points, factors, self.n_similar)
        total = np.asarray(similar.sum(axis=1)).ravel()
        mean = sparse.diags_array(1 / np.where(total > 0, total, 1)) @ similar
        helped = sparse.csr_matrix(counts + self.share * (mean @ counts), dtype=np.float32)
        return pca(unit_variance(normalize_log1p(helped, 1.0)), self.n_components, self.seed).embedding

    def _clustering(self) -> list[dict[str, Any]]:
        """Return the second phase, in which codes are drawn together."""
        from tenfold.data.cluster import louvain
        from tenfold.data.graph import neighbor_graph

        def find(latent: np.ndarray) -> np.ndarray:
            near = neighbor_graph(latent, min(NEAR, len(latent) - 1)).connectivities
            return louvain(near, 1.0, self.seed)

        def before(net: DeepGraphNet, data: dict[str, Any], progress: Progress) -> None:
            if progress.epoch == 0:
                net.place_centres(find)
            if progress.epoch % REFRESH == 0:
                net.refresh()

        if not self.clustering:
            return []
        return [{"name": "cluster", "epochs": self.epochs, "before_epoch": before,
                 "loss": lambda net, batch, progress: net.terms(clustering=True)}]  # fmt: skip
