"""What one unit of positions is: pixels and micrometres told apart by what the data say of themselves."""

from __future__ import annotations

import warnings
from typing import Any

from anndata import AnnData

#: Visium and its forerunner: diameter of a spot, as scale factors count it (Space Ranger's is of a theoretical spot of
#: 65 µm), and distance between spots, in micrometres.
ARRAYS = ((65.0, 100.0), (100.0, 200.0))
#: How far the distance between spots may be from that of an array.
_TOLERANCE = 0.12
#: Words for a micrometre in ``uns["spatial_unit"]``.
_MICROMETRES = {"um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"}


def unit_of(adata: AnnData, spacing: float) -> str:
    """Return what one unit of the positions is, as far as the data tell.

    ``uns["spatial_unit"]`` is believed (``"micrometre"``, ``"pixel"``). Else scale factors tell the size of a pixel: by
    ``microns_per_pixel``, or by the diameter of a spot, if the distance between spots is then that of a known array; if
    it is that of an array without them, positions are micrometres. Spots of an array (obs ``array_row``) are recognised
    by their distance alone only where it is 100 or 200.

    Warns
    -----
    UserWarning
        Scale factors and positions do not fit together.
    """
    pixel, size = None, None
    for library in _libraries(adata):
        factors = library.get("scalefactors", {})
        if "microns_per_pixel" in factors:
            pixel = float(factors["microns_per_pixel"])
        elif "spot_diameter_fullres" in factors:
            size = float(factors["spot_diameter_fullres"])
    stated = str(adata.uns.get("spatial_unit", "")).strip().lower()
    if stated in _MICROMETRES:
        return "micrometre"
    if stated and not stated.startswith("pixel"):
        return stated
    if pixel is not None:
        return f"pixel of {pixel:.2g} µm"
    if size is not None:
        return _unit_by_spots(size, spacing)
    by_pitch = "array_row" in adata.obs and any(abs(spacing / pitch - 1) < 0.02 for _, pitch in ARRAYS)
    return "pixel" if stated else "micrometre" if by_pitch else "unknown unit"


def _libraries(adata: AnnData) -> list[Any]:
    found = adata.uns.get("spatial", {})
    return [entry for entry in found.values() if hasattr(entry, "get")] if hasattr(found, "values") else []


def _unit_by_spots(size: float, spacing: float) -> str:
    """Tell pixels from micrometres by what the diameter of a spot in pixels makes of the distance between spots."""
    for diameter, pitch in ARRAYS:
        if abs(spacing * diameter / size / pitch - 1) < _TOLERANCE:
            return f"pixel of {pitch / spacing:.2g} µm"
    if any(abs(spacing / pitch - 1) < _TOLERANCE for _, pitch in ARRAYS):
        return "micrometre"
    warnings.warn(
        f"The scale factors say that a spot is {size:.4g} pixels across, and the nearest spots lie {spacing:.4g} "
        "apart: that is the lattice of no known array, in pixels or micrometres. Were positions or scale factors "
        "rescaled? Methods work in units of the distance between neighbours, so that domains do not depend on it.",
        stacklevel=5,
    )
    return "unknown unit"
