"""BayesSpace: lattices, its draws against densities written out, planted domains that expression hardly shows."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tenfold as tf
from tenfold.data.heads import clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.lattice import lattice_of
from tenfold.domains.bayesspace import BayesSpace, SmoothMixture
from tenfold.errors import KeyMissingError
from tenfold.kernels.potts import site_sweep
from tenfold.spatial_models.sampling import log2_components
from test_spatial import positions, tissue


def hexagonal(n=8):
    """Spots of a Visium array, turned and scaled."""
    row, column = (part.ravel() for part in np.meshgrid(np.arange(n), np.arange(2 * n)))
    even = (row + column) % 2 == 0
    row, column = row[even], column[even]
    adata = ad.AnnData(np.random.default_rng(0).poisson(3, (len(row), 10)).astype(np.float32))
    plane = np.column_stack([column * 0.5, row * np.sqrt(3) / 2]) * 137
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    adata.obsm["spatial"] = plane @ turn
    adata.obs["array_row"], adata.obs["array_col"] = row, column
    return adata


def test_lattices_are_found_by_array_and_by_position():
    adata = hexagonal()
    by_array = lattice_of(Inputs(adata, {}), positions(adata))
    del adata.obs["array_row"], adata.obs["array_col"]
    by_place = lattice_of(Inputs(adata, {}), positions(adata))
    assert by_array.shape == by_place.shape == "hexagonal"
    assert (by_array.graph != by_place.graph).nnz == 0 and by_array.graph.getnnz(axis=1).max() == 6
    square = tissue(9)
    found = lattice_of(Inputs(square, {}), positions(square))
    assert found.shape == "square" and found.graph.getnnz(axis=1).max() == 4
    square.obs["array_row"], square.obs["array_col"] = square.obsm["spatial"].T.astype(int)
    assert (lattice_of(Inputs(square, {}), positions(square)).graph != found.graph).nnz == 0
    square.obsm["spatial"] = np.random.default_rng(0).uniform(size=(81, 2))
    del square.obs["array_row"]
    with pytest.raises(KeyMissingError, match="array_col"):
        lattice_of(Inputs(square, {}), positions(square))
    del square.obs["array_col"]
    loose = lattice_of(Inputs(square, {}), positions(square))
    assert loose.shape == "none" and loose.graph.getnnz(axis=1).min() == 6


def test_sections_share_no_neighbours():
    adata = hexagonal()
    adata.obs["slice"] = pd.Categorical(np.where(adata.obs["array_row"] < 4, "a", "b"))
    left = (adata.obs["slice"] == "a").to_numpy()
    graph = lattice_of(Inputs(adata, {"sample": "slice"}), positions(adata, sample="slice")).graph
    assert graph[left][:, ~left].nnz == 0 and graph[left][:, left].nnz > 0


def chain(n=6, strength=2.0):
    adata = tissue(n)
    rng = np.random.default_rng(2)
    graph = lattice_of(Inputs(adata, {}), positions(adata)).graph
    state = SmoothMixture(rng.normal(size=(n * n, 2)), rng.integers(0, 3, n * n), 3, graph, strength, True, 0)
    state.weights = rng.gamma(3.0, 0.4, n * n)
    return state


def test_means_and_precision_are_drawn_from_their_conditionals():
    state = chain()
    state.precision = np.array([[2.0, 0.5], [0.5, 1.0]])
    draws = []
    for _ in range(3_000):
        state.draw_means()
        draws.append(state.means)
    inside = state.domains == 1
    omega = state.weights[inside].sum() * state.precision + 0.01 * np.eye(2)
    sums = (state.weights[inside, None] * state.y[inside]).sum(axis=0)
    expected = np.linalg.solve(omega, state.precision @ sums + 0.01 * state.y.mean(axis=0))
    np.testing.assert_allclose(np.mean(draws, axis=0)[1], expected, atol=0.03)
    away = state.y - state.means[state.domains]
    scale = 0.01 * np.eye(2) + (away * state.weights[:, None]).T @ away
    precisions = []
    for _ in range(3_000):
        state.draw_precision()
        precisions.append(state.precision)
    np.testing.assert_allclose(np.mean(precisions, axis=0), 37 * np.linalg.inv(scale), rtol=0.05, atol=0.02)


def test_labels_are_drawn_as_density_and_neighbours_say():
    """One cell, its neighbours fixed: labels and weights drawn in turn have the t-distribution's odds."""
    state = chain()
    state.means, state.precision = np.array([[0.0, 0], [1.5, 0], [0, 1.5]]), np.eye(2)
    cell, fixed, counts = 14, state.domains.copy(), np.zeros(3)
    squares, rng = state.squares()[cell], np.random.default_rng(0)
    around = fixed[state.indices[state.indptr[cell] : state.indptr[cell + 1]]]
    for _ in range(6_000):
        labels = fixed.copy()
        weight = rng.gamma(3.0, 2 / (squares[labels[cell]] + 4))
        likelihood = np.full((36, 3), -1e9)
        likelihood[np.arange(36), fixed] = 0.0
        likelihood[cell] = -0.5 * weight * squares
        site_sweep(likelihood, state.indptr, state.indices, labels, 2.0, rng)
        fixed[cell] = labels[cell]
        counts[labels[cell]] += 1
    prior = np.exp(2 * 2.0 / len(around) * np.bincount(around, minlength=3))
    density = [stats.multivariate_t(mean, np.eye(2), df=4).pdf(state.y[cell]) for mean in state.means]
    expected = prior * density / (prior * density).sum()
    np.testing.assert_allclose(counts / 6_000, expected, atol=0.04)


def test_planted_halves_are_found_where_expression_alone_fails():
    adata = tissue(noise=4.5)
    options = {"n_clusters": 2, "n_components": 5, "start": "kmeans"}
    model = BayesSpace(epochs=600, **options).fit(adata, progress=False)
    alone = clusters_of(log2_components(Inputs(adata, {}), 5, None), 2, "kmeans")
    flat = BayesSpace(epochs=300, smoothing=0.0, **options).fit(adata, progress=False)
    scores = [tf.metrics.ari(labels, adata.obs["domain"]) for labels in (model.cluster(), alone, flat.cluster())]
    assert model.lattice_ == "square" and scores[0] > 0.85 and max(scores[1:]) < 0.7
    probabilities = model.probabilities().to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), model.cluster())
    border = np.abs(adata.obsm["spatial"][:, 0] - 9.5) < 1
    assert probabilities.max(axis=1)[border].mean() < probabilities.max(axis=1)[~border].mean()
    assert len(model.history) == 600 and model.n_burn_in_ == 120
    normal = BayesSpace(epochs=300, errors="normal", **options).fit(adata, progress=False)
    assert tf.metrics.ari(normal.cluster(), adata.obs["domain"]) > 0.8
