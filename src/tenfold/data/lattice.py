"""Neighbours of spots that lie on a lattice, and those of cells that do not."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.spatial import Positions, spatial_graph, symmetrised
from tenfold.errors import KeyMissingError

Shape = Literal["hexagonal", "square", "none"]
#: Reach of neighbours in units of the spacing: beyond those of a lattice, short of its diagonals.
REACH = 1.25
#: Rows and columns from a spot to its neighbours, in the numbers of an array.
_STEPS = {
    "hexagonal": [(0, -2), (0, 2), (-1, -1), (-1, 1), (1, -1), (1, 1)], "square": [(-1, 0), (1, 0), (0, -1), (0, 1)],
}  # fmt: skip
_NEIGHBORS: dict[int, Shape] = {6: "hexagonal", 4: "square"}


class Lattice(NamedTuple):
    """Neighbours, and the shape that they were found to have.

    Attributes
    ----------
    graph
        Ones, symmetric, shape (n_cells, n_cells), CSR; blocks by section.
    shape
        ``"none"`` for cells that lie as they please: six nearest ones, made symmetric.
    """

    graph: sparse.csr_matrix
    shape: Shape


def lattice_of(data: Inputs, positions: Positions, shape: Shape | Literal["auto"] = "auto") -> Lattice:
    """Join spots with their neighbours on the lattice.

    Parameters
    ----------
    data
        Checked inputs. Columns ``array_row`` and ``array_col`` of obs are preferred to positions: they know nothing of
        scale or rotation.
    positions
        Of the cells.
    shape
        ``"hexagonal"`` (Visium), ``"square"`` (Spatial Transcriptomics, Visium HD), ``"none"``, or ``"auto"``: by the
        array (a hexagonal one has even sums of row and column only), else by the number of neighbours most spots have.

    Raises
    ------
    KeyMissingError
        One of the two columns is missing.
    """
    array = _array(data)
    if shape != "none" and array is not None:
        found: Shape = shape if shape != "auto" else ("hexagonal" if (array.sum(axis=1) % 2 == 0).all() else "square")
        return Lattice(_by_array(array, positions, _STEPS[found]), found)
    near = spatial_graph(positions, "radius", radius=REACH)
    most = int(np.bincount(near.getnnz(axis=1)).argmax())
    lies: Shape = _NEIGHBORS.get(most, "none") if shape == "auto" else shape
    return Lattice(symmetrised(spatial_graph(positions, "knn", 6)) if lies == "none" else near, lies)


def _array(data: Inputs) -> np.ndarray | None:
    """Return row and column of each spot, (n_cells, 2), or None."""
    columns = [name for name in ("array_row", "array_col") if name in data.adata.obs]
    if len(columns) == 1:
        raise KeyMissingError(f"obs has '{columns[0]}' but not the other of array_row and array_col; add or drop it.")
    if not columns:
        return None
    array = data.adata.obs[["array_row", "array_col"]].to_numpy(dtype=np.float64)
    return np.rint(array).astype(np.int64) if np.isfinite(array).all() else None


def _by_array(array: np.ndarray, positions: Positions, steps: list[tuple[int, int]]) -> sparse.csr_matrix:
    """Join spots a step apart, section by section, by searching their numbers."""
    n = len(array)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for cells in positions.each():
        place = array[cells] - array[cells].min(axis=0) + 2  # room for a step beyond the border
        width = int(place[:, 1].max()) + 3
        key = place[:, 0] * width + place[:, 1]
        order = np.argsort(key)
        for down, right in steps:
            wanted = key + down * width + right
            at = np.minimum(np.searchsorted(key[order], wanted), len(cells) - 1)
            hit = key[order][at] == wanted
            rows.append(cells[hit])
            columns.append(cells[order[at[hit]]])
    row, column = np.concatenate(rows), np.concatenate(columns)
    return sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(n, n))
