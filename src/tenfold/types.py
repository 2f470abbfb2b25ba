"""Small types shared by all floors. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from scipy import sparse

    Matrix = np.ndarray | sparse.csr_matrix

Task = Literal[
    "embed", "domains", "annotate", "integrate", "denoise", "generate",
    "deconvolve", "communicate", "map", "multiome", "velocity",
]  # fmt: skip
Readiness = Literal["recommended", "usable", "caution", "research"]
Evidence = Literal["parity", "published", "check", "none"]


class Codes(NamedTuple):
    """A categorical column as integer codes.

    Attributes
    ----------
    values
        Integer codes, shape (n_cells,), int32, each in ``range(len(names))``.
    names
        The level that each code stands for.
    """

    values: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class RunOptions:
    """How one ``fit`` is carried out, as opposed to what it computes.

    Attributes
    ----------
    progress
        Show a progress bar on work that takes over a second.
    checkpoint
        Folder in which training state is kept, and from which an interrupted training resumes.
    """

    progress: bool = True
    checkpoint: str | None = None
