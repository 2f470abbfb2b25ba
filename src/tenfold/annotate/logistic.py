"""Logistic regression of every label against the rest, with a vote of clusters: what CellTypist does."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import expit, softmax

from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.calibration import Calibration
from tenfold.annotators.celltypist_files import read_celltypist
from tenfold.annotators.one_vs_rest import Scaled, fit_one_vs_rest
from tenfold.annotators.voting import fine_clusters, majority
from tenfold.data import check
from tenfold.data.inputs import Inputs
from tenfold.kernels.sparse_linear import csr_product
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

#: Standard deviations above the mean at which expression is capped.
CAP = 10.0
#: Fewer cells than this do not vote of themselves: their clusters are too coarse.
FEWEST_VOTERS = 2000
#: Gradient at which the first of two fits, which only ranks genes, ends.
COARSE = 1e-3


class Logistic(AnnotatorMethod):
    """Labels by logistic regression, one label against the rest, on scaled genes; then a vote of fine clusters.

    Log-expression of each gene is centred, scaled to variance 1 and capped at 10. The vote gives all cells of a small
    cluster the label that most of them have, and counts in which cells that changed it.

    **Use it** for labels close to CellTypist's, for probabilities of each label by itself, and with models of
    CellTypist that you have: ``Logistic.from_celltypist("Immune_All_Low.pkl")``.

    **Do not use it** to find new types without `novelty`; and do not let small data vote, for a vote takes away rare
    types inside larger clusters (on 140 blood cells it cost 14 points of accuracy).

    **Cost**: training is linear in entries × labels × steps (some 20); labelling is a sparse product. The vote needs a
    neighbour graph of the cells to label.

    **Writes** ``obs["logistic_label"]``, ``obs["logistic_confidence"]``, ``obsm["logistic_probabilities"]``.

    Parameters
    ----------
    C
        Weight of the loss against the penalty; smaller is smoother.
    voting
        ``"auto"``: where clusters are given (``clusters="leiden"``), and for 2,000 cells or more that fit in memory, in
        clusters found for this. ``"on"``, ``"off"``: always, never.
    scale_clusters
        Scale genes to variance 1 before the components whose clusters vote, as CellTypist does; by default genes that
        vary more count more.
    min_share
        Clusters in which no label has this share are "Heterogeneous".
    mode
        ``"best"``: the label with the highest probability. ``"all"``: every label with a sigmoid probability above
        `threshold`, joined by ``|``, and "Unassigned" where there is none.
    threshold
        For the mode ``"all"``.
    genes_per_label
        Fit twice, the second time on the genes with the largest weights for any label in the first, so many for each
        (CellTypist: 300); ``None`` fits once.
    n_top_genes
        Variable genes to learn from; ``None`` takes all.
    tol
        Largest entry of the gradient at the end.
    max_iter
        Steps at most.
    calibration
        Share of the labelled cells held out to calibrate; 0 leaves probabilities as they are.
    seed
        Of held-out cells and clusters.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> model = tf.annotate.Logistic().fit(adata[:500].copy(), labels="cell_type")
    >>> model.predict(adata[500:].copy()).shape
    (200,)

    References
    ----------
    Domínguez Conde et al. (2022), doi 10.1126/science.abl5197.
    """

    info = MethodInfo(
        title="Logistic regression",
        tasks=("annotate",),
        family="classical",
        year=2022,
        doi="10.1126/science.abl5197",
        needs=("labels",),
        accepts=("reference", "batch", "clusters"),
        gives=("labels", "probabilities"),
        readiness="recommended",
        sees_labels=True,
        advice="Where each label should have a probability by itself, or you have a model of CellTypist.",
    )

    UNKNOWN = "Unassigned"

    C: float = param(1.0, low=1e-6)
    voting: Literal["auto", "on", "off"] = "auto"
    scale_clusters: bool = False
    min_share: float = param(0.0, low=0.0, high=1.0)
    mode: Literal["best", "all"] = "best"
    threshold: float = param(0.5, low=0.0, high=1.0)
    genes_per_label: int | None = param(None, low=1)
    tol: float = param(1e-4, low=1e-8)
    max_iter: int = param(1000, low=1)
    seed: int = param(0, low=0)

    # ---- model -------------------------------------------------------------------------------------------------------

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        mean = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()
        square = np.bincount(x.indices, weights=x.data.astype(np.float64) ** 2, minlength=x.shape[1]) / x.shape[0]
        scale = np.sqrt(np.maximum(square - mean**2, 0))
        scale[scale <= 1e-8 * np.maximum(mean, 1)] = 1.0
        values = np.minimum(x.data, (mean + CAP * scale)[x.indices]) / scale[x.indices]
        scaled = Scaled(sparse.csr_matrix((values.astype(np.float32), x.indices, x.indptr), x.shape), mean / scale)
        targets = codes[:, None] == np.arange(1 if len(self.labels_) == 2 else len(self.labels_))
        if len(self.labels_) == 2:
            targets = ~targets  # one problem serves both
        chosen = np.arange(x.shape[1])
        if self.genes_per_label is not None and self.genes_per_label < len(chosen):
            first = fit_one_vs_rest(scaled, targets, self.C, max(self.tol, COARSE), self.max_iter)
            largest = np.argsort(-np.abs(first[:, :-1]), axis=1, kind="stable")[:, : self.genes_per_label]
            chosen = np.unique(largest)
            scaled = Scaled(scaled.x[:, chosen], scaled.shift[chosen])
        found = fit_one_vs_rest(scaled, targets, self.C, self.tol, self.max_iter)
        weights = np.zeros((len(found), x.shape[1]))
        weights[:, chosen] = found[:, :-1]
        self._keep(weights, found[:, -1], mean, scale)

    def _keep(self, weights: np.ndarray, offsets: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
        """Keep a model of scaled genes as one of log-expression."""
        if len(weights) == 1:
            weights, offsets = np.vstack([-weights, weights]), np.append(-offsets, offsets)
        self.weights_ = (weights / scale).astype(np.float32)
        self.offsets_ = offsets - (weights / scale) @ mean
        self.means_, self.caps_ = mean.astype(np.float32), (mean + CAP * scale).astype(np.float32)

    def decisions(self, x: sparse.csr_matrix, missing: np.ndarray | None = None) -> np.ndarray:
        """Return the decision of each label, the logit of its sigmoid probability.

        Parameters
        ----------
        x
            Log-expression of ``genes_``, CSR, shape (n_cells, n_genes).
        missing
            Genes that the data lack, shape (n_genes,), bool: they count as expressed at the mean.

        Returns
        -------
        Shape (n_cells, n_labels), float64.
        """
        capped = sparse.csr_matrix((np.minimum(x.data, self.caps_[x.indices]), x.indices, x.indptr), x.shape)
        offsets = self.offsets_
        if missing is not None and missing.any():
            offsets = offsets + self.weights_[:, missing].astype(np.float64) @ self.means_[missing]
        return csr_product(capped, self.weights_.T) + offsets

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return softmax(self.decisions(x), axis=1)

    def _judge(self, x: sparse.csr_matrix, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return softmax(self.decisions(x, missing), axis=1), np.ones(x.shape[0], dtype=bool)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def sigmoid_probabilities(self, adata: AnnData) -> pd.DataFrame:
        """Return the probability of each label by itself, as CellTypist does: rows do not sum to 1.

        Parameters
        ----------
        adata
            Cells to label, raw counts.

        Returns
        -------
        One row a cell, one column a label, float32.
        """
        self._check_fitted()
        return pd.DataFrame(self._sigmoids(self._inputs(adata)), index=adata.obs_names, columns=self.labels_)

    def _sigmoids(self, data: Inputs) -> np.ndarray:
        parts = [expit(self.decisions(x, missing)) for x, missing in self._cells(data)]
        return np.concatenate(parts).astype(np.float32)

    def votes(self, adata: AnnData) -> pd.DataFrame:
        """Return what the vote does to each cell.

        Parameters
        ----------
        adata
            Cells to label, raw counts.

        Returns
        -------
        One row a cell: ``alone`` (its own label), ``cluster``, and ``voted``.
        """
        self._check_fitted()
        data = self._inputs(adata)
        alone, clusters = self._alone(data)[1], self._clusters(data)
        table = {"alone": alone, "cluster": clusters, "voted": majority(alone, clusters, self.min_share)}
        return pd.DataFrame(table, index=adata.obs_names)

    def _tell(self, data: Inputs) -> tuple[np.ndarray, np.ndarray]:
        found, alone = self._alone(data)
        if not self._votes(data):
            return found, alone
        voted = majority(alone, self._clusters(data), self.min_share)
        changed = int((voted != alone).sum())
        if changed:
            warnings.warn(
                f"The vote of clusters changed the label of {changed:,} of {len(alone):,} cells "
                f"({100 * changed / len(alone):.1f} %); votes(adata) shows them, voting='off' leaves them.",
                stacklevel=2,
            )
        return found, voted

    def _alone(self, data: Inputs) -> tuple[np.ndarray, np.ndarray]:
        found, labels = super()._tell(data)
        if self.mode == "all":
            above = self._sigmoids(data) > self.threshold
            labels = np.array(["|".join(self.labels_[row]) or self.UNKNOWN for row in above], dtype=object)
        return found, labels

    def _votes(self, data: Inputs) -> bool:
        if self.voting != "auto" or "clusters" in data.roles:
            return self.voting != "off"
        return data.n_cells >= FEWEST_VOTERS and data.counts_on_disk is None

    def _clusters(self, data: Inputs) -> np.ndarray:
        if "clusters" in data.roles:
            return check.categories(data.adata, data.roles["clusters"], "clusters").values
        return fine_clusters(data, self.seed, self.scale_clusters)

    # ---- models of CellTypist ----------------------------------------------------------------------------------------

    @classmethod
    def from_celltypist(cls, path: str | Path, **parameters: object) -> Logistic:
        """Return a fitted annotator that is a model of the CellTypist package (.pkl); it can be saved as one of ours.

        Nothing in the file is executed: only arrays and names are read.

        Parameters
        ----------
        path
            The file.
        **parameters
            Hyper-parameters for labelling (``voting``, ``mode``, ...).

        Raises
        ------
        FileFormatError
            The file holds no such model, or asks for something to be run.
        """
        method = cls(**parameters)
        with method._measured():
            read = read_celltypist(path)
            method.genes_, method.labels_ = read.genes, read.labels
            method._keep(read.weights, read.offsets, read.mean, read.scale)
            method.calibration_ = Calibration.none(len(read.labels))._asdict()
            method.found_, method.told_ = np.zeros((0, len(read.labels)), np.float32), np.zeros(0, dtype=object)
            method.depths_, method.detector_ = np.zeros(0), None
            method._remember("", {})
        return method
