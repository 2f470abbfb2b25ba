"""The chain of BASS: cell types, domains and their parameters, drawn in turn given all others."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from tenfold.kernels import potts
from tenfold.kernels.draws import gaussian, inverse_gaussian, wishart

#: Largest strength of the interaction; step of its random walk; sweeps without data for each, unused and used.
LARGEST_BETA, STEP, UNUSED, USED = 4.0, 0.1, 10, 10
#: Sweeps whose mean strength is compared with that of as many before; a smaller change ends the search.
WINDOW, SETTLED = 100, 1e-3


class TypesInDomains:
    """The chain: labels and parameters, drawn in turn given all others.

    Parameters
    ----------
    x
        Components, shape (n_cells, d), float64.
    types, domains
        First labels, shape (n_cells,).
    sizes
        Numbers of types and of domains.
    edges
        Ends of the edges of the graph.
    first
        Cells of the first section, and ends of its edges, in it.
    beta
        Strength of the interaction, or None to start from 1.
    seed
        Of the chain.
    """

    course = ("beta", "log_likelihood")

    def __init__(
        self, x: np.ndarray, types: np.ndarray, domains: np.ndarray, sizes: tuple[int, int],
        edges: tuple[np.ndarray, np.ndarray], first: tuple[np.ndarray, tuple[np.ndarray, np.ndarray]],
        beta: float | None, seed: int,
    ):  # fmt: skip
        self.x, self.types, self.domains = x, types.astype(np.int64), domains.astype(np.int64)
        self.n_types, self.n_domains = sizes
        self.sizes = {"types": self.n_types, "domains": self.n_domains}
        self.labels = {"types": self.types, "domains": self.domains}  # changed in place
        self.settled, self.tried, self.before = beta is not None, [], 1.0
        self.edges, (self.first, self.first_edges) = edges, first
        self.beta, self.rng = 1.0 if beta is None else beta, np.random.default_rng(seed)
        self.squares, self.range2 = x.T @ x, np.maximum(np.ptp(x, axis=0) ** 2, 1e-12)
        self.spread, self.origin = np.ones(x.shape[1]), np.zeros(x.shape[1])  # λ and d
        self.free = self.rng.integers(self.n_domains, size=len(self.first))  # labels of the model without data
        self._sum()
        self.means = self.sums / np.maximum(self.counts, 1)[:, None]
        self.draw_composition()
        self.draw_precision()

    def sweep(self, burning_in: bool) -> tuple[float, float]:
        """Draw everything once, the strength of the interaction while burning in and not settled."""
        if not burning_in and self.tried and not self.settled:
            self.beta = float(np.mean(self.tried[-WINDOW:]))
        self.draw_types()
        potts.swendsen_wang(*self.edges, self.domains, self.log_composition, self.types, self.beta, self.rng)
        self.draw_means()
        self.draw_composition()
        self.draw_precision()
        if burning_in and not self.settled:
            self.draw_beta()
            self._judge_beta()
        return self.beta, self.log_likelihood()

    def _judge_beta(self) -> None:
        """Fix the strength at its mean where that hardly differs from the mean before."""
        self.tried.append(self.beta)
        if len(self.tried) % WINDOW == 0:
            mean = float(np.mean(self.tried[-WINDOW:]))
            self.settled, self.before = abs(mean - self.before) < SETTLED, mean
            self.beta = mean if self.settled else self.beta

    def draw_types(self) -> None:
        """Types, given means, covariance and the composition of each cell's domain."""
        root = np.linalg.cholesky(self.precision)
        means = self.means @ root
        likelihood = (self.x @ root) @ means.T - 0.5 * np.square(means).sum(axis=1)
        potts.draw_rows(likelihood, np.ascontiguousarray(self.log_composition.T), self.domains, self.types, self.rng)
        self._sum()

    def _sum(self) -> None:
        """Sum cells and components by type."""
        self.counts = np.bincount(self.types, minlength=self.n_types)
        belongs = np.zeros((len(self.types), self.n_types))
        belongs[np.arange(len(self.types)), self.types] = 1
        self.sums = belongs.T @ self.x

    def draw_means(self) -> None:
        """Means of types, then the centre and spread of each component's means."""
        prior = 1 / (self.spread * self.range2)
        precision = self.counts[:, None, None] * self.precision + np.diag(prior)
        self.means = gaussian(precision, self.sums @ self.precision + self.origin * prior, self.rng)
        width = np.sqrt(self.spread * self.range2 / self.n_types)
        self.origin = self.means.mean(axis=0) + width * self.rng.standard_normal(len(width))
        scatter = np.square(self.means - self.origin).sum(axis=0) / self.range2
        for j, b in enumerate(np.maximum(scatter, 1e-12)):
            self.spread[j] = inverse_gaussian(0.5 - self.n_types / 2, 1.0, b, self.rng)

    def draw_composition(self) -> None:
        """Proportions of types in domains, (n_types, n_domains), kept as logarithms."""
        table = np.bincount(self.types * self.n_domains + self.domains, minlength=self.n_types * self.n_domains)
        shares = self.rng.standard_gamma(table.reshape(self.n_types, self.n_domains) + 1.0)
        self.log_composition = np.log(shares / shares.sum(axis=0) + 1e-300)

    def draw_precision(self) -> None:
        """Inverse covariance of components within types."""
        cross = self.sums.T @ self.means
        scatter = self.squares - cross - cross.T + (self.means.T * self.counts) @ self.means
        self.precision = wishart(len(self.x) + 1, scatter + np.eye(len(scatter)), self.rng)

    def draw_beta(self) -> None:
        """Strength of the interaction: a random walk, the ratio of normalisers from samples of the free model."""
        proposed = float(np.clip(self.beta + self.rng.uniform(-STEP, STEP), 0, LARGEST_BETA))
        free = potts.free_samples(*self.first_edges, self.free, self.n_domains, proposed, UNUSED, USED, self.rng)
        kernel = potts.agreeing(*self.first_edges, self.domains[self.first])
        ratio = (proposed - self.beta) * kernel + logsumexp((self.beta - proposed) * free) - np.log(USED)
        if np.log(self.rng.random()) < ratio:
            self.beta = proposed

    def log_likelihood(self) -> float:
        """Return the log-density of the components given types, without the constant."""
        cross = self.sums.T @ self.means
        scatter = self.squares - cross - cross.T + (self.means.T * self.counts) @ self.means
        determinant = np.linalg.slogdet(self.precision)[1]
        return float(0.5 * len(self.x) * determinant - 0.5 * (self.precision * scatter).sum())
