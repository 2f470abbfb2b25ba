"""scVelo's dynamical model: kernels against plain loops, truth recovered, times joined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import gaussian_kde, norm, spearmanr

import tenfold as tf
from tenfold.data.graph import neighbor_graph
from tenfold.data.kinetics import two_phases
from tenfold.data.spatial import averaging
from tenfold.kernels.time_gaps import compress
from tenfold.kernels.two_phase import N_ROWS, assign
from tenfold.kernels.two_phase_fit import prepare
from tenfold.kernels.two_phase_genes import fit_genes
from tenfold.kernels.two_phase_profile import _orthogonal
from tenfold.kernels.two_phase_start import bimodality
from tenfold.velocity_models.two_phase import latent_time


def exact(n_cells=400, n_genes=12, noise=0.5, seed=0):
    """Simulated averages, and the matrix that averages over neighbours in time."""
    adata = tf.data.simulate_splicing(n_cells, n_genes, noise=noise, seed=seed)
    time = adata.obs["true_time"].to_numpy()
    graph = neighbor_graph(np.stack([time, np.zeros(n_cells)], axis=1), 15).connectivities
    ones = sparse.csr_matrix((np.ones(graph.nnz, np.float32), graph.indices, graph.indptr), shape=graph.shape)
    mean = averaging(ones)
    return adata, mean @ adata.layers["unspliced"], mean @ adata.layers["spliced"], mean


@pytest.fixture(scope="module")
def data():
    return exact()


@pytest.fixture(scope="module")
def fits(data):
    _, u, s, mean = data
    return fit_genes(u, s, mean)


def compressed_by_sorting(on_taus, off_taus):
    """As scVelo writes it: gaps above three times the 99.5th percentile are taken out."""
    steps = [np.diff(np.sort(taus), prepend=0) for taus in (on_taus, off_taus)]
    limit = 3 * np.percentile(np.concatenate(steps), 99.5)
    out = []
    for taus, step in zip((on_taus, off_taus), steps, strict=True):
        new, ordered = taus.copy(), np.sort(taus)
        for k in np.flatnonzero(step > limit):
            new[taus >= ordered[k]] -= step[k]
        out.append(new)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_gaps_are_those_that_sorting_finds(seed):
    rng = np.random.default_rng(seed)
    n = 500
    on = (rng.random(n) < 0.6).astype(np.int64)
    first, second = rng.gamma(1, 1, n), rng.gamma(0.5, 2, n)
    first[first > 2] += 5
    wanted = compressed_by_sorting(first[on == 1], second[on == 0])
    compress(first, second, on, np.empty((2, n)))
    np.testing.assert_allclose(first[on == 1], wanted[0], atol=1e-12)
    np.testing.assert_allclose(second[on == 0], wanted[1], atol=1e-12)


def test_bimodality_is_that_of_a_kernel_density():
    x = np.concatenate(
        [np.random.default_rng(0).normal(0.1, 0.02, 300), np.random.default_rng(1).normal(0.3, 0.01, 200)]
    )
    grid = np.linspace(x.min(), x.max(), 30)
    density = gaussian_kde(x)(grid)
    middle = 13 + density[13:17].argmin()
    statistic = (density[middle:].max() - density[middle:].mean()) / max(density.std() / np.sqrt(30), 1)
    p, mode = bimodality(x)
    np.testing.assert_allclose(p, norm.sf(statistic), rtol=1e-4)
    peak = middle + density[middle:].argmax()
    np.testing.assert_allclose(mode, (grid[peak] + grid[min(peak + 1, 29)]) / 2)


@pytest.mark.parametrize("projection", [False, True])
def test_times_without_noise_are_the_true_ones(projection):
    """On the curve itself, at the true rates, the loss vanishes and times are those of the simulation."""
    t = np.linspace(0.05, 18, 300)
    rates = np.array([3.0, 0.4, 0.6, 7.0, 1.0])
    u, s = (x[:, 0] for x in two_phases(t[:, None], *(np.array([rates[k]]) for k in (3, 0, 1, 2))))
    graph = (np.arange(301, dtype=np.int64), np.arange(300, dtype=np.int32), np.ones(300))  # each cell alone
    gene = prepare(u, s, graph)
    found, on = np.empty(300), np.empty(300, np.int64)
    loss = assign(*gene[:3], gene[3], graph, gene[5], rates, projection, np.nan, False, np.empty((N_ROWS + 2, 300)),
                  found, on)  # fmt: skip
    assert loss < (0.1 if projection else 1e-8)
    inner = (t > 0.3) & (np.abs(t - 7) > 0.3)
    assert np.abs(found - t)[inner].max() < (0.15 if projection else 1e-3)
    assert ((on == 1) == (t < 7))[inner].all()


def test_rates_of_a_simulation_are_found(data, fits):
    adata = data[0]
    ratio = fits.rates[:, 2] / (fits.rates[:, 1] / fits.rates[:, 4])
    assert np.isfinite(fits.rates).all()
    assert spearmanr(ratio, adata.var["true_gamma"] / adata.var["true_beta"])[0] > 0.9
    rho = [spearmanr(t, adata.obs["true_time"])[0] for t in fits.t]
    assert np.median(rho) > 0.95


def test_the_profile_fit_is_closer_to_the_cells(data, fits):
    """The same rule for both: nearest points of the curve, phases chosen with neighbours."""
    adata, u, s, mean = data
    ours = fit_genes(u, s, mean, profile=True)
    graph = (mean.indptr.astype(np.int64), mean.indices.astype(np.int32), 1.0 / np.diff(mean.indptr))
    work, t, on = np.empty((N_ROWS + 2, len(u))), np.empty(len(u)), np.empty(len(u), np.int64)
    lower = []
    for g in range(u.shape[1]):
        gene = prepare(u[:, g].astype(float), s[:, g].astype(float), graph)
        losses = [_orthogonal(gene, found.rates[g], found.ratio[g], work, t, on) for found in (ours, fits)]
        lower.append(losses[0] <= losses[1] * 1.001)
        np.testing.assert_allclose(losses[0], ours.loss[g], rtol=1e-6)
    assert np.mean(lower) >= 0.75
    ratio = ours.rates[:, 2] / (ours.rates[:, 1] / ours.rates[:, 4])
    assert spearmanr(ratio, adata.var["true_gamma"] / adata.var["true_beta"])[0] > 0.9
    assert np.median([spearmanr(times, adata.obs["true_time"])[0] for times in ours.t]) > 0.95


def test_a_gene_of_zeros_has_no_fit(data):
    _, u, s, mean = data
    zeros = np.zeros((len(u), 1), np.float32)
    found = fit_genes(np.hstack([u[:, :1], zeros]), np.hstack([s[:, :1], zeros]), mean)
    assert np.isfinite(found.rates[0]).all() and np.isnan(found.rates[1]).all()


def test_latent_time_joins_the_times_of_genes():
    rng = np.random.default_rng(0)
    true = np.sort(rng.uniform(0, 1, 200))
    times = np.clip(20 * (true[:, None] ** rng.uniform(0.5, 2, 30)) + rng.normal(0, 0.5, (200, 30)), 0, None)
    mean = averaging(sparse.csr_matrix(np.abs(np.arange(200)[:, None] - np.arange(200)) == 1, dtype=np.float32))
    roots = (np.arange(200) < 3).astype(float)
    found = latent_time(times.T.astype(np.float32), roots, mean)
    assert spearmanr(found, true)[0] > 0.99 and found.min() == 0 and found.max() == 1


@pytest.mark.parametrize("schedule", ["profile", "reference"])
def test_the_method_finds_the_time_of_an_exact_simulation(schedule):
    adata = tf.data.simulate_splicing(500, 40, noise=0.5, seed=1)
    adata.obsm["X_raw"] = np.log1p(adata.layers["spliced"])
    model = tf.velocity.ScVeloDynamical(n_top_genes=None, normalize=False, schedule=schedule).fit(
        adata, use_rep="X_raw"
    )
    assert abs(spearmanr(model.time(), adata.obs["true_time"])[0]) > 0.98
    genes = model.columns_[model.trusted_]
    right = tf.metrics.direction_accuracy(model.velocity()[:, genes], adata.layers["true_velocity"][:, genes])
    assert right > 0.9
