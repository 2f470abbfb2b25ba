"""A language model that the user names, asked for the cell type of clusters by their marker genes: GPTCelltype."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from tenfold.annotate.markers import Markers, raised_genes
from tenfold.annotators.calibration import Calibration
from tenfold.annotators.chat import Endpoint
from tenfold.annotators.naming import MOST_CLUSTERS, Answer, Named, ask, prompt_for, votes_of
from tenfold.annotators.ontology import read_obo
from tenfold.data import check
from tenfold.data.genes import match_genes
from tenfold.data.inputs import Inputs
from tenfold.errors import EndpointError, RoleError
from tenfold.method import MethodInfo, param

if TYPE_CHECKING:
    from anndata import AnnData

#: Where several asks vote, answers must be able to differ.
VARIED = 0.7


class LLM(Markers):
    """Labels of clusters by a language model that is told their marker genes; without one, `Markers`.

    **Nothing is sent anywhere unless you name an endpoint**: ``LLM(base_url="http://localhost:11434/v1",
    model="llama3.1")``, any server that speaks OpenAI's protocol. Then, once, in `fit`, these leave this machine and
    nothing else: the names of the `n_genes` genes most raised in each cluster, and `tissue` and `species` if given.
    Clusters are numbered; neither their names, counts, cells nor barcodes are sent. Requests are not sent on to
    another address. The key is read from the environment variable that you name, and kept nowhere.

    The model must answer with one line of JSON for each cluster; what cannot be read is asked for again, then an error
    says why. An answer that rests on genes that were not given counts as none. With `n_votes` above 1 the question is
    asked as often, clusters in another order each time, and the share of the most frequent name is the confidence.
    Questions and answers are kept with the fitted method and in ``uns["tenfold"]``, so that results can be told from
    others though models change; with `cache` the same question is not asked twice.

    Cells that come later are not asked about: they are labelled by the markers of the clusters that got a name.

    **Use it** to get first names for clusters, with an expert to check them.

    **Do not use it** as evidence. Models have read the papers on public data; a single answer's confidence of 1 says
    only that it was asked once; subtypes that share markers are guessed. A linear model on a labelled reference is the
    thing to compare with. Offline, the built-in markers named 5 of 8 major groups of blood cells right and left three
    "Unknown"; six were hoped for.

    **Cost**: one request for 30 clusters and a vote.

    **Writes** ``obs["llm_label"]``, ``obs["llm_confidence"]``, ``obsm["llm_probabilities"]``.

    Parameters
    ----------
    base_url
        Of the endpoint, what comes before ``/chat/completions``; empty for none: labels come from ``markers=`` or
        ``labels=``, offline, as those of `Markers`.
    model
        Name that the endpoint knows.
    key_variable
        Environment variable with the endpoint's key; empty where it needs none.
    tissue, species
        Told to the model where given.
    n_genes
        Genes of each cluster that it is told.
    n_votes
        Times that it is asked.
    temperature
        ``None``: 0 for one vote, 0.7 for several.
    timeout
        Seconds to wait for an answer.
    max_retries
        Tries after the first.
    cache
        Folder that keeps answers; ``None`` for none.
    margin, n_ranked, fdr, n_markers, n_top_genes, calibration
        Of `Markers`, where no endpoint is named, and for cells that come later.
    seed
        Sent with the question; and of the order of clusters.

    Examples
    --------
    >>> import tenfold as tf
    >>> from tenfold.data.marker_genes import BLOOD
    >>> adata = tf.data.pbmc()
    >>> tf.annotate.LLM().fit(adata, markers=BLOOD, clusters="cell_type").predict().shape  # offline: no endpoint
    (700,)

    References
    ----------
    Hou & Ji (2024), doi 10.1038/s41592-024-02235-4.
    """

    info = MethodInfo(
        title="Language model",
        tasks=("annotate",),
        family="deep",
        year=2024,
        doi="10.1038/s41592-024-02235-4",
        accepts=("markers", "labels", "clusters", "reference", "batch", "ontology"),
        gives=("labels", "probabilities"),
        readiness="caution",
        sees_labels=True,
        advice="First names for clusters, from a language model that you name; check them.",
    )

    base_url: str = ""
    model: str = ""
    key_variable: str = ""
    tissue: str = ""
    species: str = ""
    n_genes: int = param(10, low=1)
    n_votes: int = param(1, low=1)
    temperature: float | None = param(None, low=0.0, high=2.0)
    timeout: float = param(60.0, low=0.1)
    max_retries: int = param(2, low=0)
    cache: str | None = None

    def _fit(self, data: Inputs) -> None:
        self.asked_: list[dict[str, Any]] = []
        self.named_: list[dict[str, Any]] = []
        if not self.base_url:
            super()._fit(data)
            return
        given = [role for role in ("markers", "labels", "reference") if role in data.roles]
        if given or data.reference is not None:
            raise RoleError(
                f"With base_url= names come from the language model, and {given[0] if given else 'reference'}= has no "
                "use: leave one of the two out."
            )
        numbers, genes, codes = self._clusters(data)
        named = self._ask(genes, data.roles.get("ontology"))
        self._keep(data, numbers, genes, codes, named)

    def _clusters(self, data: Inputs) -> tuple[list[str], dict[int, list[str]], np.ndarray]:
        """Return the names of clusters, their genes by number from 1, and the number of each cell from 0."""
        if "clusters" not in data.roles:
            raise RoleError(
                "A language model names clusters: give clusters='<obs column>', e.g. of scanpy.tl.leiden. "
                "Without base_url= cells are labelled by markers."
            )
        groups = check.categories(data.adata, data.roles["clusters"], "clusters")
        ranked = raised_genes(data, groups.values, len(groups.names), self.n_genes)
        genes = {number + 1: names for number, names in enumerate(ranked) if names}
        if not genes:
            raise RoleError(f"No gene is raised in any cluster of '{data.roles['clusters']}'; nothing can be asked.")
        return groups.names, genes, groups.values

    # ---- questions ---------------------------------------------------------------------------------------------------

    def prompts(self, adata: AnnData, clusters: str, layer: str | None = None) -> list[str]:
        """Return what would be sent for one vote, and send nothing.

        Parameters
        ----------
        adata
            Cells, raw counts.
        clusters
            Column of ``obs``.
        layer
            With the counts; default X.
        """
        roles = {"clusters": clusters, **({} if layer is None else {"layer": layer})}
        _, genes, _ = self._clusters(Inputs(adata, roles))
        return [prompt_for(part, self.tissue, self.species) for part in _parts(list(genes), genes)]

    def _ask(self, genes: dict[int, list[str]], ontology: Any) -> dict[int, Named]:
        known = None if ontology is None else read_obo(ontology)
        endpoint = Endpoint(
            self.base_url, self.model, self.key_variable, self.timeout, self.max_retries, self.cache
        )  # fmt: skip
        temperature = (VARIED if self.n_votes > 1 else 0.0) if self.temperature is None else self.temperature
        answers: dict[int, list[Answer]] = {number: [] for number in genes}
        rng = np.random.default_rng(self.seed)
        for vote in range(self.n_votes):
            # Names early in a list colour later ones.
            order = list(genes) if vote == 0 else [int(number) for number in rng.permutation(list(genes))]
            for part in _parts(order, genes):
                found, exchange = ask(endpoint, part, (self.tissue, self.species), temperature, self.seed + vote)
                self.asked_.append({"vote": vote, **exchange})
                for number, answer in found.items():
                    answers[number].append(answer)
        return votes_of(answers, known)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def _keep(
        self, data: Inputs, names: list[str], genes: dict[int, list[str]], codes: np.ndarray, named: dict[int, Named]
    ) -> None:
        """Keep what each cluster is called, and the marker genes of each name for cells that come later."""
        labels = sorted({name for each in named.values() for name in each.shares})
        unnamed = [names[number] for number in range(len(names)) if not named.get(number + 1, _NOTHING).name]
        if not labels:
            raise EndpointError(f"The model '{self.model}' gave no cluster a name that rests on its genes.")
        if unnamed:
            warnings.warn(f"Clusters {', '.join(unnamed)} got no name; their cells are '{self.UNKNOWN}'.", stacklevel=2)
        self.labels_ = np.array(labels, dtype=object)
        members = {label: {gene for number, each in named.items() if each.name == label for gene in genes[number]}
                   for label in labels}  # fmt: skip
        self.genes_ = np.array(sorted(set().union(*members.values())), dtype=object)
        self.sets_ = np.array([np.isin(self.genes_, list(members[label])) for label in labels])
        match = match_genes(data.adata.var_names, self.genes_)
        self._scale(sparse.vstack(list(self._chunks(data, match, show=False)), format="csr"))
        self.calibration_, self.detector_ = Calibration.none(len(labels))._asdict(), None
        shares = np.zeros((len(names), len(labels)))
        told = np.full(len(names), self.UNKNOWN, dtype=object)
        for number, each in named.items():
            shares[number - 1] = [each.shares.get(label, 0.0) for label in labels]
            told[number - 1] = each.name or self.UNKNOWN
        shares[shares.sum(axis=1) == 0] = 1 / len(labels)
        self.found_, self.told_ = shares.astype(np.float32)[codes], told[codes]
        self.depths_ = self._depths(data.adata, data.roles.get("layer"))
        self.named_ = [_row(names[number - 1], each, genes[number], self.UNKNOWN) for number, each in named.items()]

    def answers(self) -> pd.DataFrame:
        """Return what was said of each cluster, one row each; no rows where no endpoint was asked.

        Returns
        -------
        ``cluster``, ``label``, ``share`` of the votes, ``entropy`` of the names, ``genes`` that were told,
        ``supporting`` ones that answers named, ``answers``, ``alternatives``.
        """
        self._check_fitted()
        return pd.DataFrame(self.named_)

    def _annotated(self, adata: AnnData | None) -> tuple[pd.DataFrame, np.ndarray]:
        known = adata is not None and bool(self.named_) and self._knows(adata)
        found, told = super()._annotated(None if known else adata)
        return (found.set_axis(adata.obs_names, axis=0), told) if known and adata is not None else (found, told)

    def _inputs(self, adata: AnnData) -> Inputs:
        roles = {role: key for role, key in self.roles_.items() if role == "layer"}
        return Inputs(adata, roles) if self.named_ else super()._inputs(adata)

    def provenance(self, task: str) -> dict[str, Any]:
        """Return what is stored of a run in ``uns["tenfold"]``; questions and answers are part of it."""
        return {**super().provenance(task), "asked": json.dumps(self.asked_)}

    def _judge(self, x: sparse.csr_matrix, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(self.labels_) == 1:  # nothing to choose from
            found = self.scores(x, missing)
            return np.ones_like(found), found[:, 0] > 0
        return super()._judge(x, missing)


_NOTHING = Named("", {}, 0.0, [])


def _parts(order: list[int], genes: dict[int, list[str]]) -> list[dict[int, list[str]]]:
    """Return the clusters in this order, as many at a time as a request may hold."""
    starts = range(0, len(order), MOST_CLUSTERS)
    return [{number: genes[number] for number in order[start : start + MOST_CLUSTERS]} for start in starts]


def _row(cluster: str, named: Named, genes: list[str], unknown: str) -> dict[str, Any]:
    """Return what `LLM.answers` shows of a cluster."""
    return {
        "cluster": cluster, "label": named.name or unknown, "share": named.shares.get(named.name, 0.0),
        "entropy": named.entropy, "genes": ", ".join(genes),
        "supporting": ", ".join(sorted({gene for answer in named.answers for gene in answer.genes})),
        "answers": "; ".join(answer.name or "(not from its genes)" for answer in named.answers),
        "alternatives": "; ".join(answer.alternative for answer in named.answers),
    }  # fmt: skip
