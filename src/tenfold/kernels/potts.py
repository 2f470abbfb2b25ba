"""Labels of cells that neighbours share: sweeps of samplers for the Potts model, and relabelling of their samples.

The model: log p(labels) = β × (edges whose ends agree) + sum over cells of field[kind of the cell, its label], up to a
constant. Random numbers come from a NumPy generator, so that a seed gives the same chain.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit
from scipy import sparse
from scipy.optimize import linear_sum_assignment


def edge_list(graph: sparse.spmatrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the two ends of every edge of a symmetric graph once, int32, shape (n_edges,)."""
    upper = sparse.triu(graph, 1).tocoo()
    return upper.row.astype(np.int32), upper.col.astype(np.int32)


@njit(cache=True, nogil=True)
def draw(log_weights, rng):  # pragma: no cover - compiled
    """Return an index with probability proportional to exp(log_weights); the entries are overwritten."""
    highest = -np.inf
    for value in log_weights:
        highest = max(highest, value)
    total = 0.0
    for k in range(len(log_weights)):
        total += np.exp(log_weights[k] - highest)
        log_weights[k] = total
    limit = rng.random() * total
    for k in range(len(log_weights) - 1):
        if limit < log_weights[k]:
            return k
    return len(log_weights) - 1  # rounding cannot leave a cell without a label


@njit(cache=True, nogil=True)
def _root(parent, i):  # pragma: no cover - compiled
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def swendsen_wang(first, second, labels, field, kind, beta, rng):  # pragma: no cover - compiled
    """Change all labels by one sweep of Swendsen and Wang: agreeing neighbours are bonded, each cluster gets a label.

    An edge whose ends agree is a bond with probability 1 - exp(-β); a connected component takes label r with
    probability proportional to exp of the sum of its cells' fields at r.

    Parameters
    ----------
    first, second
        Ends of the edges, (n_edges,).
    labels
        Of the cells, (n_cells,), int; changed in place.
    field, kind
        Table (n_kinds, n_labels) and the row of each cell in it, (n_cells,).
    beta
        Strength of the interaction, not negative.
    rng
        NumPy generator.

    References
    ----------
    Swendsen and Wang (1987), doi 10.1103/PhysRevLett.58.86.
    """
    n, n_labels = len(labels), field.shape[1]
    parent, bond = np.arange(n), 1.0 - np.exp(-beta)
    for e in range(len(first)):
        if labels[first[e]] == labels[second[e]] and rng.random() < bond:
            a, b = _root(parent, first[e]), _root(parent, second[e])
            if a != b:
                parent[max(a, b)] = min(a, b)
    weights = np.zeros((n, n_labels))
    for i in range(n):
        root = _root(parent, i)
        parent[i] = root
        for r in range(n_labels):
            weights[root, r] += field[kind[i], r]
    for i in range(n):  # a root comes before its cells: it is their smallest index
        labels[i] = draw(weights[i], rng) if parent[i] == i else labels[parent[i]]


@njit(cache=True, nogil=True)
def agreeing(first, second, labels):  # pragma: no cover - compiled
    """Return the number of edges whose ends have the same label."""
    total = 0
    for e in range(len(first)):
        total += labels[first[e]] == labels[second[e]]
    return total


@njit(cache=True, nogil=True)
def free_samples(first, second, labels, n_labels, beta, n_burn_in, n_samples, rng):  # pragma: no cover - compiled
    """Return the number of agreeing edges in samples without a field, (n_samples,); goes on from `labels` in place."""
    field, kind = np.zeros((1, n_labels)), np.zeros(len(labels), np.int64)
    found = np.empty(n_samples)
    for step in range(n_burn_in + n_samples):
        swendsen_wang(first, second, labels, field, kind, beta, rng)
        if step >= n_burn_in:
            found[step - n_burn_in] = agreeing(first, second, labels)
    return found


@njit(cache=True, nogil=True)
def draw_rows(log_likelihood, table, group, labels, rng):  # pragma: no cover - compiled
    """Draw a label for every cell, in place: probability proportional to exp(log_likelihood[i] + table[group[i]]).

    Parameters
    ----------
    log_likelihood
        Shape (n_cells, n_labels).
    table, group
        Log-prior of the labels in every group, (n_groups, n_labels), and the group of each cell.
    labels
        Shape (n_cells,), int.
    rng
        NumPy generator.
    """
    weights = np.empty(log_likelihood.shape[1])
    for i in range(len(labels)):
        for k in range(len(weights)):
            weights[k] = log_likelihood[i, k] + table[group[i], k]
        labels[i] = draw(weights, rng)


@njit(cache=True, nogil=True)
def site_log_prior(i, indptr, indices, labels, strength, out):  # pragma: no cover - compiled
    """Fill `out` with 2 × strength × (share of the neighbours of cell i with each label); 0 without neighbours."""
    out[:] = 0.0
    start, end = indptr[i], indptr[i + 1]
    if end > start:
        step = 2.0 * strength / (end - start)
        for e in range(start, end):
            out[labels[indices[e]]] += step


@njit(cache=True, nogil=True)
def site_sweep(log_likelihood, indptr, indices, labels, strength, rng):  # pragma: no cover - compiled
    """Draw the label of every cell in turn, given its neighbours: Gibbs sampling, in place.

    The log-prior of a label is 2 × strength × (share of the neighbours that have it), as in BayesSpace.

    Parameters
    ----------
    log_likelihood
        Shape (n_cells, n_labels).
    indptr, indices
        Neighbours of the cells, CSR.
    labels
        Shape (n_cells,), int.
    strength
        γ.
    rng
        NumPy generator.
    """
    weights = np.empty(log_likelihood.shape[1])
    for i in range(len(labels)):
        site_log_prior(i, indptr, indices, labels, strength, weights)
        for k in range(len(weights)):
            weights[k] += log_likelihood[i, k]
        labels[i] = draw(weights, rng)


class Tally:
    """How often every cell had every label, over samples in which the numbers of the labels may be exchanged.

    Each sample is renamed to agree best with the most frequent labels so far (the ECR rule with its reference renewed
    as samples come in), so that nothing but these counts is kept.

    Parameters
    ----------
    n_cells, n_labels
        Shape of the counts.

    References
    ----------
    Papastamoulis and Iliopoulos (2010), doi 10.1198/jcgs.2010.09008.
    """

    def __init__(self, n_cells: int, n_labels: int):
        self.counts = np.zeros((n_cells, n_labels), dtype=np.int32)
        self.modes = np.zeros(n_cells, dtype=np.int64)
        self.n_samples = 0

    def add(self, labels: np.ndarray) -> np.ndarray:
        """Count a sample, shape (n_cells,); return the new number of every label, shape (n_labels,)."""
        n_labels = self.counts.shape[1]
        if self.n_samples == 0:
            self.modes[:] = labels
        table = np.bincount(labels * n_labels + self.modes, minlength=n_labels**2).reshape(n_labels, n_labels)
        renamed = linear_sum_assignment(table, maximize=True)[1]
        _count(labels, renamed, self.counts, self.modes)
        self.n_samples += 1
        return renamed

    def probabilities(self) -> np.ndarray:
        """Return the share of samples in which every cell had every label, shape (n_cells, n_labels), float32."""
        return (self.counts / max(self.n_samples, 1)).astype(np.float32)


@njit(cache=True, nogil=True)
def _count(labels, renamed, counts, modes):  # pragma: no cover - compiled
    for i in range(len(labels)):
        label = renamed[labels[i]]
        counts[i, label] += 1
        if counts[i, label] > counts[i, modes[i]]:
            modes[i] = label
