"""SpaGCN: sparse weights equal the dense ones to the bound; colour; planted domains; the sought number."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import tenfold as tf
from tenfold.data.gaussian_graph import gaussian_graph
from tenfold.data.images import slides_of, stain_intensity, window_means
from tenfold.data.inputs import Inputs
from tenfold.data.resolution import sought
from tenfold.domains.spagcn import SpaGCN
from tenfold.errors import DataError, KeyMissingError, ParameterError
from tenfold.nn.soft_clusters import divergence, sharpened, student_membership
from test_spatial import positions, tissue


@pytest.mark.parametrize("share", [0.5, 3.0])
@pytest.mark.parametrize("cut", [1e-2, 1e-4])
def test_sparse_weights_equal_dense_ones_to_the_bound(share, cut):
    points = np.random.default_rng(0).uniform(size=(400, 3)) * [30, 20, 1]
    found = gaussian_graph(points, [np.arange(400)], share, cut)
    dense = np.exp(-cdist(points, points, "sqeuclidean") / (2 * found.lengths[0] ** 2))
    lost = dense - found.weights.toarray()
    assert lost.min() > -1e-6 and (lost.sum(axis=1) <= cut * dense.sum(axis=1)).all()
    features = np.random.default_rng(1).uniform(-1, 1, (400, 4))
    error = np.abs(found.weights @ features - dense @ features) / dense.sum(axis=1)[:, None]
    assert error.max() <= cut
    assert dense.sum(axis=1).mean() - 1 == pytest.approx(share, abs=0.01)
    if cut == 1e-2:
        assert found.weights.nnz < 0.5 * 400**2


def test_edges_grow_with_cells_and_not_with_their_square():
    sizes = []
    for n in (1_000, 4_000):
        points = np.random.default_rng(0).uniform(size=(n, 2))
        sizes.append(gaussian_graph(points, [np.arange(n)], 0.5).weights.nnz / n)
    assert sizes[1] < 1.3 * sizes[0] < 60


def test_length_is_sought_in_each_section_and_impossible_shares_are_refused():
    points = np.vstack([np.indices((6, 6)).reshape(2, -1).T, 5.0 * np.indices((6, 6)).reshape(2, -1).T])
    found = gaussian_graph(points, [np.arange(36), np.arange(36, 72)], 0.5)
    assert found.lengths[1] == pytest.approx(5 * found.lengths[0], rel=1e-3)
    assert found.weights[:36, 36:].nnz == 0 and (found.weights.diagonal() == 1).all()
    with pytest.raises(ParameterError, match="36 cells"):
        gaussian_graph(points[:36], [np.arange(36)], 40.0)


def test_membership_and_target_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    z, mu = rng.normal(size=(20, 3)), rng.normal(size=(4, 3))
    q = (1 / (1 + cdist(z, mu, "sqeuclidean") / 0.2)) ** 1.2
    q /= q.sum(axis=1, keepdims=True)
    found = student_membership(torch.from_numpy(z), torch.from_numpy(mu), 0.2, 1.2)
    np.testing.assert_allclose(found, q, rtol=1e-6)
    p = q**2 / q.sum(axis=0)
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sharpened(found), p, rtol=1e-6)
    expected = (p * np.log(p / (q + 1e-6))).sum(axis=1).mean()
    assert divergence(sharpened(found), found).item() == pytest.approx(expected, rel=1e-6)


def pictured(adata, scale=10.0):
    """Give a tissue a picture whose right half is darker."""
    image = np.full((220, 220, 3), 200, dtype=np.uint8)
    image[:, 110:] = [120, 60, 160]
    image[:, :110] = [220, 180, 210]
    adata.obsm["spatial"] = adata.obsm["spatial"] + 1.0
    adata.uns["spatial"] = {"one": {"images": {"hires": image}, "scalefactors": {"tissue_hires_scalef": scale}}}
    return adata


def slide(adata):
    data = Inputs(adata, {})
    return slides_of(data, positions(adata))[0]


def test_colours_are_means_of_windows():
    adata = pictured(tissue())
    rng = np.random.default_rng(0)
    found = slide(adata)._replace(image=rng.integers(0, 256, (220, 220, 3), dtype=np.uint8))
    means = window_means(found, 12)
    for cell in (0, 17, 399):
        x, y = np.rint(found.where[cell]).astype(int)
        window = found.image[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13]
        np.testing.assert_allclose(means[cell], window.mean(axis=(0, 1)))
    grey = stain_intensity(slide(adata), 0.4)
    assert grey.mean() == pytest.approx(0, abs=1e-9) and grey.std() == pytest.approx(1)
    left = adata.obsm["spatial"][:, 0] < 11
    assert abs(grey[left].mean() - grey[~left].mean()) > 1.9


def test_colour_finds_halves_that_expression_hardly_shows():
    adata = pictured(tissue(noise=8.0))
    options = {"n_clusters": 2, "n_components": 5, "window": 0.4, "share": 20.0, "start": "kmeans"}
    told, blind = (
        tf.metrics.ari(
            SpaGCN(histology=kind, histology_weight=3.0, **options).fit(adata, progress=False).cluster(),
            adata.obs["domain"],
        )
        for kind in ("yes", "no")
    )
    assert told > 0.85 and told > blind + 0.1


def test_planted_halves_are_found_where_expression_alone_fails():
    adata = tissue(noise=3.0)
    alone = SpaGCN(n_clusters=2, share=1e-3, n_components=5).fit(adata, progress=False)
    model = SpaGCN(n_clusters=2, share=8.0, n_components=5, refinement="outvoted").fit(adata, progress=False)
    scores = [tf.metrics.ari(m.cluster(), adata.obs["domain"]) for m in (alone, model)]
    assert scores[1] > 0.85 and scores[0] < 0.7
    before, after = model.cluster(refined=False), model.cluster()
    assert (before != after).mean() < 0.1
    q = model.probabilities().to_numpy()
    np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(q.argmax(axis=1), before)


def test_pictures_that_cannot_be_placed_are_named():
    with pytest.raises(KeyMissingError, match="no picture"):
        SpaGCN(histology="yes").fit(tissue(), progress=False)
    adata = pictured(tissue())
    del adata.uns["spatial"]["one"]["scalefactors"]["tissue_hires_scalef"]
    with pytest.raises(DataError, match="no scale factor"):
        SpaGCN().fit(adata, progress=False)
    with pytest.raises(DataError, match="outside its picture"):
        SpaGCN().fit(pictured(tissue(), scale=30.0), progress=False)


def test_resolutions_are_sought_on_both_sides():
    def tried(resolution):
        return int(resolution * 10), np.zeros(1)

    for wanted in (1, 7, 40):
        assert sought(tried, wanted, 0.7)[1] == wanted
    assert sought(lambda r: (2 * (int(r * 10) // 2), np.zeros(1)), 5, 0.7)[1] in (4, 6)
