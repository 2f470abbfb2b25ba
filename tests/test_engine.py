"""The training loop: phases, steps, schedules, stopping, the guard, random state, predict."""

# ruff: noqa: NPY002  (the global generator is what is tested)
from __future__ import annotations

import itertools
import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from tenfold import engine
from tenfold.engine import EarlyStopping, Phase, Progress, Step
from tenfold.engine.devices import find_device
from tenfold.errors import DataError, ParameterError, ResourceError, TrainingError
from tenfold.kernels.sparse_linear import multiplies_bfloat16

N_CELLS, N_GENES = 60, 8


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    counts = sparse.random(N_CELLS, N_GENES, density=0.5, format="csr", dtype=np.float32, rng=rng)
    return {"x": counts, "target": rng.normal(size=(N_CELLS, 1))}


def network(seed=0):
    with engine.seeded(seed):
        return nn.Sequential(nn.Linear(N_GENES, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))


def squared(net, batch, progress):
    return (net(batch["x"].dense()) - batch["target"]).square().mean()


def scripted(values):
    """Return a validation that gives these values, epoch by epoch."""
    return lambda net, batch, progress: torch.tensor(values[progress.epoch])


def fit(net, data, *phases, **options):
    return engine.fit(net, data, list(phases), batch_size=16, device="cpu", **options)


def weights(net):
    return torch.cat([value.detach().double().flatten() for value in net.state_dict().values()])


# ---- phases and steps ----------------------------------------------------------------------------------------------


def test_phases_run_in_order_with_their_own_losses_and_optimisers(data):
    seen = []

    def loss(net, batch, progress):
        seen.append((progress.phase, progress.epoch, progress.step))
        return squared(net, batch, progress)

    net = network()
    head = Phase("head", 1, loss, parameters=lambda net: net[3].parameters(), validate_every=0)
    body = [value.clone() for value in net[0].parameters()]
    history = fit(net, data, head)
    assert all(torch.equal(a, b) for a, b in zip(body, net[0].parameters(), strict=True))
    seen.clear()
    history = fit(net, data, Phase("first", 2, loss, validate_every=0), Phase("second", 1, loss, validate_every=0))
    # 54 training cells in batches of 16: three of 16 and one of 6.
    assert seen == [("first", s // 4, s) for s in range(8)] + [("second", 0, s) for s in range(4)]
    assert history.stops == {"first": "finished", "second": "finished"}
    assert list(history.terms["phase"]) == ["first", "first", "second"]
    assert not net.training


def test_training_lowers_the_loss_and_validates_on_cells_held_out(data):
    data["target"] = np.asarray(data["x"].sum(axis=1))
    history = fit(network(), data, Phase("fit", 60, squared, optimizer=partial(torch.optim.Adam, lr=1e-2)))
    train, validation = history.values(), history.values(validation=True)
    assert train[-1] < 0.5 * train[0]
    assert validation[-1] < 0.5 * validation[0]
    assert len(history.validation_index) == 6
    assert set(history.train_index) | set(history.validation_index) == set(range(N_CELLS))


class Adversary(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(N_GENES, 2), nn.Linear(2, 1)


def test_each_step_of_an_adversarial_phase_moves_only_its_own_parameters(data):
    gradients = []

    class Watched(torch.optim.SGD):
        def __init__(self, parameters, net, own):
            self.net, self.own = net, own
            super().__init__(parameters, lr=0.1)

        def step(self, closure=None):
            other = {"generator": "critic", "critic": "generator"}[self.own]
            gradients.append((self.own, all(p.grad is not None for p in getattr(self.net, self.own).parameters())))
            before = [p.clone() for p in getattr(self.net, other).parameters()]
            stale = [None if p.grad is None else p.grad.clone() for p in getattr(self.net, other).parameters()]
            gradients[-1] += (stale,)
            super().step(closure)
            assert all(torch.equal(a, b) for a, b in zip(before, getattr(self.net, other).parameters(), strict=True))

    def critic(net, batch, progress):
        return {"loss": net.critic(net.generator(batch["x"].dense())).mean(), "extra": torch.tensor(2.0)}

    def generator(net, batch, progress):
        return -net.critic(net.generator(batch["x"].dense())).mean()

    with engine.seeded(1):
        net = Adversary()
    steps = [
        Step("critic", lambda net: net.critic.parameters(), critic, lambda p: Watched(p, net, "critic"), repeat=2),
        Step(
            "generator",
            lambda net: net.generator.parameters(),
            generator,
            lambda p: Watched(p, net, "generator"),
            every=2,
        ),
    ]
    history = fit(net, data, Phase("adversarial", 1, steps=steps))
    owners = [own for own, _, _ in gradients]
    assert owners == ["critic", "critic", "generator", "critic", "critic"] * 2
    # The critic's gradient was left by its own loss alone: the generator's loss does not change it.
    for (own, present, _), (following, _, stale) in itertools.pairwise(gradients):
        assert present
        if own == "critic" and following == "generator":
            assert all(grad is not None for grad in stale)
    first_generator_step = gradients[2][2]
    torch.testing.assert_close(first_generator_step[1], torch.tensor([1.0]))  # of the critic's bias, not 1 - 1 = 0
    assert set(history.terms["term"]) == {"critic.loss", "critic.extra", "generator"}


def test_phases_that_make_no_sense_are_refused(data):
    with pytest.raises(ParameterError, match="either a loss or steps"):
        Phase("p", 1)
    with pytest.raises(ParameterError, match="at least 1"):
        Phase("p", 0, squared)
    with pytest.raises(ParameterError, match="name of its own"):
        fit(network(), data, Phase("p", 1, squared), Phase("p", 1, squared))
    with pytest.raises(ParameterError, match="no parameters to train"):
        fit(network(), data, Phase("p", 1, squared, parameters=lambda net: []))
    with pytest.raises(ParameterError, match="without 'loss'"):
        fit(network(), data, Phase("p", 1, lambda net, batch, progress: {"kl": net(batch["x"].dense()).sum()}))
    with pytest.raises(ParameterError, match=r"watch 'los', which .* Did you mean 'loss'"):
        fit(network(), data, Phase("p", 1, squared, monitor="los", early_stopping=EarlyStopping()))
    with pytest.raises(ParameterError, match="train_fraction"):
        fit(network(), data, Phase("p", 1, squared), train_fraction=0)


def test_before_epoch_renews_data_and_adds_numbers_to_the_history(data):
    seen = []

    def before(net, data, progress):
        return {"target": np.full((N_CELLS, 1), float(progress.epoch)), "change": 10.0 + progress.epoch}

    def loss(net, batch, progress):
        seen.append(set(batch["target"].flatten().tolist()))
        return squared(net, batch, progress)

    history = fit(network(), data, Phase("p", 2, loss, before_epoch=before))
    assert seen[0] == {0.0}
    assert seen[-1] == {1.0}
    assert history.values("change") == [10.0, 11.0]
    with pytest.raises(DataError, match="3 rows, but there are 60 cells"):
        fit(network(), data, Phase("p", 1, squared, before_epoch=lambda *_: {"target": np.zeros((3, 1))}))


def test_gradients_are_clipped_by_norm_and_by_value(data):
    def change(**options):
        net = network()
        before = weights(net[3])
        sgd = partial(torch.optim.SGD, lr=1.0)
        engine.fit(net, data, [Phase("p", 1, lambda *a: 1e4 * squared(*a), optimizer=sgd, validate_every=0, **options)],
                   batch_size=None, device="cpu", train_fraction=1)  # fmt: skip
        return (weights(net[3]) - before).abs()

    assert change().max() > 10
    assert change(clip=0.5).norm() <= 0.5 + 1e-5
    assert change(clip_value=0.01).max() <= 0.01 + 1e-6


# ---- schedules and stopping ----------------------------------------------------------------------------------------


def test_early_stopping_counts_patience_and_restores_the_best_epoch(data):
    kept = []

    def validation(net, batch, progress):
        if not kept or kept[-1][0] != progress.epoch:
            kept.append((progress.epoch, weights(net).clone()))
        return torch.tensor([5.0, 3.0, 3.5, 3.0, 2.99, 0.0, 0.0][progress.epoch])

    for restore in (False, True):
        kept.clear()
        stopping = EarlyStopping(patience=3, min_delta=0.1, restore_best=restore)
        net = network()
        history = fit(net, data, Phase("p", 7, squared, validation=validation, early_stopping=stopping))
        assert history.stopped == "early"
        assert len(history.values()) == 5  # best in epoch 1, then three without a gain of 0.1
        assert history.best_epochs == {"p": 1}
        assert torch.equal(weights(net), kept[1 if restore else 4][1])


def test_early_stopping_ignores_epochs_before_start_epoch(data):
    values = [0.0, 0.1, 9.0, 8.0, 8.5, 8.5, 8.5]
    stopping = EarlyStopping(patience=2, start_epoch=2, restore_best=True)
    history = fit(network(), data, Phase("p", 7, squared, validation=scripted(values), early_stopping=stopping))
    assert len(history.values()) == 6
    assert history.best_epochs == {"p": 3}


def test_early_stopping_watches_training_where_nothing_is_held_out(data):
    stopping = EarlyStopping(patience=1)
    loss = lambda net, batch, progress: 0 * squared(net, batch, progress) + [3.0, 2.0, 2.0, 1.0][progress.epoch]  # noqa: E731
    history = fit(network(), data, Phase("p", 4, loss, early_stopping=stopping), train_fraction=1.0)
    assert len(history.values()) == 3
    assert np.isnan(history.values(validation=True)).all()


def test_patience_counts_validations_where_not_every_epoch_validates(data):
    stopping = EarlyStopping(patience=2)
    phase = Phase("p", 20, squared, validation=scripted([1.0] * 20), validate_every=3, early_stopping=stopping)
    history = fit(network(), data, phase)
    assert len(history.values()) == 9  # validated after epochs 3 (best), 6 and 9


def test_until_ends_a_phase_and_the_next_begins(data):
    first = Phase("first", 50, squared, until=lambda history: len(history.values(phase="first")) == 2)
    history = fit(network(), data, first, Phase("second", 1, squared))
    assert history.stops == {"first": "until", "second": "finished"}
    assert len(history.values(phase="first")) == 2


def test_learning_rate_schedules_by_epoch_and_on_plateau(data):
    halving = Phase("p", 4, squared, scheduler=lambda o: StepLR(o, step_size=2, gamma=0.5))
    assert fit(network(), data, halving).values("learning_rate") == [1e-3, 1e-3, 5e-4, 5e-4]
    plateau = Phase("p", 5, squared, validation=scripted([2.0, 1.0, 1.0, 1.0, 1.0]),
                    scheduler=lambda o: ReduceLROnPlateau(o, factor=0.1, patience=1))  # fmt: skip
    np.testing.assert_allclose(fit(network(), data, plateau).values("learning_rate"), [1e-3] * 4 + [1e-4])


def test_ramp_by_epochs_steps_or_the_whole_phase():
    assert [Progress("p", 10, epoch=e).ramp(over_epochs=4) for e in (0, 1, 4, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert [Progress("p", 10, step=s).ramp(1.0, 3.0, over_steps=4) for s in (0, 2, 8)] == [1.0, 2.0, 3.0]
    assert Progress("p", 10, epoch=5).ramp() == 0.5
    assert Progress("p", 10).ramp(over_epochs=0) == 1.0


# ---- the guard -----------------------------------------------------------------------------------------------------


def test_the_guard_names_phase_epoch_step_and_bad_data(data):
    data["target"][7] = np.nan
    with pytest.raises(TrainingError, match=r"of scvi .* phase 'warm', epoch 1 of 3, .*'target' .* NaN"):
        fit(network(), data, Phase("warm", 3, squared), name="scvi", train_fraction=1.0)


def test_the_guard_names_an_exploding_update_and_the_learning_rate(data):
    huge = Phase("p", 5, squared, optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(TrainingError, match=r"exploded .* learning rate \(now 1e\+30\)"):
        fit(network(), data, huge)
    single = Phase("p", 1, squared, optimizer=partial(torch.optim.SGD, lr=float("inf")), validate_every=0)
    with pytest.raises(TrainingError, match=r"epoch 1 of 1, at its end: a weight is not a finite number"):
        engine.fit(network(), data, [single], batch_size=None, device="cpu")


def test_the_guard_names_extreme_values_and_overflowing_losses(data):
    def overflow(net, batch, progress):
        return squared(net, batch, progress) * (float("inf") if progress.epoch == 1 else 1.0)

    with pytest.raises(TrainingError, match=r"epoch 2 of 2, step 1: .*loss itself overflowed"):
        fit(network(), data, Phase("p", 2, overflow))
    data["x"].data[:] = 1e30
    with pytest.raises(TrainingError, match=r"extreme values; the largest of 'x' .* 1e\+30"):
        fit(network(), data, Phase("p", 1, lambda *a: squared(*a) * float("nan")))


def test_the_guard_watches_validation(data):
    validation = scripted([1.0, float("nan")])
    with pytest.raises(TrainingError, match="epoch 2 of 2, validation minibatch 1: "):
        fit(network(), data, Phase("p", 2, squared, validation=validation))


# ---- random state, devices, prediction -----------------------------------------------------------------------------


def test_same_seed_same_weights_and_the_callers_random_state_is_left_alone(data):
    results = []
    for seed, disturbance in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(disturbance), np.random.seed(disturbance), random.seed(disturbance)
        expected = (torch.rand(1), np.random.rand(), random.random())
        torch.manual_seed(disturbance), np.random.seed(disturbance), random.seed(disturbance)
        net = network(seed)
        fit(net, data, Phase("p", 2, squared), seed=seed)
        engine.predict(net, data, lambda net, batch: net(batch["x"].dense()))
        assert (torch.rand(1), np.random.rand(), random.random()) == expected
        results.append(weights(net))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_random_state_is_put_back_after_an_error(data):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with pytest.raises(TrainingError):
        fit(network(), data, Phase("p", 1, lambda *a: squared(*a) * float("nan")))
    assert torch.rand(1) == expected


def test_validation_does_not_change_training(data):
    noisy = lambda net, batch, progress: squared(net, batch, progress) + torch.rand(1)[0]  # noqa: E731
    results = []
    for every in (0, 1):
        net = network()
        fit(net, data, Phase("p", 3, squared, validation=noisy, validate_every=every))
        results.append(weights(net))
    assert torch.equal(*results)


def test_seeded_purposes_and_seeds_are_independent():
    draws = []
    for seed, purpose in ((0, "init"), (0, "fit"), (1, "init"), (0, "init")):
        with engine.seeded(seed, purpose):
            draws.append((torch.rand(1).item(), np.random.rand(), random.random()))
    with pytest.raises(ParameterError, match="must not be negative"), engine.seeded(-1):
        pass
    assert draws[0] == draws[3]
    assert len({draw[0] for draw in draws}) == 3


def test_words_for_devices(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ResourceError, match=r"offers: cpu, cuda:0 \(GPU 0\), cuda:1"):
        find_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(ResourceError, match=r"not in this machine, which offers: cpu.*Use device='auto'"):
        find_device("cuda")
    for word in ("cudaa", "gpu", "cuda:x", "cpu:0", ""):
        with pytest.raises(ParameterError, match="is not a device"):
            find_device(word)


def test_precision_is_checked_and_bfloat16_trains(data):
    with pytest.raises(ParameterError, match=r"'bf16-mixd' is not offered. Did you mean 'bf16-mixed'"):
        fit(network(), data, Phase("p", 1, squared), precision="bf16-mixd")
    net, kinds = network(), set()

    def loss(net, batch, progress):
        out = net(batch["x"].dense())
        kinds.add(out.dtype)
        return (out.float() - batch["target"]).square().mean()

    told = nullcontext() if multiplies_bfloat16() else pytest.warns(UserWarning, match="32-true' is much faster")
    with told:
        history = fit(net, data, Phase("p", 2, loss), precision="bf16-mixed")
    assert kinds == {torch.bfloat16}
    assert all(value.dtype != torch.bfloat16 for value in net.parameters())
    assert np.isfinite(history.values()).all()


def test_predict_keeps_order_modes_and_types(data):
    net = network().train()
    net[2].eval()

    def function(net, batch):
        assert not net.training and not torch.is_grad_enabled()
        return {"y": net(batch["x"].dense()), "row": batch["index"], "noise": torch.rand(len(batch["index"]))}

    index = np.array([5, 3, 59, 0, 3])
    out = engine.predict(net, data, function, batch_size=2, index=index, seed=1)
    assert net.training and not net[2].training
    np.testing.assert_array_equal(out["row"], index)
    assert out["y"].dtype == np.float32 and out["row"].dtype == np.int64
    net.eval()
    whole = net(torch.tensor(data["x"].toarray())).detach().numpy()
    np.testing.assert_allclose(out["y"], whole[index], rtol=1e-5)
    again = engine.predict(net, data, function, batch_size=2, index=index, seed=1)
    np.testing.assert_array_equal(out["noise"], again["noise"])
    single = engine.predict(net, data, lambda net, batch: net(batch["x"].dense()), batch_size=7)
    np.testing.assert_allclose(single, whole, rtol=1e-5)
    with pytest.raises(DataError, match="no cells"):
        engine.predict(net, data, function, index=np.array([], dtype=int))


def test_weights_draw_the_cells_that_are_trained_on(data):
    weights = np.zeros(N_CELLS)
    weights[:30] = 1.0
    seen = set()

    def loss(net, batch, progress):
        seen.update(batch["index"].tolist() if net.training else [])
        return squared(net, batch, progress)

    history = fit(network(), data, Phase("p", 5, loss), weights=weights)
    assert seen == set(range(30)) & set(history.train_index)


# ---- the bar -------------------------------------------------------------------------------------------------------


def test_the_bar_is_silent_outside_a_terminal(data, capfd, monkeypatch):
    from tenfold.data import bar

    monkeypatch.setattr(bar, "SHOW_AFTER", 0.0)
    fit(network(), data, Phase("p", 3, squared))
    assert capfd.readouterr() == ("", "")


def test_the_bar_shows_phase_epoch_and_loss_in_a_terminal(monkeypatch):
    import io

    from rich.console import Console

    from tenfold.data import bar

    screen = io.StringIO()
    monkeypatch.setattr(bar, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(bar, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    shown = bar.Bar("scvi", 10, True)
    shown.show(1, "warm epoch 1/4", "loss 12.5")
    shown.show(5, "warm epoch 2/4", "loss 11.25")
    shown.close()
    for text in ("scvi", "warm", "epoch 2/4", "11.25"):
        assert text in screen.getvalue()
    screen.truncate(0)
    quiet = bar.Bar("scvi", 10, False)
    quiet.show(1, "warm epoch 1/4", "loss 12.5")
    quiet.close()
    assert "scvi" not in screen.getvalue()
