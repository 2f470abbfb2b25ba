"""What methods share that look at the picture of the tissue: whether to, and what they see in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tenfold.data.image_features import default_features, morphology
from tenfold.data.images import Slide, has_pictures
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions
from tenfold.errors import ParameterError

Histology = Literal["auto", "yes", "no"]


def seen(
    data: Inputs, positions: Positions, histology: Histology, network: str | None, weights: str | None, without: str,
    features: Callable[[Slide], Any] = default_features,
) -> np.ndarray | None:  # fmt: skip
    """Return components of picture features, shape (n_cells, n_components), or None where no picture is looked at.

    Parameters
    ----------
    data, positions
        Of the cells.
    histology
        ``"auto"`` looks at a picture where there is one, and warns where there is none.
    network, weights
        Network of timm and the file of its weights; None for features that need neither.
    without
        What the method does without a picture, for the warning.
    features
        What is looked at where no network is named.
    """
    if (network is None) != (weights is None):
        raise ParameterError("network= and weights= belong together: a name of timm, and the file of its weights.")
    if histology == "no":
        return None
    if histology == "auto" and not has_pictures(data):
        warnings.warn(f"There is no picture in uns['spatial']: {without}.", stacklevel=5)
        return None
    if network is None or weights is None:
        return morphology(data, positions, features)
    from tenfold.nn.image_encoder import ImageEncoder

    return morphology(data, positions, ImageEncoder.from_timm(network, weights).features)
