"""VeloVAE: courses solve the equations, gradients are theirs, beginnings are earlier cells, time is what it says."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import gammaln
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

import tenfold as tf
from tenfold.engine import seeded
from tenfold.errors import DataError, ParameterError
from tenfold.nn.velo_vae import VeloVAENet, after
from tenfold.velocity.velovae import _settled
from tenfold.velocity_models.shared_time import (
    Fitted,
    earlier_cells,
    gene_modes,
    share_before_switch,
    time_of_cells,
    two_phase_fits,
)


@pytest.fixture(scope="module")
def line():
    return tf.data.simulate_branching(n_cells=250, n_genes=60, n_branches=1, seed=0)


@pytest.fixture(scope="module")
def fitted(line):
    return tf.velocity.VeloVAE(n_neighbors=15, epochs=60, n_rounds=2, n_hidden=32, learning_rate=2e-3).fit(
        line, progress=False
    )


def network(n=23, g=70, gap=0.5):
    rng = np.random.default_rng(0)
    numbers = rng.normal(0, 0.5, (7, g))
    numbers[2] = numbers[1] + gap * rng.normal(size=g)  # degradation beside splicing
    numbers[5] = rng.normal(0, 1, g)
    with seeded(0):
        net = VeloVAENet(
            numbers, rng.gamma(5, 0.2, (2, g)), n, n_latent=3, n_origins=4, n_hidden=8, dropout=0.2, t_max=20.0,
            state_sd=0.01,
        )  # fmt: skip
    x = torch.from_numpy(rng.gamma(1.0, 1.0, (n, 2 * g))).float()
    t = torch.from_numpy(rng.uniform(0, 6, (n, 1))).float()
    share = torch.from_numpy(rng.uniform(0, 1, (n, g))).float()
    return net, x, t, share


@pytest.mark.parametrize("gap", [0.5, 1e-3, 0.0])
@pytest.mark.parametrize("stage", ["either", "sum"])
def test_the_kernel_has_the_value_and_the_gradients_of_the_plain_model(stage, gap):
    net, x, t, share = network(gap=gap)
    t[0], t[1] = 0.0, 300.0  # before all courses begin, and long after
    left = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for dtype in (torch.float32, torch.float64):
        net.to(dtype).zero_grad()
        own = [part.to(dtype).clone().requires_grad_() for part in (share, t)]
        cells = x.to(dtype)
        if stage == "either":
            nll = net.either_nll(cells, own[1], own[0])
        else:
            nll = net.sum_nll(cells, own[1].detach(), left.to(dtype), own[0])
        nll.backward()
        grads = [own[0].grad, net.numbers.grad, *([own[1].grad] if stage == "either" else [])]
        found.append([nll.detach().double(), *(grad.double().clone() for grad in grads)])
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=2e-3, atol=2e-5 * float(plain.abs().max()))
    if stage == "sum":
        assert not found[0][2][3:].any()  # what only the first stage has


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.5 + 1e-7])
def test_courses_solve_the_equations(gamma):
    a, b, g = (torch.tensor(v, dtype=torch.float64) for v in (2.0, 0.5, gamma))
    u, s = after(torch.tensor(4.0, dtype=torch.float64), torch.tensor(1.0), torch.tensor(3.0), a, b, g)
    wanted = solve_ivp(lambda _, y: [2 - 0.5 * y[0], 0.5 * y[0] - gamma * y[1]], (0, 4), [1, 3], rtol=1e-9).y[:, -1]
    np.testing.assert_allclose([float(u), float(s)], wanted, rtol=1e-5)


def test_modes_have_the_collapsed_prior():
    net = network()[0]
    w = net.of_genes().induced.detach().double().numpy()
    g, a = len(w), 49.5
    held = sum(gammaln(a + n) - gammaln(a) for n in (w.sum(), g - w.sum())) + gammaln(2 * a) - gammaln(2 * a + g)
    wanted = (w * np.log(w) + (1 - w) * np.log(1 - w)).sum() - held
    assert float(net.mode_divergence().detach()) == pytest.approx(wanted, rel=1e-4)


def test_the_bound_is_its_parts(monkeypatch):
    net, x, *_ = network()
    terms = net.eval().first_terms(x, drawn=False)
    times, states = net.encode(x)
    prior = torch.distributions.Normal(10.0, 1.0), torch.distributions.Normal(0.0, 0.01)
    for name, one, of in (("kl_time", times, prior[0]), ("kl_state", states, prior[1])):
        own = torch.distributions.Normal(one.mean, one.variance.sqrt())
        wanted = torch.distributions.kl_divergence(own, of).sum(dim=1).mean()
        assert float(terms[name]) == pytest.approx(float(wanted.detach()), rel=1e-4)
    parts = terms["nll"] + terms["kl_time"] + terms["kl_state"] + terms["kl_mode"]
    assert float(terms["loss"].detach()) == pytest.approx(float(parts), rel=1e-6)


def test_courses_begin_with_the_nearest_of_somewhat_earlier_cells():
    rng = np.random.default_rng(0)
    t, state = rng.permutation(1000) / 1000, rng.normal(size=(1000, 2))
    found = earlier_cells(t, state, 10, (0.03, 0.06))
    for cell in np.flatnonzero(t > 0.1)[:50]:
        window = np.flatnonzero((t >= t[cell] - 0.06 - 1e-9) & (t < t[cell] - 0.03 - 1e-9))
        nearest = window[np.argsort(((state[window] - state[cell]) ** 2).sum(axis=1))[:10]]
        assert set(found[cell]) == set(nearest)
    order = np.argsort(t)
    assert (found[order[0]] == -1).all()  # nothing comes before the first
    assert (found[order[6]] >= 0).sum() == 3  # half of the few that come before
    early = found[order[6]][:3]
    assert (t[early] < t[order[6]]).all()


def test_two_phases_order_the_cells_of_each_gene():
    exact = tf.data.simulate_splicing(n_cells=400, n_genes=30, noise=0.2, seed=0)
    u, s = (exact.layers[name].astype(np.float64) for name in ("unspliced", "spliced"))
    u *= s.std(axis=0) / u.std(axis=0)
    fits = two_phase_fits(u, s)
    true = exact.obs["true_time"].to_numpy()
    assert np.median([spearmanr(own, true)[0] for own in fits.times.T]) > 0.8
    assert spearmanr(time_of_cells(fits.times), true)[0] > 0.9
    before = share_before_switch(fits, 20.0)
    assert spearmanr(before, exact.var["true_switch"])[0] > 0.5


def test_modes_follow_the_share_of_cells_before_the_switch():
    rng, t = np.random.default_rng(0), np.linspace(0, 1, 200)[:, None]
    rising = np.arange(60) < 30
    x = np.where(rising, t, 1 - t) + 0.05 * rng.normal(size=(200, 60)) + 1
    share = np.where(rising, 0.9, 0.1)
    modes = gene_modes(x, x, share, 0)
    assert modes[rising].mean() > 0.55 and modes[~rising].mean() < 0.45
    np.testing.assert_array_equal(modes, gene_modes(x, x, share, 0))
    alike = gene_modes(x, x, np.full(60, 0.9), 0)
    assert (alike[rising].mean() - 0.5) * (alike[~rising].mean() - 0.5) < 0  # never one mode for all


def test_a_gene_without_moving_cells_has_no_share():
    still = Fitted(*(np.ones(1),) * 3, np.zeros((5, 1)), np.ones((2, 1)))
    assert share_before_switch(still, 20.0) == 0


def test_rounds_end_once_beginnings_are_settled():
    class Course:
        def __init__(self, *moved):
            self.moved = list(moved)

        def values(self, term):
            assert term == "moved"
            return self.moved

    assert not _settled(Course()) and not _settled(Course(0.001))  # the round in which they settle is trained
    assert _settled(Course(0.001, 0.2)) and _settled(Course(0.5, 0.495, 0.1))
    assert not _settled(Course(0.5, 0.3, 0.1))


def test_time_follows_the_process_in_one_of_two_directions(line, fitted):
    time = fitted.time()
    assert (time.min(), time.max()) == (0, 1)
    assert abs(spearmanr(time, line.obs["true_time"])[0]) > 0.6
    history = fitted.history
    assert list(history["phase"].unique()) == ["courses", "round 1", "round 2"]
    assert (fitted.uncertainty() > 0).all()


def test_velocity_is_the_slope_of_the_course_in_units_of_spliced_counts(fitted):
    net, index, step = fitted.net_, torch.arange(250), 1e-3
    with torch.no_grad():
        found = [net.outputs(index)]
        net.origin -= step * (net.time > net.origin)
        found.append(net.outputs(index))
        net.origin += step * (net.time > net.origin)
    slope = (found[1]["x"] - found[0]["x"]).chunk(2, dim=1)[1] / step
    moving = (net.time > net.origin + 2 * step)[:, 0]
    own = torch.from_numpy(fitted.velocity_[:, fitted.modelled_])
    np.testing.assert_allclose(slope[moving], own[moving], atol=0.02 * float(own.abs().max()))
    rates = fitted.rates()
    u, s = fitted.net_.outputs(index)["x"].detach().numpy().reshape(250, 2, -1).swapaxes(0, 1)
    ratio = rates["ratio"].to_numpy()[fitted.modelled_] / fitted.scale_
    beta = rates["beta"].to_numpy()[fitted.modelled_]
    np.testing.assert_allclose(own, beta * (u - ratio * s), atol=1e-3 * float(own.abs().max()))


def test_the_second_stage_leaves_time_and_state(line, fitted):
    from tenfold.engine import predict

    x = np.hstack([fitted.unspliced_ / fitted.scale_, fitted.spliced_])
    found = predict(fitted.net_, {"x": x}, lambda net, batch: net.encode(batch["x"])[0].mean)
    np.testing.assert_allclose(found, fitted.net_.time, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(fitted.latent(), fitted.net_.state)


def test_the_learning_rate_falls_with_the_share_of_counts_but_not_to_nothing(line, fitted):
    class Half:
        nnz, shape = 30, (10, 10)

    class Moments:
        layers = (Half, Half)

    model = tf.velocity.VeloVAE()
    Half.nnz = 10
    assert model._rate_of(Moments) == pytest.approx(10**-3.4)
    Half.nnz = 100
    assert model._rate_of(Moments) == pytest.approx(1e-4)


def test_named_errors():
    with pytest.raises(ParameterError, match="n_rounds"):
        tf.velocity.VeloVAE(n_rounds=0)
    flat = tf.data.simulate_splicing(n_cells=60, n_genes=10, seed=0)
    flat.layers["unspliced"] = np.ones(flat.shape, np.float32)
    flat.obsm["X_pca"] = PCA(3).fit_transform(flat.X).astype(np.float32)
    with pytest.raises(DataError, match="vary together"):
        tf.velocity.VeloVAE(normalize=False, n_neighbors=5, max_unspliced=1.0, min_shared_counts=1).fit(
            flat, use_rep="X_pca", progress=False
        )


def test_training_leaves_the_start_as_it_was(line, fitted):
    x = np.hstack([fitted.unspliced_ / fitted.scale_, fitted.spliced_]).astype(np.float64)
    np.testing.assert_allclose(fitted.start_, fitted._start(*np.split(x, 2, axis=1))[0], rtol=1e-4, atol=1e-4)
    assert np.abs(fitted.start_ - fitted.net_.numbers.detach().numpy()).max() > 0.01


def test_interrupted_within_a_round_it_goes_on_to_the_same_result(line, tmp_path, monkeypatch):
    def made(**options):
        model = tf.velocity.VeloVAE(n_neighbors=15, epochs=8, n_rounds=3, n_hidden=16, learning_rate=2e-3)
        return model.fit(line, progress=False, **options)

    whole, loss, rounds = made(), VeloVAENet.second_loss, []

    def stopped(net, x, index, drawn):
        rounds.append(drawn)
        if sum(rounds) == 12:  # two minibatches an epoch, four epochs a round: in the second
            signal.raise_signal(signal.SIGINT)
        return loss(net, x, index, drawn)

    monkeypatch.setattr(VeloVAENet, "second_loss", stopped)
    with pytest.raises(KeyboardInterrupt, match="round 2"):
        made(checkpoint=tmp_path)
    monkeypatch.setattr(VeloVAENet, "second_loss", loss)
    again = made(checkpoint=tmp_path)
    np.testing.assert_array_equal(again.velocity(), whole.velocity())
    np.testing.assert_array_equal(again.time(), whole.time())


def test_genes_that_no_cell_has_of_both_kinds_are_left_out(line):
    sparse_one = line.copy()
    counts = line.layers["unspliced"].toarray()
    gene = int(np.argmax(counts.sum(axis=0)))
    counts[:, gene] = 0
    sparse_one.layers["unspliced"] = counts
    model = tf.velocity.VeloVAE(n_neighbors=15, epochs=1, n_rounds=1, min_shared_counts=1, n_hidden=8)
    genes = model.fit(sparse_one, progress=False).genes_[model.modelled_]
    assert line.var_names[gene] not in genes and np.isfinite(model.time()).all()
