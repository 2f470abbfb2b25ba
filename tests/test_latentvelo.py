"""LatentVelo: the flow solves its equations, the loss is the sheet's, and the result is what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.integrate import solve_ivp
from scipy.stats import spearmanr
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import moments_of
from tenfold.engine import seeded
from tenfold.errors import ParameterError
from tenfold.nn.latent_flow import Flow, Widths
from tenfold.nn.latent_ode import LatentODE, Weights

WIDTHS = Widths(code=4, hidden=6, regulation=2, context=3)


@pytest.fixture(scope="module")
def line():
    return tf.data.simulate_branching(n_cells=250, n_genes=60, n_branches=1, seed=0)


@pytest.fixture(scope="module")
def fitted(line):
    return tf.velocity.LatentVelo(n_neighbors=15, epochs=25, batch_size=50, n_steps=2, seed=0).fit(line, progress=False)


def flow(n_steps, spread=0.4):
    with seeded(0):
        net = Flow(WIDTHS, n_steps)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return net


def drift(net, x, context):
    """The equations, one network at a time."""
    s, u, r = x.split([4, 4, 2], dim=1)
    parts = net.of_spliced(s, u), net.transcription(torch.cat([u, r], 1)), net.regulation(torch.cat([s, r, context], 1))
    return torch.cat(parts, dim=1)


def test_the_flow_is_where_an_adaptive_solver_is():
    time, context = torch.tensor([[0.0], [0.3], [0.95]]), torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net = flow(8)
        found = net(time, context)
        start = torch.cat([net.start, torch.zeros(2)])
        for i in range(3):

            def f(_, x, i=i):
                return drift(net, torch.as_tensor(x, dtype=torch.float32)[None], context[i : i + 1])[0].numpy()

            wanted = solve_ivp(f, (0, float(time[i]) + 1e-12), start.numpy(), rtol=1e-6, atol=1e-7).y[:, -1]
            np.testing.assert_allclose(found[i], wanted, atol=2e-4)
        apart = [(flow(n)(time, context) - flow(64)(time, context)).abs().max() for n in (1, 2, 4)]
    assert apart[0] > 5 * apart[1] and apart[1] > 5 * apart[2]  # fourth order: 16 in the limit


def network(n_batches=1, n_cells=30, n_genes=12):
    rng = np.random.default_rng(0)
    graph = sparse.random(n_cells, n_cells, 0.2, random_state=0)
    graph = sparse.csr_matrix(graph + graph.T)
    dynamic = np.arange(n_genes) % 3 > 0
    with seeded(1):
        net = LatentODE(graph, dynamic, n_batches, WIDTHS, Weights(0.3, 0.2), 5)
    net.flow.splicing.weight.data *= 50  # so that no guard against a division by 0 is seen
    shape = (n_cells, n_genes)
    x = {name: rng.gamma(1.0, 0.2, shape) * (rng.random(shape) < 0.8) for name in ("spliced", "unspliced")}
    plain = {**x, "seen": rng.random(shape) < 0.6, "index": np.arange(n_cells), "root": rng.random(n_cells)}
    batch = {name: torch.from_numpy(value) for name, value in plain.items()}
    batch["batch"] = batch["index"] % n_batches
    return net, {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}


@pytest.mark.parametrize("n_batches", [1, 2])
def test_the_loss_is_the_sum_of_its_terms_cell_by_cell(n_batches):
    net, batch = network(n_batches)
    torch.manual_seed(3)
    found = net.terms(batch, 0.7, 5.0)["loss"]
    torch.manual_seed(3)
    codes = net.encode(batch, sample=True)
    end = net.flow(codes.time, codes.context)
    sd, sd_z = 1e-4 + F.softplus(net.spread), 1e-4 + F.softplus(torch.cat([net.code_spread] * 2))

    def decoded(which, z, bias=1.0):
        level = batch["batch"]
        return torch.stack([z[i] @ net.decoders[which][level[i]].weight.T + bias * net.decoders[which][level[i]].bias
                            for i in range(len(z))])  # fmt: skip

    loss = 0.7 * codes.divergence - Normal(end[:, :8], sd_z).log_prob(torch.cat(codes[:2], 1)).sum(1)
    correlation, genes = 0.0, np.flatnonzero(np.arange(12) % 3 > 0)
    for which, (name, sign) in enumerate((("spliced", -0.2), ("unspliced", 0.3))):
        x, m = batch[name], batch["seen"].float()
        m = x[batch["seen"]].mean() * m
        for s, u in (codes[:2], (end[:, :4], end[:, 4:8])):
            back = decoded(which, (s, u)[which])
            loss = loss - (m * Normal(back, sd).log_prob(x)).sum(1)
            velocity = decoded(0, net.flow.of_spliced(s, u), 0.0)
            for gene in genes:
                kept = (x[:, gene] > 0).numpy()
                for target in (back, x):
                    v, y = (part[kept, gene] - part[kept, gene].mean() for part in (velocity, target))
                    correlation += (
                        sign * (v * y).sum() / ((v.norm() + 1e-8) * (y.norm() ** 2 + 1e-8).sqrt()) / len(genes)
                    )
    loss = loss.mean() - correlation + 5.0 * (batch["root"] * codes.time[:, 0] ** 2).mean()
    np.testing.assert_allclose(float(found.detach()), float(loss.detach()), rtol=1e-4)


def test_divergence_is_that_of_codes_and_a_tenth_of_times():
    net, batch = network()
    codes = net.encode(batch, sample=False)
    around, h = net.around(batch["index"]), []
    for i, name in enumerate(("spliced", "unspliced")):
        h.append(net.smoothers[i]([net.encoders[i](batch[name])], around))
    h.append(net.timer(list(codes[:2]), around))
    parts = [Normal(*(part if j == 0 else (part / 2).exp() for j, part in enumerate(one.chunk(2, 1)))) for one in h]
    sums = [kl_divergence(one, Normal(0.0, 1.0)).sum(1) for one in parts]
    np.testing.assert_allclose(codes.divergence.detach(), (sums[0] + sums[1] + 0.1 * sums[2]).detach(), rtol=1e-4)


def test_neighbours_are_averaged_within_the_minibatch():
    net, _ = network()
    index, x = torch.tensor([4, 9, 2, 17]), torch.randn(4, 3)
    a = 0.9 * net.graph.toarray()[np.ix_(index, index)] + np.eye(4)
    np.testing.assert_allclose(net.around(index)(x), (a / a.sum(1, keepdims=True)) @ x.numpy(), rtol=1e-5)


def test_gene_velocity_is_the_jacobian_of_the_decoder_times_the_slope():
    net, batch = network()
    found = net.outputs(batch)
    codes = net.encode(batch, sample=False)
    wanted = torch.autograd.functional.jvp(
        lambda z: net.decode(0, z[None], batch)[0], codes.spliced, net.flow.of_spliced(*codes[:2])
    )[1]
    np.testing.assert_allclose(found["velocity"].detach(), wanted.detach(), rtol=1e-4, atol=1e-6)


def test_time_follows_the_process_and_velocities_go_with_it(line, fitted):
    time = fitted.time()
    assert (time.min(), time.max()) == (0, 1) and spearmanr(time, line.obs["true_time"])[0] > 0.4
    codes, slopes = fitted.latent()
    assert codes.shape == slopes.shape == (250, 20)
    assert fitted.history.pivot(index="epoch", columns="term", values="train")["error"].diff().sum() < 0


def test_velocities_are_in_units_of_normalised_counts(line, fitted):
    """A shift of the codes along their slopes must move the decoded averages as much as the velocity says."""
    moments = moments_of(Inputs(line, {}), n_neighbors=15)
    scale = 4 * (1 + moments.spliced.std(axis=0))
    weight = fitted.net_.decoders[0][0].weight.detach().numpy()
    np.testing.assert_allclose(fitted.velocity_, fitted.slopes_ @ weight.T * scale, rtol=1e-3, atol=1e-4)


def test_batches_have_decoders_of_their_own():
    two = tf.data.simulate_branching(n_cells=120, n_genes=60, seed=0)
    two.obs["batch"] = np.where(np.arange(120) % 2, "a", "b")
    model = tf.velocity.LatentVelo(n_neighbors=10, epochs=2, n_steps=2).fit(two, batch="batch", progress=False)
    assert len(model.net_.decoders[0]) == 2 and len(model.net_.smoothers) == 0
    alone = tf.velocity.LatentVelo(n_neighbors=10, epochs=2, n_steps=2).fit(two, progress=False)
    assert len(alone.net_.decoders[0]) == 1 and len(alone.net_.smoothers) == 2


def test_without_beginnings_the_time_of_no_cell_is_held(line):
    free = tf.velocity.LatentVelo(n_neighbors=15, epochs=2, n_steps=2, root_weight=0.0).fit(line, progress=False)
    held = tf.velocity.LatentVelo(n_neighbors=15, epochs=2, n_steps=2).fit(line, progress=False)
    assert not np.allclose(free.time_, held.time_)
    with pytest.raises(ParameterError, match="n_steps"):
        tf.velocity.LatentVelo(n_steps=0)
