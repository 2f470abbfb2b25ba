"""Random forest: bagged trees on the log-expression of variable genes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.calibration import Calibration, held_out, smoothed
from tenfold.kernels.forest import add_leaves
from tenfold.method import MethodInfo, param

#: Cells that are made dense at a time.
BLOCK = 2048
#: Share of the trees whose resample lacks a given cell.
OUTSIDE = float(np.exp(-1))


class RandomForest(AnnotatorMethod):
    """Labels by the mean of many trees, each grown on a resample of the labelled cells.

    scikit-learn grows the trees; they are kept as arrays and read by a kernel of ours. The mean of the labels in the
    leaves is made honest by one temperature. Where no batches are given it is fitted on what the trees say of cells
    outside their resample, so that the forest is grown only once.

    **Use it** as a baseline that needs no scaling and finds combinations of genes.

    **Do not use it** as the only annotator: in benchmarks it gained nothing over a linear model, its votes are
    under-confident for many labels, and it is slow to label.

    **Cost**: labelled cells × √genes × depth × trees to grow; cells × trees × depth to label.

    **Writes** ``obs["random_forest_label"]``, ``obs["random_forest_confidence"]``,
    ``obsm["random_forest_probabilities"]``.

    Parameters
    ----------
    n_trees
        Number of trees.
    max_features
        Genes tried at each branch; ``None`` for the square root of their number.
    class_weight
        ``"balanced"``: rare labels weigh more in each resample.
    n_top_genes
        Variable genes to learn from; ``None`` takes all, most of them useless at random branches.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.
    seed
        Of resamples, branches and held-out cells.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.RandomForest().fit(adata[:500].copy(), labels="cell_type")
    >>> model.predict(adata[500:].copy()).shape
    (200,)

    References
    ----------
    Breiman (2001), doi 10.1023/A:1010933404324.
    """

    info = MethodInfo(
        title="Random forest",
        tasks=("annotate",),
        family="classical",
        year=2001,
        doi="10.1023/A:1010933404324",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="usable",
        sees_labels=True,
        advice="A second opinion of another kind; no better than a linear model.",
    )

    n_top_genes: int | None = param(3000, low=10)
    n_trees: int = param(50, low=1)
    max_features: int | None = param(None, low=1)
    class_weight: Literal["none", "balanced"] = "none"
    seed: int = param(0, low=0)

    def _learn(self, x: sparse.csr_matrix, codes: np.ndarray, groups: np.ndarray | None) -> None:
        held = held_out(codes, groups, self.calibration, self.seed)
        if groups is not None or not held.any():
            super()._learn(x, codes, groups)
            return
        self._train(x, codes)
        outside = np.nan_to_num(self._outside, nan=1 / len(self.labels_))  # a cell in every resample has none
        smooth = smoothed(outside[held], OUTSIDE * self.n_trees)
        self.calibration_ = Calibration.of(smooth, codes[held], None)._asdict()

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(
            self.n_trees,
            max_features=min(self.max_features, x.shape[1]) if self.max_features else "sqrt",
            class_weight=None if self.class_weight == "none" else "balanced_subsample",
            oob_score=_nothing, random_state=self.seed,
        ).fit(x.toarray(), codes)  # fmt: skip
        #: Not kept with the fitted state.
        self._outside = forest.oob_decision_function_
        trees = [tree.tree_ for tree in forest.estimators_]
        sizes = np.array([tree.node_count for tree in trees])
        self.roots_ = np.cumsum(sizes) - sizes
        left, right = (
            np.concatenate(
                [np.where(one >= 0, one + root, -1) for one, root in zip(children, self.roots_, strict=True)]
            )
            for children in ([tree.children_left for tree in trees], [tree.children_right for tree in trees])
        )
        self.left_, self.right_ = left.astype(np.int32), right.astype(np.int32)
        self.gene_ = np.concatenate([tree.feature for tree in trees]).astype(np.int32)
        self.threshold_ = np.concatenate([tree.threshold for tree in trees])
        value = np.concatenate([tree.value[:, 0, :] for tree in trees])
        value /= value.sum(axis=1, keepdims=True)
        value[left >= 0] = 0
        self.leaves_ = sparse.csr_matrix(value)

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        from tenfold.kernels.threads import in_threads

        found = np.zeros((x.shape[0], len(self.labels_)))
        nodes = (self.roots_, self.left_, self.right_, self.gene_, self.threshold_)
        leaves = (self.leaves_.indptr, self.leaves_.indices, self.leaves_.data)
        for start in range(0, x.shape[0], BLOCK):
            cells = x[start : start + BLOCK].toarray()
            out = found[start : start + BLOCK]
            in_threads(lambda a, b, c=cells, o=out: add_leaves(a, b, c, *nodes, *leaves, o), len(cells))  # type: ignore[misc]
        return smoothed(found / self.n_trees, self.n_trees)


def _nothing(truth: np.ndarray, found: np.ndarray) -> float:
    """Stand for a score of the cells outside the resamples: what is wanted is what the trees say of them."""
    return 0.0
