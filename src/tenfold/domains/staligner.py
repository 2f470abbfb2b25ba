"""STAligner: STAGATE over several sections, drawn together at cells that are nearest neighbours of each other."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import highly_variable_genes
from tenfold.data.spatial import Positions
from tenfold.errors import DataError
from tenfold.kernels.anchors import mutual_pairs
from tenfold.method import MethodInfo, param
from tenfold.spatial_models.attention import AttentionMethod

if TYPE_CHECKING:
    from tenfold.engine.phases import Progress
    from tenfold.nn.graph_attention import GraphAttention

#: Epochs from one set of triplets to the next.
REFRESH = 100


class STAligner(AttentionMethod):
    """Latent space of `STAGATE` over several sections, in which cells that match across sections lie together.

    The autoencoder is trained on all sections, whose graphs are not joined. Then pairs of cells of two sections that
    are among each other's nearest in the latent space are taken to be the same kind: training goes on with a triplet
    loss, by which a cell is to lie nearer to its match than to a random cell of its own section. Pairs are sought anew
    every 100 epochs.

    **Use it** for several sections of one tissue that differ by batch, beside `SmoothPCA` with `Harmony` on its
    embedding.

    **Do not use it** for sections of which some lack a domain: cells are matched whether they have a counterpart or
    not. Nor for a single section, where it is `STAGATE`. The authors' own figures fall from an adjusted Rand index of
    0.63 for four sections of one donor to 0.44 for twelve of three. On three sections of a mouse cortex it mixes
    sections better than `STAGATE` inside layers (0.35 against 0.18) and finds the layers no better (0.68 against 0.69);
    `SmoothPCA` finds them better than both (0.72 to 0.80, by head and rounds).

    **Cost**: that of STAGATE on all sections, and a search of neighbours between every two sections every 100 epochs.

    **Writes** ``obsm["X_staligner"]`` (latent space) and ``obs["staligner"]`` (domains, the same in all sections).

    Parameters
    ----------
    n_latent, n_hidden
        Widths of the latent space and of the hidden layer.
    graph
        Neighbours in space: ``"radius"``, ``"knn"`` (made symmetric) or ``"delaunay"``.
    radius
        Of the graph ``"radius"``, in units of the distance to the nearest cell.
    n_neighbors
        Of the graph ``"knn"``.
    n_matching
        Nearest cells in the latent space among which a match is sought.
    margin
        By which a match is to be nearer than another cell; larger values draw sections together more forcefully.
    n_top_genes
        Variable genes of each section; those that all sections share are used. ``None`` takes all.
    epochs
        Of the autoencoder alone, and again of the training with triplets.
    learning_rate, weight_decay
        Of the training, by Adam, which begins anew in the second phase; gradients are clipped at a norm of 5.
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
        Of weights, triplets and clustering.

    Notes
    -----
    Name the sections with ``sample=``. Encoder and decoder share weights (``tie="clean"`` of `STAGATE`). Neighbours in
    the latent space are exact, where the original's are approximate; a cell's match is the nearest of those it has,
    where the original takes the first that its search lists.

    Examples
    --------
    >>> import numpy as np, tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(700, 2))
    >>> adata.obs["slice"] = np.repeat(["a", "b"], 350)
    >>> adata.obsm["spatial"][350:] += 2
    >>> model = tf.domains.STAligner(n_clusters=4, graph="knn", epochs=5, n_hidden=32)
    >>> model.fit(adata, sample="slice").embed().shape
    (700, 30)

    References
    ----------
    Zhou, Dong and Zhang (2023), doi 10.1038/s43588-023-00528-w.
    """

    info = MethodInfo(
        title="STAligner",
        tasks=("domains",),
        family="deep",
        year=2023,
        doi="10.1038/s43588-023-00528-w",
        accepts=("spatial", "sample", "batch"),
        gives=("embedding", "domains"),
        readiness="caution",
        advice="Several sections of one tissue that differ by batch, and share their domains.",
    )

    n_matching: int = param(100, low=1)
    margin: float = param(1.0, low=0.0)
    n_top_genes: int | None = param(5000, low=10)
    epochs: int = param(500, low=1)

    def _embed(self, data: Inputs, positions: Positions) -> np.ndarray:
        sections = positions.each()
        if len(sections) == 1:
            warnings.warn(
                "There is a single section, so nothing is aligned; name the sections with sample=.", stacklevel=4
            )
        expression = data.lognorm[:, shared_genes(data, sections, self.n_top_genes)]
        return self._autoencoded(data, positions, expression, then=[self._aligning(sections)])

    def _aligning(self, sections: list[np.ndarray]) -> dict[str, Any]:
        """Return the second phase: triplets are rows of a table with a column for each other section."""

        def before(
            net: GraphAttention, data: dict[str, Any], progress: Progress
        ) -> dict[str, np.ndarray | float] | None:
            if progress.epoch % REFRESH:
                return None
            latent = net.embedding()
            positive = matches(latent, sections, self.n_matching)
            rng = np.random.default_rng([self.seed, progress.epoch])
            negative = np.zeros_like(positive)
            for cells in sections:
                negative[cells] = rng.choice(cells, size=(len(cells), positive.shape[1]))
            return {"positive": positive, "negative": negative, "matched": float((positive >= 0).any(axis=1).mean())}

        def loss(net: GraphAttention, batch: dict[str, Any], progress: Progress) -> dict[str, Any]:
            found = batch["positive"] >= 0
            cell = batch["cell"][:, None].expand_as(found)[found]
            return net.aligned_terms(cell, batch["positive"][found], batch["negative"][found], self.margin)

        return {"name": "align", "epochs": self.epochs, "before_epoch": before, "loss": loss}


def shared_genes(data: Inputs, sections: list[np.ndarray], n_top_genes: int | None) -> np.ndarray:
    """Return the columns of genes that are variable in every section.

    Raises
    ------
    DataError
        There are fewer than ten.
    """
    if n_top_genes is None or n_top_genes >= data.n_genes:
        return np.arange(data.n_genes)
    kept = np.ones(data.n_genes, dtype=bool)
    for cells in sections:
        kept &= np.isin(np.arange(data.n_genes), highly_variable_genes(data.counts[cells], n_top_genes, None))
    if kept.sum() < 10:
        raise DataError(
            f"Only {int(kept.sum())} genes are among the {n_top_genes:,} most variable of every section; raise "
            "n_top_genes, or look whether the sections are of one tissue."
        )
    return np.flatnonzero(kept)


def matches(latent: np.ndarray, sections: list[np.ndarray], n_matching: int) -> np.ndarray:
    """Return the nearest match of each cell in each other section; -1 where it has none.

    A match is a cell of another section such that both are among the `n_matching` nearest of each other.

    Returns
    -------
    Shape (n_cells, number of sections - 1, at least 1), int64.
    """
    found = np.full((len(latent), max(len(sections) - 1, 1)), -1, dtype=np.int64)
    for (i, first), (j, second) in combinations(enumerate(sections), 2):
        k = min(n_matching, len(first), len(second))
        pairs = mutual_pairs(latent[first], latent[second], k, k)
        ends = first[pairs.left], second[pairs.right]
        apart = np.linalg.norm(latent[ends[0]] - latent[ends[1]], axis=1)
        near = np.argsort(-apart, kind="stable")  # the nearest is written last
        for (own, other), column in (((ends[0], ends[1]), j - 1), ((ends[1], ends[0]), i)):
            found[own[near], column] = other[near]
    return found
