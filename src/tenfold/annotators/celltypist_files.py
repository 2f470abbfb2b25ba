"""Models of the CellTypist package read from its pickles, without running anything that a pickle asks for.

A pickle may name any function to be called on loading. Here only NumPy's arrays are rebuilt; classes of scikit-learn
become holders of their attributes; any other name is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tenfold.errors import FileFormatError

_ARRAYS = {
    ("numpy", "ndarray"), ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
}  # fmt: skip


class LinearModel(NamedTuple):
    """A model of one label against the rest on scaled genes.

    Attributes
    ----------
    genes, labels
        Names, shapes (n_genes,) and (n_labels,).
    weights, offsets
        Of scaled genes, shapes (n_labels, n_genes) and (n_labels,), or of one row where there are two labels.
    mean, scale
        Of each gene's log-expression, shape (n_genes,).
    """

    genes: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


class _Holder:
    """Keeps the attributes of an object whose class is not loaded."""

    def __init__(self, *args: Any) -> None:
        """Take what the class would have been called with, and do nothing."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return super().find_class(module, name)
        if module.partition(".")[0] == "sklearn" and "." not in name:
            return type(name, (_Holder,), {})
        raise FileFormatError(
            f"The file asks for '{module}.{name}', which no CellTypist model needs. Opened in the usual way it could "
            "run programs on this machine: do not trust it."
        )


def read_celltypist(path: str | Path) -> LinearModel:
    """Read a model that the CellTypist package has written or downloaded (.pkl).

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Its numbers and names.

    Raises
    ------
    FileFormatError
        No such file, not a pickle of a CellTypist model, or one that asks for more than arrays and scikit-learn's
        linear models.

    References
    ----------
    Domínguez Conde et al. (2022), doi 10.1126/science.abl5197.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"There is no file '{path}'.")
    try:
        with path.open("rb") as file:
            found = _Reader(file).load()
    except FileFormatError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise FileFormatError(f"'{path}' is not a CellTypist model, or it is damaged ({error}).") from error
    model, scaler = (found.get(key) if isinstance(found, dict) else None for key in ("Model", "Scaler_"))
    try:
        genes = getattr(model, "features", None)
        read = LinearModel(
            np.asarray(getattr(scaler, "feature_names_in_", None) if genes is None else genes, dtype=object),
            np.asarray(model.classes_, dtype=object),
            *(np.asarray(part, dtype=np.float64) for part in (model.coef_, model.intercept_)),
            np.asarray(scaler.mean_, dtype=np.float64) * bool(getattr(scaler, "with_mean", True)),
            np.asarray(scaler.scale_, dtype=np.float64),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise FileFormatError(f"'{path}' holds no CellTypist model: {error}.") from error
    n_genes, rows = len(read.genes), len(read.labels) if len(read.labels) > 2 else 1
    shapes = (read.weights.shape, read.offsets.shape, read.mean.shape, read.scale.shape)
    if shapes != ((rows, n_genes), (rows,), (n_genes,), (n_genes,)) or len(read.labels) < 2:
        raise FileFormatError(
            f"'{path}' is damaged: the sizes of its parts do not fit {n_genes} genes and {len(read.labels)} labels."
        )
    return read
