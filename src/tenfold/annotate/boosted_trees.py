"""Gradient-boosted trees on log-expression."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.special import softmax

from tenfold.annotators.base import AnnotatorMethod
from tenfold.method import MethodInfo, param

#: Levels of expression that a split may fall between: more than counts of most genes have.
LEVELS = 63


class BoostedTrees(AnnotatorMethod):
    """Labels by gradient-boosted trees: in every round one small tree a label mends what the trees before left wrong.

    Trees are scikit-learn's, grown on levels of log-expression. In consensus annotation they stand for XGBoost, from
    which they differ in details of growth.

    **Use it** beside linear methods, where few genes with thresholds tell the labels apart.

    **Do not use it** first: on log-expression linear methods are as good and faster, and trees do not reach beyond the
    range of expression that they have seen, as in a query of other depth.

    **Cost**: training grows with labels × rounds × genes; a few thousand cells take a minute. Memory is cells × genes,
    dense.

    **Writes** ``obs["boosted_trees_label"]``, ``obs["boosted_trees_confidence"]``,
    ``obsm["boosted_trees_probabilities"]``.

    Parameters
    ----------
    n_rounds
        Trees a label.
    learning_rate
        Share of each tree that counts.
    n_leaves
        Leaves of a tree at most.
    min_cells
        Cells of a leaf at least.
    n_top_genes
        Variable genes to learn from; ``None`` takes all.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.BoostedTrees(n_rounds=5).fit(adata[:500].copy(), labels="cell_type")
    >>> model.predict(adata[500:].copy()).shape
    (200,)

    References
    ----------
    Chen & Guestrin (2016), doi 10.1145/2939672.2939785; Ke et al. (2017), LightGBM, NeurIPS 30.
    """

    info = MethodInfo(
        title="Boosted trees",
        tasks=("annotate",),
        family="classical",
        year=2016,
        doi="10.1145/2939672.2939785",
        needs=("labels",),
        accepts=("reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="usable",
        stochastic=False,
        sees_labels=True,
        advice="A member of a consensus that errs in other ways than linear methods do.",
    )

    n_rounds: int = param(100, low=1)
    learning_rate: float = param(0.1, low=0.0, high=1.0)
    n_leaves: int = param(31, low=2)
    min_cells: int = param(5, low=1)
    n_top_genes: int | None = param(2000, low=10)

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        forest = HistGradientBoostingClassifier(
            max_iter=self.n_rounds, learning_rate=self.learning_rate, max_leaf_nodes=self.n_leaves,
            min_samples_leaf=self.min_cells, max_bins=LEVELS, early_stopping=False, random_state=0,
        ).fit(x.toarray(), codes)  # fmt: skip
        trees = [tree.nodes for round_ in forest._predictors for tree in round_]
        starts = np.cumsum([0, *(len(nodes) for nodes in trees)])
        nodes = np.concatenate(trees)
        # A leaf leads to itself, whatever the gene says.
        here, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
        shift = np.repeat(starts[:-1], np.diff(starts))
        self.children_ = np.stack(
            [np.where(leaf, here, nodes[side].astype(np.int64) + shift) for side in ("right", "left")]
        )
        self.features_ = np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64)
        self.thresholds_ = np.where(leaf, 0.0, nodes["num_threshold"])
        self.values_ = nodes["value"].astype(np.float64)
        self.roots_, self.steps_ = starts[:-1], int(nodes["depth"].max())
        self.baseline_ = np.asarray(forest._baseline_prediction, dtype=np.float64).ravel()

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        used = np.unique(self.features_)
        dense, place = x[:, used].toarray(), np.searchsorted(used, self.features_)
        logits = np.tile(self.baseline_, (x.shape[0], 1))
        rows = np.arange(x.shape[0])
        for number, root in enumerate(self.roots_):
            node = np.full(x.shape[0], root)
            for _ in range(self.steps_):
                left = dense[rows, place[node]] <= self.thresholds_[node]
                node = self.children_[left.astype(np.int64), node]
            logits[:, number % len(self.baseline_)] += self.values_[node]
        if logits.shape[1] == 1:  # of two labels: the logit of the second
            logits = np.hstack([np.zeros_like(logits), logits])
        return softmax(logits, axis=1)
