"""RNA velocity: input, closed-form models, velocity graph and what follows from it, simulators, scores."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import optimize, sparse
from scipy.stats import spearmanr

import tenfold as tf
from tenfold.data import velocity_graph, velocity_simulation
from tenfold.data.inputs import Inputs
from tenfold.data.kinetics import spliced_after, two_phases, unspliced_after
from tenfold.data.velocity import layers_of, moments_of, shared_counts
from tenfold.errors import DataError, KeyMissingError, NotCountsError
from tenfold.kernels.graph_products import times, transposed_times
from tenfold.kernels.velocity_graph import coherence, neighbor_cosines
from tenfold.velocity_models.steady_state import generalised, line_with_offset, steady_state


@pytest.fixture(scope="module")
def branching():
    return tf.data.simulate_branching(n_cells=400, n_genes=120, seed=1)


@pytest.fixture(scope="module")
def fitted(branching):
    return tf.velocity.ScVeloDeterministic(n_neighbors=20).fit(branching)


# ---- input -----------------------------------------------------------------------------------------------------------


def spoilt(branching, change):
    adata = branching.copy()
    change(adata)
    return adata


def _total(adata):
    adata.layers["spliced"] = sparse.csr_matrix(adata.layers["spliced"] + adata.layers["unspliced"])


def _copied(adata):
    adata.layers["unspliced"] = adata.layers["spliced"].copy()


def _swapped(adata):
    adata.layers["spliced"], adata.layers["unspliced"] = (
        adata.layers["unspliced"], sparse.csr_matrix(2 * adata.layers["spliced"])
    )  # fmt: skip


def _without(adata):
    del adata.layers["unspliced"]


def _empty(adata):
    adata.layers["unspliced"] = sparse.csr_matrix(adata.shape, dtype=np.float32)


def _few(adata):
    few = np.zeros(adata.shape, dtype=np.float32)
    few[3, 5] = few[8, 5] = 1
    adata.layers["unspliced"] = sparse.csr_matrix(few)


def _nan(adata):
    adata.layers["spliced"].data[7] = np.nan


def _negative(adata):
    adata.layers["unspliced"].data[7] = -1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_total, DataError, "holds the total"),
        (_copied, DataError, "same numbers"),
        (_swapped, DataError, "swapped"),
        (_without, KeyMissingError, "no layer 'unspliced'.*velocyto"),
        (_empty, DataError, "no counts at all"),
        (_few, DataError, "Too few unspliced counts"),
        (_nan, NotCountsError, "NaN"),
        (_negative, NotCountsError, "negative"),
    ],
)
@pytest.mark.filterwarnings("ignore:Only")
def test_bad_layers_get_a_named_error(branching, change, error, words):
    with pytest.raises(error, match=words):
        tf.velocity.ScVeloDeterministic().fit(spoilt(branching, change))


def test_nuclei_may_have_more_unspliced_counts(branching):
    swapped = spoilt(branching, _swapped)
    assert layers_of(Inputs(swapped, {}), most_unspliced=0.9).unspliced.sum() > swapped.layers["spliced"].sum()


def test_layers_are_named_by_roles(branching):
    adata = branching.copy()
    adata.layers["S"], adata.layers["U"] = adata.layers.pop("spliced"), adata.layers.pop("unspliced")
    with pytest.raises(KeyMissingError, match="spliced="):
        layers_of(Inputs(adata, {}))
    found = layers_of(Inputs(adata, {"spliced": "S", "unspliced": "U"}))
    assert (found.spliced != branching.layers["spliced"]).nnz == 0


def test_genes_without_dynamics_are_said_to_have_none():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(5, (200, 40)).astype(np.float32))
    noise = ad.AnnData(counts, layers={"spliced": counts, "unspliced": sparse.csr_matrix(rng.poisson(1.0, (200, 40)))})
    with pytest.warns(UserWarning, match="dynamics"):
        tf.velocity.Velocyto().fit(noise)


def test_shared_counts_are_those_of_cells_with_both(branching):
    layers = layers_of(Inputs(branching, {}))
    s, u = (layer.toarray() for layer in layers)
    np.testing.assert_allclose(shared_counts(layers), ((s + u) * (s > 0) * (u > 0)).sum(axis=0))


def test_moments_are_means_over_the_cell_and_its_neighbours(branching):
    moments = moments_of(Inputs(branching, {}), n_neighbors=10, min_shared_counts=1)
    s = branching.layers["spliced"].toarray()
    scaled = s / (s.sum(axis=1, keepdims=True) / np.median(s.sum(axis=1)))
    for cell in (0, 17):
        near = {cell, *moments.graph.connectivities[cell].indices}
        np.testing.assert_allclose(moments.spliced[cell], scaled[sorted(near)][:, moments.columns].mean(0), rtol=1e-4)
    squares, products = moments.second()
    own = [layer.toarray() for layer in moments.layers]
    np.testing.assert_allclose(squares, moments.mean @ own[0] ** 2, rtol=1e-4)
    np.testing.assert_allclose(products, moments.mean @ (own[0] * own[1]), rtol=1e-4)


# ---- kinetics and simulators -----------------------------------------------------------------------------------------


def test_closed_forms_solve_the_equations():
    from scipy.integrate import solve_ivp

    for gamma in (0.3, 0.5, 0.5 + 1e-9):
        solved = solve_ivp(
            lambda t, y, g=gamma: [2 - 0.5 * y[0], 0.5 * y[0] - g * y[1]], (0, 3), [0.4, 1.0], rtol=1e-10, atol=1e-12
        ).y[:, -1]
        u = unspliced_after(np.array(3.0), 0.4, 2.0, 0.5)
        s = spliced_after(np.array(3.0), 0.4, 1.0, 2.0, 0.5, gamma)
        np.testing.assert_allclose([u, s], solved, rtol=1e-7)


def test_closed_forms_hold_where_splicing_is_much_faster_than_degradation_and_the_other_way_round():
    t = np.array([0.0, 1.0, 30.0, 2000.0])
    for beta, gamma in ((50.0, 0.1), (0.1, 50.0)):
        s = spliced_after(t, 0.4, 1.0, 2.0, beta, gamma)
        exact = np.exp(-gamma * t) + 2 / gamma * (1 - np.exp(-gamma * t))
        exact += (2 - beta * 0.4) * (np.exp(-gamma * t) - np.exp(-beta * t)) / (gamma - beta)
        np.testing.assert_allclose(s, exact, rtol=1e-12)


def test_two_phases_join_at_the_switch():
    t = np.array([5 - 1e-7, 5 + 1e-7])[:, None]
    u, s = two_phases(t, np.array([5.0]), np.array([3.0]), np.array([0.5]), np.array([0.2]))
    assert abs(u[0, 0] - u[1, 0]) < 1e-5 and abs(s[0, 0] - s[1, 0]) < 1e-5


def test_simulated_velocity_is_the_slope_of_one_process():
    adata = tf.data.simulate_splicing(n_cells=3000, n_genes=20, seed=2, noise=0.0)
    t, v = adata.obs["true_time"].to_numpy(), adata.layers["true_velocity"]
    slope = np.diff(adata.layers["spliced"].astype(float), axis=0) / np.diff(t)[:, None]
    wide = np.diff(t) > 1e-3
    assert np.corrcoef(slope[wide].ravel(), ((v[1:] + v[:-1]) / 2)[wide].ravel())[0, 1] > 0.999


def test_simulated_velocity_is_the_slope_along_every_branch():
    rng = np.random.default_rng(0)
    kind = np.array(["dynamic", "constant", "changing degradation", "boosted"] * 5, dtype=object)
    gamma, beta = np.exp(rng.normal(-1, 0.3, (2, 20)))
    t = np.linspace(0, 20, 4001)[:, None]
    for course in velocity_simulation._courses(rng, kind, gamma, 2, 20.0):
        u, s, v = velocity_simulation._follow(course, t, beta)
        assert np.abs(np.diff(s, axis=0)).max() < 0.05 * s.max() and (u >= 0).all() and (s >= 0).all()
        apart = np.abs(np.diff(s, axis=0) / 0.005 - (v[1:] + v[:-1]) / 2)
        assert (apart < 0.02 * np.abs(v).max()).mean() > 0.9998  # all but steps in which degradation jumps


def test_branching_has_the_kinds_of_genes_it_says(branching):
    assert set(branching.var["kind"]) == {"dynamic", "constant", "changing degradation"}
    constant = (branching.var["kind"] == "constant").to_numpy()
    np.testing.assert_allclose(branching.layers["true_velocity"][:, constant], 0, atol=1e-4)
    assert np.abs(branching.layers["true_velocity"][:, ~constant]).max() > 0.1
    again = tf.data.simulate_branching(n_cells=400, n_genes=120, seed=1)
    assert (again.X != branching.X).nnz == 0


# ---- models ----------------------------------------------------------------------------------------------------------


def test_line_with_offset_is_the_constrained_optimum():
    rng = np.random.default_rng(0)
    for sign in (1, -1, 40):  # inside the box, on an edge, at the upper end
        s = rng.uniform(0, 3, (50, 1))
        u = np.maximum(sign * s + rng.normal(size=s.shape) * 0.3 + 0.2, 0)
        w = (rng.random(s.shape) < 0.5).astype(float)
        gamma, q = line_with_offset(s, u, w)
        top_q = 2 * (w * u).sum() / w.sum()
        found = optimize.minimize(
            lambda m, s=s, u=u, w=w: float((w * (u - m[0] * s - m[1]) ** 2).sum()), (0.1, 0.0), method="L-BFGS-B",
            bounds=[(0, 20), (0, top_q)],
        )  # fmt: skip
        ours = float((w * (u - gamma * s - q) ** 2).sum())
        assert ours <= found.fun * (1 + 1e-6)
        np.testing.assert_allclose([gamma[0], q[0]], found.x, atol=2e-3)


def test_steady_state_is_a_regression_on_the_highest_cells():
    rng = np.random.default_rng(0)
    s, u = rng.gamma(2, 1, (200, 3)), rng.gamma(2, 0.3, (200, 3))
    gamma, r2, _ = steady_state(s, u)
    for g in range(3):
        both = s[:, g] / s[:, g].max() + u[:, g] / u[:, g].max()
        top = both >= np.percentile(both, 95)
        slope = np.linalg.lstsq(s[top, g][:, None], u[top, g], rcond=None)[0][0]
        residual = u[:, g] - slope * s[:, g]
        np.testing.assert_allclose(gamma[g], slope, rtol=1e-6)
        np.testing.assert_allclose(r2[g], 1 - (residual**2).sum() / ((u[:, g] - u[:, g].mean()) ** 2).sum())


def test_generalised_fit_is_weighted_least_squares_of_both_moments():
    rng = np.random.default_rng(1)
    s, u = rng.gamma(2, 1, (100, 1)), rng.gamma(2, 0.3, (100, 1))
    variance, covariance = rng.gamma(2, 1, (100, 1)), rng.gamma(2, 0.3, (100, 1))
    found = generalised(s, u, variance, covariance)[0][0]
    both = s / s.max() + u / u.max()
    top = (both >= np.percentile(both, 95)) | (s >= np.percentile(s, 95))
    first = steady_state(s, u)[2]
    slope = (variance * covariance).sum() / (variance**2).sum()
    second = (covariance - slope * variance).std()
    x = np.concatenate([s * top / first, variance / second])
    y = np.concatenate([u * top / first, covariance / second])
    np.testing.assert_allclose(found, np.linalg.lstsq(x, y[:, 0], rcond=None)[0][0], rtol=1e-6)


@pytest.mark.parametrize("name", ["velocyto", "scvelo_deterministic", "scvelo_stochastic"])
def test_gamma_and_direction_are_those_of_the_simulation(name):
    """The sheet's check where steady states are reached: rank of gamma / beta, and signs among fast cells."""
    adata = tf.data.simulate_splicing(n_cells=800, n_genes=60, t_max=40, switches=(0.45, 0.55), noise=0.3, seed=0)
    # Steady states are seen: fast rates against a long phase.
    adata.obsm["X_true"] = np.stack([adata.obs["true_time"], np.zeros(800)], axis=1)
    roles = {"use_rep": "X_true"}
    model = tf.method("velocity", name, n_top_genes=None, normalize=False, n_neighbors=30).fit(adata, **roles)
    table = model.rates()
    truth = adata.var["true_gamma"] / adata.var["true_beta"]
    assert spearmanr(table["gamma"], truth.loc[table.index])[0] > 0.93
    genes = model.columns_[model.trusted_]
    right = tf.metrics.direction_accuracy(model.velocity()[:, genes], adata.layers["true_velocity"][:, genes])
    assert right > 0.85


# ---- graph and what follows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [False, True])
def test_cosines_equal_a_plain_loop(root):
    rng = np.random.default_rng(0)
    x, v = rng.gamma(2, 1, (30, 12)).astype(np.float32), rng.normal(size=(30, 12)).astype(np.float32)
    v[4] = 0
    near = np.stack([rng.choice(np.delete(np.arange(30), i), 4, replace=False) for i in range(30)])
    found = neighbor_cosines(x, v, near, root)
    taken = (lambda d: np.sign(d) * np.sqrt(np.abs(d))) if root else np.asarray
    for i in range(30):
        reach = sorted(set(near[i]) | set(near[near[i]].ravel()) - {i}) if i != 4 else []
        reach = [j for j in reach if j != i]
        wanted = [np.corrcoef(taken(x[j] - x[i]), taken(v[i]))[0, 1] for j in reach]
        assert list(found[i].indices) == reach
        np.testing.assert_allclose(found[i].data, wanted, atol=2e-6)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_genes_that_do_not_count_are_as_if_they_were_left_out(root, share):
    rng = np.random.default_rng(0)
    x, v = rng.gamma(2, 1, (40, 60)).astype(np.float32), rng.normal(size=(40, 60)).astype(np.float32)
    genes = rng.random(60) < share
    v[:, ~genes] = np.nan
    near = np.stack([rng.choice(np.delete(np.arange(40), i), 4, replace=False) for i in range(40)])
    found, wanted = neighbor_cosines(x, v, near, root, genes), neighbor_cosines(x[:, genes], v[:, genes], near, root)
    assert (found.indices == wanted.indices).all()
    np.testing.assert_allclose(found.data, wanted.data, atol=1e-6)
    np.testing.assert_allclose(coherence(v, near, genes), coherence(v[:, genes], near), atol=1e-6)


def test_coherence_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    v = rng.normal(1, 1, size=(30, 12)).astype(np.float32)
    near = np.stack([rng.choice(np.delete(np.arange(30), i), 4, replace=False) for i in range(30)])
    wanted = [np.mean([np.corrcoef(v[i], v[j])[0, 1] for j in near[i]]) for i in range(30)]
    np.testing.assert_allclose(coherence(v, near), wanted, atol=1e-6)
    v[3] = 2  # the same for all genes: no direction
    assert coherence(v, near)[3] == 0


def test_products_of_a_graph_are_those_of_the_matrix():
    matrix = sparse.random(50, 40, 0.1, "csr", np.float32, random_state=0)
    rng = np.random.default_rng(0)
    a, b = rng.random(40), rng.random(50)
    np.testing.assert_allclose(times(matrix, a), matrix.astype(np.float64) @ a, rtol=1e-12)
    np.testing.assert_allclose(transposed_times(matrix, b), matrix.T.astype(np.float64) @ b, rtol=1e-12)


def test_ends_hold_the_share_of_cells_that_lead_to_them():
    """Cells 0 to 9 go to 9, cells 10 to 15 to 15; nothing leads to 0 and 10, where the way back ends."""
    links = [(i, i + 1) for i in range(15) if i != 9] + [(9, 8), (15, 14)]
    row, column = np.array(links).T
    cosines = sparse.csr_matrix((np.full(len(row), 0.9, np.float32), (row, column)), shape=(16, 16))
    alone = sparse.identity(16, format="csr")
    reached = velocity_graph._reached(
        sparse.csr_matrix((np.exp(10 * cosines.data), cosines.indices, cosines.indptr)), alone, False
    )
    assert set(np.flatnonzero(reached > 0.1)) == {8, 9, 14, 15}  # the last two of each lead to each other
    np.testing.assert_allclose(reached[14] / reached[8], 6 / 10, rtol=0.05)
    states = velocity_graph.terminal_states(cosines, alone)
    assert set(np.flatnonzero(states.roots > 0.1)) == {0, 10}


@pytest.mark.parametrize("name", ["velocyto", "scvelo_stochastic", "scvelo_dynamical"])
def test_time_runs_forward_where_a_process_branches(name):
    for seed in (1, 5):  # eigenvectors of several ends put the beginning anywhere in these
        adata = tf.data.simulate_branching(n_cells=500, seed=seed)
        model = tf.method("velocity", name).fit(adata, progress=False)
        assert spearmanr(model.time(), adata.obs["true_time"])[0] > 0.7


def test_transitions_are_probabilities(fitted):
    forward, backward = fitted.transitions(), fitted.transitions(backward=True)
    for moves in (forward, backward):
        totals = np.asarray(moves.sum(axis=1)).ravel()
        assert moves.min() >= 0 and np.allclose(totals[totals > 0], 1, atol=1e-5)
    assert spearmanr(forward[3].data, fitted.cosines_[3, forward[3].indices].toarray().ravel())[0] > 0.9


def test_arrows_follow_the_velocity_in_a_line():
    """Cells on a line that all move right: arrows point right, time rises, the ends are ends."""
    rng = np.random.default_rng(0)
    n = 150
    x = np.sort(rng.uniform(0, 1, n))
    positions = np.stack([x, 1 - x, 0.5 * x, np.zeros(n)], axis=1).astype(np.float32)
    velocity = np.tile(np.array([1, -1, 0.5, 0], np.float32), (n, 1))
    near = tf.data.graph.neighbor_graph(positions, 11).distances.indices.reshape(n, -1)
    cosines = neighbor_cosines(positions, velocity, near)
    arrows = velocity_graph.project(cosines, np.stack([x, np.zeros(n)], axis=1))
    assert (arrows[8:-8, 0] > 0).all() and np.abs(arrows[:, 1]).max() == 0
    mean = sparse.csr_matrix((np.full(n * 10, 0.1), near.ravel(), np.arange(0, n * 10 + 1, 10)), shape=(n, n))
    states = velocity_graph.terminal_states(cosines, mean)
    assert x[states.roots.argmax()] < 0.2 < 0.8 < x[states.ends.argmax()]
    assert spearmanr(velocity_graph.pseudotime(cosines, states, mean), x)[0] > 0.98


def test_an_embedding_of_other_cells_is_refused(fitted):
    with pytest.raises(DataError, match="rows"):
        fitted.project(np.zeros((3, 2)))


def test_scvelo_names(fitted, branching):
    out = fitted.to_scvelo(branching)
    assert out.shape == fitted.velocity_.shape and out.uns["velocity_graph"].min() >= 0
    assert out.uns["velocity_graph_neg"].max() <= 0 and out.var["velocity_genes"].sum() == fitted.trusted_.sum()
    with pytest.raises(DataError, match="fitted"):
        fitted.to_scvelo(branching[:100].copy())


def test_cellrank_reads_the_output(fitted, branching):
    cellrank = pytest.importorskip("cellrank")
    kernel = cellrank.kernels.VelocityKernel(fitted.to_scvelo(branching)).compute_transition_matrix()
    assert np.allclose(np.asarray(kernel.transition_matrix.sum(axis=1)), 1, atol=1e-4)


def test_time_and_direction_on_a_real_set(shared_data):
    """Ductal cells become endocrine: known for this tissue."""
    adata = ad.read_h5ad(shared_data("pancreas_velocity.h5ad"))
    model = tf.velocity.ScVeloStochastic().fit(adata)
    time = {name: model.time()[adata.obs["cell_type"] == name].mean() for name in ("Ductal", "Ngn3 high EP", "Beta")}
    assert time["Ductal"] < time["Ngn3 high EP"] < time["Beta"]
    assert model.trusted_.sum() > 500


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_directions_across_a_boundary_have_a_sign():
    x = np.arange(20, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    near = np.stack([np.clip([i - 1, i + 1], 0, 19) for i in range(20)])
    labels = np.where(np.arange(20) < 10, "a", "b")
    found = tf.metrics.cross_boundary_direction(x, np.ones((20, 2)), near, labels, [("a", "b"), ("b", "a")])
    assert found["a", "b"] == (pytest.approx(1), 1) and found["b", "a"] == (pytest.approx(-1), 1)
    with pytest.raises(DataError, match="'c'"):
        tf.metrics.cross_boundary_direction(x, x, near, labels, [("a", "c")])


def test_coherence_is_one_for_parallel_and_zero_for_random_velocities():
    rng = np.random.default_rng(0)
    near = rng.integers(0, 200, (200, 10))
    same = np.tile(rng.normal(size=50), (200, 1))
    labels = np.repeat(["a", "b"], 100)
    assert tf.metrics.neighbor_coherence(same, near).min() > 0.999
    assert tf.metrics.in_cluster_coherence(same, near, labels) > 0.999
    random = rng.normal(size=(200, 50))
    assert abs(tf.metrics.neighbor_coherence(random, near).mean()) < 0.1
    assert abs(tf.metrics.in_cluster_coherence(random, near, labels)) < 0.1


def test_consensus_and_disagreement():
    right, left, up = (np.tile(d, (5, 1)) for d in ([1.0, 0], [-1.0, 0], [0, 1.0]))
    direction, disagreement = tf.metrics.consensus_direction([right, 3 * right, 2 * right])
    np.testing.assert_allclose(direction, right)
    np.testing.assert_allclose(disagreement, 0, atol=1e-6)
    np.testing.assert_allclose(tf.metrics.consensus_direction([right, left])[1], 1)
    np.testing.assert_allclose(tf.metrics.consensus_direction([right, up])[1], 1 - np.sqrt(0.5), atol=1e-6)
    scaled = np.random.default_rng(0).normal(size=(50, 8))
    np.testing.assert_allclose(tf.metrics.velocity_agreement(scaled, scaled * np.arange(1, 9)), 1, rtol=1e-5)
