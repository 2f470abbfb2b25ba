"""Labels from marker genes: no reference is needed."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse, stats
from scipy.special import softmax

from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.calibration import Calibration
from tenfold.data import check
from tenfold.data.genes import kind_of_names, match_genes
from tenfold.data.inputs import Inputs
from tenfold.data.marker_genes import read_markers
from tenfold.errors import DataError, RoleError
from tenfold.kernels.sparse_linear import csr_product
from tenfold.method import MethodInfo, param

#: Genes whose level says more of the state of a cell than of its type.
_HOUSEKEEPING = re.compile(r"^(RP[SL]\d|MT-|MRP[SL]\d)", re.IGNORECASE)


class Markers(AnnotatorMethod):
    """Labels by the marker genes that cells, or clusters of cells, express more than others do.

    Markers come from ``fit(adata, markers={"B cell": ["MS4A1", "CD79A"], ...})``, a table or a file; or, where there
    are labelled cells instead, from ``labels=``: the genes most raised in each label. A marker counts the more, the
    fewer labels have it.

    Cells: expression of each marker in standard deviations from its mean, summed over the markers of a label and
    divided by its spread. Clusters, with ``clusters="leiden"``: overlap of the markers with the genes that are raised
    most in a cluster, by rank; the label must pass a hypergeometric test.

    **Use it** where no reference is like your cells, and to check labels that come from elsewhere.

    **Do not use it** to tell close subtypes apart (of ten groups of blood cells, T-cell subsets among them, the
    built-in list named six), or with markers found in the same cells: that is circular. With ``markers=`` nothing is
    held out, and probabilities are not calibrated.

    **Cost**: cells × markers.

    **Writes** ``obs["markers_label"]``, ``obs["markers_confidence"]``, ``obsm["markers_probabilities"]``.

    Parameters
    ----------
    margin
        Cells whose best score is less than this above the second (clusters: by this share of the best), or not
        above 0, are "Unknown".
    n_ranked
        Genes raised most in a cluster that are compared with markers.
    fdr
        Clusters whose best label has a larger adjusted p-value are "Unknown".
    n_markers
        Markers of each label that are taken from labelled cells.
    n_top_genes
        Variable genes to take markers from, with ``labels=``; ``None`` takes all.
    calibration
        Share of the labelled cells held out to calibrate, with ``labels=``.
    seed
        Of held-out cells.

    Examples
    --------
    >>> import tenfold as tf
    >>> from tenfold.data.marker_genes import BLOOD
    >>> adata = tf.data.pbmc()
    >>> tf.annotate.Markers().fit(adata, markers=BLOOD).predict().shape
    (700,)

    References
    ----------
    Hou & Ji (2024), doi 10.1038/s41592-024-02235-4, of which this is the counterpart without a language model.
    """

    info = MethodInfo(
        title="Marker genes",
        tasks=("annotate",),
        family="classical",
        year=2024,
        doi="10.1038/s41592-024-02235-4",
        accepts=("markers", "labels", "clusters", "reference", "batch"),
        gives=("labels", "probabilities"),
        readiness="usable",
        sees_labels=True,
        advice="Where no reference is like your cells; major types only.",
    )

    margin: float = param(0.1, low=0.0)
    n_ranked: int = param(50, low=1)
    fdr: float = param(0.05, low=0.0, high=1.0)
    n_markers: int = param(20, low=1)
    seed: int = param(0, low=0)

    # ---- markers -----------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        if "markers" not in data.roles:
            if (data.reference or data).labels is None:
                raise RoleError("Marker genes needs markers=... (label: genes), or labels=... to take them from.")
            super()._fit(data)
            return
        wanted = read_markers(data.roles["markers"])
        names = set(data.gene_names)
        found = {label: [gene for gene in dict.fromkeys(genes) if gene in names] for label, genes in wanted.items()}
        self._report(wanted, found, data.gene_names)
        self.labels_ = np.array([label for label, genes in found.items() if genes], dtype=object)
        self.genes_ = np.array(sorted({gene for genes in found.values() for gene in genes}), dtype=object)
        self.sets_ = np.array([np.isin(self.genes_, found[label]) for label in self.labels_])
        match = match_genes(data.adata.var_names, self.genes_)
        self._scale(sparse.vstack(list(self._chunks(data, match, show=False)), format="csr"))
        self.calibration_, self.detector_ = Calibration.none(len(self.labels_))._asdict(), None
        self.found_, self.told_ = self._tell(data)
        self.depths_ = self._depths(data.adata, data.roles.get("layer"))

    @staticmethod
    def _report(wanted: dict[str, list[str]], found: dict[str, list[str]], genes: np.ndarray) -> None:
        without = [label for label, present in found.items() if not present]
        if len(found) - len(without) < 2:
            example = next((gene for members in wanted.values() for gene in members), "")
            raise DataError(
                f"Fewer than two labels have a marker among the genes of the data (they have {kind_of_names(genes)}, "
                f"e.g. '{genes[0]}'; the markers e.g. '{example}')."
            )
        if without:
            warnings.warn(
                f"No marker of {', '.join(without)} is among the genes of the data; no cell gets such a label.",
                stacklevel=2,
            )

    def _train(self, x: sparse.csr_matrix, codes: np.ndarray) -> None:
        members = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
        sums, sizes = (members @ x).toarray(), np.bincount(codes)[:, None]
        raised = sums / sizes - (sums.sum(axis=0) - sums) / np.maximum(len(codes) - sizes, 1)
        order = np.argsort(-raised, axis=1, kind="stable")[:, : self.n_markers]
        self.sets_ = np.zeros(raised.shape, dtype=bool)
        np.put_along_axis(self.sets_, order, True, axis=1)
        self.sets_ &= raised > 0
        self._scale(x)

    def _scale(self, x: sparse.csr_matrix) -> None:
        """Take mean and spread of each gene, and the weights of markers."""
        mean = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()
        square = np.bincount(x.indices, weights=x.data.astype(np.float64) ** 2, minlength=x.shape[1]) / x.shape[0]
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        self.means_ = mean.astype(np.float32)
        weights = _rarity(self.sets_) * self.sets_
        weights = weights / np.maximum(np.sqrt((weights**2).sum(axis=1, keepdims=True)), 1e-12)
        self.weights_ = (weights / np.where(spread > 0, spread, np.inf)).astype(np.float32)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def scores(self, x: sparse.csr_matrix, missing: np.ndarray | None = None) -> np.ndarray:
        """Return the score of each label for each cell.

        Parameters
        ----------
        x
            Log-expression of ``genes_``, CSR, shape (n_cells, n_genes).
        missing
            Genes that the data lack, shape (n_genes,), bool: they count as expressed at the mean.

        Returns
        -------
        Shape (n_cells, n_labels), float64, in standard deviations.
        """
        seen = np.ones(len(self.genes_), dtype=bool) if missing is None else ~missing
        centre = self.weights_[:, seen].astype(np.float64) @ self.means_[seen]
        return csr_product(x, self.weights_.T).astype(np.float64) - centre

    def _score(self, x: sparse.csr_matrix) -> np.ndarray:
        return softmax(self.scores(x), axis=1)

    def _judge(self, x: sparse.csr_matrix, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self.scores(x, missing)
        second, first = np.partition(found, -2, axis=1)[:, -2:].T
        return softmax(found, axis=1), (first > 0) & (first - second >= self.margin)

    def _tell(self, data: Inputs) -> tuple[np.ndarray, np.ndarray]:
        if "clusters" not in data.roles:
            return super()._tell(data)
        table, codes = self._overlaps(data)
        scores = table.pivot(index="cluster", columns="label", values="score")[list(self.labels_)].to_numpy()
        chosen = table.groupby("cluster")["given"].first().to_numpy(dtype=object)
        return softmax(scores, axis=1).astype(np.float32)[codes], chosen[codes]

    def overlaps(self, adata: AnnData) -> pd.DataFrame:
        """Return how the markers of each label overlap with the genes raised in each cluster.

        Parameters
        ----------
        adata
            Cells with the column of clusters that the method was fitted with.

        Returns
        -------
        One row a cluster and label: ``cluster``, ``label``, ``score``, ``genes`` (that overlap, between commas),
        ``pvalue``, ``qvalue`` (over labels), ``given`` (the label that the cluster gets).

        Raises
        ------
        RoleError
            It was fitted without ``clusters=``.
        """
        self._check_fitted()
        data = self._inputs(adata)
        if "clusters" not in data.roles:
            raise RoleError("There are no clusters to compare with; fit with clusters='<obs column>'.")
        table, _ = self._overlaps(data)
        names = check.categories(adata, data.roles["clusters"], "clusters").names
        return table.assign(cluster=[names[code] for code in table["cluster"]])

    def _overlaps(self, data: Inputs) -> tuple[pd.DataFrame, np.ndarray]:
        groups = check.categories(data.adata, data.roles["clusters"], "clusters")
        raised = raised_genes(data, groups.values, len(groups.names), self.n_ranked)
        rarity = dict(zip(self.genes_, _rarity(self.sets_), strict=True))
        members = [set(self.genes_[row]) & set(data.gene_names) for row in self.sets_]
        rows = []
        for cluster, ranked in enumerate(raised):
            place = {gene: 1 - rank / self.n_ranked for rank, gene in enumerate(ranked)}
            shared = [[gene for gene in ranked if gene in own] for own in members]
            score = [
                sum(place[gene] * rarity[gene] for gene in genes) / np.sqrt(max(len(own), 1))
                for genes, own in zip(shared, members, strict=True)
            ]
            p = [
                float(stats.hypergeom.sf(len(genes) - 1, data.n_genes, len(own), len(ranked)))
                for genes, own in zip(shared, members, strict=True)
            ]
            q = stats.false_discovery_control(p)
            second, first = np.argsort(score)[-2:]
            clear = score[first] > 0 and score[first] - score[second] >= self.margin * score[first]
            given = self.labels_[first] if clear and q[first] <= self.fdr else self.UNKNOWN
            rows += [
                (cluster, self.labels_[k], score[k], ", ".join(shared[k]), p[k], q[k], given) for k in range(len(score))
            ]
        columns = ["cluster", "label", "score", "genes", "pvalue", "qvalue", "given"]
        return pd.DataFrame(rows, columns=columns), groups.values


def _rarity(sets: np.ndarray) -> np.ndarray:
    """Return log(labels / labels that have the gene) of each gene, a little above 0 where all have it."""
    return np.log(len(sets) / np.maximum(sets.sum(axis=0), 1)) + 1e-3


def raised_genes(data: Inputs, codes: np.ndarray, n_clusters: int, n_genes: int) -> list[list[str]]:
    """Return the genes most raised in each cluster against all other cells, best first."""
    members = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), (n_clusters, len(codes)))
    sums, sizes = (members @ data.lognorm).toarray(), np.bincount(codes, minlength=n_clusters)[:, None]
    more = sums / np.maximum(sizes, 1) - (sums.sum(axis=0) - sums) / np.maximum(len(codes) - sizes, 1)
    more[:, [bool(_HOUSEKEEPING.match(str(gene))) for gene in data.gene_names]] = -np.inf
    order = np.argsort(-more, axis=1, kind="stable")[:, :n_genes]
    return [[data.gene_names[g] for g in row if more[cluster, g] > 0] for cluster, row in enumerate(order)]
