"""fastMNN: batches merged one after the other in shared components, along shifts between mutual nearest neighbours."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tenfold.data import anchors as shared
from tenfold.data.inputs import Inputs
from tenfold.kernels.anchors import Pairs, mutual_pairs, shifts_at_pairs, tricube_weights
from tenfold.method import Corrector, FixedEmbedder, Method, MethodInfo, param

if TYPE_CHECKING:
    pass

_MUCH_LOST = 0.1
_CHUNK = 2048


class Node(NamedTuple):
    """Batches merged so far: their codes, rows, coordinates, and the batch vectors removed on the way."""

    batches: list[int]
    cells: np.ndarray
    points: np.ndarray
    vectors: list[np.ndarray]


class FastMNN(Method, FixedEmbedder, Corrector):
    """Merged principal components, and the low-rank expression that they stand for.

    Counts are brought to the depth of the shallowest batch, log-transformed and cosine-normalised; components give
    every batch the same weight. Batches are then merged one by one: mutual nearest neighbours across the two sides
    are taken for the same kind of cell; the average shift between them is the batch vector, along which both sides are
    made flat; then each cell of the right side moves by a smooth average of the shifts of the paired cells near it.
    This is the algorithm of the authors' R package, with exact neighbours.

    **Use it** where batches hold different cell types but share some: only types with a partner pull.

    **Do not use it** where two batches may share no type: the nearest types are merged all the same; look at the
    warnings, `merges_` and `lost_variance_`. Antonsson & Melsted (2025) found that MNN methods alter data most, also
    where batches differ in nothing: compare with Harmony, and set `min_batch_skip` (0.1 is a start) if batches may
    have no effect. Two types that one batch each holds alone are readily paired with one another, and the batches that
    move are smoothed: more components than the data have signal make that worse. The result depends on the order of
    merges. The expression is of rank `n_components`, on the scale of cosine-normalised cells: for display, not for
    tests of differential expression.

    **Cost**: about 7 seconds of processor time for 30,000 cells in 4 batches; the exact search of neighbours makes it
    quadratic beyond, while memory stays linear. `write` stores a dense layer, 4 bytes × cells × genes: for large data
    take ``embed()`` or ``correct(genes=...)`` instead.

    **Writes** ``obsm["X_fastmnn"]`` and ``layers["fastmnn"]`` (all genes).

    Parameters
    ----------
    n_neighbors
        Neighbours on each side, of which mutual ones become pairs, and neighbours whose shifts are averaged. Larger
        mixes more.
    prop_k
        Neighbours as a share of the cells on a side, where that is more than `n_neighbors`; 0 for none.
    ndist
        Bandwidth of the average, in distances to the middle one of the neighbours.
    merge_order
        ``"data"``: as the batches are ordered in the data; the first is the reference. A list of all batch names. Or
        ``"auto"``: at each step the two sides with the most pairs. Start with a batch that holds most cell types.
    min_batch_skip
        A merge moves no cell when the length of the mean shift, over the root mean square of the shifts, is below
        this; 0 always moves. Guards batches that do not differ.
    n_components
        Number of components.
    n_top_genes
        Number of variable genes that the components are made of.

    Attributes
    ----------
    embedding_
        Merged coordinates, (n_cells, n_components), float32.
    loadings_, centre_
        Of all genes, (n_genes, n_components) and (n_genes,), float32.
    merges_
        One dict a merge: names on the ``left`` and ``right``, number of ``pairs``, share of cells on either side that
        have one (``paired_left``, ``paired_right``), ``pair_distance`` of partners, in distances to the last neighbour
        on the same side (over 1.8: types may not be the same), relative ``magnitude`` of the batch vector (see
        `min_batch_skip`), and whether it was ``skipped``.
    lost_variance_
        Share of each batch's variance that each merge removed, (n_merges, n_batches); 0 where it took no part.

    Raises
    ------
    DataError
        A batch with fewer cells than `n_neighbors`, or fewer than 3 varying genes.
    ParameterError
        `merge_order` does not name every batch once.

    Warns
    -----
    UserWarning
        A merge removed over 10 % of a batch's variance, or partners are few or far apart.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc(planted_batch=True)
    >>> fastmnn = tf.integrate.FastMNN(n_components=30).fit(adata, batch="batch")
    >>> fastmnn.embed().shape, fastmnn.correct(genes=["CD3D", "NKG7"]).shape
    ((700, 30), (700, 2))

    References
    ----------
    Haghverdi et al. (2018), doi 10.1038/nbt.4091; fastMNN in the R package batchelor (Lun, 2019).
    Antonsson, Melsted (2025), Genome Research 35:1832 (calibration).
    """

    info = MethodInfo(
        title="fastMNN",
        tasks=("integrate",),
        family="classical",
        year=2019,
        doi="10.1038/nbt.4091",
        needs=("batch",),
        gives=("embedding", "expression"),
        stochastic=False,
        readiness="caution",
        advice="For batches that share only some cell types; it alters data without a batch effect more than Harmony.",
    )

    n_neighbors: int = param(20, low=1)
    prop_k: float = param(0.0, low=0.0, high=1.0)
    ndist: float = param(3.0, low=1e-3)
    merge_order: shared.MergeOrder = "data"
    min_batch_skip: float = param(0.0, low=0.0)
    n_components: int = param(50, low=2)
    n_top_genes: int = param(2000, low=10, high=4000)

    def _fit(self, data: Inputs) -> None:
        assert data.batch is not None  # needs=("batch",)
        shared.cells_of_batches(data.batch, self.n_neighbors, "fastMNN", "n_neighbors")
        order = shared.order_of_batches(self.merge_order, data.batch.names, "fastMNN")
        genes = data.variable_genes(self.n_top_genes)
        expression = shared.depth_matched(data.counts, data.batch.values)
        shared.check_genes_vary(expression[:, genes], "fastMNN")
        expression = shared.cosine_normalised(expression, genes)
        start = shared.multibatch_pca(expression, data.batch.values, genes, self.n_components)
        self.genes_, self.loadings_, self.centre_ = data.gene_names, start.loadings, start.centre
        self._merge(start.embedding, data.batch.values, data.batch.names, order)
        self._warn()

    def _merge(self, start: np.ndarray, batch: np.ndarray, names: list[str], order: list[int]) -> None:
        """Merge coordinates `start`, (n, d), batch by batch; sets the embedding and the diagnostics."""
        self.merges_: list[dict[str, Any]] = []
        self.lost_variance_ = np.zeros((len(names) - 1, len(names)))
        members = [np.flatnonzero(batch == b) for b in order]
        nodes = [Node([b], cells, start[cells], []) for b, cells in zip(order, members, strict=True)]
        known: dict[tuple, int] = {}
        while len(nodes) > 1:
            a, b = self._next(nodes, known) if self.merge_order == "auto" else (0, 1)
            merged = self._join(nodes[a], nodes[b], batch, names)
            nodes = [*nodes[:a], merged, *nodes[a + 1 : b], *nodes[b + 1 :]]
        self.embedding_ = np.empty_like(start)
        self.embedding_[nodes[0].cells] = nodes[0].points

    def _next(self, nodes: list[Node], known: dict[tuple, int]) -> tuple[int, int]:
        """Return the two nodes with the most pairs; `known` keeps counts by the batches of both."""
        counts = {}
        for a, b in combinations(range(len(nodes)), 2):
            key = (tuple(nodes[a].batches), tuple(nodes[b].batches))
            if key not in known:
                known[key] = len(self._pairs(nodes[a].points, nodes[b].points).left)
            counts[a, b] = known[key]
        return max(counts, key=lambda pair: counts[pair])

    def _pairs(self, left: np.ndarray, right: np.ndarray) -> Pairs:
        k_left, k_right = (max(self.n_neighbors, round(self.prop_k * len(side))) for side in (left, right))
        return mutual_pairs(left, right, k_left, k_right)

    def _join(self, left: Node, right: Node, batch: np.ndarray, names: list[str]) -> Node:
        """Move the right node onto the left one."""
        one, two = _flattened(left.points, right.vectors), _flattened(right.points, left.vectors)
        pairs = self._pairs(one, two)
        rows, shifts = shifts_at_pairs(one, two, pairs)
        vector = shifts.mean(axis=0)
        size = np.sqrt((shifts**2).sum(axis=1).mean())
        magnitude = float(np.linalg.norm(vector) / size) if size > 0 else 0.0
        bare = [_flattened(side, [vector]) for side in (one, two)]
        distance = shared.pair_distance(*bare, pairs, self.n_neighbors)
        vectors, skipped = [*left.vectors, *right.vectors], magnitude < self.min_batch_skip
        if not skipped:
            one, two = bare
            rows, shifts = shifts_at_pairs(one, two, pairs)
            self._note_loss([(left, one), (right, two)], batch)
            two = two + tricube_weights(two, two[rows], self.n_neighbors, self.ndist) @ shifts
            vectors.append(vector)
        self.merges_.append({
            "left": [names[b] for b in left.batches], "right": [names[b] for b in right.batches],
            "pairs": len(pairs.left), "paired_left": len(np.unique(pairs.left)) / len(one),
            "paired_right": len(rows) / len(two), "pair_distance": distance, "magnitude": magnitude, "skipped": skipped,
        })  # fmt: skip
        cells, points = np.concatenate([left.cells, right.cells]), np.concatenate([one, two])
        return Node([*left.batches, *right.batches], cells, points, vectors)

    def _note_loss(self, sides: list[tuple[Node, np.ndarray]], batch: np.ndarray) -> None:
        for node, flat in sides:
            for b in node.batches:
                own = batch[node.cells] == b
                before = node.points[own].var(axis=0).sum()
                after = flat[own].var(axis=0).sum()
                self.lost_variance_[len(self.merges_), b] = max(0.0, 1 - after / before) if before > 0 else 0.0

    def _warn(self) -> None:
        names = [" + ".join(merge["left"]) + " with " + " + ".join(merge["right"]) for merge in self.merges_]
        shared.warn_of_poor_pairs("fastMNN", self.merges_)
        lost = self.lost_variance_.max(axis=1)
        if lost.max() > _MUCH_LOST:
            worst = names[int(lost.argmax())]
            warnings.warn(
                f"fastMNN: merging {worst} removed {lost.max():.0%} of the variance of a batch (more than "
                f"{_MUCH_LOST:.0%} is a warning sign): the batch vector runs along differences between cells of one "
                "batch, so biology went with it. Try another merge_order, or a method that removes less (harmony).",
                stacklevel=2,
            )

    def _corrected(self, columns: np.ndarray) -> np.ndarray:
        loadings = np.ascontiguousarray(self.loadings_[columns].T)
        corrected = np.empty((len(self.embedding_), len(columns)), dtype=np.float32)
        for start in range(0, len(corrected), _CHUNK):
            rows = slice(start, start + _CHUNK)
            np.matmul(self.embedding_[rows], loadings, out=corrected[rows])
            corrected[rows] += self.centre_[columns]
        return corrected


def _flattened(points: np.ndarray, vectors: list[np.ndarray]) -> np.ndarray:
    """Give all points their mean coordinate along each vector, one vector after the other."""
    for vector in vectors:
        length = np.linalg.norm(vector)
        if length > 0:
            unit = vector / length
            along = points @ unit
            points = points + np.outer(along.mean() - along, unit)
    return points
