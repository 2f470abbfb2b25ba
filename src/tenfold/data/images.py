"""Pictures of sections, where cells lie in them, and colours around each cell.

A picture is where Scanpy has it: ``uns["spatial"][library]`` with ``images`` and ``scalefactors``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions
from tenfold.errors import DataError, KeyMissingError, closest

#: Share of the cells of a section that may lie outside its picture.
MOST_OUTSIDE = 0.05


class Slide(NamedTuple):
    """The picture of a section.

    Attributes
    ----------
    library
        Its key in ``uns["spatial"]``.
    cells
        Rows of the cells of the section, shape (n_cells,).
    image
        Red, green and blue, shape (height, width, 3), uint8.
    where
        Column and row of each cell in the picture, shape (n_cells, 2), float64.
    scale
        Pixels of the picture in one unit of the positions.
    spot
        Diameter of a spot in pixels of the picture, NaN where scale factors do not tell.
    """

    library: str
    cells: np.ndarray
    image: np.ndarray
    where: np.ndarray
    scale: float
    spot: float


def has_pictures(data: Inputs) -> bool:
    """Tell whether ``uns["spatial"]`` holds a picture."""
    return any("images" in library and len(library["images"]) for library in _libraries(data).values())


def slides_of(data: Inputs, positions: Positions) -> list[Slide]:
    """Return the picture of every section: the one in high resolution, where there are two.

    Raises
    ------
    KeyMissingError
        There is no picture, or none for a section: its key is to be the name of the sample.
    DataError
        A picture without a scale factor, or whose cells lie outside it.
    """
    libraries = _libraries(data)
    if not has_pictures(data):
        raise KeyMissingError(
            "There is no picture: uns['spatial'][library]['images'] should hold 'hires' or 'lowres', as "
            "scanpy.read_visium gives them. Leave the picture out of the method, or read the data with it."
        )
    found = []
    for code, cells in enumerate(positions.each()):
        section = positions.sections.names[code]
        name = section if section in libraries else next(iter(libraries))
        if name != section and (len(libraries) > 1 or len(positions.sections.names) > 1):
            raise KeyMissingError(
                f"There is no picture of section '{section}': uns['spatial'] has {', '.join(libraries)}."
                f"{closest(section, list(libraries))} Name the pictures as the sections are, and the sections with "
                "sample=."
            )
        found.append(_slide(name, libraries[name], cells, positions.points[cells, :2]))
    return found


def _libraries(data: Inputs) -> dict[str, Any]:
    pictures = data.adata.uns.get("spatial", {})
    return {str(name): library for name, library in pictures.items() if hasattr(library, "get")}


def _slide(name: str, library: dict[str, Any], cells: np.ndarray, points: np.ndarray) -> Slide:
    images, factors = library.get("images", {}), library.get("scalefactors", {})
    resolution = next((key for key in ("hires", "lowres") if key in images), None)
    if resolution is None:
        raise KeyMissingError(f"uns['spatial']['{name}']['images'] has neither 'hires' nor 'lowres'.")
    key = f"tissue_{resolution}_scalef"
    if key not in factors:
        raise DataError(
            f"The picture '{resolution}' of '{name}' has no scale factor, so nobody can tell where its cells lie: set "
            f"uns['spatial']['{name}']['scalefactors']['{key}'] to its pixels per unit of obsm['spatial']."
        )
    image, scale = _colours(np.asarray(images[resolution]), name), float(factors[key])
    where = points * scale
    outside = ((where < 0) | (where >= image.shape[1::-1])).any(axis=1).mean()
    if outside > MOST_OUTSIDE:
        raise DataError(
            f"{100 * outside:.0f} % of the cells of '{name}' lie outside its picture of {image.shape[1]} × "
            f"{image.shape[0]} pixels. Is the scale factor that of this picture, and are positions (x, y), x across?"
        )
    spot = float(factors.get("spot_diameter_fullres", np.nan)) * scale
    return Slide(name, cells, image, where, scale, spot)


def _colours(image: np.ndarray, name: str) -> np.ndarray:
    """Return red, green and blue as uint8."""
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] < 3:
        raise DataError(f"The picture of '{name}' has the shape {image.shape}; height × width × 3 colours is needed.")
    image = image[:, :, :3]
    if image.dtype != np.uint8:
        largest = float(image.max(initial=0))
        image = np.clip(np.rint(image * (255.0 if largest <= 1 else 1.0)), 0, 255).astype(np.uint8)
    return image


def window_means(slide: Slide, half: int) -> np.ndarray:
    """Return the mean colour of the square of 2 × `half` + 1 pixels around each cell, cut off at the border.

    Returns
    -------
    Shape (n_cells, 3), float64. Sums over squares are differences of one running sum, whatever their size.
    """
    height, width, _ = slide.image.shape
    total = np.zeros((height + 1, width + 1, 3))
    total[1:, 1:] = slide.image.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    place = np.rint(slide.where).astype(np.int64)
    x, y = np.clip(place[:, 0], 0, width - 1), np.clip(place[:, 1], 0, height - 1)
    left, right = np.maximum(x - half, 0), np.minimum(x + half + 1, width)
    top, bottom = np.maximum(y - half, 0), np.minimum(y + half + 1, height)
    sums = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return sums / ((right - left) * (bottom - top))[:, None]


def stain_intensity(slide: Slide, window: float) -> np.ndarray:
    """Return one number for the colour around each cell: channels weighed by their variance over cells.

    Parameters
    ----------
    slide
        Picture of a section.
    window
        Side of the square around a cell, in units of the positions.

    Returns
    -------
    Shape (n_cells,), float64, mean 0 and standard deviation 1; zeros where the picture is blank.

    References
    ----------
    As in SpaGCN: Hu et al. (2021), doi 10.1038/s41592-021-01255-8.
    """
    colours = window_means(slide, int(np.rint(window / 2 * slide.scale)))
    variance = colours.var(axis=0)
    if variance.sum() < 1e-12:
        return np.zeros(len(colours))
    grey = colours @ variance / variance.sum()
    return (grey - grey.mean()) / max(grey.std(), 1e-12)
