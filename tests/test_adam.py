"""Adam in one call: PyTorch's results, state and fallbacks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import Parameter

from tenfold.kernels.adam import Adam

OPTIONS = {"lr": 3e-3, "eps": 0.01, "weight_decay": 0.02, "betas": (0.8, 0.95)}


def parameters() -> list[Parameter]:
    torch.manual_seed(0)
    return [Parameter(torch.randn(shape)) for shape in ((37, 5), (11,), (1,))]


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int = 1, without: int | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
            grad = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if number == without else grad
        optimizer.step()


def assert_equal(found: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    for one, other in zip(found.param_groups[0]["params"], expected.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-7)
    states = [each.state_dict()["state"] for each in (found, expected)]
    torch.testing.assert_close(*states, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("more", [{}, {"amsgrad": True}, {"maximize": True}])
def test_steps_are_those_of_torch(more):
    found, expected = Adam(parameters(), **OPTIONS, **more), torch.optim.Adam(parameters(), **OPTIONS, **more)
    train(found, 30)
    train(expected, 30)
    assert_equal(found, expected)


def test_a_changed_rate_counts_from_the_next_step():
    found, expected = Adam(parameters(), **OPTIONS), torch.optim.Adam(parameters(), **OPTIONS)
    for each in (found, expected):
        train(each, 3)
        each.param_groups[0]["lr"] = 0.1
        train(each, 3, seed=2)
    assert_equal(found, expected)


@pytest.mark.parametrize("first", [0, 4])
def test_a_parameter_without_gradient_is_left_alone(first):
    found, expected = Adam(parameters(), **OPTIONS), torch.optim.Adam(parameters(), **OPTIONS)
    for each in (found, expected):
        train(each, first)
        train(each, 2, seed=2, without=1)
        train(each, 3, seed=3)  # from now on, parameters have taken different numbers of steps
    assert_equal(found, expected)


@pytest.mark.parametrize("kinds", [(Adam, Adam), (Adam, torch.optim.Adam), (torch.optim.Adam, Adam)])
def test_state_goes_over_to_another_optimizer_either_way(kinds):
    before, after = (kind(parameters(), **OPTIONS) for kind in kinds)
    expected = torch.optim.Adam(parameters(), **OPTIONS)
    train(before, 5)
    with torch.no_grad():
        for one, other in zip(before.param_groups[0]["params"], after.param_groups[0]["params"], strict=True):
            other.copy_(one)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    train(after, 4, seed=2)
    train(expected, 5)
    train(expected, 4, seed=2)
    assert_equal(after, expected)


def test_parameters_may_move_in_memory():
    found, expected = Adam(parameters(), **OPTIONS), torch.optim.Adam(parameters(), **OPTIONS)
    for each in (found, expected):
        train(each, 2)
        for parameter in each.param_groups[0]["params"]:
            parameter.data = parameter.data.clone()
        train(each, 2, seed=2)
    assert_equal(found, expected)
