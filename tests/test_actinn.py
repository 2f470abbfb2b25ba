"""ACTINN: the network that is published, the genes it reads, and what it learns."""

from __future__ import annotations

import numpy as np
import torch

import tenfold as tf
from tenfold.annotate.actinn import ACTINN, informative
from tenfold.data.preprocess import normalize_log1p

CELLS = tf.data.simulate(300, 100, n_types=4, type_strength=1.2, seed=2)
TRAIN, TEST = CELLS[:200].copy(), CELLS[200:].copy()
TRUTH = TEST.obs["cell_type"].astype(str).to_numpy()


def fit(adata=TRAIN, **params) -> ACTINN:
    settings = {"epochs": 60, "learning_rate": 2e-3, **params}
    return ACTINN(**settings).fit(adata, labels="cell_type", progress=False)


def test_probabilities_are_those_of_the_published_network():
    model, x = fit(epochs=3), normalize_log1p(TEST.X)
    shapes = [tuple(p.shape) for p in model.net_.parameters()]
    read = len(model.read_)
    assert shapes == [(read, 100), (100,), (100, 50), (50,), (50, 25), (25,), (4, 25), (4,)]
    h = torch.from_numpy(x.toarray()[:, model.read_]) / np.log(2)
    weights = [p.detach() for p in model.net_.parameters()]
    for layer in range(3):
        h = torch.relu(h @ weights[2 * layer] + weights[2 * layer + 1])
    expected = (h @ weights[6].T + weights[7]).softmax(dim=1)
    np.testing.assert_allclose(model._score(x), expected, atol=1e-5)


def test_genes_between_percentiles_of_expression_and_variation():
    x = normalize_log1p(TRAIN.X)
    dense = x.toarray().astype(np.float64)
    total = dense.sum(axis=0)
    first = np.flatnonzero((total >= np.percentile(total, 1)) & (total <= np.percentile(total, 99)))
    variation = dense[:, first].std(axis=0) / dense[:, first].mean(axis=0)
    second = (variation >= np.percentile(variation, 1)) & (variation <= np.percentile(variation, 99))
    np.testing.assert_array_equal(informative(x), first[second])


def test_the_penalty_is_on_weights_alone():
    model = fit(epochs=1)
    groups = model._optimizer(list(model.net_.parameters())).param_groups
    assert [group["weight_decay"] for group in groups] == [0.005, 0]
    assert all(p.ndim > 1 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])


def test_it_learns_labels_and_nothing_from_permuted_ones():
    assert (fit().predict(TEST) == TRUTH).mean() > 0.8
    shuffled = TRAIN.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(TRAIN.obs["cell_type"].astype(str))
    assert (fit(shuffled).predict(TEST) == TRUTH).mean() < 0.45
