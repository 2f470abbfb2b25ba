"""GraphST: a linear graph autoencoder and a contrast with shuffled cells."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions, averaging, joined_sections, normalised, spatial_graph, symmetrised
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.graph_training import GraphMethod

#: Scaled expression above this is cut off.
LARGEST = 10.0


class GraphST(GraphMethod):
    """Principal components of a reconstruction by a linear autoencoder on the spatial graph.

    Expression is averaged over neighbours, mapped to 64 numbers, mapped back and averaged again. A contrast asks to
    which cell a neighbourhood belongs, that of the data or that of shuffled cells. The 20 first components of the
    reconstruction are clustered. Nothing on the way to it is non-linear: it is a smoother of low rank, and most of what
    it gains over PCA comes from averaging over neighbours and, where it is asked for, from the majority vote.

    **Use it** for contiguous domains of spots or cells, beside `SmoothPCA`, and with several seeds.

    **Do not use it** as the only method, nor for small or scattered domains. It does not beat `SmoothPCA`: in two
    annotated sections of mouse cortex, clustered by ``"mclust"`` as the authors do, it was above PCA with Leiden but
    below `SmoothPCA` with the same head, also after the majority vote of 50 neighbours (which raised it by 0.12 to 0.15
    in adjusted Rand index).

    **Cost**: linear in non-zero counts and edges × epochs; no matrix of cells × cells or dense cells × genes is made.

    **Writes** ``obsm["X_graphst"]`` (components of the reconstruction) and ``obs["graphst"]`` (domains).

    Parameters
    ----------
    n_latent
        Width of the autoencoder.
    n_components
        Components of the reconstruction that are kept and clustered.
    n_neighbors
        Nearest cells in space.
    normalisation
        ``"after"``: cells are added to their neighbours after the graph is normalised, so that they count for more (the
        original on Visium). ``"before"``: before, and each cell's reconstruction is scaled to length 1 (the original
        on Stereo-seq and Slide-seq).
    n_across
        Nearest cells in the other sections, where ``sample`` names several that were aligned to one frame; 0 leaves
        sections unconnected. These edges are all that corrects batches.
    reconstruction_weight, contrast_weight
        Of the two terms of the loss.
    n_top_genes
        Variable genes; ``None`` takes all.
    epochs, learning_rate, weight_decay
        Of the training, by Adam.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the embedding: ``"mclust"``, ``"kmeans"`` or ``"leiden"``.
    refinement, n_refining
        ``"majority"`` gives every cell the most frequent label of so many nearest cells, as the authors do for layered
        tissue; ``"outvoted"`` changes labels that have less than half and another more than half of the votes;
        ``"none"`` leaves them.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights, shuffling and clustering.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.GraphST(n_clusters=4, epochs=20).fit(adata)
    >>> model.embed().shape[1]
    20

    References
    ----------
    Long et al. (2023), doi 10.1038/s41467-023-36796-3.
    """

    info = MethodInfo(
        title="GraphST",
        tasks=("domains",),
        family="deep",
        year=2023,
        doi="10.1038/s41467-023-36796-3",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="usable",
        advice="Contiguous domains, beside smooth_pca and with several seeds; refinement only for thick domains.",
    )

    n_latent: int = param(64, low=2)
    n_components: int = param(20, low=2)
    n_neighbors: int = param(3, low=1)
    normalisation: Literal["after", "before"] = "after"
    n_across: int = param(0, low=0)
    reconstruction_weight: float = param(10.0, low=0.0)
    contrast_weight: float = param(1.0, low=0.0)

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        from tenfold.engine import seeded
        from tenfold.nn.graph_contrast import GraphContrast

        expression = scaled(data.lognorm[:, data.variable_genes(self.n_top_genes)])
        directed = spatial_graph(positions, "knn", self.n_neighbors)
        if self.n_across:
            directed = joined_sections(directed, positions, self.n_across)
        graph = normalised(symmetrised(directed), self.normalisation)
        with seeded(self.seed):
            weights = (self.reconstruction_weight, self.contrast_weight)
            net = GraphContrast(expression, graph, averaging(directed), self.n_latent, weights)
        self._train(net, data, {"expression": expression, "graph": graph})
        return net.reconstruction_pcs(self.n_components, unit=self.normalisation == "before")


def scaled(lognorm: sparse.csr_matrix) -> sparse.csr_matrix:
    """Divide genes by their standard deviation, without centring, and cut off at 10."""
    n = lognorm.shape[0]
    mean = np.asarray(lognorm.sum(axis=0, dtype=np.float64)).ravel() / n
    squares = np.bincount(lognorm.indices, weights=lognorm.data.astype(np.float64) ** 2, minlength=len(mean))
    deviation = np.sqrt(np.maximum(squares - n * mean**2, 0) / max(n - 1, 1))
    deviation[deviation == 0] = 1
    values = np.minimum(lognorm.data / deviation[lognorm.indices], LARGEST).astype(np.float32)
    return sparse.csr_matrix((values, lognorm.indices, lognorm.indptr), shape=lognorm.shape)
