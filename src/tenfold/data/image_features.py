"""Numbers that describe the picture around each cell: intensities, their histogram, texture; or a network's.

Names of columns are those of Squidpy, so that analyses can be carried over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from tenfold.data.images import Slide, slides_of, window_means
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions
from tenfold.errors import DataError
from tenfold.kernels.texture import PROPERTIES, STEPS, cooccurrence, intensities

#: Quantiles of `summary`, bins of `histogram`.
QUANTILES, BINS = (0.9, 0.5, 0.1), 10
#: Sides of the squares of `default_features`, in spots; components of `morphology`.
SCALES, COMPONENTS = (1.0, 2.0, 4.0), 50
#: Points across a square of `patches`.
ACROSS = 12
#: Optical density of haematoxylin and eosin in red, green and blue, and of what is left of them.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def summary(slide: Slide, side: float, disc: bool = False, names: list[str] | None = None) -> pd.DataFrame:
    """Quantiles, mean and standard deviation of every channel around each cell.

    Parameters
    ----------
    slide
        Picture of a section.
    side
        Side of the square around a cell, in pixels of the picture; what lies outside the picture does not count.
    disc
        Only pixels in the disc of that diameter.
    names
        Of the channels; by default their numbers.

    Returns
    -------
    One row a cell of the section; columns ``summary_ch-<c>_quantile-<q>``, ``_mean``, ``_std``.
    """
    values, columns = np.arange(256), {}
    for channel, counts in _counted(slide, side, disc, names).items():
        total = counts.sum(axis=1)
        for q in QUANTILES:
            columns[f"summary_ch-{channel}_quantile-{q}"] = _quantile(counts, q)
        mean = counts @ values / total
        columns[f"summary_ch-{channel}_mean"] = mean
        columns[f"summary_ch-{channel}_std"] = np.sqrt(np.maximum(counts @ values**2 / total - mean**2, 0))
    return pd.DataFrame(columns)


def histogram(
    slide: Slide, side: float, disc: bool = False, span: tuple[float, float] | None = (0.0, 255.0),
    shares: bool = True, names: list[str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Histogram of every channel around each cell, 10 equal bins.

    Parameters
    ----------
    slide, side, disc, names
        As in `summary`.
    span
        Of the bins; ``None`` takes the range of each square over all channels, as Squidpy does, which makes bins of
        two cells incomparable.
    shares
        Shares of the pixels; else their numbers, as in Squidpy.

    Returns
    -------
    One row a cell of the section; columns ``histogram_ch-<c>_bin-<i>``.
    """
    counted, values = _counted(slide, side, disc, names), np.arange(256)
    columns: dict[str, np.ndarray] = {}
    if span is None:
        present = np.stack(list(counted.values())).sum(axis=0) > 0
        low, high = present.argmax(axis=1), 255 - present[:, ::-1].argmax(axis=1)
    else:
        low, high = (np.full(len(slide.cells), end) for end in span)
    width = np.where(high > low, (high - low) / BINS, 0.1)
    at = np.floor((values - low[:, None]) / width[:, None]).astype(np.int64)
    at = np.where(values == high[:, None], BINS - 1, at)
    inside = (at >= 0) & (at < BINS)
    for channel, counts in counted.items():
        found = np.stack([(counts * (inside & (at == b))).sum(axis=1) for b in range(BINS)], axis=1).astype(np.float64)
        if shares:
            found /= counts.sum(axis=1, keepdims=True)
        columns |= {f"histogram_ch-{channel}_bin-{b}": found[:, b] for b in range(BINS)}
    return pd.DataFrame(columns)


def texture(
    slide: Slide, side: float, disc: bool = False, mean: bool = False, names: list[str] | None = None
) -> pd.DataFrame:
    """Statistics of co-occurring values of pixels side by side, in four directions (Haralick's texture).

    Parameters
    ----------
    slide, side, disc, names
        As in `summary`.
    mean
        The mean of the four directions, which does not depend on how the section lies.

    Returns
    -------
    One row a cell of the section; columns ``texture_ch-<c>_<property>_dist-1_angle-<a>``, or without the angle.
    """
    rows, half = _pixels(slide), _half(side)
    columns: dict[str, np.ndarray] = {}
    for channel, name in enumerate(names or range(slide.image.shape[2])):
        plane = np.ascontiguousarray(slide.image[:, :, channel])
        found = np.stack([cooccurrence(plane, *rows, half, disc, *step) for step in STEPS])
        for p, kind in enumerate(PROPERTIES):
            if mean:
                columns[f"texture_ch-{name}_{kind}_dist-1"] = found[:, :, p].mean(axis=0)
                continue
            for a in range(len(STEPS)):
                columns[f"texture_ch-{name}_{kind}_dist-1_angle-{a * np.pi / 4:.2f}"] = found[a, :, p]
    return pd.DataFrame(columns)


def stained(slide: Slide) -> Slide:
    """Return the slide with haematoxylin, eosin and the rest as channels, by fixed optical densities.

    References
    ----------
    Ruifrok and Johnston (2001), Anal Quant Cytol Histol 23:291.
    """
    density = -np.log((np.arange(256) + 1.0) / 256.0)[slide.image]
    amounts = density @ np.linalg.inv(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True))
    return slide._replace(image=np.clip(np.rint(amounts * 128), 0, 255).astype(np.uint8))


def default_features(slide: Slide) -> pd.DataFrame:
    """Summary, histogram and texture of stains in squares of one, two and four spots: 180 numbers, no weights needed.

    Raises
    ------
    DataError
        Scale factors do not tell the diameter of a spot.
    """
    if not np.isfinite(slide.spot):
        raise DataError(
            f"The scale factors of '{slide.library}' have no 'spot_diameter_fullres', so the size of a spot in the "
            "picture is unknown; set it to the diameter in units of the positions."
        )
    channels, parts = ["haematoxylin", "eosin", "rest"], []
    picture = stained(slide)
    for scale in SCALES:
        side = slide.spot * scale
        found = [summary(picture, side, names=channels), histogram(picture, side, names=channels),
                 texture(picture, side, mean=True, names=channels)]  # fmt: skip
        parts += [part.add_suffix(f"_scale-{scale:g}") for part in found]
    return pd.concat(parts, axis=1)


def patches(slide: Slide, side: float) -> np.ndarray:
    """Return the picture around each cell itself, at 12 × 12 points; each is the mean of the pixels nearest to it.

    Parameters
    ----------
    slide
        Picture of a section.
    side
        Side of the square around a cell, in units of the positions: squares of all sections are alike, whatever the
        resolution of their pictures.

    Returns
    -------
    Row by row, red, green and blue of each point between 0 and 1, shape (n_cells, 432), float32.
    """
    step = side * slide.scale / ACROSS
    offset = (np.arange(ACROSS) - (ACROSS - 1) / 2) * step
    grid = np.stack(np.meshgrid(offset, offset), axis=-1).reshape(-1, 2)
    where = (slide.where[:, None] + grid).reshape(-1, 2)
    found = window_means(slide._replace(where=where), int(max(step - 1, 0) / 2))
    return (found / 255).reshape(len(slide.where), -1).astype(np.float32)


def morphology(
    data: Inputs, positions: Positions, features: Callable[[Slide], Any] = default_features,
    n_components: int = COMPONENTS,
) -> np.ndarray:  # fmt: skip
    """Return principal components of picture features, standardised slide by slide, shape (n_cells, n_components).

    Colour depends on stain and scanner: the mean and spread of every feature are those of its slide.

    Parameters
    ----------
    data, positions
        Of the cells; see `slides_of` for where pictures are.
    features
        From a slide, one row a cell: `default_features`, or ``ImageEncoder(...).features``.
    n_components
        At most so many.
    """
    found: np.ndarray | None = None
    for slide in slides_of(data, positions):
        part = np.asarray(features(slide), dtype=np.float64)
        part -= part.mean(axis=0)
        deviation = part.std(axis=0)
        part /= np.where(deviation > 1e-9, deviation, np.inf)
        found = np.zeros((data.n_cells, part.shape[1])) if found is None else found
        found[slide.cells] = part
    assert found is not None  # a section at least
    left, values, _ = np.linalg.svd(found - found.mean(axis=0), full_matrices=False)
    kept = min(n_components, int((values > 1e-9 * values[0]).sum())) if values[0] > 0 else 1
    return (left[:, :kept] * values[:kept]).astype(np.float32)


def _pixels(slide: Slide) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of the pixel of each cell, within the picture."""
    place = np.rint(slide.where).astype(np.int64)
    height, width = slide.image.shape[:2]
    return np.clip(place[:, 1], 0, height - 1), np.clip(place[:, 0], 0, width - 1)


def _half(side: float) -> int:
    """Return the pixels on each side of the middle one: one at least, or there is no texture."""
    return max(int(np.rint((side - 1) / 2)), 1)


def _counted(slide: Slide, side: float, disc: bool, names: list[str] | None) -> dict[Any, np.ndarray]:
    rows, half = _pixels(slide), _half(side)
    return {
        name: intensities(np.ascontiguousarray(slide.image[:, :, channel]), *rows, half, disc)
        for channel, name in enumerate(names or range(slide.image.shape[2]))
    }


def _quantile(counts: np.ndarray, q: float) -> np.ndarray:
    """Return quantiles of integers from their counts, interpolated as NumPy does."""
    upto = counts.cumsum(axis=1)
    place = q * (upto[:, -1] - 1)
    below, above = ((upto > np.floor(place)[:, None]).argmax(axis=1), (upto > np.ceil(place)[:, None]).argmax(axis=1))
    return below + (above - below) * (place - np.floor(place))
