"""From fits of the two-phase model to velocities and one time for all genes, by scVelo's rules."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from tenfold.data.kinetics import two_phases
from tenfold.kernels.threads import in_threads
from tenfold.kernels.two_phase_genes import TwoPhaseFits

#: Cells whose times are ranked at a time, and numbers (cells × genes) that a thread follows up at once: they bound the
#: memory, and what is at work fits into caches.
ROWS, PIECE = 512, 500_000
#: Time that every gene's course is stretched to before genes are compared.
T_MAX = 20.0


def aligned(fits: TwoPhaseFits, mean: sparse.csr_matrix) -> tuple[TwoPhaseFits, np.ndarray]:
    """Stretch the time of every gene so that its cells span twenty units.

    Parameters
    ----------
    fits
        As fitted, each gene in a time of its own.
    mean
        Averages over neighbours.

    Returns
    -------
    The fits with rates and times in the common unit, and the times averaged over neighbours, shape (g, n), float32.
    """
    t = (mean @ fits.t.T.astype(np.float64)).T
    switch = fits.rates[:, 3:4]
    span = np.max(t * (t < switch), axis=1) + np.max((t - switch) * (t > switch), axis=1)
    moving = 1 - np.mean((t == switch) | (t == 0), axis=1)
    span = span / np.where(moving == 0, 1, moving)
    m = (T_MAX / np.where(span == 0, 1, span))[:, None]
    rates = fits.rates * np.hstack([1 / m, 1 / m, 1 / m, m, np.ones_like(m)])
    scaled = [(part * m).astype(np.float32) for part in (fits.t, fits.tau_on, fits.tau_off)]
    return fits._replace(rates=rates, t=scaled[0], tau_on=scaled[1], tau_off=scaled[2]), (t * m).astype(np.float32)


def two_phase_velocity(
    fits: TwoPhaseFits, unspliced: np.ndarray, spliced: np.ndarray, mean: sparse.csr_matrix
) -> np.ndarray:
    """Return ds/dt of the model at each cell's time, which is averaged over its neighbours.

    Parameters
    ----------
    fits
        Aligned.
    unspliced, spliced
        Averages that were fitted, shape (n_cells, g).
    mean
        Averages over neighbours.

    Returns
    -------
    Shape (n_cells, g), float32; 0 where a cell is at one of the two steady states, never below minus `spliced`.
    """
    alpha, beta, gamma, switch, scaling = fits.rates.T
    u, s = unspliced / scaling, spliced.astype(np.float64)
    sd_u, sd_s = fits.sd[:, 0] / scaling, fits.sd[:, 1]
    on, off = fits.tau_on.T.astype(np.float64), fits.tau_off.T.astype(np.float64)

    def apart(a: np.ndarray | float, b: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        du, ds = (u - a) / sd_u, (s - b) / sd_s
        return du**2 + ds**2, ds

    rising, rising_s = apart(*two_phases(on, np.full_like(switch, np.inf), alpha, beta, gamma))
    falling, falling_s = apart(*two_phases(switch + off, switch, alpha, beta, gamma))
    first = rising < falling
    nearest = np.where(first, rising, falling)
    signed = np.sign(np.where(first, rising_s, falling_s)) * np.sqrt(nearest)
    variance = nearest.mean(axis=0) - signed.mean(axis=0) ** 2
    states = np.stack([
        mean @ distance / variance
        for distance in (falling, rising, apart(0.0, 0.0)[0], apart(alpha / beta, alpha / gamma)[0])
    ])  # fmt: skip
    likely = np.exp(-0.5 * states) / (2 * np.pi * np.sqrt(variance))
    state = np.concatenate([likely, np.full((1, *likely.shape[1:]), 1e-6)]).argmax(axis=0)
    t = mean @ np.where(state == 1, on, np.where(state == 0, off + switch, 0.0))
    at_u, at_s = two_phases(t, switch, alpha, beta, gamma)
    return np.where(state < 2, np.maximum(beta * at_u - gamma * at_s, -s), np.maximum(0.0, -s)).astype(np.float32)


def followed(
    fits: TwoPhaseFits, unspliced: np.ndarray, spliced: np.ndarray, mean: sparse.csr_matrix
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rates and times of `aligned` fits and their `two_phase_velocity`, genes dealt to threads.

    Parameters
    ----------
    fits
        As fitted.
    unspliced, spliced
        Averages that were fitted, shape (n_cells, g).
    mean
        Averages over neighbours.

    Returns
    -------
    Rates (g, 5), times (g, n_cells) and velocities (n_cells, g).
    """
    rates, times = np.empty_like(fits.rates), np.empty_like(fits.t)
    velocity = np.empty(spliced.shape, np.float32)
    size = max(1, PIECE // len(spliced))

    def follow(first: int, last: int) -> None:
        for start in range(first, last, size):
            own = slice(start, min(start + size, last))
            part, times[own] = aligned(TwoPhaseFits(*(values[own] for values in fits)), mean)
            rates[own] = part.rates
            velocity[:, own] = two_phase_velocity(part, unspliced[:, own], spliced[:, own], mean)

    in_threads(follow, len(rates))
    return rates, times, velocity


def latent_time(t: np.ndarray, roots: np.ndarray, mean: sparse.csr_matrix) -> np.ndarray:
    """Join the times of genes into one for each cell.

    Genes' times are turned so that a root cell comes first; for each of up to four roots the two percentiles over
    genes that are spread most evenly over cells are added up; cells that do not fit to their neighbours take their time
    from these.

    Parameters
    ----------
    t
        Times of well fitted genes, shape (g, n_cells), float32. They are turned in place, being most of the memory.
    roots
        How much each cell is a beginning, shape (n_cells,), highest 1.
    mean
        Averages over neighbours.

    Returns
    -------
    Shape (n_cells,), float64, from 0 to 1.
    """
    order = np.argsort(t.sum(axis=0, dtype=np.float64))
    chosen = order[roots[order] > 1 - 1e-3]
    shared = np.zeros(t.shape[1])
    cells = (chosen if len(chosen) else order)[:4]
    for cell in cells:
        _turn(t, cell)
        shared += _shared(t)
    latent = _scaled(shared / len(cells))
    around = mean @ latent
    fit = latent @ around / (around @ around)
    sure = (1 - np.abs(latent - around * fit) / latent.max()) ** 2 >= 0.75
    return _scaled(mean @ np.where(sure, latent, 0.0))


def _turn(t: np.ndarray, root: int) -> None:
    """Turn each gene's time so that the root cell is at 0 and earlier cells come after the last."""

    def turn(first: int, last: int) -> None:
        for own in t[first:last]:
            after = own - own[root]
            own[:] = np.where(after >= 0, after, own + after.max())

    in_threads(turn, len(t))
    t -= t.min()


def _shared(t: np.ndarray) -> np.ndarray:
    """Return the sum of those two percentiles over genes that are spread most evenly over cells."""
    levels = np.empty((5, t.shape[1]))

    def rank(first: int, last: int) -> None:
        for start in range(first, last, ROWS):
            own = slice(start, min(start + ROWS, last))
            levels[:, own] = np.percentile(np.ascontiguousarray(t[:, own].T), [15, 20, 25, 30, 35], axis=1)

    in_threads(rank, t.shape[1])
    top = levels.max(axis=1, keepdims=True)
    levels = levels / np.where(top == 0, 1, top)
    uneven = ((np.sort(levels, axis=1) - np.linspace(0, 1, levels.shape[1])) ** 2).sum(axis=1)
    joined = levels[np.argsort(uneven)[:2]].sum(axis=0)
    return joined / (joined.max() or 1.0)


def _scaled(values: np.ndarray) -> np.ndarray:
    values = values - values.min()
    return values / (values.max() or 1.0)
