"""veloVI: draws, the compiled likelihood, the network, what is asked of a posterior."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit
from scipy import special, stats

import tenfold as tf
from tenfold.errors import DataError, KeyMissingError
from tenfold.kernels.gamma_draws import gamma_functions, log_variate
from tenfold.kernels.splicing_mixture import Draws, mixture_nll
from tenfold.kernels.vectormath import ROW
from tenfold.nn.splicing_vae import Decoded, SplicingVAE, log_draw, spliced_meanwhile
from tenfold.types import Codes
from tenfold.velocity.velovi import highest
from tenfold.velocity_models.directions import directional_spread, excess_error, permuted_within


@njit(**ROW)
def _each(a, normal, out):
    for i in range(len(a)):
        out[0, i], out[1, i] = log_variate(a[i], normal[i])
        out[2, i], out[3, i], out[4, i] = gamma_functions(a[i])


@pytest.fixture(scope="module")
def of_shapes():
    rng = np.random.default_rng(0)
    a = np.exp(rng.uniform(-6, 4, 4000)).astype(np.float32)
    normal = rng.normal(size=a.shape).astype(np.float32)
    out = np.empty((5, len(a)), np.float32)
    _each(a, normal, out)
    return a.astype(np.float64), normal.astype(np.float64), out


# ---- kernels ---------------------------------------------------------------------------------------------------------


def test_variates_are_quantiles_of_the_gamma_distribution(of_shapes):
    a, normal, out = of_shapes

    def quantile(shape):
        return np.log(stats.gamma.ppf(special.ndtr(normal), shape + 1))

    np.testing.assert_allclose(out[0], quantile(a), atol=3e-3)
    slope = (quantile(a * 1.0001) - quantile(a * 0.9999)) / (2e-4 * a)
    np.testing.assert_allclose(out[1], slope, rtol=0.03, atol=3e-3)


def test_gamma_functions(of_shapes):
    a, _, out = of_shapes
    for value, wanted in zip(out[2:], (special.gammaln(a), special.digamma(a), special.polygamma(1, a)), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


def test_shares_follow_the_dirichlet_distribution():
    torch.manual_seed(0)
    shapes = torch.tensor([0.25, 0.05, 1.5, 4.0])
    drawn = log_draw(shapes[None, :, None].expand(40, 4, 1000), Draws(40, 1000)).softmax(dim=1)
    wanted = torch.distributions.Dirichlet(shapes)
    for k in range(4):
        beta = stats.beta(float(shapes[k]), float(shapes.sum() - shapes[k]))
        assert stats.kstest(drawn[:, k].numpy().ravel(), beta.cdf).statistic < 0.012
    np.testing.assert_allclose(drawn.var(dim=(0, 2)).numpy(), wanted.variance.numpy(), rtol=0.03)


def network(tied=False, g=75, **settings):
    rng = np.random.default_rng(0)
    sizes = {"n_hidden": 8, "n_latent": 3, "n_layers": 1, "dropout": 0.0}
    settings = {"t_max": 20.0, "concentration": 0.25, "tied": tied, **sizes, **settings}
    net = SplicingVAE(*rng.uniform(0.3, 1, (2, g)), **settings)
    with torch.no_grad():
        for part in (net.alpha, net.beta, net.gamma, net.scale):
            part.normal_()
        net.gamma[:20] = net.beta[:20] + 1e-3 * torch.randn(20)  # rates that are nearly the same
    return net


@pytest.mark.parametrize("tied", [False, True])
def test_compiled_likelihood_and_gradients_are_those_of_the_plain_form(tied):
    torch.manual_seed(1)
    net, n, g = network(tied), 40, 75
    phase, shares, draws = 2 * torch.randn(n, 2, g), 2 * torch.randn(n, 4, g), Draws(n, g)
    u, s = torch.rand(n, g), torch.rand(n, g)
    found = {}
    for kind in (torch.float32, torch.float64):
        net.to(kind).zero_grad()
        decoded, of = Decoded(*(part.to(kind).requires_grad_() for part in (phase.clone(), shares.clone()))), None
        of = net.kinetics()
        if kind == torch.float32:
            numbers = torch.stack([*of[:6], of.sd_u.log(), of.sd_s.log()])
            parts = mixture_nll(*decoded, numbers, u, s, draws, t_max=20.0, concentration=0.25, tied=tied)
        else:
            parts = net.plain_mixture(decoded, of, u.double(), s.double(), draws)
        (2 * sum(parts)).backward()
        grads = [decoded.phase.grad, decoded.shares.grad]
        grads += [getattr(net, name).grad.clone() for name in ("alpha", "beta", "gamma", "switch", "scale")]
        found[kind] = [part.detach().double() for part in (*parts, *grads)]
    for ours, wanted in zip(found[torch.float32], found[torch.float64], strict=True):
        assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_number_of_threads_changes_nothing():
    net, given = network(), (torch.randn(70, 2, 75), torch.randn(70, 4, 75))
    of, draws, x = net.kinetics(), Draws(70, 75), torch.rand(2, 70, 75)
    numbers = torch.stack([*of[:6], of.sd_u.log(), of.sd_s.log()]).detach()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            parts = [part.clone().requires_grad_() for part in (*given, numbers)]
            sum(mixture_nll(*parts, *x, draws, t_max=20.0, concentration=0.25, tied=False)).backward()
            found.append([part.grad for part in parts])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


# ---- the network -----------------------------------------------------------------------------------------------------


def test_velocity_is_the_slope_of_each_state():
    net = network().double()
    shares, step = torch.zeros(6, 4, 75).double(), 1e-5
    phase = torch.randn(6, 2, 75).double()
    of = net.kinetics()
    u, s = net.means(Decoded(phase, shares), of)
    moved = torch.logit(phase.sigmoid() + step)
    later = net.means(Decoded(moved, shares), of)[1]
    slope = (of.beta * u - of.gamma * s)[:, [0, 2]]
    numeric = (later - s)[:, [0, 2]] / (step * torch.stack([of.switch, 20 - of.switch]))
    torch.testing.assert_close(slope, numeric, rtol=1e-3, atol=1e-4)
    assert (of.beta * u - of.gamma * s)[:, [1, 3]].abs().max() < 1e-9


def test_rates_that_are_the_same_leave_no_hole():
    t, beta = torch.tensor([0.5, 3.0]).double(), torch.tensor(0.7).double()
    for apart in (0.0, 1e-12, 1e-3):
        found = spliced_meanwhile(t, beta, beta + apart)
        torch.testing.assert_close(found, t * (-beta * t).exp(), rtol=4e-3, atol=0.0)


def test_one_state_for_both_or_one_for_each():
    """With one state possible there is no difference; free states are worse by the choice among four at most."""
    apart, tied = network(), network(tied=True)
    tied.load_state_dict(apart.state_dict())
    decoded, of = Decoded(torch.randn(9, 2, 75), torch.randn(9, 4, 75)), apart.kinetics()
    u, s = torch.rand(2, 9, 75)
    sure = torch.full((9, 4, 75), -1e6)
    sure[:, 2] = 0.0
    torch.testing.assert_close(apart.nll(decoded, sure, of, u, s), tied.nll(decoded, sure, of, u, s))
    means = apart.means(decoded, of)
    mixed = torch.full((9, 4, 75), -np.log(4.0))
    u, s = means[0][:, 0], means[1][:, 2]  # unspliced as in induction, spliced as in repression
    assert (apart.nll(decoded, mixed, of, u, s) <= tied.nll(decoded, mixed, of, u, s) + np.log(4) + 1e-5).all()


def test_the_penalty_fades_as_the_weight_of_the_kl_rises():
    net = network().eval()
    batch = {"x": torch.rand(8, 150)}
    parts = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        parts.append({name: float(value.detach()) for name, value in net.terms(batch, weight, 0.2).items()})
    first = parts[0]
    assert first["loss"] - first["nll"] - first["kl_shares"] == pytest.approx(0.2 * first["end"], rel=1e-3)
    assert parts[1]["loss"] == pytest.approx(parts[1]["elbo"], rel=1e-5)


# ---- the method ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def branching():
    return tf.data.simulate_branching(n_cells=250, n_genes=60, seed=1)


@pytest.fixture(scope="module")
def fitted(branching):
    return tf.velocity.VeloVI(n_neighbors=15, epochs=40, n_hidden=64).fit(branching)


def test_switches_start_at_the_cells_with_the_most_unspliced_rna():
    u = np.arange(200.0)[:, None]
    np.testing.assert_allclose(highest(np.hstack([2 * u, u])), [[198.5], [397.0]])


def test_velocity_is_in_units_of_the_averages(fitted):
    """Genes are scaled to [0, 1] for the network: that must be undone before a graph is built."""
    own = fitted.modelled_
    np.testing.assert_allclose(fitted._fitted_cells().min(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(fitted._fitted_cells().max(axis=0), 1, atol=1e-6)
    draw = fitted._posterior(fitted._fitted_cells(), fitted.n_draws)["velocity"] * fitted.spread_[0, own]
    np.testing.assert_allclose(
        fitted.velocity_[:, own], np.maximum(draw, -fitted.spliced_[:, own]), rtol=1e-4, atol=1e-5
    )
    assert (fitted.velocity_[:, own] >= -fitted.spliced_[:, own]).all()


def test_samples_have_the_mean_that_is_reported(fitted):
    draws, own = fitted.velocity_samples(60), fitted.velocity_[:, fitted.modelled_]
    assert np.corrcoef(draws.mean(axis=0).ravel(), own.ravel())[0, 1] > 0.95 and draws.std(axis=0).mean() > 0
    np.testing.assert_array_equal(draws[:2], fitted.velocity_samples(2))


def test_shares_and_times(fitted):
    shares, times = fitted.state_probabilities(), fitted.gene_times()
    assert shares.shape == (250, 4, len(fitted.modelled_genes)) and times.shape == shares[:, 0].shape
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert times.min() >= 0 and times.max() <= fitted.t_max


def test_learning_and_the_held_out_likelihood(fitted, branching):
    losses = fitted.history.query("term == 'nll'")["validation"].to_numpy()
    assert losses[-5:].mean() < losses[:5].mean()
    other = tf.data.simulate_branching(n_cells=250, n_genes=60, seed=1)[100:].copy()
    short = tf.velocity.VeloVI(n_neighbors=15, epochs=1, n_hidden=64).fit(branching)
    assert fitted.reconstruction_error(other) < short.reconstruction_error(other)
    with pytest.raises((DataError, KeyMissingError)):
        fitted.reconstruction_error(other[:, :30].copy())


def test_uncertainty_is_of_the_direction(fitted):
    table = fitted.uncertainty(n_samples=8)
    assert len(table) == 250 and table["cosine_mean"].between(-1, 1).all() and (table["angle_range"] > 0).all()
    ahead = fitted.uncertainty(n_samples=4, extrinsic=True)
    assert list(ahead.columns) == list(table.columns) and np.isfinite(ahead.to_numpy()).all()


def test_directions_spread_as_draws_do():
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(5, 30))
    sure, unsure = (directional_spread(middle + sd * rng.normal(size=(40, 5, 30))) for sd in (0.1, 2.0))
    assert (sure["cosine_mean"] > unsure["cosine_mean"]).all() and (sure["angle_range"] < unsure["angle_range"]).all()
    same = directional_spread(np.stack([middle, 3 * middle + 1]))  # length and level are no direction
    np.testing.assert_allclose(same["cosine_mean"], 1, atol=1e-6)


def test_permutations_stay_in_their_group_and_break_ties():
    groups = Codes(np.arange(60, dtype=np.int32) % 2, ["a", "b"])
    x = np.stack([np.arange(60.0), np.arange(60.0)], axis=1) + 100 * groups.values[:, None]
    mixed = permuted_within(x, groups, seed=0)
    for code in range(2):
        own = groups.values == code
        np.testing.assert_array_equal(np.sort(mixed[own], axis=0), x[own])
    assert (mixed[:, 0] != mixed[:, 1]).mean() > 0.8


def test_scores_are_t_statistics_of_the_first_cells():
    rng = np.random.default_rng(0)
    groups = Codes(np.repeat([0, 1], 50).astype(np.int32), ["a", "b"])
    own, permuted = rng.random((100, 2)), rng.random((100, 2)) + np.array([0.0, 0.4])
    table = excess_error(permuted, own, groups, np.array(["same", "worse"]), most=30)
    assert table.loc["worse", "a"] == pytest.approx(stats.ttest_ind(permuted[:30, 1], own[:30, 1])[0])
    assert table.loc["worse", "highest"] > 3 > abs(table.loc["same", "a"])


def test_permutation_score_is_of_the_fitted_cells(fitted, branching):
    table = fitted.permutation_score(branching, "cell_type")
    assert list(table.index) == list(fitted.modelled_genes) and "highest" in table
    with pytest.raises(DataError, match="fitted"):
        fitted.permutation_score(branching[:100].copy(), "cell_type")
    with pytest.raises(KeyMissingError, match="cell_typ"):
        fitted.permutation_score(branching, "cell_typ")
