"""Networks that turn the picture around a cell into numbers, with weights that the user has; nothing is downloaded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.errors import DataError, FileFormatError, MissingExtraError

if TYPE_CHECKING:
    from tenfold.data.images import Slide

#: Mean and standard deviation of red, green and blue in ImageNet, that pictures are standardised by.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Pictures with smaller spots, in pixels, show no cells.
SMALLEST_SPOT = 50.0
BATCH = 32


@dataclass(frozen=True)
class Spec:
    """A network of timm: its name there, and what its constructor is told."""

    model: str
    options: dict[str, Any]


#: Networks by short names; others are named as timm does.
SPECS = {
    "uni": Spec("vit_large_patch16_224", {"img_size": 224, "patch_size": 16, "init_values": 1e-5,
                                          "dynamic_img_size": True}),
    "uni2-h": Spec("vit_giant_patch14_224", {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24,
                                             "init_values": 1e-5, "embed_dim": 1536, "mlp_ratio": 5.33334,
                                             "no_embed_class": True, "mlp_layer": "SwiGLUPacked", "act_layer": nn.SiLU,
                                             "reg_tokens": 8, "dynamic_img_size": True}),
}  # fmt: skip


class ImageEncoder:
    """A network from pictures (batch, 3, size, size) to numbers (batch, width), and how it is fed.

    Parameters
    ----------
    network
        Any module; it is put in evaluation mode.
    size
        Side of the pictures it takes, in pixels.
    spots
        Side of the square around a cell, in spots.

    References
    ----------
    UNI: Chen et al. (2024), doi 10.1038/s41591-024-02857-3.
    """

    def __init__(self, network: nn.Module, size: int = 224, spots: float = 1.0):
        self.network, self.size, self.spots = network.eval(), size, spots

    @classmethod
    def from_timm(cls, name: str, weights: str | Path, size: int = 224, spots: float = 1.0) -> ImageEncoder:
        """Build a network of timm with weights from a file.

        Parameters
        ----------
        name
            ``"uni"``, ``"uni2-h"``, or a name of timm, such as ``"resnet50"``.
        weights
            A ``.safetensors`` file, or one of torch that holds tensors only.
        size, spots
            As in the constructor.

        Raises
        ------
        MissingExtraError
            timm is not installed.
        FileFormatError
            There is no such file, or its weights are not those of the network.
        """
        path = Path(weights)
        if not path.is_file():
            raise FileFormatError(
                f"There are no weights at {path}; they are not downloaded. Get them from their owner."
            )
        try:
            import timm
        except ImportError as error:
            raise MissingExtraError("Picture networks need timm: pip install 'tenfold[images]'.") from error
        spec = SPECS.get(name, Spec(name, {}))
        options = dict(spec.options)
        if isinstance(options.get("mlp_layer"), str):
            options["mlp_layer"] = getattr(timm.layers, options["mlp_layer"])
        network = timm.create_model(spec.model, pretrained=False, num_classes=0, **options)
        try:
            network.load_state_dict(_read(path), strict=True)
        except RuntimeError as error:
            raise FileFormatError(f"{path.name} does not hold the weights of '{name}': {error}") from error
        return cls(network, size, spots)

    @torch.inference_mode()
    def features(self, slide: Slide) -> np.ndarray:
        """Return the numbers of each cell of a section, shape (n_cells, width), float32.

        Raises
        ------
        DataError
            Scale factors do not tell the diameter of a spot.

        Warns
        -----
        UserWarning
            A spot is so few pixels wide that no cells can be seen.
        """
        if not np.isfinite(slide.spot):
            raise DataError(f"The scale factors of '{slide.library}' have no 'spot_diameter_fullres'.")
        if slide.spot < SMALLEST_SPOT:
            warnings.warn(
                f"A spot is {slide.spot:.0f} pixels wide in the picture of '{slide.library}': numbers of a network "
                "trained on cells mean little there. Give the picture in full resolution.",
                stacklevel=2,
            )
        half = max(round(self.spots * slide.spot / 2), 1)
        padded = np.pad(slide.image, ((half, half), (half, half), (0, 0)), mode="edge")
        height, width = slide.image.shape[:2]
        place = np.clip(np.rint(slide.where).astype(np.int64), 0, [width - 1, height - 1])
        found = [self._batch(padded, place[at : at + BATCH], half) for at in range(0, len(place), BATCH)]
        return torch.cat(found).float().numpy()

    def _batch(self, padded: np.ndarray, place: np.ndarray, half: int) -> Tensor:
        crops = np.stack([padded[y : y + 2 * half + 1, x : x + 2 * half + 1] for x, y in place])
        pictures = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
        pictures = F.interpolate(pictures, (self.size, self.size), mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return self.network((pictures - mean) / deviation)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
