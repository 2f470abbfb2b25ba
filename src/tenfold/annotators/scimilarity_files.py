"""Encoders of the SCimilarity package read from its folders: arrays and names, nothing that a pickle asks for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tenfold.errors import FileFormatError

if TYPE_CHECKING:
    from torch import Tensor

NEEDED = ("encoder.ckpt", "gene_order.tsv")


class OfficialEncoder(NamedTuple):
    """What a folder holds: genes in their order, widths of hidden and last layer, and weights by name."""

    genes: np.ndarray
    widths: tuple[int, ...]
    n_latent: int
    weights: dict[str, Tensor]


def read_scimilarity(folder: str | Path) -> OfficialEncoder:
    """Read ``encoder.ckpt`` and ``gene_order.tsv`` of a model that the SCimilarity package has written.

    Parameters
    ----------
    folder
        The model's folder. Its decoder, its labels and its search indices are not read.

    Returns
    -------
    Genes, widths and weights.

    Raises
    ------
    FileFormatError
        A file is missing or damaged, holds more than arrays, or weights and genes do not fit together.

    References
    ----------
    Heimberg et al. (2025), doi 10.1038/s41586-024-08411-y.
    """
    folder = Path(folder)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise FileFormatError(f"'{folder}' has no file '{name}'; give the folder of an SCimilarity model.")
    lines = (folder / "gene_order.tsv").read_text().splitlines()
    genes = np.array([line.strip() for line in lines if line.strip()], dtype=object)
    weights = _weights(folder / "encoder.ckpt")
    shapes = [tuple(weights[name].shape) for name in _linear(weights, folder)]
    fits = all(before[0] == after[1] for before, after in pairwise(shapes))
    if not fits or shapes[0][1] != len(genes):
        raise FileFormatError(
            f"The encoder in '{folder}' has layers of shapes {shapes}, which do not fit each other or the "
            f"{len(genes):,} genes of gene_order.tsv. Are both files of the same model?"
        )
    return OfficialEncoder(genes, tuple(shape[0] for shape in shapes[:-1]), shapes[-1][0], weights)


def _weights(path: Path) -> dict[str, Any]:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged archive, or one that holds more than arrays, raises
        raise FileFormatError(
            f"'{path}' is damaged, or holds more than arrays, which is not read ({error})."
        ) from error
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise FileFormatError(f"'{path}' has no 'state_dict' of arrays; it is not an encoder of SCimilarity.")
    return dict(state)


def _linear(weights: dict[str, Any], folder: Path) -> list[str]:
    """Return the names of the weights of linear layers in their order; all other parts of each must be there."""
    hidden: list[str] = []
    while f"network.{len(hidden)}.1.weight" in weights:
        at = f"network.{len(hidden)}"
        parts = ["1.bias", *(f"2.{part}" for part in ("weight", "bias", "running_mean", "running_var")), "3.weight"]
        missing = [f"{at}.{part}" for part in parts if f"{at}.{part}" not in weights]
        if missing:
            raise FileFormatError(f"The encoder in '{folder}' lacks {', '.join(missing)}.")
        hidden.append(f"{at}.1.weight")
    last = f"network.{len(hidden)}.weight"
    if not hidden or last not in weights:
        raise FileFormatError(f"The encoder in '{folder}' has no layers named as in SCimilarity (e.g. '{last}').")
    return [*hidden, last]
