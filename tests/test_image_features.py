"""Picture features around cells against crops that are cut out, and what textures tell that intensities do not."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tenfold.data import image_features as im
from tenfold.data.images import Slide
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError
from test_spagcn import pictured
from test_spatial import positions, tissue


def slide(seed=0, size=60, n=8):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    image[:, :, 1] //= 32  # few values, many equal pairs
    where = rng.uniform(0, size - 1, (n, 2))
    where[0] = [1.0, 2.0]  # at the border
    return Slide("one", np.arange(n), image, where, 1.0, 9.0)


def crops(picture, side):
    half = max(int(np.rint((side - 1) / 2)), 1)
    for x, y in np.rint(picture.where).astype(int):
        yield picture.image[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]


def matrix(channel, down, right):
    """Co-occurrences, written out."""
    found = np.zeros((256, 256))
    height, width = channel.shape
    for r in range(height):
        for c in range(width):
            if 0 <= r + down < height and 0 <= c + right < width:
                found[channel[r, c], channel[r + down, c + right]] += 1
    return found / found.sum()


def test_summaries_and_histograms_are_those_of_crops():
    picture = slide()
    found = im.summary(picture, 11)
    bins, raw = im.histogram(picture, 11), im.histogram(picture, 11, span=None, shares=False)
    for cell, crop in enumerate(crops(picture, 11)):
        for channel in range(3):
            values = crop[:, :, channel].ravel().astype(float)
            name = f"summary_ch-{channel}"
            for q in im.QUANTILES:
                assert found[f"{name}_quantile-{q}"][cell] == pytest.approx(np.quantile(values, q))
            assert found[f"{name}_mean"][cell] == pytest.approx(values.mean())
            assert found[f"{name}_std"][cell] == pytest.approx(values.std())
            own = [f"histogram_ch-{channel}_bin-{b}" for b in range(10)]
            expected = np.histogram(values, 10, (0, 255))[0]
            np.testing.assert_allclose(bins.loc[cell, own], expected / len(values))
            expected = np.histogram(values, 10, (crop.min(), crop.max()))[0]
            np.testing.assert_array_equal(raw.loc[cell, own], expected)


def test_textures_are_those_of_the_matrix_of_cooccurrences():
    picture = slide()
    found, mean = im.texture(picture, 9), im.texture(picture, 9, mean=True)
    i, j = np.indices((256, 256))
    for cell, crop in enumerate(crops(picture, 9)):
        for channel in (0, 1):
            values = []
            for angle, step in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
                p = matrix(crop[:, :, channel], *step)
                away_i, away_j = i - (p * i).sum(), j - (p * j).sum()
                spread = np.sqrt((p * away_i**2).sum() * (p * away_j**2).sum())
                values.append([(p * (i - j) ** 2).sum(), (p * abs(i - j)).sum(), (p / (1 + (i - j) ** 2)).sum(),
                               (p * away_i * away_j).sum() / spread, (p**2).sum()])  # fmt: skip
                names = [f"texture_ch-{channel}_{kind}_dist-1_angle-{angle * np.pi / 4:.2f}" for kind in im.PROPERTIES]
                np.testing.assert_allclose(found.loc[cell, names], values[-1], rtol=1e-6, atol=1e-9)
            names = [f"texture_ch-{channel}_{kind}_dist-1" for kind in im.PROPERTIES]
            np.testing.assert_allclose(mean.loc[cell, names], np.mean(values, axis=0), rtol=1e-6)


def test_discs_leave_corners_out_and_constant_pixels_correlate_fully():
    picture = slide()
    picture.image[:, :, 0] = 7
    middle = picture._replace(where=np.full((1, 2), 30.0), cells=np.arange(1))
    middle.image[26, 26] = 255  # the corner of the square of 9
    assert im.summary(middle, 9)["summary_ch-0_mean"][0] > 7 and im.summary(middle, 9, disc=True).iloc[0, 3] == 7
    assert im.texture(middle, 9, disc=True)["texture_ch-0_correlation_dist-1_angle-0.00"][0] == 1


def test_texture_separates_what_intensities_do_not():
    """Stripes and a chequered pattern of the same two values."""
    rng, n = np.random.default_rng(0), 60
    image, kind, where = np.zeros((160, 160, 3), np.uint8), np.arange(n) % 2, []
    for cell in range(n):
        row, column = divmod(cell, 8)
        y, x = np.indices((20, 20)) + rng.integers(0, 4, (2, 1, 1))
        pattern = (y // 2) % 2 if kind[cell] else (x // 2 + y // 2) % 2
        noisy = np.clip(100 + 60 * pattern + rng.normal(0, 15, (20, 20)), 0, 255)
        image[20 * row : 20 * row + 20, 20 * column : 20 * column + 20] = noisy[:, :, None]
        where.append([20 * column + 9.5, 20 * row + 9.5])
    picture = Slide("one", np.arange(n), image, np.array(where), 1.0, 18.0)
    auc = [
        max(abs(roc_auc_score(kind, values) - 0.5) + 0.5 for _, values in table.items())
        for table in (im.texture(picture, 15), im.summary(picture, 15))
    ]
    assert auc[0] > 0.95 > 0.85 > auc[1]


def test_morphology_is_standardised_by_slide_and_needs_the_size_of_a_spot():
    adata = pictured(tissue(10))
    with pytest.raises(DataError, match="spot_diameter_fullres"):
        im.morphology(Inputs(adata, {}), positions(adata))
    library = adata.uns["spatial"].pop("one")
    library["scalefactors"]["spot_diameter_fullres"] = 0.8
    darker = {**library, "images": {"hires": library["images"]["hires"] // 2}}
    adata.uns["spatial"] = {"a": library, "b": darker}
    adata.obs["slice"] = np.where(np.arange(100) < 50, "a", "b")
    found = im.morphology(Inputs(adata, {"sample": "slice"}), positions(adata, sample="slice"), n_components=5)
    assert found.shape[0] == 100 and 1 <= found.shape[1] <= 5
    for half in (found[:50], found[50:]):
        np.testing.assert_allclose(half.mean(axis=0), 0, atol=1e-4)
    assert len(im.default_features(im.slides_of(Inputs(adata, {"sample": "slice"}),
                                                positions(adata, sample="slice"))[0]).columns) == 180  # fmt: skip


def test_stains_are_told_apart():
    density = np.outer([0.5, 1.0], im.STAINS[0] / np.linalg.norm(im.STAINS[0]))
    image = np.rint(np.exp(-density) * 256 - 1).astype(np.uint8)[None]
    found = im.stained(slide()._replace(image=image)).image[0]
    assert np.allclose(found[:, 0], [64, 128], atol=3) and found[:, 1:].max() < 5
