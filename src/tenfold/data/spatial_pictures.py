"""Pictures of a SpatialData store, and the scale by which cells lie in them, in Scanpy's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tenfold.errors import FileFormatError

#: Pixels along the longer side of the resolution that is read, where a picture has one that small.
LONGEST = 2000
#: Deviation from one scale in both directions, and pixels of shift, that rounding may make.
STRETCH, SHIFT = 0.01, 1.0


class Candidate(NamedTuple):
    """A picture of a region: its name in the store, and the way from positions to its pixels, a 3 × 3 matrix."""

    name: str
    pixels: np.ndarray


def pictures_of(path: Path, regions: pd.Series) -> tuple[dict[str, Any], list[str]]:
    """Read a picture of each region of the cells.

    Parameters
    ----------
    path
        The store.
    regions
        Name of the element (shapes or labels) that each cell is in, as the table has it.

    Returns
    -------
    What goes into ``uns["spatial"]``: for each region ``images`` (``"hires"``) and ``scalefactors``; and a sentence for
    each region without a picture that says why.
    """
    found, missing = {}, []
    names = [str(name) for name in pd.unique(regions)]
    for region in names:
        try:
            found[region] = _library(path, region, alone=len(names) == 1)
        except FileFormatError as error:
            missing.append(f"'{region}': {error}")
    return found, missing


def _library(path: Path, region: str, alone: bool) -> dict[str, Any]:
    """Read the picture of a region that is nearest to `LONGEST` pixels."""
    candidates = _candidates(path, region)
    if not alone and len(candidates) > 1:
        own = [one for one in candidates if one.name.startswith(region)]
        if not own:
            raise FileFormatError(f"which of the pictures {_listed(candidates)} is its own, the store does not say")
        candidates = own
    levels, reasons = [], []
    for one in candidates:
        try:
            levels += [(level, shrink, one) for level, shrink in _levels(path / "images" / one.name)]
        except FileFormatError as error:
            reasons.append(f"'{one.name}' {error}")
    if not levels:
        raise FileFormatError("; ".join(reasons))
    sides = np.array([max(level.shape[1:]) for level, _, _ in levels])
    fits = np.flatnonzero(sides <= LONGEST)
    level, shrink, chosen = levels[fits[sides[fits].argmax()] if len(fits) else sides.argmin()]
    # Where only the full resolution is stored, every so many pixels are enough.
    step = -(-max(level.shape[1:]) // (2 * LONGEST))
    scale = _scale(np.diag([1 / shrink, 1 / shrink, 1]) @ chosen.pixels, chosen.name) / step
    image = np.moveaxis(np.asarray(level[:, ::step, ::step]), 0, -1)
    image = image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3]
    return {"images": {"hires": image}, "scalefactors": {"tissue_hires_scalef": scale}}


def _candidates(path: Path, region: str) -> list[Candidate]:
    """Return the pictures that share a frame with a region.

    Raises
    ------
    FileFormatError
        The region is not in the store, or there is none.
    """
    element = next((path / kind / region for kind in ("shapes", "labels") if (path / kind / region).is_dir()), None)
    if element is None:
        raise FileFormatError("the store has no shapes or labels of this name, so nothing says where its cells lie")
    frames = _frames(element)
    found = []
    for picture in sorted(entry for entry in (path / "images").iterdir() if entry.is_dir()):
        for frame, to_frame in _frames(picture).items():
            if frame in frames:
                found.append(Candidate(picture.name, np.linalg.inv(to_frame) @ frames[frame]))
                break
    if not found:
        raise FileFormatError("no picture shares a coordinate system with it")
    return found


def _frames(element: Path) -> dict[str, np.ndarray]:
    """Return the matrix from x and y of an element to each coordinate system; those of other kinds are left out."""
    attributes = _attributes(element)
    steps = attributes.get("coordinateTransformations") or _scales(attributes).get("coordinateTransformations", [])
    found = {}
    for step in steps:
        matrix = _matrix(step, ["x", "y"])
        if matrix is not None and abs(np.linalg.det(matrix)) > 0:
            found[str(step.get("output", {}).get("name"))] = matrix
    return found


def _attributes(element: Path) -> dict[str, Any]:
    import zarr

    attributes: dict[str, Any] = dict(zarr.open_group(element, mode="r").attrs)
    return {**attributes, **attributes.get("ome", {})}


def _scales(attributes: dict[str, Any]) -> dict[str, Any]:
    return (attributes.get("multiscales") or [{}])[0]


def _matrix(step: dict[str, Any], axes: list[str]) -> np.ndarray | None:
    """Return a transformation of NGFF as a matrix on (x, y, 1); None for kinds that are no matrix."""
    axes = [axis["name"] for axis in step.get("input", {}).get("axes", [])] or axes
    if not {"x", "y"} <= set(axes):
        return None
    at = [axes.index("x"), axes.index("y")]
    matrix, kind = np.eye(3), step.get("type")
    if kind == "scale":
        matrix[[0, 1], [0, 1]] = np.asarray(step["scale"], dtype=float)[at]
    elif kind == "translation":
        matrix[:2, 2] = np.asarray(step["translation"], dtype=float)[at]
    elif kind == "affine":
        given = np.asarray(step["affine"], dtype=float)
        after = [axis["name"] for axis in step.get("output", {}).get("axes", [])] or axes
        matrix[:2] = given[np.ix_([after.index("x"), after.index("y")], [*at, given.shape[1] - 1])]
    elif kind == "sequence":
        for part in step["transformations"]:
            further = _matrix(part, axes)
            if further is None:
                return None
            matrix = further @ matrix
    elif kind != "identity":
        return None
    return matrix


def _levels(picture: Path) -> list[tuple[Any, float]]:
    """Return the resolutions of a picture, colours first, and by how much each is smaller.

    Raises
    ------
    FileFormatError
        It has other axes, or holds no colours.
    """
    import zarr

    scales = _scales(_attributes(picture))
    axes = [axis["name"] for axis in scales.get("axes", [])]
    if axes != ["c", "y", "x"]:
        raise FileFormatError(f"has the axes {', '.join(axes) or 'of no picture'}, and c, y, x are needed")
    found = []
    for level in scales["datasets"]:
        array = zarr.open_array(picture / level["path"], mode="r")
        if array.shape[0] not in (1, 3, 4) or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
            raise FileFormatError(
                f"has {array.shape[0]} channels of {array.dtype}; red, green and blue of 8 bits (or grey) are needed"
            )
        steps = [step["scale"] for step in level.get("coordinateTransformations", []) if step.get("type") == "scale"]
        found.append((array, float(steps[0][2]) if steps else 1.0))
    return found


def _scale(pixels: np.ndarray, name: str) -> float:
    """Return pixels per unit of the positions.

    Raises
    ------
    FileFormatError
        The picture is turned, stretched or shifted against the positions, which Scanpy's form cannot say.
    """
    across, down = pixels[0, 0], pixels[1, 1]
    turned = max(abs(pixels[0, 1]), abs(pixels[1, 0]))
    if across <= 0 or max(turned, abs(across - down)) > STRETCH * across or np.abs(pixels[:2, 2]).max() > SHIFT:
        raise FileFormatError(
            f"'{name}' is turned, stretched or shifted against obsm['spatial'], and only a scale can be kept; bring "
            "both into one frame with spatialdata.transform first"
        )
    return float((across + down) / 2)


def _listed(candidates: list[Candidate]) -> str:
    return ", ".join(f"'{one.name}'" for one in candidates)
