"""BASS: its draws against densities written out, planted domains of mixed types, the strength of the interaction."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.cluster import KMeans

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import spatial_graph, symmetrised
from tenfold.domains.bass import BASS
from tenfold.errors import NotFittedError, ParameterError
from tenfold.kernels import potts
from tenfold.spatial_models.sampling import log2_components
from tenfold.spatial_models.types_in_domains import TypesInDomains
from test_spatial import positions, tissue


def mixed(n=18, n_sections=2, seed=0):
    """Sections of two halves that hold the same three types in other proportions."""
    rng = np.random.default_rng(seed)
    x, y = (part.ravel() for part in np.meshgrid(np.arange(n), np.arange(n)))
    domain = np.tile((x >= n // 2).astype(int), n_sections)
    shares = np.array([[0.7, 0.15, 0.15], [0.15, 0.15, 0.7]])
    types = np.array([rng.choice(3, p=shares[d]) for d in domain])
    mean = np.full((3, 45), 1.0)
    for kind in range(3):
        mean[kind, 15 * kind : 15 * kind + 15] += 3.0
    adata = ad.AnnData(rng.poisson(mean[types]).astype(np.float32))
    adata.obs["domain"], adata.obs["type"] = pd.Categorical(domain.astype(str)), pd.Categorical(types.astype(str))
    adata.obs["section"] = np.repeat([f"s{i}" for i in range(n_sections)], n * n)
    adata.obsm["spatial"] = np.tile(np.column_stack([x, y]).astype(float), (n_sections, 1))
    return adata


def chain(n=6, beta=0.7):
    """A chain over a lattice of n × n cells, in a state that is no special one."""
    adata = tissue(n)
    rng = np.random.default_rng(3)
    graph = symmetrised(spatial_graph(positions(adata), "knn", 4))
    edges = potts.edge_list(graph)
    size = n * n
    return TypesInDomains(rng.normal(size=(size, 2)), rng.integers(0, 3, size), rng.integers(0, 2, size), (3, 2), edges,
                          (np.arange(size), edges), beta, 0)  # fmt: skip


def test_types_are_drawn_as_the_joint_density_says():
    state = chain()
    covariance, counts = np.linalg.inv(state.precision), np.zeros((36, 3))
    for _ in range(4_000):
        state.draw_types()
        counts[np.arange(36), state.types] += 1
    for cell in (0, 11, 35):
        expected = np.array([
            stats.multivariate_normal(state.means[kind], covariance).pdf(state.x[cell])
            * np.exp(state.log_composition[kind, state.domains[cell]]) for kind in range(3)
        ])  # fmt: skip
        np.testing.assert_allclose(counts[cell] / 4_000, expected / expected.sum(), atol=0.04)


def test_means_are_drawn_around_cells_shrunk_to_their_centre():
    state = chain()
    precision, sums, sizes = state.precision.copy(), state.sums.copy(), state.counts.copy()
    draws = []
    for _ in range(3_000):
        state.spread[:], state.origin[:] = [0.5, 2.0], [1.0, -1.0]
        state.draw_means()
        draws.append(state.means)
    prior = np.diag(1 / (np.array([0.5, 2.0]) * np.ptp(state.x, axis=0) ** 2))
    for kind in range(3):
        omega = sizes[kind] * precision + prior
        expected = np.linalg.solve(omega, precision @ sums[kind] + prior @ [1.0, -1.0])
        found = np.array(draws)[:, kind]
        np.testing.assert_allclose(found.mean(axis=0), expected, atol=0.03)
        np.testing.assert_allclose(np.cov(found.T), np.linalg.inv(omega), atol=0.02)


def test_compositions_are_dirichlet_and_precisions_wishart():
    state = chain()
    shares, precisions = [], []
    for _ in range(3_000):
        state.draw_composition()
        shares.append(np.exp(state.log_composition))
        state.draw_precision()
        precisions.append(state.precision)
    table = np.zeros((3, 2))
    np.add.at(table, (state.types, state.domains), 1)
    np.testing.assert_allclose(np.mean(shares, axis=0), (table + 1) / (table + 1).sum(axis=0), atol=0.01)
    away = state.x - state.means[state.types]
    expected = 37 * np.linalg.inv(away.T @ away + np.eye(2))
    np.testing.assert_allclose(np.mean(precisions, axis=0), expected, rtol=0.05, atol=0.02)


def test_the_strength_is_that_of_labels_drawn_with_it():
    state = chain(30, beta=None)
    state.domains[:] = np.random.default_rng(0).integers(0, 2, 900)
    potts.free_samples(*state.edges, state.domains, 2, 0.5, 50, 1, state.rng)
    course = []
    for step in range(400):
        state.draw_beta()
        if step >= 100:
            course.append(state.beta)
    assert np.mean(course) == pytest.approx(0.5, abs=0.12)


def test_domains_of_mixed_types_are_found_where_expression_alone_fails():
    adata = mixed()
    model = BASS(n_clusters=2, n_types=3, n_components=5, epochs=1200, burn_in=0.6)
    model.fit(adata, sample="section", progress=False)
    domain = adata.obs["domain"]
    components = log2_components(Inputs(adata, {}), 5, None, scale=True)
    alone = KMeans(2, n_init=5, random_state=0).fit_predict(components)
    assert tf.metrics.ari(model.cluster(), domain) > 0.8 > 0.6 > tf.metrics.ari(alone, domain)
    assert tf.metrics.ari(model.types(), adata.obs["type"]) > 0.8
    composition = model.composition()
    np.testing.assert_allclose(composition.sum(axis=0), 1)
    assert composition.max(axis=0).to_numpy() == pytest.approx([0.7, 0.7], abs=0.08)
    probabilities = model.probabilities().to_numpy()
    np.testing.assert_array_equal(probabilities.argmax(axis=1), model.cluster())
    doubtful = np.abs(adata.obsm["spatial"][:, 0] - 8.5) < 1
    assert probabilities.max(axis=1)[doubtful].mean() < probabilities.max(axis=1)[~doubtful].mean()
    again = BASS(n_clusters=2, n_types=3, n_components=5, epochs=1200, burn_in=0.6)
    again.fit(adata, sample="section", progress=False)
    np.testing.assert_array_equal(again.probabilities(), probabilities)
    np.testing.assert_array_equal(again.history, model.history)


def test_types_must_be_at_least_domains_and_a_short_chain_is_named():
    with pytest.raises(ParameterError, match="less than the 4 domains"):
        BASS(n_clusters=4, n_types=3, epochs=5).fit(mixed(10, 1), progress=False)
    with pytest.warns(UserWarning, match="had not settled"):
        model = BASS(n_clusters=2, n_types=3, n_components=5, epochs=10).fit(mixed(10, 1), progress=False)
    assert len(model.history) == 10 and model.n_burn_in_ == 2
    fixed = BASS(n_clusters=2, n_types=3, n_components=5, epochs=10, beta=1.5).fit(mixed(10, 1), progress=False)
    assert (fixed.history["beta"] == 1.5).all()


def test_an_interrupted_chain_leaves_nothing_half_done(monkeypatch):
    adata, plain, done = mixed(10, 1), TypesInDomains.sweep, []

    def sweep(self, burning_in):
        done.append(burning_in)
        if len(done) == 4:
            raise KeyboardInterrupt
        return plain(self, burning_in)

    monkeypatch.setattr(TypesInDomains, "sweep", sweep)
    model = BASS(n_clusters=2, n_types=3, n_components=5, epochs=50)
    with pytest.raises(KeyboardInterrupt):
        model.fit(adata, progress=True)
    assert len(done) == 4
    with pytest.raises(NotFittedError):
        model.cluster()
