"""Hyper-parameters: checked once, in plain words, when a method is created."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from tenfold.errors import ParameterError
from tenfold.parameters import Configured, param


class Model(metaclass=Configured):
    n_latent: int = param(10, low=1, high=512)
    dropout: float = param(0.1, low=0.0, high=1.0)
    learning_rate: float = param(1e-3, low=0.0)
    n_top_genes: int | None = param(2000, low=10)
    likelihood: Literal["nb", "zinb", "poisson"] = "nb"
    device: str = "auto"
    early_stopping: bool = False
    hidden: tuple[int, ...] = (128, 64)
    layers: list[float] = param(None)
    weights: dict | None = None
    level: Literal[1, 2] | float = 1


class Deeper(Model):
    n_layers: int = param(2, low=1)


def test_defaults_and_inheritance():
    model = Deeper(n_latent=5)
    assert (model.n_latent, model.n_layers, model.hidden, model.n_top_genes) == (5, 2, (128, 64), 2000)
    assert Model().n_latent == 10


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("n_latent", 20, 20), ("n_latent", 20.0, 20), ("n_latent", np.int32(7), 7), ("n_latent", np.float64(7), 7),
        ("dropout", 0, 0.0), ("dropout", 1, 1.0), ("dropout", np.float32(0.5), 0.5), ("dropout", np.array(0.5), 0.5),
        ("n_top_genes", None, None), ("likelihood", "zinb", "zinb"), ("likelihood", np.str_("zinb"), "zinb"),
        ("early_stopping", np.bool_(True), True), ("hidden", [64, 32], (64, 32)), ("hidden", (), ()),
        ("hidden", (np.int64(8), 4.0), (8, 4)), ("layers", (1, 2), [1.0, 2.0]), ("weights", {"a": 1}, {"a": 1}),
        ("level", 2, 2), ("level", 0.5, 0.5),
    ],
)  # fmt: skip
def test_accepted_values_get_the_declared_type(name, given, kept):
    value = getattr(Model(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)
    if isinstance(kept, (tuple, list)):
        assert [type(entry) for entry in value] == [type(entry) for entry in kept]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("n_latent", 0, "must be between 1 and 512"),
        ("n_latent", 513, "must be between 1 and 512"),
        ("n_latent", 2.5, "expected a whole number"),
        ("n_latent", "10", "expected a whole number"),
        ("n_latent", True, "expected a whole number"),
        ("n_latent", None, "expected a whole number"),
        ("n_latent", float("inf"), "expected a whole number"),
        ("n_latent", np.array([3]), "expected a whole number"),
        ("dropout", 1.01, "must be between 0.0 and 1.0"),
        ("dropout", float("nan"), "expected a number"),
        ("dropout", True, "expected a number"),
        ("learning_rate", -1e-9, "must be at least 0.0"),
        ("n_top_genes", 9, "must be at least 10"),
        ("n_top_genes", "all", "expected a whole number or None"),
        ("likelihood", "znb", r"one of 'nb', 'zinb', 'poisson'\. Did you mean 'zinb'\?"),
        ("likelihood", None, "one of 'nb'"),
        ("likelihood", ["nb"], "one of 'nb'"),
        ("device", 0, "expected text"),
        ("early_stopping", 1, "expected True or False"),
        ("hidden", "128", "hidden='128' is not valid"),
        ("hidden", 128, "expected a list, each entry a whole number"),
        ("hidden", (1.5,), "hidden=.* is not valid"),
        ("weights", [1], "expected a dict or None"),
    ],
)
def test_refused_values(name, given, message):
    with pytest.raises(ParameterError, match=message):
        Model(**{name: given})


def test_unknown_and_positional_arguments():
    with pytest.raises(ParameterError, match=r"Model has no hyper-parameter 'n_latnt'\. Did you mean 'n_latent'\?"):
        Model(n_latnt=3)
    with pytest.raises(ParameterError, match="It takes: n_latent, dropout"):
        Model(zzz=3)
    with pytest.raises(ParameterError, match=r"by name, e\.g\. Model\(n_latent=10\); .*\.fit\(adata"):
        Model("adata")
