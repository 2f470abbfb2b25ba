"""What cells that were held out from training say of an annotator's probabilities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Labels with fewer cells than this are all needed for training.
FEWEST_CELLS = 5
#: With so many batches, whole batches are held out: a new batch is what the annotator will be asked about.
FEWEST_GROUPS = 3
#: Probabilities below this are as good as none.
TINY = 1e-12


class Calibration(NamedTuple):
    """Probabilities of cells whose label is known and that were not trained on.

    Attributes
    ----------
    temperature
        Exponent 1 / temperature makes the probabilities honest; above 1 they were over-confident.
    probabilities
        After tempering, shape (n_held_out, n_labels), float32.
    codes
        True label of each, shape (n_held_out,), int64.
    groups
        Batch of each where whole batches were held out, shape (n_held_out,); else empty.
    """

    temperature: float
    probabilities: np.ndarray
    codes: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, codes: np.ndarray, groups: np.ndarray | None) -> Calibration:
        """Calibrate scores of held-out cells, shape (n_held_out, n_labels)."""
        temperature = fitted_temperature(scores, codes)
        whole = np.zeros(0, dtype=np.int64) if groups is None else groups.astype(np.int64)
        return cls(temperature, tempered(scores, temperature), codes, whole)

    @classmethod
    def none(cls, n_labels: int) -> Calibration:
        """Return the calibration of an annotator of which nothing was held out."""
        empty = np.zeros(0, dtype=np.int64)
        return cls(1.0, np.zeros((0, n_labels), dtype=np.float32), empty, empty)

    def tempered(self, scores: np.ndarray) -> np.ndarray:
        """Return honest probabilities of scores, rows sum to 1, float32."""
        return tempered(scores, self.temperature)


def smoothed(shares: np.ndarray, n_votes: float) -> np.ndarray:
    """Return shares of votes with one more vote, spread over all labels: of few votes, none does not mean never."""
    return (n_votes * shares + 1 / shares.shape[1]) / (n_votes + 1)


def tempered(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return scores^(1 / temperature) divided by their sum over labels, shape (n_cells, n_labels), float32."""
    logits = np.log(np.maximum(scores, TINY), dtype=np.float64) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    return (logits / logits.sum(axis=1, keepdims=True)).astype(np.float32)


def fitted_temperature(scores: np.ndarray, codes: np.ndarray) -> float:
    """Return the temperature, 0.05 to 20, at which the true labels are most probable.

    References
    ----------
    Guo et al. (2017), doi 10.48550/arXiv.1706.04599.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(codes))

    def loss(log_temperature: float) -> float:
        honest = tempered(scores, float(np.exp(log_temperature)))[rows, codes]
        return float(-np.log(np.maximum(honest, TINY)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))


def held_out(codes: np.ndarray, groups: np.ndarray | None, share: float, seed: int) -> np.ndarray:
    """Choose cells to hold out from training.

    Parameters
    ----------
    codes
        Label of each cell, shape (n_cells,).
    groups
        Batch of each cell; with at least three, whole batches are held out, else cells of every label at random.
    share
        Share of the cells to hold out; 0 for none.
    seed
        Of the choice.

    Returns
    -------
    Mask, shape (n_cells,). Every label keeps at least `FEWEST_CELLS` cells to train on, or all that it has.
    """
    held = np.zeros(len(codes), dtype=bool)
    if not share:
        return held
    rng = np.random.default_rng(seed)
    sizes = None if groups is None else np.bincount(groups)
    if sizes is not None and np.count_nonzero(sizes) >= FEWEST_GROUPS:
        order = rng.permutation(np.flatnonzero(sizes))
        # As many whole batches as come nearest to the share: one at least, and one stays at least.
        reached = np.abs(np.cumsum(sizes[order])[:-1] - share * len(codes))
        held = np.isin(groups, order[: int(reached.argmin()) + 1])
    else:
        for code in np.unique(codes):
            cells = rng.permutation(np.flatnonzero(codes == code))
            held[cells[: int(share * len(cells))]] = True
    scarce = np.bincount(codes[~held], minlength=codes.max() + 1) < FEWEST_CELLS
    return held & ~scarce[codes]
