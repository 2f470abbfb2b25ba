"""Samplers for labels that neighbours share: exact distributions on tiny graphs, and draws against SciPy."""

from itertools import product

import numpy as np
import pytest
from scipy import sparse, stats

from tenfold.kernels import potts
from tenfold.kernels.draws import gaussian, inverse_gaussian, wishart

#: A square with a diagonal and a tail.
PAIRS = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (3, 4)]


def graph():
    rows, columns = np.array(PAIRS).T
    half = sparse.csr_matrix((np.ones(len(PAIRS), np.float32), (rows, columns)), shape=(5, 5))
    return (half + half.T).tocsr()


def exact(log_density):
    """Probabilities of all 3^5 labellings."""
    states = np.array(list(product(range(3), repeat=5)))
    log = np.array([log_density(state) for state in states])
    weights = np.exp(log - log.max())
    return states, weights / weights.sum()


def frequencies(step, n_sweeps):
    """How often a chain visits each labelling."""
    labels, counts = np.zeros(5, np.int64), np.zeros(3**5)
    powers = 3 ** np.arange(4, -1, -1)
    for sweep in range(n_sweeps + 100):
        step(labels)
        if sweep >= 100:
            counts[labels @ powers] += 1
    return counts / n_sweeps


def distance(found, expected):
    """Total variation, and what sampling alone leaves of it on average (independent samples)."""
    return 0.5 * np.abs(found - expected).sum()


@pytest.mark.parametrize("beta", [0.3, 1.2])
def test_swendsen_wang_visits_labellings_as_often_as_their_probability_says(beta):
    rng, field = np.random.default_rng(0), np.log(np.random.default_rng(1).dirichlet(np.ones(3), 2))
    kind, edges = np.array([0, 1, 0, 1, 1]), potts.edge_list(graph())

    def log_density(z):
        return beta * sum(z[i] == z[j] for i, j in PAIRS) + field[kind, z].sum()

    _, expected = exact(log_density)
    found = frequencies(lambda z: potts.swendsen_wang(*edges, z, field, kind, beta, rng), 60_000)
    assert distance(found, expected) < 0.03
    _, wrong = exact(lambda z: 1.3 * beta * sum(z[i] == z[j] for i, j in PAIRS) + field[kind, z].sum())
    assert distance(found, wrong) > 2 * distance(found, expected)


def test_sites_drawn_in_turn_keep_the_distribution_of_their_conditionals():
    """With equal degrees, shares of neighbours are a Potts model of strength 2γ / degree: a ring of five."""
    ring = sparse.csr_matrix(np.roll(np.eye(5), 1, axis=1) + np.roll(np.eye(5), -1, axis=1))
    rng, likelihood = np.random.default_rng(0), np.random.default_rng(1).normal(size=(5, 3))

    def log_density(z):
        return 2 * 0.8 / 2 * sum(z[i] == z[(i + 1) % 5] for i in range(5)) + likelihood[np.arange(5), z].sum()

    _, expected = exact(log_density)
    found = frequencies(lambda z: potts.site_sweep(likelihood, ring.indptr, ring.indices, z, 0.8, rng), 60_000)
    assert distance(found, expected) < 0.03


def test_conditional_of_a_site_is_the_ratio_of_joint_densities():
    """Exact balance: p(z) P(z → z') = p(z') P(z' → z) for a change of one site, on a graph of equal degrees."""
    ring = sparse.csr_matrix(np.roll(np.eye(5), 1, axis=1) + np.roll(np.eye(5), -1, axis=1))
    likelihood, z, gamma = np.random.default_rng(1).normal(size=(5, 3)), np.array([0, 2, 2, 1, 0]), 1.1

    def joint(labels):
        return gamma * sum(labels[i] == labels[(i + 1) % 5] for i in range(5)) + likelihood[np.arange(5), labels].sum()

    for site in range(5):
        prior = np.empty(3)
        potts.site_log_prior(site, ring.indptr, ring.indices, z, gamma, prior)
        conditional = np.exp(prior + likelihood[site])
        conditional /= conditional.sum()
        options = [np.where(np.arange(5) == site, label, z) for label in range(3)]
        expected = np.exp([joint(option) for option in options])
        np.testing.assert_allclose(conditional, expected / expected.sum(), rtol=1e-12)
        for a, b in product(range(3), repeat=2):
            flow = joint(options[a]) + np.log(conditional[b])
            assert flow == pytest.approx(joint(options[b]) + np.log(conditional[a]), abs=1e-9)


def test_a_cell_without_neighbours_has_a_flat_prior():
    prior = np.ones(3)
    potts.site_log_prior(0, np.zeros(2, np.int32), np.zeros(0, np.int32), np.zeros(1, np.int64), 3.0, prior)
    assert (prior == 0).all()


def test_free_samples_have_the_exact_number_of_agreeing_edges():
    rng, edges = np.random.default_rng(0), potts.edge_list(graph())
    states, weights = exact(lambda z: 0.7 * sum(z[i] == z[j] for i, j in PAIRS))
    expected = weights @ [sum(z[i] == z[j] for i, j in PAIRS) for z in states]
    found = potts.free_samples(*edges, np.zeros(5, np.int64), 3, 0.7, 100, 20_000, rng)
    assert found.mean() == pytest.approx(expected, abs=0.05)
    assert potts.agreeing(*edges, np.array([1, 1, 0, 1, 1])) == 3


def test_rows_are_drawn_from_likelihood_and_the_table_of_their_group():
    rng = np.random.default_rng(0)
    likelihood, table = np.tile([[0.0, 1.0, -1.0]], (20_000, 1)), np.log([[0.2, 0.3, 0.5], [0.6, 0.4, 1e-12]])
    group, labels = np.arange(20_000) % 2, np.zeros(20_000, np.int64)
    potts.draw_rows(likelihood, table, group, labels, rng)
    for g in (0, 1):
        expected = np.exp(likelihood[0] + table[g])
        found = np.bincount(labels[group == g], minlength=3) / 10_000
        np.testing.assert_allclose(found, expected / expected.sum(), atol=0.02)


def test_samples_are_counted_whatever_their_labels_are_called():
    rng, truth = np.random.default_rng(0), np.random.default_rng(1).integers(0, 4, 300)
    tally = potts.Tally(300, 4)
    for _ in range(60):
        noisy = np.where(rng.random(300) < 0.2, rng.integers(0, 4, 300), truth)
        tally.add(rng.permutation(4)[noisy])
    names = {frozenset(tally.modes[truth == label]) for label in range(4)}
    assert len(names) == 4 and all(len(name) == 1 for name in names)
    found = tally.probabilities()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert found.max(axis=1).mean() == pytest.approx(0.85, abs=0.03)


@pytest.mark.parametrize("p, a, b", [(-7.0, 1.0, 30.0), (-2.0, 1.0, 0.01), (0.5, 2.0, 0.3), (3.0, 1.0, 1.0)])
def test_inverse_gaussian_is_scipys(p, a, b):
    rng = np.random.default_rng(0)
    found = [inverse_gaussian(p, a, b, rng) for _ in range(4_000)]
    expected = stats.geninvgauss(p, np.sqrt(a * b), scale=np.sqrt(b / a))
    assert stats.kstest(found, expected.cdf).pvalue > 1e-3


def test_wishart_and_gaussian_have_their_moments():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    scale = root @ root.T + np.eye(3)
    draws = np.array([wishart(12, scale, rng) for _ in range(4_000)])
    expected = stats.wishart(12, np.linalg.inv(scale))
    np.testing.assert_allclose(draws.mean(axis=0), expected.mean(), atol=0.06 * expected.mean().max())
    np.testing.assert_allclose(draws.var(axis=0), expected.var(), rtol=0.25, atol=1e-3)
    precision, shift = np.stack([scale, 2 * np.eye(3)]), rng.normal(size=(2, 3))
    draws = np.array([gaussian(precision, shift, rng) for _ in range(8_000)])
    for i in (0, 1):
        covariance = np.linalg.inv(precision[i])
        np.testing.assert_allclose(draws[:, i].mean(axis=0), covariance @ shift[i], atol=0.05)
        np.testing.assert_allclose(np.cov(draws[:, i].T), covariance, atol=0.06)
