"""What members with weights vote for: counts, agreement, the outcome by labels and by terms, and what each adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tenfold.annotators.ontology import Lineages
from tenfold.annotators.voting_consensus import (
    Reliability,
    Verdict,
    as_probabilities,
    common_parent,
    majority,
    ontology_vote,
    tally,
)

#: Share of summed probability that a term of the ontology needs.
ENOUGH = 0.5


class Ballots(NamedTuple):
    """Votes of members for the labels of cells.

    Attributes
    ----------
    votes
        Label that each member gives each cell, -1 where it gives none, shape (n_cells, n_members).
    names
        Of the members.
    weights
        Votes that each of them has, shape (n_members,).
    n_labels
        Number of labels.
    """

    votes: np.ndarray
    names: Sequence[str]
    weights: np.ndarray
    n_labels: int

    @classmethod
    def of(cls, shares: dict[str, np.ndarray], weights: dict[str, float] | None) -> Ballots:
        """Let each member vote for its most probable label; rows of 0 give none, members without a weight have one."""
        found = [np.where(share.max(axis=1) > 0, share.argmax(axis=1), -1) for share in shares.values()]
        own = np.array([(weights or {}).get(name, 1.0) for name in shares])
        return cls(np.stack(found, axis=1), list(shares), own, next(iter(shares.values())).shape[1])

    def only(self, names: Sequence[str]) -> Ballots:
        """Return the votes of some of the members."""
        columns = [self.names.index(name) for name in names]
        return self._replace(votes=self.votes[:, columns], names=names, weights=self.weights[columns])

    @property
    def counts(self) -> np.ndarray:
        """Votes for each label, shape (n_cells, n_labels)."""
        return tally(self.votes, self.n_labels, self.weights)

    @property
    def most(self) -> float:
        """Votes of full agreement."""
        return float(self.weights.sum())

    @property
    def verdict(self) -> Verdict:
        """The label with most votes, and its votes."""
        return majority(self.counts)

    @property
    def agreement(self) -> np.ndarray:
        """Share of all votes that the label with most has, shape (n_cells,)."""
        return self.verdict.score / max(self.most, 1e-9)

    def reliability(self, truth: np.ndarray) -> Reliability:
        """Learn how often the majority is right at each agreement from cells of known label, shape (n_cells,)."""
        return Reliability.of(self.agreement, self.verdict.winner == truth)

    def probabilities(self, reliability: Reliability) -> np.ndarray:
        """Return the probability of each label, shape (n_cells, n_labels), float32; see `as_probabilities`."""
        return as_probabilities(self.counts, self.verdict.winner, reliability.at(self.agreement))


def outcome(
    ballots: Ballots, shares: dict[str, np.ndarray], labels: np.ndarray, unknown: str, lineages: Lineages | None
) -> pd.DataFrame:
    """Return what becomes of the votes.

    Parameters
    ----------
    ballots
        The votes.
    shares
        Probability of each label by each member, shape (n_cells, n_labels): the smoothing head's.
    labels
        Names, shape (n_labels,).
    unknown
        Label where nobody voted.
    lineages
        Terms of the labels; None: members vote for labels.

    Returns
    -------
    One row a cell: label, votes, agreement, majority, majority_votes; with `lineages` also depth, smoothed, parent,
    parent_votes.
    """
    winner, score = ballots.verdict
    label = np.append(labels, unknown)[winner]
    plain = {"majority": label, "majority_votes": score}
    if lineages is None:
        return pd.DataFrame({"label": label, "votes": score, "agreement": ballots.agreement, **plain})
    weighted = sum(weight * shares[name] for name, weight in zip(ballots.names, ballots.weights.tolist(), strict=True))
    smoothed = lineages.smoothed(np.asarray(weighted / ballots.most), ENOUGH)
    term, points = ontology_vote(ballots.counts, smoothed, lineages)
    parent, parent_points = common_parent(ballots.counts, smoothed, lineages)
    return pd.DataFrame({
        "label": lineages.terms[term], "votes": points, "agreement": points / (ballots.most + 1), **plain,
        "depth": lineages.depths[term], "smoothed": lineages.terms[smoothed], "parent": lineages.terms[parent],
        "parent_votes": parent_points,
    })  # fmt: skip


def what_each_adds(ballots: Ballots, held_out: Ballots, truth: np.ndarray) -> pd.DataFrame:
    """Return what each member adds to the majority.

    Parameters
    ----------
    ballots, held_out
        Votes of the same members for all cells, and for cells that were held out.
    truth
        Labels of these, shape (n_held_out,); there may be none.

    Returns
    -------
    One row a member: agrees, changed, accuracy, consensus_accuracy, accuracy_without.
    """
    winner, whole = ballots.verdict.winner, _share(held_out.verdict.winner == truth)
    rows = []
    for column, name in enumerate(ballots.names):
        left = [other for other in ballots.names if other != name]
        rows.append({
            "agrees": _share(ballots.votes[:, column] == winner),
            "changed": _share(ballots.only(left).verdict.winner != winner),
            "accuracy": _share(held_out.votes[:, column] == truth), "consensus_accuracy": whole,
            "accuracy_without": _share(held_out.only(left).verdict.winner == truth),
        })  # fmt: skip
    return pd.DataFrame(rows, index=pd.Index(ballots.names, name="member"))


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else float("nan")
