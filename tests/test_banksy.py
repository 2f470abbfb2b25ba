"""BANKSY: its features against their definition, cell by cell."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

import tenfold as tf
from tenfold.domains.banksy import standardised, surroundings
from test_spatial import positions, tissue


def test_surroundings_are_those_of_the_definition():
    adata = tissue(8)
    rng = np.random.default_rng(0)
    adata.obsm["spatial"] = adata.obsm["spatial"] + rng.uniform(-0.2, 0.2, (64, 2))
    where, x = adata.obsm["spatial"], rng.normal(size=(64, 3))
    found = surroundings(positions(adata), 5)
    distances = cdist(where, where)
    for cell in (0, 17, 63):
        order = np.argsort(distances[cell])[1:11]
        near, d = order[:5], distances[cell, order[:5]]
        w = np.exp(-((d / np.median(d)) ** 2))
        np.testing.assert_allclose((found.mean @ x)[cell], w @ x[near] / w.sum(), rtol=1e-4, atol=1e-5)
        d = distances[cell, order]
        w = np.exp(-((d / np.median(d)) ** 2)) / np.exp(-((d / np.median(d)) ** 2)).sum()
        phase = np.exp(1j * np.arctan2(*(where[order] - where[cell]).T[::-1]))
        gradient = np.abs((w * phase) @ (x[order] - x[order].mean(axis=0)))
        np.testing.assert_allclose(
            np.hypot((found.east @ x)[cell], (found.north @ x)[cell]), gradient, rtol=1e-4, atol=1e-5
        )


def test_gradients_are_large_at_a_border_and_nothing_on_a_plateau():
    adata = tissue(16)
    step = (adata.obsm["spatial"][:, :1] >= 8).astype(float)
    found = surroundings(positions(adata), 4)
    size = np.hypot(found.east @ step, found.north @ step)[:, 0]
    x = adata.obsm["spatial"][:, 0]
    assert size[(x == 7) | (x == 8)].min() > 0.1 and size[(x < 3) | (x > 12)].max() < 1e-6


def test_constant_genes_become_zero_and_others_standard():
    x = np.random.default_rng(0).normal(3, 5, (100, 3)).astype(np.float32)
    x[:, 1] = 2
    z = standardised(x)
    assert (z[:, 1] == 0).all()
    np.testing.assert_allclose(z[:, [0, 2]].std(axis=0), 1, rtol=1e-4)


def test_mixing_turns_types_into_domains():
    adata = tissue(noise=4.0)
    scores = [
        tf.metrics.ari(
            tf.domains.BANKSY(n_clusters=2, mixing=m, head="kmeans").fit(adata).cluster(), adata.obs["domain"]
        )
        for m in (0.0, 0.8)
    ]
    assert scores[1] > scores[0] + 0.2


def test_sections_do_not_share_neighbours():
    adata = tissue(10)
    adata.obs["slice"] = np.where(adata.obsm["spatial"][:, 0] < 5, "a", "b")
    left = adata.obs["slice"].to_numpy() == "a"
    for matrix in surroundings(positions(adata, sample="slice"), 6):
        assert matrix[left][:, ~left].nnz == 0
        assert matrix.sum(axis=1) == pytest.approx(1 if matrix.min() >= 0 else 0, abs=1e-5)
