"""popV: several annotators with one reference, their consensus, and how many of them agree."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from tenfold.annotate._members import Panel, check_members, over_all, packed, unpacked, with_counts
from tenfold.annotators.ballots import Ballots, outcome, what_each_adds
from tenfold.annotators.base import AnnotatorMethod
from tenfold.annotators.calibration import Calibration, held_out
from tenfold.annotators.confidence import Confident
from tenfold.annotators.ontology import Lineages, read_obo
from tenfold.annotators.voting_consensus import Reliability
from tenfold.data.genes import match_genes
from tenfold.data.inputs import Inputs
from tenfold.data.joined import joined
from tenfold.errors import DataError, ParameterError
from tenfold.method import Method, MethodInfo, param

#: What cells without a label, or with a hidden one, are called among members.
NOT_LABELLED = "not labelled"


class PopV(Method, Confident):
    """Labels by the votes of several annotators that learn from one reference; how many agree is the confidence.

    Classifiers (any annotators of the catalog) are trained on up to `n_per_label` cells of each label; other members
    see all cells, labelled or not, at once: k nearest labelled neighbours in the embedding of Harmony or scVI or in
    the graph of BBKNN, and scANVI. The label with most votes wins, of several the first by name. Part of the labelled
    cells is hidden from all members; on these an isotonic regression learns how often a label of so many votes is
    right, which is the confidence.

    With ``ontology="cl.obo"`` members vote for terms. One more vote is a smoothing head's: the mean probabilities of
    all members are summed up the ontology, and it votes for the deepest term that reaches a half and for all terms
    above. Of terms with equal points the deepest wins, then the first by name (in the original, ties fall to the order
    of insertion). The head takes the place of OnClass. Labels may then be terms that are none of the reference's.

    Cells that come later are labelled by the members that can (not by Harmony and BBKNN), their agreement counted
    among these.

    **Use it** to find the cells whose label can be relied on, and those that need a look.

    **Do not use it** to gain accuracy over its best member: it is near it. Members err together (they see the same
    wrong labels and the same missing types), so full agreement is no proof. In a new batch confidence is too high
    where cells of fewer than three batches were labelled.

    **Cost**: that of its members, of which scANVI, scVI and boosted trees are most.

    **Writes** ``obs["popv_label"]``, ``obs["popv_confidence"]``, ``obsm["popv_probabilities"]``.

    Parameters
    ----------
    members
        Names of annotators of the catalog, and ``"knn_harmony"``, ``"knn_bbknn"``, ``"knn_scvi"``. Harmony and BBKNN
        are left out where all cells are of one batch.
    weights
        Votes of members that shall have another number than one.
    n_neighbors
        Neighbours that vote.
    n_per_label
        Labelled cells of each label to train classifiers on, at most.
    n_top_genes
        Variable genes of the reference that all members learn from; ``None`` takes all.
    n_latent, epochs, batch_size
        Of scVI, and of scANVI, which trains as many epochs again with labels. Their hidden layer is single (popV: 3).
    calibration
        Share of the labelled cells to hide; 0 for none: confidence is then the share of votes.
    device
        Of scVI and scANVI.
    seed
        Of hiding, sampling and members.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.pbmc()
    >>> query, reference = adata[:200].copy(), adata[200:].copy()
    >>> model = tf.annotate.PopV(members=("svm", "logistic", "knn_harmony"))
    >>> table = model.fit(query, reference=reference, labels="cell_type").consensus()
    >>> table[["label", "votes", "agreement"]].shape
    (200, 3)

    References
    ----------
    Ergen et al. (2024), doi 10.1038/s41588-024-01993-3.
    """

    info = MethodInfo(
        title="popV",
        tasks=("annotate",),
        family="consensus",
        year=2024,
        doi="10.1038/s41588-024-01993-3",
        needs=("labels",),
        accepts=("reference", "batch", "ontology"),
        gives=("labels", "probabilities", "votes"),
        readiness="recommended",
        sees_labels=True,
        advice="To know which labels to rely on: several annotators vote, and their agreement is calibrated.",
    )

    members: tuple[str, ...] = ("svm", "logistic", "boosted_trees", "knn_harmony", "knn_bbknn", "knn_scvi", "scanvi")
    weights: dict[str, float] | None = None
    n_neighbors: int = param(15, low=1)
    n_per_label: int = param(300, low=2)
    n_top_genes: int | None = param(4000, low=10)
    n_latent: int = param(20, low=1)
    epochs: int = param(20, low=1)
    batch_size: int = param(512, low=3)
    calibration: float = param(0.1, low=0.0, high=0.5)
    device: str = "auto"
    seed: int = param(0, low=0)

    # ---- fit ---------------------------------------------------------------------------------------------------------

    def _fit(self, data: Inputs) -> None:
        names = check_members(self.members, self.name())
        if strange := set(self.weights or {}) - set(names):
            raise ParameterError(
                f"weights= names '{min(strange)}', which is not among the members: {', '.join(names)}."
            )
        source = data.reference or data
        labels = source.labels
        assert labels is not None
        both, known = joined(data, NOT_LABELLED) if data.reference else (data, np.ones(data.n_cells, dtype=bool))
        self.labels_ = np.array(sorted(labels.names), dtype=object)
        codes = np.full(both.n_cells, -1)
        codes[known] = np.searchsorted(self.labels_.astype(str), np.array(labels.names, dtype=str))[labels.values]
        groups = None if source.batch is None else source.batch.values
        hidden = np.zeros(both.n_cells, dtype=bool)
        hidden[known] = held_out(codes[known], groups, self.calibration, self.seed)
        shown = np.where(hidden, -1, codes)
        cells = self._cells(both, source, shown)
        seen = with_counts(cells)
        self.codes_ = shown[seen]
        found, self.members_ = self._panel().fit(names, cells[seen].copy(), self.codes_, data.run)
        shares = over_all(found, seen)
        self._judge_agreement(shares, hidden, codes)
        self._calibrate(hidden, None if groups is None else groups[hidden[known]])
        self._watch_all_but(both, codes, hidden)
        asked = known if data.reference is None else ~known
        self.shares_ = {name: share[asked] for name, share in shares.items()}
        self.lineages_ = self._lineages(data.roles.get("ontology"))
        self.depths_ = AnnotatorMethod._depths(data.adata, data.roles.get("layer"))

    def _cells(self, both: Inputs, source: Inputs, shown: np.ndarray) -> AnnData:
        """Return the cells that members see: variable genes of the reference, batch, and the labels that are shown."""
        genes = source.gene_names[source.variable_genes(self.n_top_genes)]
        columns = both.adata.var_names.get_indexer(pd.Index(genes))
        columns = np.sort(columns[columns >= 0])
        self.genes_ = both.gene_names[columns]
        batch = np.array(both.batch_or_one.names, dtype=object)[both.batch_or_one.values]
        names = np.append(self.labels_, NOT_LABELLED)
        obs = pd.DataFrame({"batch": batch, "labels": names[shown]}, index=both.cell_names)
        return AnnData(both.counts[:, columns], obs=obs, var=pd.DataFrame(index=self.genes_))

    def _panel(self) -> Panel:
        options = {
            "n_latent": self.n_latent, "epochs": self.epochs, "joint_epochs": self.epochs, "device": self.device,
            "batch_size": self.batch_size, "unlabeled": NOT_LABELLED,
        }  # fmt: skip
        return Panel(self.labels_, NOT_LABELLED, self.n_neighbors, self.n_per_label, self.seed, options)

    # ---- votes -------------------------------------------------------------------------------------------------------

    def _judge_agreement(self, shares: dict[str, np.ndarray], hidden: np.ndarray, codes: np.ndarray) -> None:
        """Learn from the hidden cells how often the consensus is right, of all members and of those for new cells."""
        ballots = Ballots.of({name: share[hidden] for name, share in shares.items()}, self.weights)
        self.hidden_ = {"codes": codes[hidden], "votes": ballots.votes}
        self.member_names_ = list(shares)
        self.reliability_ = {
            which: own.reliability(codes[hidden])._asdict() for which, own in self._hidden_ballots().items()
        }

    def _hidden_ballots(self) -> dict[str, Ballots]:
        """Return the votes for the hidden cells, of all members and of those that can label new cells."""
        weights = np.array([(self.weights or {}).get(name, 1.0) for name in self.member_names_])
        whole = Ballots(self.hidden_["votes"], self.member_names_, weights, len(self.labels_))
        return {"all": whole, "new": whole.only(list(self.members_))}

    def _calibrate(self, hidden: np.ndarray, groups: np.ndarray | None) -> None:
        """Keep what is said of the hidden cells, by all members and by those for new cells: for `predict_sets`.

        (The isotonic regression that made these probabilities has seen the same cells, once.)
        """
        of_cells = np.zeros(0, dtype=np.int64) if groups is None else groups.astype(np.int64)
        self.calibration_, self.later_ = (
            Calibration(
                1.0, own.probabilities(Reliability(**self.reliability_[which])), self.hidden_["codes"], of_cells
            )._asdict()
            for which, own in self._hidden_ballots().items()
        )

    def _calibration_for(self, adata: AnnData | None) -> Calibration:
        return Calibration(**(self.calibration_ if adata is None or self._knows(adata) else self.later_))

    def _lineages(self, path: Any) -> dict[str, np.ndarray] | None:
        if path is None:
            return None
        ontology = read_obo(path)
        outside = [label for label in self.labels_ if ontology.find(label) is None]
        if outside and len(outside) < len(self.labels_):
            warnings.warn(
                f"{len(outside)} of {len(self.labels_)} labels are no terms of the ontology (e.g. '{outside[0]}'); "
                "they count as terms of their own. Rename them to names, exact synonyms or identifiers of its terms.",
                stacklevel=2,
            )
        return asdict(ontology.around(list(self.labels_)))

    def _asked(self, adata: AnnData | None) -> tuple[dict[str, np.ndarray], Reliability]:
        """Return what the members say of cells, and how reliable their agreement is."""
        self._check_fitted()
        if adata is None or self._knows(adata):
            return self.shares_, Reliability(**self.reliability_["all"])
        if not self.members_:
            raise DataError(
                "None of the members can label cells that come after the fit (Harmony and BBKNN cannot). Fit popV with "
                "these cells, or choose other members."
            )
        data = self._inputs(adata)
        match = match_genes(adata.var_names, self.genes_)
        wide = match.widened(sparse.csr_matrix(data.counts[:, match.columns]))
        cells = AnnData(wide, obs=pd.DataFrame(index=adata.obs_names), var=pd.DataFrame(index=self.genes_))
        seen = with_counts(cells)
        found = self._panel().ask(self.members_, cells[seen].copy(), self.codes_)
        return over_all(found, seen), Reliability(**self.reliability_["new"])

    def _knows(self, adata: AnnData) -> bool:
        depths = AnnotatorMethod._depths(adata, self.roles_.get("layer"))
        return super()._knows(adata) and np.array_equal(self.depths_, depths)

    # ---- results -----------------------------------------------------------------------------------------------------

    def probabilities(self, adata: AnnData | None = None) -> pd.DataFrame:
        """Return the probability of each label of the reference for each cell; ``None`` means the fitted cells.

        The label with most votes has the share of hidden cells of such agreement that were right; votes for others
        divide the rest.

        Returns
        -------
        One row a cell, one column a label, float32; rows sum to 1.
        """
        return self._annotated(adata)[0]

    def _annotated(self, adata: AnnData | None) -> tuple[pd.DataFrame, np.ndarray]:
        shares, reliability = self._asked(adata)
        ballots = Ballots.of(shares, self.weights)
        index = None if adata is None else adata.obs_names
        table = pd.DataFrame(ballots.probabilities(reliability), columns=self.labels_, index=index)
        return table, self._outcome(ballots, shares)["label"].to_numpy(dtype=object)

    def _outcome(self, ballots: Ballots, shares: dict[str, np.ndarray]) -> pd.DataFrame:
        lineages = None if self.lineages_ is None else Lineages(**self.lineages_)
        return outcome(ballots, shares, self.labels_, self.UNKNOWN, lineages)

    def consensus(self, adata: AnnData | None = None) -> pd.DataFrame:
        """Return the votes and what becomes of them; ``None`` means the fitted cells.

        Returns
        -------
        DataFrame, one row a cell: ``label``; ``votes`` for it; ``agreement``, their share of all; ``confidence``, how
        often labels of the majority with such agreement are right; ``majority`` and ``majority_votes``; with an
        ontology also ``depth``, ``smoothed`` (the head's term), ``parent`` and ``parent_votes`` (the deepest term that
        all but two of the votes fall under); then the label that each member gives, under its name.
        """
        shares, reliability = self._asked(adata)
        ballots = Ballots.of(shares, self.weights)
        table = self._outcome(ballots, shares)
        table.insert(3, "confidence", reliability.at(ballots.agreement))
        given = np.append(self.labels_, self.UNKNOWN)[ballots.votes]
        table = pd.concat([table, pd.DataFrame(given, columns=ballots.names)], axis=1)
        return table if adata is None else table.set_axis(adata.obs_names, axis=0)

    def leave_one_out(self) -> pd.DataFrame:
        """Return what each member adds to the majority.

        Returns
        -------
        DataFrame, one row a member: ``agrees``, share of the fitted cells to which it gives the label of the majority;
        ``changed``, share of them whose majority is another one without it; and of the hidden cells, where some were
        hidden, ``accuracy`` of the member, ``consensus_accuracy`` and ``accuracy_without`` of the majority with all
        members and without it.
        """
        self._check_fitted()
        ballots = Ballots.of(self.shares_, self.weights)
        return what_each_adds(ballots, self._hidden_ballots()["all"], self.hidden_["codes"])

    # ---- save and load -----------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        state = super()._state()
        return {**state, "members_": packed(self.members_)} if "members_" in state else state

    def _restore(self, state: dict[str, Any]) -> None:
        members = unpacked(state.pop("members_"))
        super()._restore(state)
        self.members_ = members
