"""Pictures of SpatialData stores: what is read, how cells are placed, and what is said of the rest."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest
import zarr

import tenfold as tf
from tenfold.data.images import slides_of
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import positions_of
from tenfold.errors import KeyMissingError

AXES = {"image": ["c", "y", "x"], "shape": ["x", "y"]}


def step(kind, frame, axes, **values):
    """Return a transformation of NGFF to a coordinate system."""
    named = [{"name": axis} for axis in axes]
    return {"type": kind, "input": {"axes": named}, "output": {"name": frame, "axes": named}, **values}


def scaled(factor, frame, of="shape"):
    axes = AXES[of]
    return step("scale", frame, axes, scale=[1.0 if axis == "c" else factor for axis in axes])


def identity(frame, of="image"):
    return step("identity", frame, AXES[of])


def picture(store, name, transformation, size=(40, 60), levels=(1,), channels=3, dtype=np.uint8, ome=True):
    """Write a picture whose red channel is its column, in full-resolution pixels."""
    group = store.create_group(f"images/{name}")
    datasets = []
    for place, shrink in enumerate(levels):
        values = np.zeros((channels, size[0] // shrink, size[1] // shrink), dtype)
        values[0] = np.minimum(np.arange(values.shape[2]) * shrink, 255).astype(dtype)
        group.create_array(f"s{place}", data=values)
        scale = {"type": "scale", "scale": [1.0, float(shrink), float(shrink)]}
        datasets.append({"path": f"s{place}", "coordinateTransformations": [scale]})
    about = {"multiscales": [{"axes": [{"name": axis} for axis in AXES["image"]], "datasets": datasets,
                              "coordinateTransformations": [transformation]}]}  # fmt: skip
    group.attrs.update({"ome": about} if ome else about)


def store_of(path, regions, zarr_format=3):
    """Write a store of eight cells a region, at x = 0, 5, ..., 35, with the transformations of its shapes."""
    store = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    store.attrs["spatialdata_attrs"] = {"version": "0.1"}
    names = [name for name in regions for _ in range(8)]
    adata = ad.AnnData(np.ones((len(names), 3), np.float32))
    adata.obs["region"] = names
    adata.obsm["spatial"] = np.column_stack([np.tile(np.arange(0.0, 40, 5), len(regions)), np.full(len(names), 7.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.settings.zarr_write_format = zarr_format
        adata.write_zarr(path / "tables" / "table")
    zarr.open_group(path / "tables" / "table").attrs["region_key"] = "region"
    for name, transformations in regions.items():
        store.create_group(f"shapes/{name}").attrs["coordinateTransformations"] = transformations
    return store


@pytest.fixture(autouse=True)
def format_of_zarr():
    before = ad.settings.zarr_write_format
    yield
    ad.settings.zarr_write_format = before


def under_cells(adata, **roles):
    """Return the red value under each cell."""
    data = Inputs(adata, roles)
    red = np.full(adata.n_obs, -1)
    for slide in slides_of(data, positions_of(data)):
        column, row = np.floor(slide.where).astype(int).T
        red[slide.cells] = slide.image[row, column, 0]
    return red


@pytest.mark.parametrize(("zarr_format", "ome"), [(2, False), (3, True)])
def test_cells_lie_where_the_store_says(tmp_path, zarr_format, ome):
    store = store_of(tmp_path / "a.zarr", {"spots": [identity("full", "shape"), scaled(0.5, "half")]}, zarr_format)
    picture(store, "half_image", identity("half"), (20, 30), ome=ome)
    adata = tf.data.read(tmp_path / "a.zarr")
    assert adata.uns["spatial"]["spots"]["scalefactors"] == {"tissue_hires_scalef": 0.5}
    np.testing.assert_array_equal(under_cells(adata), np.floor(adata.obsm["spatial"][:, 0] / 2))


def test_of_several_resolutions_that_of_two_thousand_pixels_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("tenfold.data.spatial_pictures.LONGEST", 32)
    store = store_of(tmp_path / "a.zarr", {"spots": [identity("full", "shape")]})
    picture(store, "one", identity("full"), (40, 60), levels=(1, 2, 4))
    found = tf.data.read(tmp_path / "a.zarr").uns["spatial"]["spots"]
    assert found["images"]["hires"].shape == (20, 30, 3) and found["scalefactors"] == {"tissue_hires_scalef": 0.5}
    monkeypatch.setattr("tenfold.data.spatial_pictures.LONGEST", 10)  # 15 pixels are the fewest there are
    assert tf.data.read(tmp_path / "a.zarr").uns["spatial"]["spots"]["images"]["hires"].shape == (10, 15, 3)
    monkeypatch.setattr("tenfold.data.spatial_pictures.LONGEST", 4)  # more than twice as many: every second
    adata = tf.data.read(tmp_path / "a.zarr")
    found = adata.uns["spatial"]["spots"]
    assert found["images"]["hires"].shape == (5, 8, 3) and found["scalefactors"] == {"tissue_hires_scalef": 0.125}
    np.testing.assert_array_equal(under_cells(adata), np.floor(adata.obsm["spatial"][:, 0] / 8) * 8)


def test_chains_and_matrices_of_transformations(tmp_path):
    shape, image = AXES["shape"], AXES["image"]
    affine = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    chain = [step("affine", "f", shape, affine=affine), step("scale", "f", shape, scale=[3.0, 3.0]),
             step("translation", "f", shape, translation=[12.0, 6.0])]  # fmt: skip
    store = store_of(tmp_path / "a.zarr", {"spots": [step("sequence", "f", shape, transformations=chain)]})
    back = [step("scale", "f", image, scale=[1.0, 4.0, 4.0]),
            step("translation", "f", image, translation=[0.0, 6.0, 12.0])]  # fmt: skip
    picture(store, "one", step("sequence", "f", image, transformations=back), (40, 90))
    adata = tf.data.read(tmp_path / "a.zarr")
    assert adata.uns["spatial"]["spots"]["scalefactors"]["tissue_hires_scalef"] == pytest.approx(1.5)
    np.testing.assert_array_equal(under_cells(adata), np.floor(1.5 * adata.obsm["spatial"][:, 0]))


def test_every_region_has_its_own_picture(tmp_path):
    regions = {name: [identity("global", "shape")] for name in ("one", "two")}
    store = store_of(tmp_path / "a.zarr", regions)
    picture(store, "one_image", identity("global"))
    picture(store, "two_image", scaled(2.0, "global", "image"))
    adata = tf.data.read(tmp_path / "a.zarr")
    scales = {name: entry["scalefactors"]["tissue_hires_scalef"] for name, entry in adata.uns["spatial"].items()}
    assert scales == {"one": 1.0, "two": 0.5}
    x = adata.obsm["spatial"][:, 0]
    np.testing.assert_array_equal(under_cells(adata, sample="region"), np.r_[x[:8], np.floor(x[8:] / 2)])


def _turned(store):
    matrix = [[1.0, 0, 0, 0], [0, 0.8, 0.6, 0], [0, -0.6, 0.8, 0]]
    picture(store, "one", step("affine", "global", AXES["image"], affine=matrix))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_turned, "'one' is turned"),
        (lambda store: picture(store, "one", identity("elsewhere")), "no picture shares a coordinate system"),
        (lambda store: picture(store, "one", identity("global"), channels=5), "has 5 channels of uint8"),
        (lambda store: picture(store, "one", identity("global"), dtype=np.uint16), "has 3 channels of uint16"),
        (lambda store: picture(store, "one", step("mapAxis", "global", AXES["image"])), "no picture shares"),
        (lambda store: store.create_group("images/one"), "no picture shares"),
    ],
    ids=["turned", "elsewhere", "channels", "16 bits", "unknown kind", "empty"],
)
def test_pictures_that_cannot_be_placed_are_told_and_the_table_is_read(tmp_path, spoil, words):
    spoil(store_of(tmp_path / "a.zarr", {"spots": [identity("global", "shape")]}))
    with pytest.warns(UserWarning, match=words):
        adata = tf.data.read(tmp_path / "a.zarr")
    assert adata.n_obs == 8 and "spatial" not in adata.uns
    with pytest.raises(KeyMissingError, match="no picture"):
        under_cells(adata)


def test_regions_that_share_a_frame_are_not_guessed(tmp_path):
    store = store_of(tmp_path / "a.zarr", {name: [identity("global", "shape")] for name in ("one", "two")})
    for name in ("left", "right"):
        picture(store, name, identity("global"))
    with pytest.warns(UserWarning, match="which of the pictures 'left', 'right' is its own"):
        tf.data.read(tmp_path / "a.zarr")
