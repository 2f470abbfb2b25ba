"""iMAP: grown pairs, mixtures, the two stages and what they do to two simulated batches."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

import tenfold as tf
from tenfold.data.pair_growth import grown_weights
from tenfold.data.preprocess import normalize_log1p
from tenfold.errors import ParameterError
from tenfold.integrate.imap import IMAP
from tenfold.kernels.anchors import mutual_pairs
from tenfold.nn.imap_net import ContentStyle, Critic, critic_loss, mixed

QUICK = {
    "epochs": 40,
    "n_hidden": 128,
    "n_latent": 32,
    "n_top_genes": None,
    "batch_size": 256,
    "translation_steps": 300,
}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return tf.data.simulate(
        400, 120, n_types=3, n_batches=2, batch_strength=0.4, type_strength=1.5, depth=600.0, seed=0
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted(cells) -> IMAP:
    return IMAP(**QUICK).fit(cells, batch="batch", progress=False)


def test_expected_visits_are_those_of_random_walks():
    rng = np.random.default_rng(0)
    points = [rng.normal(size=(n, 3)) for n in (30, 40)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in points]
    found = grown_weights(*points, 3, 4, n_steps=6)
    pairs, counts = mutual_pairs(*unit, 3, 3), [np.zeros(30), np.zeros(40)]
    for side, starts in enumerate((pairs.left, pairs.right)):
        near = mutual_pairs(unit[side], unit[side], 4, 4)
        near_of = [near.right[near.left == i] for i in range(len(points[side]))]
        for _ in range(300):
            here = starts
            for _ in range(6):
                np.add.at(counts[side], here, 1)
                here = np.array([rng.choice(near_of[i]) for i in here])
        np.testing.assert_allclose(found[side], counts[side] / counts[side].sum(), atol=0.006)


def test_mixtures_stay_in_their_batch():
    torch.manual_seed(0)
    level = torch.randint(0, 3, (60,))
    x = torch.nn.functional.one_hot(level, 3).float()
    torch.testing.assert_close(mixed(x, level), x)
    y = mixed(torch.arange(60.0)[:, None], level)[:, 0]
    assert (y != torch.arange(60.0)).sum() > 40


def test_style_is_what_a_one_hot_input_gives():
    torch.manual_seed(0)
    net = ContentStyle(9, 3, 4, (8, 6), 0, 2).eval()
    content, level = torch.randn(5, 4), torch.tensor([0, 2, 1, 1, 0])
    onehot = torch.nn.functional.one_hot(level, 3).float()
    first = net.decoder.layers[0]
    h = first.activate(content @ first.weight + onehot @ first.tables[0] + first.bias)
    own = net.head(net.decoder.layers[1](h, ()))
    expected = torch.relu(own + net.style_head(net.style(onehot)))
    torch.testing.assert_close(net.decode(content, level), expected)


def test_the_penalty_of_a_linear_critic():
    critic = Critic(4, 8)
    critic.forward = lambda x: 3 * x[:, 0]
    real, fake = torch.randn(6, 4), torch.randn(5, 4)
    expected = 3 * (fake[:, 0].mean() - real[:, 0].mean()) + 10 * 4.0
    torch.testing.assert_close(critic_loss(critic, real, fake), expected)


def test_the_reference_stays_and_the_other_batch_comes_to_it(cells, fitted):
    batch = cells.obs["batch"].to_numpy().astype(str)
    labels = cells.obs["cell_type"].to_numpy().astype(str)
    before, after = normalize_log1p(cells.X).toarray(), fitted.correct()
    stays = batch == fitted.reference_
    np.testing.assert_allclose(after[stays], before[stays], atol=1e-5)
    gap = [np.abs(x[stays].mean(0) - x[~stays].mean(0)).mean() for x in (before, after)]
    assert gap[1] < 0.8 * gap[0]
    near = tf.kernels.knn.knn(fitted.embed(), k=16)[0][:, 1:]
    assert (labels[near] == labels[:, None]).mean() > 0.9
    np.testing.assert_allclose(fitted.embed(cells[::-1].copy()), fitted.embed()[::-1], atol=1e-3)
    with pytest.raises(ParameterError, match="leave transform_batch"):
        fitted.expression(transform_batch="batch_1")


def test_the_first_stage_alone(cells):
    method = IMAP(**{**QUICK, "epochs": 5}, translate=False).fit(cells, batch="batch", progress=False)
    assert method.embed().shape == (400, 32) and len(method.net_.translators) == 0
    assert np.isfinite(method.correct()).all()
