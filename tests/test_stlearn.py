"""stLearn: smoothing written out cell by cell, what a picture changes, and networks with given weights."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from tenfold.data.image_features import morphology, summary
from tenfold.data.images import slides_of
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import spatial_graph
from tenfold.domains.stlearn import StLearn, smoother, unit_variance
from tenfold.errors import FileFormatError, KeyMissingError, MissingExtraError, ParameterError
from tenfold.nn.image_encoder import ImageEncoder
from test_spagcn import pictured
from test_spatial import positions, tissue


def test_smoothing_is_that_of_the_definition():
    adata, rng = tissue(7), np.random.default_rng(0)
    where = adata.obsm["spatial"] + rng.uniform(-0.2, 0.2, (49, 2))
    adata.obsm["spatial"] = where
    near = spatial_graph(positions(adata), "radius", radius=2.5)
    picture, expression = rng.normal(size=(49, 4)), rng.normal(size=(49, 6))
    found = smoother(near, where, picture, expression, 3).toarray()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    cosine = 1 - cdist(picture, picture, "cosine")
    weights = np.where(
        near.toarray() > 0, np.maximum(cosine, 0) * (1 - cdist(expression, expression, "correlation")), 0
    )
    np.fill_diagonal(weights, 1)
    for cell in range(49):
        best = np.argsort(weights[cell])[-3:]
        average = np.zeros(49)
        average[best] = np.maximum(weights[cell, best], 0)
        np.testing.assert_allclose(found[cell], (average / average.sum() + np.eye(49)[cell]) / 2, atol=1e-6)


def test_the_nearest_are_taken_where_weights_are_equal():
    adata = tissue(5)
    near = spatial_graph(positions(adata), "radius", radius=2.5)
    found = smoother(near, adata.obsm["spatial"], None, None, 5).toarray()
    around = np.abs(adata.obsm["spatial"] - adata.obsm["spatial"][12]).sum(axis=1) == 1
    assert (found[12][around] > 0).all() and (found[12] > 0).sum() == 5


def test_genes_get_one_variance():
    x = unit_variance(tissue().X)
    np.testing.assert_allclose(x.toarray().std(axis=0), 1, rtol=1e-4)


def test_a_picture_joins_cells_that_look_alike():
    adata = pictured(tissue(noise=4.0))
    adata.uns["spatial"]["one"]["scalefactors"]["spot_diameter_fullres"] = 0.8
    told = StLearn(n_clusters=2, weights="space_morphology", n_similar=9).fit(adata, progress=False)
    assert told.saw_picture_
    where = positions(adata)
    picture = morphology(Inputs(adata, {}), where, lambda slide: summary(slide, slide.spot))
    half = adata.obsm["spatial"][:, 0] < 11
    near = spatial_graph(where, "radius", radius=3.0)
    same = []
    for part in (picture, None):
        found = smoother(near, where.points, part, None, 9).tocoo()
        border = (found.row != found.col) & (np.abs(adata.obsm["spatial"][found.row, 0] - 10.5) < 2)
        same.append((half[found.row] == half[found.col])[border].mean())
    assert same[0] > 0.99 and same[1] < 0.85


def test_without_a_picture_it_says_so():
    with pytest.warns(UserWarning, match="no picture"):
        assert not StLearn(n_clusters=2).fit(tissue(), progress=False).saw_picture_
    with pytest.raises(KeyMissingError, match="no picture"):
        StLearn(n_clusters=2, histology="yes").fit(tissue(), progress=False)
    with pytest.raises(ParameterError, match="belong together"):
        StLearn(n_clusters=2, network="resnet50").fit(pictured(tissue()), progress=False)


class Small(torch.nn.Module):
    """Takes pictures to eight numbers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, 5, stride=4)

    def forward(self, x):
        return self.layer(x).mean(dim=(2, 3))


@pytest.fixture
def timm(monkeypatch):
    asked = {}

    def create_model(name, **options):
        asked.update({"name": name, **options})
        return Small()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    return asked


def test_networks_take_weights_from_a_file_and_download_none(timm, tmp_path, monkeypatch):
    adata = pictured(tissue(10))
    adata.uns["spatial"]["one"]["scalefactors"]["spot_diameter_fullres"] = 0.8
    torch.manual_seed(0)
    network, path = Small(), tmp_path / "weights.bin"
    torch.save(network.state_dict(), path)
    slide = slides_of(Inputs(adata, {}), positions(adata))[0]
    with pytest.warns(UserWarning, match="8 pixels wide"):
        found = ImageEncoder.from_timm("uni", path, size=32).features(slide)
    assert found.shape == (100, 8) and timm["name"] == "vit_large_patch16_224" and timm["pretrained"] is False
    monkeypatch.setattr("tenfold.nn.image_encoder.BATCH", 1)
    with pytest.warns(UserWarning):
        np.testing.assert_allclose(ImageEncoder(network, size=32).features(slide), found, atol=1e-5)
    with pytest.warns(UserWarning):
        model = StLearn(n_clusters=2, network="resnet18", network_weights=str(path)).fit(adata, progress=False)
    assert model.saw_picture_ and timm["name"] == "resnet18"
    with pytest.raises(FileFormatError, match="not downloaded"):
        ImageEncoder.from_timm("uni", tmp_path / "absent.bin")
    torch.save({"other": torch.zeros(2)}, path)
    with pytest.raises(FileFormatError, match="does not hold the weights of 'uni'"):
        ImageEncoder.from_timm("uni", path)


def test_missing_timm_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(MissingExtraError, match="pip install"):
        ImageEncoder.from_timm("uni", tmp_path / "weights.bin")
