"""SiGra: graph transformers that read expression and what the tissue looks like, and write expression."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.data.image_features import default_features, patches
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import GraphKind, Positions, spatial_graph, symmetrised
from tenfold.errors import ParameterError
from tenfold.method import Denoiser, MethodInfo, param
from tenfold.spatial_models.graph_training import GraphMethod
from tenfold.spatial_models.pictures import Histology, seen

if TYPE_CHECKING:
    from anndata import AnnData

#: Largest norm of the gradients.
CLIP = 5.0
#: Cells that are decoded at a time.
CHUNK = 4096


class SiGra(GraphMethod, Denoiser):
    """Code of expression and picture by graph transformers, and the expression that it stands for.

    Three branches, each an autoencoder of four layers with attention by queries and keys over the neighbours of a cell:
    one reads log-expression, one reads the picture around each cell, and one reads the codes of both. All are trained
    to give log-expression; the code of the last one is clustered.

    **Use it** for contiguous domains of stained sections, beside `SmoothPCA` and with ``histology="no"``. In a breast
    tumour, number of domains known, it reached a median adjusted Rand index of 0.37 (seeds 0.27 to 0.47), without the
    picture 0.32, `SmoothPCA` 0.17; but ``epochs`` had been chosen on that section. With the number unknown it was below
    `SmoothPCA`. There, squared errors to held-out counts were 0.266 by both, 0.278 by expression and 0.284 by the
    picture alone, which is no better than the mean of each gene.

    **Do not use it** as the only method, nor for single cells without a picture: in mouse cortex it reached 0.16, plain
    components 0.27 and `SmoothPCA` 0.46. Do not take smooth denoised values for truth, and do not test them.

    **Cost**: linear in cells and edges × epochs. The output, cells × genes, is made only where that is less work.
    An epoch took 5.6 times less CPU time than the original's with 3,500 spots and 3,000 genes, 3.1 times with 4,634
    and 500, and 1.6 times with 346 and 500: with fewer genes there is less that products can be spared of.

    **Writes** ``obsm["X_sigra"]`` (code) and ``obs["sigra"]`` (domains); with ``task="denoise"`` ``layers["sigra"]``,
    the log-expression (counts per 10,000) that the last branch gives, negative values set to 0, and NaN for genes that
    it was not shown.

    Parameters
    ----------
    n_latent, n_hidden
        Widths of the codes and of the hidden layers.
    histology
        ``"auto"`` looks at a picture where there is one, ``"yes"`` needs one, ``"no"`` leaves the branch of expression.
    picture
        What is seen around a cell: ``"pixels"`` of the square itself, or ``"features"``, stains and texture in squares
        of one, two and four spots.
    side
        Of the square of pixels, in units of the distance to the nearest cell. The authors' 50 pixels are 0.36 of the
        distance of Visium spots; their squares around single cells reach over the nearest cells (2).
    network, network_weights
        Network of timm for features of the picture and the file of its weights, in place of either.
    expression
        False leaves the branch of the picture, to see what that knows of expression.
    graph
        Neighbours in space: ``"radius"``, ``"knn"`` (made symmetric) or ``"delaunay"``.
    radius
        Of the graph ``"radius"``, in units of the distance to the nearest cell; 1.5 reaches the six neighbours of a
        Visium spot. Cells without a regular spacing need more.
    n_neighbors
        Of the graph ``"knn"``.
    genes_weight, picture_weight, fused_weight
        Of the squared error of each branch; for single cells the authors take 0.1, 0.1 and 1.
    n_top_genes
        Variable genes; ``None`` takes all, as the authors do with panels.
    epochs, learning_rate, weight_decay
        Of the training, by Adam; gradients are clipped at a norm of 5. The authors take 600 to 2,000 epochs, in which
        a network of this size learns a section by heart: in the tumour the error to held-out counts was least near the
        75th, and higher after 200 than after 10.
    n_clusters
        Number of domains; ``None`` to choose it from the data.
    head
        Clustering of the code: ``"mclust"``, ``"leiden"`` or ``"kmeans"``.
    refinement, n_refining
        ``"majority"`` gives every cell the most frequent label of so many nearest cells, ``"outvoted"`` changes labels
        that have less than half and another more than half of the votes; ``"none"`` leaves them, as the authors do.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of weights and clustering.

    Notes
    -----
    The authors' program for Visium trains no fused branch and clusters its code, of random weights, all the same; here
    it is trained, as in their program for single cells. They read 7,500 pixels as they are; here the square is read at
    12 × 12 points, standardised section by section, as stain and scanner demand, and reduced to 50 components.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.SiGra(n_clusters=4, graph="knn", epochs=5, n_hidden=32, histology="no").fit(adata)
    >>> model.embed().shape[1]
    30

    References
    ----------
    Tang et al. (2023), doi 10.1038/s41467-023-41437-w.
    """

    info = MethodInfo(
        title="SiGra",
        tasks=("domains", "denoise"),
        family="deep",
        year=2023,
        doi="10.1038/s41467-023-41437-w",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains", "expression"),
        readiness={"domains": "caution", "denoise": "research"},
        advice="Stained sections, beside smooth_pca; compare with histology='no'.",
    )

    n_latent: int = param(30, low=2)
    n_hidden: int = param(512, low=2)
    histology: Histology = "auto"
    picture: Literal["pixels", "features"] = "pixels"
    side: float = param(0.36, low=0.01)
    network: str | None = None
    network_weights: str | None = None
    expression: bool = True
    graph: GraphKind = "radius"
    radius: float = param(1.5, low=0.1)
    n_neighbors: int = param(6, low=1)
    genes_weight: float = param(1.0, low=0.0)
    picture_weight: float = param(1.0, low=0.0)
    fused_weight: float = param(1.0, low=0.0)
    epochs: int = param(75, low=1)
    weight_decay: float = param(1e-4, low=0.0)

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        from tenfold.engine import seeded
        from tenfold.nn.picture_graph_net import PictureGraphNet

        self.columns_, self.n_genes_ = data.variable_genes(self.n_top_genes), data.n_genes
        expression, picture = data.lognorm[:, self.columns_], self._picture(data, positions)
        graph = symmetrised(spatial_graph(positions, self.graph, self.n_neighbors, self.radius))
        weights = {"genes": self.genes_weight, "picture": self.picture_weight, "fused": self.fused_weight}
        with seeded(self.seed):
            net = PictureGraphNet(
                expression, picture, graph, self.n_hidden, self.n_latent, weights, reads_genes=self.expression
            )
        self._train(net, data, {"expression": expression, "graph": graph}, clip=CLIP)
        code, self.cell_factors_, self.gene_factors_ = net.outputs()
        return code

    def _picture(self, data: Inputs, positions: Positions) -> np.ndarray | None:
        """Return components of what is seen around each cell, mean variance 1; None where nothing is looked at."""
        if not self.expression and self.histology == "no":
            raise ParameterError("expression=False and histology='no' leave nothing to read; give up one of them.")
        look = default_features
        if self.picture == "pixels":
            look = partial(patches, side=self.side * positions.spacing)
        histology = self.histology if self.expression else "yes"
        without = "expression alone is read"
        found = seen(data, positions, histology, self.network, self.network_weights, without, look)
        self.saw_picture_ = found is not None
        if found is None:
            return None
        return found / max(float(np.sqrt(np.square(found).mean())), 1e-12)

    def denoise(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the log-expression that the code stands for, shape (n_cells, n_genes), float32, at least 0.

        Genes that the network was not shown are NaN. Values of neighbours depend on each other: do not test them.

        Raises
        ------
        DataError
            If `adata` holds other cells than the fitted ones.
        """
        self._require_fitted_cells(adata)
        return np.concatenate(list(self.denoised()))

    def denoised(self) -> Iterator[np.ndarray]:
        """Iterate over the rows of ``denoise()``, 4,096 cells at a time."""
        self._check_fitted()
        for start in range(0, len(self.cell_factors_), CHUNK):
            found = self.cell_factors_[start : start + CHUNK] @ self.gene_factors_.T
            rows = np.full((len(found), self.n_genes_), np.nan, dtype=np.float32)
            rows[:, self.columns_] = np.maximum(found, 0)
            yield rows
