"""Labels carried from labelled cells to others by nearest neighbours, with an uncertainty that knows distance."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tenfold.errors import DataError, ParameterError
from tenfold.kernels.knn import knn

#: Distance of a label's cells to their neighbours that this share of them does not exceed is not yet far.
USUAL = 0.95


def transfer_labels(points: np.ndarray, labels: np.ndarray, queries: np.ndarray, n_neighbors: int = 15) -> pd.DataFrame:
    """Label cells by their nearest labelled neighbours.

    A neighbour at distance d weighs exp(-d² / 2h²), where h is the mean distance of the cell's neighbours; the label
    with the largest weight wins, with share w. Neighbours that agree may still be far: r is their mean distance, in
    units of that which 95 % of the winning label's own cells do not exceed. The uncertainty is 1 - w / max(1, r).

    (The published rule is 1 - w alone, which is 0 for a cell of an unknown type as soon as its neighbours, however far,
    are all of one type.)

    Parameters
    ----------
    points
        Coordinates of the labelled cells, shape (n_labelled, n_dimensions).
    labels
        Their labels, shape (n_labelled,).
    queries
        Coordinates of the cells to label, shape (n_cells, n_dimensions).
    n_neighbors
        Number of neighbours.

    Returns
    -------
    DataFrame, one row a cell: ``label``, ``uncertainty`` (0 to 1) and ``disagreement`` (1 - w).

    Raises
    ------
    DataError
        Not more labelled cells than neighbours.

    References
    ----------
    Lotfollahi et al. (2022), doi 10.1038/s41587-021-01001-7; Sikkema et al. (2023), doi 10.1038/s41591-023-02327-2.
    """
    names, codes = np.unique(labels, return_inverse=True)
    if len(points) <= n_neighbors:
        raise DataError(
            f"{len(points):,} labelled cells are too few for n_neighbors={n_neighbors}; there must be more of them."
        )
    distances = knn(points, k=n_neighbors + 1)[1]
    usual = _usual_distance(distances[:, 1:].mean(axis=1), codes, len(names))
    return _labelled(*knn(queries, points, k=n_neighbors), codes, names, usual)


def label_threshold(
    points: np.ndarray, labels: np.ndarray, batch: np.ndarray | None = None, n_neighbors: int = 15, error: float = 0.05
) -> float:
    """Return the uncertainty that a given share of labelled cells exceed, each labelled by the others.

    Parameters
    ----------
    points, labels, n_neighbors
        As in `transfer_labels`.
    batch
        Batch of each cell: it is then labelled by the cells of other batches, as new cells will be. Cells whose label
        no other batch has, and batches beside which too few cells remain, are left out.
    error
        The share.

    Returns
    -------
    The threshold, between 0 and 1.
    """
    if not 0 < error < 1:
        raise ParameterError(f"error={error}; give a share between 0 and 1.")
    found = [] if batch is None else [
        transfer_labels(points[batch != code], labels[batch != code], points[own], n_neighbors)["uncertainty"]
        for code in np.unique(batch)
        if (batch != code).sum() > n_neighbors
        and (own := (batch == code) & np.isin(labels, labels[batch != code])).any()
    ]  # fmt: skip
    if not found:
        names, codes = np.unique(labels, return_inverse=True)
        indices, distances = knn(points, k=n_neighbors + 1)
        usual = _usual_distance(distances[:, 1:].mean(axis=1), codes, len(names))
        found = [_labelled(indices[:, 1:], distances[:, 1:], codes, names, usual)["uncertainty"]]
    return float(np.quantile(np.concatenate(found), 1 - error))


def _usual_distance(distance: np.ndarray, codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Return the distance to neighbours that most cells of each label do not exceed, shape (n_labels,)."""
    return np.array([np.quantile(distance[codes == code], USUAL) for code in range(n_labels)])


def _labelled(
    indices: np.ndarray, distances: np.ndarray, codes: np.ndarray, names: np.ndarray, usual: np.ndarray
) -> pd.DataFrame:
    mean = distances.mean(axis=1)
    floor = np.finfo(np.float32).tiny
    weights = np.exp(-0.5 * (distances / np.maximum(mean, floor)[:, None]) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    votes = np.zeros((len(indices), len(names)))
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    np.add.at(votes, (rows, codes[indices].ravel()), weights.ravel())
    winner = votes.argmax(axis=1)
    share = votes.max(axis=1)
    distance = mean / np.maximum(usual[winner], floor)
    return pd.DataFrame({
        "label": names[winner].astype(object),
        "uncertainty": np.clip(1 - share / np.maximum(1, distance), 0, 1),
        "disagreement": np.clip(1 - share, 0, 1),
    })  # fmt: skip
