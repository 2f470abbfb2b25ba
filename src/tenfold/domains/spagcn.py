"""SpaGCN: clusters of expression smoothed over neighbours in space and in the colour of the tissue."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from tenfold.data.gaussian_graph import gaussian_graph
from tenfold.data.graph import neighbor_graph
from tenfold.data.heads import clusters_of
from tenfold.data.images import has_pictures, slides_of, stain_intensity
from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import normalize_log1p, pca
from tenfold.data.resolution import sought
from tenfold.data.spatial import Positions
from tenfold.errors import DataError
from tenfold.kernels.communities import louvain
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.base import DomainMethod, SoftDomains, largest_first
from tenfold.types import RunOptions

if TYPE_CHECKING:
    import pandas as pd

    from tenfold.engine import History
    from tenfold.nn.graph_clusters import GraphClusters

#: Genes seen in fewer cells are left out, and genes whose names start so (spike-ins, mitochondria).
FEWEST_CELLS, LEFT_OUT = 3, ("ERCC", "MT-")
#: Training stops when so few cells change their cluster; neighbours of the graph of Louvain.
STILL, NEAR = 5e-3, 10
#: Epochs of a trial of a resolution.
TRIAL_EPOCHS = 20


class SpaGCN(SoftDomains, DomainMethod):
    """Deep embedded clustering of principal components that a Gaussian kernel has smoothed.

    Every cell is joined with those around it by weights that fall with distance, in space or in space and colour: the
    mean colour of the picture around a cell is a third coordinate. Principal components are summed with these weights
    and pass one linear layer. Louvain clusters of its first, random, output give centres, and layer and centres are
    trained until soft membership agrees with its own sharpened form.

    **Use it** beside `SmoothPCA`, and where a picture in good resolution says what expression does not.

    **Do not use it** as the only method, nor with one seed: domains depend on the random first layer. At ``share=0.5``
    a third of a cell's signal is that of neighbours, much less than in `SmoothPCA` or STAGATE, and domains are speckled
    before refinement. With the number of domains known, it was below `SmoothPCA` (2 rounds) in all five annotated
    slices that were measured, before and after the authors' refinement, as the original's own code is. In the two
    slices with a picture, of low resolution, domains were hardly better with it: compare with ``histology="no"``.

    **Cost**: linear in edges, about thirty a cell; weights beyond the cut-off are left out, which changes no sum of
    weights by more than 0.01 %. Training is a product of cells × components a step.

    **Writes** ``obsm["X_spagcn"]`` (output of the layer), ``obs["spagcn"]`` (domains) and
    ``obsm["spagcn_probabilities"]`` (soft membership).

    Parameters
    ----------
    n_components
        Principal components of log-expression.
    share
        What all others weigh, in the mean, against a cell itself (the original's p); the length of the kernel follows.
    histology
        ``"yes"`` takes the colour of the picture in ``uns["spatial"]`` into account, ``"auto"`` where there is one,
        ``"no"`` never.
    histology_weight
        Spread of colour against that of the positions (the original's s or alpha).
    window
        Side of the square around a cell whose colour is averaged, in units of the positions (the original's b or beta).
    start
        First clusters: ``"louvain"``, or ``"kmeans"``, which needs `n_clusters`.
    resolution
        Of Louvain, where `n_clusters` is None; else the first of those tried.
    n_top_genes
        Variable genes; ``None`` takes all, as the original does.
    epochs, learning_rate
        Of the training, by Adam; it ends before where fewer than 0.5 % of the cells change their cluster.
    n_clusters
        Number of domains: the resolution is sought that gives it after training. ``None`` to leave it to `resolution`.
    head
        ``"own"``, or another clustering of the trained output: ``"kmeans"``, ``"mclust"`` or ``"leiden"``.
    refinement, n_refining
        ``"outvoted"`` changes labels that have less than half and another more than half of the votes of so many
        nearest cells, as the authors do with 6 on a hexagonal and 4 on a square lattice; ``"majority"`` gives every
        cell the most frequent label; ``"none"`` leaves them.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of the first layer and of clustering.

    Notes
    -----
    The original tries resolutions in steps of 0.1; here they grow or shrink by factors until the number is enclosed,
    and are halved from then on. Sections share components, layer and centres; the length of the kernel, and the scale
    of colours, is that of each. Genes that vary in space are not looked for.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> model = tf.domains.SpaGCN(n_clusters=4).fit(adata)
    >>> model.probabilities().shape
    (700, 4)

    References
    ----------
    Hu et al. (2021), doi 10.1038/s41592-021-01255-8.
    """

    info = MethodInfo(
        title="SpaGCN",
        tasks=("domains",),
        family="deep",
        year=2021,
        doi="10.1038/s41592-021-01255-8",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains", "probabilities"),
        readiness="caution",
        advice="Where a stained picture helps; several seeds, with refinement, beside smooth_pca.",
    )

    n_components: int = param(50, low=2)
    share: float = param(0.5, low=1e-3)
    histology: Literal["auto", "yes", "no"] = "auto"
    histology_weight: float = param(1.0, low=0.0)
    window: float = param(49.0, low=0.0)
    start: Literal["louvain", "kmeans"] = "louvain"
    resolution: float = param(0.7, low=1e-3)
    n_top_genes: int | None = param(None, low=10)
    epochs: int = param(200, low=1)
    learning_rate: float = param(0.05, low=0.0)
    head: Literal["own", "kmeans", "mclust", "leiden"] = "own"  # type: ignore[assignment]  # one more than others have
    n_refining: int = param(6, low=2)
    device: str = "auto"

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        """Train, keeping membership; return the output of the layer."""
        components = self._components(data)
        graph = gaussian_graph(self._coordinates(data, positions), positions.each(), self.share)
        self.lengths_ = graph.lengths
        smoothed = np.ascontiguousarray(graph.weights @ components, dtype=np.float32)
        labels = self._first_clusters(smoothed)
        net, history = self._trained(smoothed, labels, self.epochs, data.run)
        membership = net.membership().detach().numpy()
        self.history_ = history.to_dict()
        self._own, self.probabilities_ = largest_first(membership.argmax(axis=1), membership)
        return net.output().detach().numpy()

    def _domains(self, data: Inputs, positions: Positions) -> np.ndarray:
        self.embedding_ = self._embed(data, positions)
        own = vars(self).pop("_own")
        if self.head == "own":
            return own
        return clusters_of(self.embedding_, self.n_clusters, self.head, self.seed)

    def _components(self, data: Inputs) -> np.ndarray:
        names = data.gene_names.astype(str)
        kept = data.counts.getnnz(axis=0) >= FEWEST_CELLS
        kept &= ~np.array([name.upper().startswith(LEFT_OUT) for name in names])
        if self.n_top_genes is not None:
            kept &= np.isin(np.arange(data.n_genes), data.variable_genes(self.n_top_genes))
        counts = data.counts[:, np.flatnonzero(kept)]
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        if counts.shape[1] < 3 or not totals.all():
            raise DataError(
                f"{counts.shape[1]} genes are seen in at least {FEWEST_CELLS} cells and are no spike-ins or "
                f"mitochondrial genes, and {int((totals == 0).sum())} cells have none of them; leave these cells out."
            )
        return pca(normalize_log1p(counts, float(np.median(totals))), self.n_components, self.seed).embedding

    def _coordinates(self, data: Inputs, positions: Positions) -> np.ndarray:
        """Return positions, with the colour around each cell as one more coordinate where it is wanted."""
        self.saw_picture_ = self.histology == "yes" or (self.histology == "auto" and has_pictures(data))
        if not self.saw_picture_:
            return positions.points
        colour = np.zeros((data.n_cells, 1))
        for slide in slides_of(data, positions):
            spread = positions.points[slide.cells].std(axis=0).max()
            colour[slide.cells, 0] = stain_intensity(slide, self.window) * spread * self.histology_weight
        return np.column_stack([positions.points, colour])

    def _first_clusters(self, smoothed: np.ndarray) -> np.ndarray:
        """Return clusters of the untrained output: those that training makes the wanted number of, where it can."""
        untrained = self._network(smoothed, 1).output().detach().numpy()
        if self.start == "kmeans":
            if self.n_clusters is None:
                raise DataError("start='kmeans' needs n_clusters; start='louvain' finds a number.")
            return clusters_of(untrained, self.n_clusters, "kmeans", self.seed)
        graph = neighbor_graph(untrained, min(NEAR, len(untrained) - 1), seed=self.seed).connectivities

        def tried(resolution: float) -> tuple[int, np.ndarray]:
            labels = louvain(graph, resolution, self.seed)
            net, _ = self._trained(smoothed, labels, min(TRIAL_EPOCHS, self.epochs), RunOptions(progress=False))
            return len(np.unique(net.membership().detach().numpy().argmax(axis=1))), labels

        if self.n_clusters is None:
            return louvain(graph, self.resolution, self.seed)
        self.resolution_, found, labels = sought(tried, self.n_clusters, self.resolution)
        if found != self.n_clusters:
            warnings.warn(
                f"No resolution of Louvain was found that ends in {self.n_clusters} domains; {found} is the nearest. "
                "start='kmeans' starts from the number itself.",
                stacklevel=5,
            )
        return labels

    def _network(self, smoothed: np.ndarray, n_clusters: int) -> GraphClusters:
        from tenfold.engine import seeded
        from tenfold.nn.graph_clusters import GraphClusters

        with seeded(self.seed):
            return GraphClusters(smoothed, n_clusters)

    def _trained(
        self, smoothed: np.ndarray, labels: np.ndarray, epochs: int, run: RunOptions
    ) -> tuple[GraphClusters, History]:
        from tenfold.engine import Phase, fit
        from tenfold.kernels.adam import Adam
        from tenfold.nn.graph_clusters import REFRESH

        net = self._network(smoothed, int(labels.max()) + 1)
        net.start(labels)

        def still(history: History) -> bool:
            changed = history.values("changed")
            return len(changed) > 1 and (len(changed) - 2) % REFRESH == 0 and changed[-1] < STILL

        phase = Phase(
            "train", epochs, loss=lambda net, batch, progress: net.terms(), until=still,
            before_epoch=lambda net, data, progress: net.refresh(progress.epoch),
            optimizer=partial(Adam, lr=self.learning_rate),
        )  # fmt: skip
        history = fit(
            net, {"cell": np.arange(len(smoothed))}, [phase], batch_size=None, train_fraction=1.0, seed=self.seed,
            device=self.device, run=run, name=self.name(), fingerprint={**self.parameters, "epochs": epochs},
        )  # fmt: skip
        return net.cpu(), history

    @property
    def history(self) -> pd.DataFrame:
        """Loss and share of cells that changed, one row an epoch and term."""
        from tenfold.engine import History

        self._check_fitted()
        return History.from_dict(self.history_).terms
