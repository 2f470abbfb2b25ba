"""What follows from a velocity graph: transitions, arrows in an embedding, where cells come from, go to, and when."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

from tenfold.kernels.graph_products import times, transposed_times

#: Steepness of the exponential that turns cosines into transition probabilities.
SHARPNESS = 10.0
#: Steps of a walk to its ends, and the change of the distribution, in two steps, that is none.
STEPS, SETTLED = 1000, 1e-8
#: Eigenvalues above this belong to components that the walk does not leave, as float32 keeps them.
STATIONARY = 0.9994


def self_transitions(cosines: sparse.csr_matrix) -> np.ndarray:
    """Return the weight with which each cell stays where it is, shape (n_cells,), in [0, 1], float32.

    It is what the highest cosine of the cell lacks to the 98th percentile of highest cosines: cells that no neighbour
    lies ahead of stay.
    """
    highest = np.maximum(cosines.max(axis=1).toarray().ravel(), 0)
    return np.clip(np.percentile(highest, 98) - highest, 0, 1).astype(np.float32)


def transition_matrix(
    cosines: sparse.csr_matrix, *, backward: bool = False, stay: bool = True, signed: bool = False
) -> sparse.csr_matrix:
    """Turn cosines into transition probabilities.

    Parameters
    ----------
    cosines
        Agreement of each cell's velocity with displacements, (n_cells, n_cells), without a diagonal.
    backward
        Transpose the weights before rows are scaled: probabilities of where cells came from.
    stay
        Let cells stay where they are (see `self_transitions`).
    signed
        Weights are sign(c) (exp(10 |c|) - 1) instead of exp(10 c): displacements against the velocity count negative.
        Then absolute values of a row sum to 1.

    Returns
    -------
    CSR, float32; rows sum to 1, but for cells without velocity, whose rows are empty.
    """
    sharp = (SHARPNESS * cosines).astype(np.float32)
    weights = sharp.copy()
    weights.data = np.sign(sharp.data) * np.expm1(np.abs(sharp.data)) if signed else np.exp(sharp.data)
    if stay:
        own = SHARPNESS * self_transitions(cosines)
        diagonal = np.where(own > 0, np.expm1(own) if signed else np.exp(own), 0)
        weights = sparse.csr_matrix(weights + sparse.diags_array(diagonal.astype(np.float32)))
    if backward:
        weights = weights.T.tocsr()
    weights.eliminate_zeros()
    totals = np.asarray(abs(weights).sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(1, totals, out=np.zeros_like(totals), where=totals > 0)
    return sparse.csr_matrix(sparse.diags_array(scale.astype(np.float32)) @ weights)


def project(cosines: sparse.csr_matrix, embedding: np.ndarray) -> np.ndarray:
    """Place velocities in an embedding: where the transitions of each cell point on average.

    The mean direction to all neighbours is taken off, so that a cell without preference has no arrow. The arrows follow
    neighbours of the graph and so look smoother than the velocities are.

    Parameters
    ----------
    cosines
        As for `transition_matrix`.
    embedding
        Coordinates of the cells, shape (n_cells, d).

    Returns
    -------
    Shape (n_cells, d), float32. Directions are meant; lengths are between 0 and 1 and have no unit.
    """
    moves = transition_matrix(cosines, signed=True)
    moves.setdiag(0)
    moves.eliminate_zeros()
    points = np.asarray(embedding, dtype=np.float64)
    rows = np.repeat(np.arange(len(points)), np.diff(moves.indptr))
    steps = points[moves.indices] - points[rows]
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    steps = np.divide(steps, lengths, out=np.zeros_like(steps), where=lengths > 0)
    size = np.maximum(np.diff(moves.indptr), 1)
    weight = moves.data - (np.asarray(moves.sum(axis=1)).ravel() / size)[rows]
    columns = [np.bincount(rows, weights=weight * step, minlength=len(points)) for step in steps.T]
    return np.stack(columns, axis=1).astype(np.float32)


class TerminalStates(NamedTuple):
    """How much each cell is a beginning and an end, each shape (n_cells,), float64, in [0, 1]."""

    roots: np.ndarray
    ends: np.ndarray


def terminal_states(cosines: sparse.csr_matrix, near: sparse.csr_matrix) -> TerminalStates:
    """Find where the walk along the velocities ends, and where it ends when it is followed backwards.

    Walkers start from every cell alike and take a thousand steps, or fewer where their distribution stops changing: it
    is the stationary one that this start leads to, the only one where the walk has a single end, and each end with the
    share of cells that lead to it where there are several. Walkers at a cell that no other follows stay there, and
    count for those around it; such an outlier between both ends of few cells can hold most of them.

    Parameters
    ----------
    cosines
        As for `transition_matrix`.
    near
        Averages over a cell and its nearest neighbours, (n_cells, n_cells).

    Returns
    -------
    Distributions of the backward and forward walk, averaged over neighbours, highest cells at 1. They are cut at the
    2nd and 98th percentile as in scVelo, whose ends are these where there is one. Where there are more, scVelo adds up
    the eigenvectors that a solver happens to return; where the walk leaks out of the graph, it has no states.
    """
    values = np.exp(SHARPNESS * cosines.data, dtype=np.float32)
    weights = sparse.csr_matrix((values, cosines.indices, cosines.indptr), shape=cosines.shape)
    return TerminalStates(*(_reached(weights, near, backward) for backward in (True, False)))


def _reached(weights: sparse.csr_matrix, near: sparse.csr_matrix, backward: bool) -> np.ndarray:
    """Return how much each cell is an end of a walk by `weights`, shape (n_cells,), in [0, 1]."""
    step, total = (times, transposed_times) if backward else (transposed_times, times)
    n = weights.shape[0]
    totals = total(weights, np.ones(n))
    stuck = totals == 0
    scale = 1 / np.where(stuck, 1, totals)

    def moved(walkers: np.ndarray) -> np.ndarray:
        return step(weights, walkers * scale) + np.where(stuck, walkers, 0)

    before = np.full(n, 1 / n)
    now = moved(before)
    for _ in range(STEPS):
        after = moved(now)
        settled = np.abs(after - before).sum() < SETTLED
        before, now = now, after
        if settled:
            break
    found = (before + now) / 2  # some pairs of cells lead to each other only, and are taken in turn
    # A cell that no other follows is an outlier between the others: its walkers stand for those around it.
    found = np.where(stuck, 0, found) + near.T @ np.where(stuck, found, 0)
    low, high = np.percentile(found, [2, 98])
    # Where fewer than 2 % of the cells hold the walk, nothing would be left of it.
    return _capped(near @ np.minimum(np.where(found < low, 0, found), high if high > 0 else found.max()))


def _capped(values: np.ndarray) -> np.ndarray:
    return _scaled(np.clip(values, 0, np.percentile(values, 98) or values.max()))


def _scaled(values: np.ndarray) -> np.ndarray:
    low = values.min()
    return (values - low) / (values.max() - low or 1.0)


def pseudotime(cosines: sparse.csr_matrix, states: TerminalStates, mean: sparse.csr_matrix) -> np.ndarray:
    """Return the distance of each cell from the beginning and to the end, by diffusion along the velocity graph.

    The distances are those of diffusion pseudotime on |cosines|, which have no direction: direction enters by which
    cells are beginning and end only.

    Parameters
    ----------
    cosines
        As for `transition_matrix`.
    states
        Beginnings and ends.
    mean
        Averages over neighbours by which the most extreme cells are chosen.

    Returns
    -------
    Shape (n_cells,), float64, in [0, 1]. A cell that the graph does not reach has the mean of those around it, or of
    all.
    """
    strength = sparse.csr_matrix((np.abs(cosines.data), cosines.indices, cosines.indptr), shape=cosines.shape)
    either = LinearOperator(
        cosines.shape, lambda x: times(strength, x) + transposed_times(strength, x), dtype=np.float64
    )
    values, vectors = diffusion(either)
    from_root = diffusion_distance(values, vectors, int((mean @ states.roots).argmax()))
    to_end = 1 - diffusion_distance(values, vectors, int((mean @ states.ends).argmax()))
    return _scaled((from_root + to_end) / 2)


def diffusion(weights: sparse.csr_matrix | LinearOperator, n_components: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenvalues and eigenvectors of the transitions by symmetric `weights`, normalised for density."""
    n = weights.shape[0]
    degree = weights @ np.ones(n)
    by_degree = 1 / np.where(degree > 0, degree, 1)
    root = np.sqrt(by_degree * (weights @ by_degree))
    scale = by_degree / np.where(root > 0, root, 1)
    kernel = LinearOperator((n, n), lambda x: scale * (weights @ (scale * x.ravel())), dtype=np.float64)
    start = np.random.default_rng(0).random(n)
    values, vectors = eigsh(kernel, k=min(n - 1, n_components), which="LM", v0=start)
    return values[::-1], vectors[:, ::-1]


def diffusion_distance(values: np.ndarray, vectors: np.ndarray, cell: int) -> np.ndarray:
    """Diffusion distance of all cells from one, summed over walks of all lengths, the largest 1."""
    damped = values < STATIONARY
    weight = np.ones_like(values)
    weight[damped] = (values[damped] / (1 - values[damped])) ** 2
    row = np.sqrt(((vectors - vectors[cell]) ** 2) @ weight)
    return row / (row.max() or 1.0)
