"""MNN correct against a transcription in dense loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import tenfold as tf
from tenfold.data import anchors as shared
from tenfold.errors import DataError, ParameterError
from tenfold.integrate.mnn import MNN, shift_scale
from test_anchors import loop_pairs


def adjusted(left: np.ndarray, right: np.ndarray, shift: np.ndarray, sigma: float) -> np.ndarray:
    """The scale of each shift, cell by cell."""
    scale = np.ones(len(right))
    for c, (cell, vector) in enumerate(zip(right, shift, strict=True)):
        length = np.linalg.norm(vector)
        grad = vector / length

        def along(cells, cell=cell, grad=grad):
            projected = cells @ grad
            off = cells - cell
            off = off - np.outer(off @ grad, grad)
            return projected, np.exp(-(off**2).sum(axis=1) / sigma)

        own, weight = along(right)
        at = cell @ grad
        quantile = weight[own <= at + 1e-12].sum() / weight.sum()
        there, weight = along(left)
        order = np.argsort(there)
        reached = np.cumsum(weight[order])
        first = np.flatnonzero(reached >= quantile * reached[-1] - 1e-12)[0]
        scale[c] = max(1, (there[order][first] - at) / length)
    return scale


def transcription(parts: list[np.ndarray], k: int, sigma: float, adjust: bool) -> np.ndarray:
    left = parts[0].astype(float)
    for part in parts[1:]:
        right = part.astype(float)
        pairs = loop_pairs(left, right, k, k)
        paired = sorted({j for _, j in pairs})
        vectors = np.array([np.mean([left[i] - right[j] for i, j in pairs if j == q], axis=0) for q in paired])
        kernel = np.exp(-((right[:, None] - right[None, paired]) ** 2).sum(axis=2) / sigma)
        weights = kernel / kernel[paired].sum(axis=0)
        shift = weights @ vectors / weights.sum(axis=1, keepdims=True)
        if adjust:
            shift *= adjusted(left, right, shift, sigma)[:, None]
        left = np.concatenate([left, right + shift])
    return left


@pytest.mark.parametrize("adjust", [False, True])
def test_expression_is_that_of_the_transcription(adjust):
    adata = tf.data.simulate(180, 90, n_types=3, n_batches=3, batch_strength=0.4, seed=0)
    batch = adata.obs["batch"].cat.codes.to_numpy()
    method = MNN(n_neighbors=10, n_top_genes=60, var_adjust=adjust, n_components=5).fit(adata, batch="batch")
    names = adata.var_names[method.selected_]
    x = shared.cosine_normalised(shared.depth_matched(adata.X, batch), method.selected_)
    x = x[:, method.selected_].toarray()
    expected = transcription([x[batch == b] for b in range(3)], 10, 0.1, adjust)
    got = method.correct(genes=list(names))
    got = np.concatenate([got[batch == b] for b in range(3)])
    # A quantile can fall on the next cell by rounding; that cell is a neighbour on the line.
    off = np.abs(got - expected).max(axis=1)
    assert np.quantile(off, 0.97) < 1e-3 and off.max() < 0.3
    if adjust:
        assert (method.scale_ >= 1).all() and method.scale_.max() > 1
        assert (method.scale_[batch == 0] == 1).all()
    centred = got - got.mean(axis=0)
    share = np.linalg.svd(centred, compute_uv=False)[:5]
    scores = method.embed()
    np.testing.assert_allclose(np.linalg.norm(scores - scores.mean(axis=0), axis=0), share, rtol=1e-3)


def test_all_genes_are_corrected_with_the_weights_of_the_selected():
    adata = tf.data.simulate(120, 90, n_types=2, n_batches=2, batch_strength=0.5, seed=1)
    method = MNN(n_top_genes=40, n_components=5).fit(adata, batch="batch")
    everything = method.correct()
    assert everything.shape == (120, 90)
    other = np.setdiff1d(np.arange(90), method.selected_)
    codes = adata.obs["batch"].cat.codes.to_numpy()
    before = method.expression_.toarray()

    def gap(values: np.ndarray) -> float:
        return np.linalg.norm(values[codes == 0].mean(axis=0) - values[codes == 1].mean(axis=0))

    assert gap(everything[:, other]) < 0.6 * gap(before[:, other])
    np.testing.assert_allclose(everything[codes == 0], before[codes == 0], atol=1e-6)
    some = list(adata.var_names[other[:3]])
    np.testing.assert_allclose(method.correct(genes=some), everything[:, other[:3]], atol=1e-5)


def test_scale_in_blocks_is_that_of_the_loop(monkeypatch):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(50, 4)) + 1, rng.normal(size=(40, 4))
    shift = rng.normal(size=(40, 4)) * 0.2 + 0.4
    monkeypatch.setattr("tenfold.integrate.mnn._BLOCK_ENTRIES", 700)
    np.testing.assert_allclose(shift_scale(left, right, shift, 1.5), adjusted(left, right, shift, 1.5), rtol=1e-4)
    still = shift_scale(left, right, np.zeros_like(shift), 1.5)
    assert (still == 1).all()


def test_orders():
    adata = tf.data.simulate(240, 80, n_types=3, n_batches=3, batch_strength=0.3, seed=0)
    auto = MNN(merge_order="auto", n_components=5).fit(adata, batch="batch")
    assert sorted(auto.merges_[-1]["left"] + auto.merges_[-1]["right"]) == ["batch_1", "batch_2", "batch_3"]
    given = MNN(merge_order=["batch_2", "batch_3", "batch_1"], n_components=5).fit(adata, batch="batch")
    assert given.merges_[0]["left"] == ["batch_2"] and given.merges_[1]["right"] == ["batch_1"]
    with pytest.raises(ParameterError, match="each of the 3 batches"):
        MNN(merge_order=["batch_2"]).fit(adata, batch="batch")


def test_small_batches_are_named():
    adata = tf.data.simulate(100, 80, seed=0)
    adata.obs["batch"] = pd.Categorical(["tiny"] + ["rest"] * 99)
    with pytest.raises(DataError, match="'tiny' has 1 cell,"):
        MNN().fit(adata, batch="batch")
