"""Votes of several annotators made one label, and how often such a label is right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tenfold.annotators.ontology import Lineages

#: Votes for a common ancestor may miss this many members.
ERRORS_ALLOWED = 2


class Verdict(NamedTuple):
    """The outcome of a vote.

    Attributes
    ----------
    winner
        Label, or term, of each cell, shape (n_cells,), int64; -1 where nobody voted.
    score
        Its votes, shape (n_cells,), float64.
    """

    winner: np.ndarray
    score: np.ndarray


def tally(votes: np.ndarray, n_labels: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Count votes.

    Parameters
    ----------
    votes
        Label that each member gives each cell, -1 where it gives none, shape (n_cells, n_members).
    n_labels
        Number of labels.
    weights
        Of the members, shape (n_members,); default 1.

    Returns
    -------
    Shape (n_cells, n_labels), float64.
    """
    counts = np.zeros((len(votes), n_labels + 1))
    rows = np.arange(len(votes))
    for member in range(votes.shape[1]):
        counts[rows, votes[:, member]] += 1.0 if weights is None else weights[member]  # -1 is the last column
    return counts[:, :n_labels]


def majority(counts: np.ndarray) -> Verdict:
    """Return the label with most votes; of several, the first (labels are sorted by name)."""
    winner, score = counts.argmax(axis=1), counts.max(axis=1)
    return Verdict(np.where(score > 0, winner, -1), score)


def ontology_vote(counts: np.ndarray, smoothed: np.ndarray, lineages: Lineages) -> Verdict:
    """Return the term with most points: one of each member for its label, and of the smoothing head for all above its.

    Of terms with as many points the deepest wins, of several the first by name.

    Parameters
    ----------
    counts
        As `tally` gives them.
    smoothed
        Term that the smoothing head gives each cell, shape (n_cells,).
    lineages
        Terms of the labels.
    """
    points = _at_home(counts, lineages)
    points += lineages.upper[smoothed]
    points[np.arange(len(points)), smoothed] += 1
    return _best(points, [lineages.depths])


def common_parent(counts: np.ndarray, smoothed: np.ndarray, lineages: Lineages) -> Verdict:
    """Return the deepest term that all but two of the votes fall under, the smoothing head's among them.

    Every vote counts for its term and all above. Points end at the number of votes less two; of terms with as many the
    deepest wins, then the one with more votes of its own, then the first by name. The score is its points, so limited.
    """
    own = _at_home(counts, lineages)
    own[np.arange(len(own)), smoothed] += 1
    points = own + own @ lineages.upper
    most = np.maximum(own.sum(axis=1, keepdims=True) - ERRORS_ALLOWED, 1)
    return _best(np.minimum(points, most), [lineages.depths, own])


def _at_home(counts: np.ndarray, lineages: Lineages) -> np.ndarray:
    """Return the votes of labels as points of their terms, (n_cells, n_terms)."""
    points = np.zeros((len(counts), len(lineages.terms)))
    for label, term in enumerate(lineages.home):
        points[:, term] += counts[:, label]
    return points


def _best(points: np.ndarray, then: list[np.ndarray]) -> Verdict:
    """Return the term with most points; among equals, by each of `then` in turn, and at last the first."""
    highest = points.max(axis=1, keepdims=True)
    left = points >= highest - 1e-9
    for key in then:
        value = np.where(left, np.broadcast_to(key, points.shape), -np.inf)
        left &= value >= value.max(axis=1, keepdims=True)
    return Verdict(left.argmax(axis=1), highest[:, 0])


class Reliability(NamedTuple):
    """How often the consensus is right at each agreement: an isotonic regression on cells held out.

    Attributes
    ----------
    agreement
        Share of the votes, ascending, shape (n_steps,); empty where nothing was held out.
    correct
        Share of right labels, ascending, shape (n_steps,).
    """

    agreement: np.ndarray
    correct: np.ndarray

    @classmethod
    def of(cls, agreement: np.ndarray, right: np.ndarray) -> Reliability:
        """Fit it to the agreement and correctness of held-out cells, each shape (n_held_out,)."""
        from sklearn.isotonic import IsotonicRegression

        if not len(right):
            return cls(np.zeros(0), np.zeros(0))
        # A cell right and a cell wrong at the mean keep few cells from promising certainty.
        at, y = np.append(agreement, [agreement.mean()] * 2), np.append(right, [0.0, 1.0])
        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(at, y)
        return cls(fitted.X_thresholds_.astype(np.float64), fitted.y_thresholds_.astype(np.float64))

    def at(self, agreement: np.ndarray) -> np.ndarray:
        """Return how often a label of this agreement is right; the agreement itself where nothing was held out."""
        return np.interp(agreement, self.agreement, self.correct) if len(self.agreement) else agreement


def as_probabilities(counts: np.ndarray, winner: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return probabilities of all labels in which the winner has its confidence and is the most probable, float32.

    Parameters
    ----------
    counts
        As `tally` gives them, (n_cells, n_labels).
    winner
        Label with most votes, (n_cells,).
    confidence
        Wanted for it, (n_cells,); at least 1 / n_labels is given.
    """
    n_labels, rows = counts.shape[1], np.arange(len(counts))
    # Votes and one more, divided between all: no label is impossible.
    share = (counts + 1 / n_labels) / (counts.sum(axis=1, keepdims=True) + 1)
    own = share[rows, winner]
    wanted = np.clip(confidence, 1 / n_labels, 1)
    up = np.clip((wanted - own) / np.maximum(1 - own, 1e-12), 0, 1)[:, None]
    down = np.clip((own - wanted) / np.maximum(own - 1 / n_labels, 1e-12), 0, 1)[:, None]
    found = (1 - up) * share
    found[rows, winner] += up[:, 0]
    return ((1 - down) * found + down / n_labels).astype(np.float32)
