"""CHAOS, PAS and Moran's I against their definitions."""

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from tenfold import metrics
from tenfold.errors import DataError


def lattice(n=12):
    x, y = (part.ravel() for part in np.meshgrid(np.arange(n), 2.0 * np.arange(n)))
    where = np.column_stack([x, y]) + np.random.default_rng(0).uniform(-0.2, 0.2, (n * n, 2))
    return where, (where[:, 0] >= n // 2).astype(int)


def test_scores_follow_their_definitions():
    where, domain = lattice()
    noisy = domain.copy()
    noisy[np.random.default_rng(1).choice(len(domain), 20, replace=False)] += 1
    distances = cdist(*[(where - where.mean(axis=0)) / where.std(axis=0)] * 2)
    np.fill_diagonal(distances, np.inf)
    nearest = sum(distances[i, (noisy == noisy[i])].min() for i in range(len(noisy)) if (noisy == noisy[i]).sum() > 2)
    assert metrics.chaos(where, noisy) == pytest.approx(nearest / len(noisy), rel=1e-5)
    raw = cdist(where, where)
    around = np.argsort(raw, axis=1)[:, 1:11]
    expected = ((noisy[around] != noisy[:, None]).sum(axis=1) > 5).mean()
    assert metrics.pas(where, noisy) == pytest.approx(expected)
    assert metrics.pas(where, domain) < expected and metrics.chaos(where, domain) < metrics.chaos(where, noisy)


def test_sections_are_scored_apart():
    where, domain = lattice()
    both, domains = np.concatenate([where, where + np.array([0.05, 0.0])]), np.concatenate([domain, 1 - domain])
    section = np.repeat(["a", "b"], len(where))
    assert metrics.pas(both, domains, section) == pytest.approx(metrics.pas(where, domain))
    assert metrics.pas(both, domains) > 0.3
    assert metrics.chaos(both, domains, section) == pytest.approx(metrics.chaos(where, domain))


def test_moran_is_its_formula_and_its_p_values_hold():
    where, _ = lattice(14)
    rng = np.random.default_rng(2)
    near = np.argsort(cdist(where, where), axis=1)[:, 1:7]
    n = len(where)
    graph = sparse.csr_matrix((np.ones(6 * n), (np.repeat(np.arange(n), 6), near.ravel())), shape=(n, n))
    x = rng.poisson(1.0, (n, 400)).astype(float)
    x[:, 0] += 3 * (where[:, 0] > 7)
    x[:, 1] = 2.0
    found = metrics.moran(sparse.csr_matrix(x), graph)
    z = x - x.mean(axis=0)
    with np.errstate(invalid="ignore"):
        expected = n / graph.sum() * (z * (graph @ z)).sum(axis=0) / (z**2).sum(axis=0)
    np.testing.assert_allclose(found.statistic[2:], expected[2:], rtol=1e-8, atol=1e-12)
    assert found.pvalue[0] < 1e-10 and np.isnan(found.statistic[1]) and np.isnan(found.pvalue[1])
    assert 0.02 < (found.pvalue[2:] < 0.05).mean() < 0.08
    np.testing.assert_allclose(metrics.moran(x, graph).statistic, found.statistic)


def test_wrong_input_is_named():
    where, domain = lattice()
    with pytest.raises(DataError, match="domains"):
        metrics.pas(where, domain[:-1])
    with pytest.raises(DataError, match="graph"):
        metrics.moran(np.ones((5, 2)), sparse.identity(4))


def test_contiguity_is_chance_corrected_and_knows_sections():
    where, domain = lattice()
    assert metrics.contiguity(where, domain) > 0.8
    shuffled = np.random.default_rng(3).permutation(domain)
    assert abs(metrics.contiguity(where, shuffled)) < 0.1
    both, domains = np.concatenate([where, where + 0.05]), np.concatenate([domain, domain])
    section = np.repeat(["a", "b"], len(where))
    assert metrics.contiguity(both, domains, section) == pytest.approx(metrics.contiguity(where, domain))
    assert np.isnan(metrics.contiguity(where, np.zeros(len(where))))


def test_shared_domains_goes_from_none_to_all():
    section = np.repeat(["a", "b"], 10)
    assert metrics.shared_domains(np.tile([0, 1], 10), section) == pytest.approx(1)
    assert metrics.shared_domains(np.repeat([0, 1], 10), section) == pytest.approx(0)
    half = np.concatenate([np.zeros(10), np.repeat([0, 1], 5)])
    assert metrics.shared_domains(half, section) == pytest.approx(0.5)


def test_markers_are_the_genes_of_a_domain():
    rng = np.random.default_rng(0)
    domain = np.repeat([0, 1, 2], [60, 60, 2])
    x = rng.poisson(1.0, (122, 30)).astype(float)
    x[domain == 0, :3] += 5
    x[domain == 1, 3:5] += 5
    assert set(metrics.domain_markers(sparse.csr_matrix(x), domain, 2)) <= {0, 1, 2, 3, 4}
    assert {3, 4} <= set(metrics.domain_markers(x, domain, 2))
