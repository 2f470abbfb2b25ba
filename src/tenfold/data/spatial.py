"""Positions of spots and cells in tissue, and graphs of those that lie side by side.

Distances are in units of the spacing, the median distance to the nearest neighbour, so that no number depends on
whether positions are pixels, micrometres or anything else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from anndata import AnnData
from scipy import sparse
from scipy.spatial import Delaunay, QhullError, cKDTree

from tenfold.data.inputs import Inputs
from tenfold.data.spatial_unit import unit_of
from tenfold.errors import DataError, KeyMissingError, closest
from tenfold.kernels.knn import drop_self, knn
from tenfold.types import Codes

#: So many cells may share a position with another, as rounding makes them; above, the positions are wrong.
MOST_SHARED = 0.25
GraphKind = Literal["knn", "radius", "delaunay"]


class Positions(NamedTuple):
    """Where cells lie.

    Attributes
    ----------
    points
        Coordinates, shape (n_cells, 2 or 3), float64.
    sections
        Section (sample) of each cell; one where none were given.
    spacing
        Median distance of a cell to its nearest neighbour in the section, in the unit of `points`.
    unit
        What one unit is: ``"micrometre"`` or ``"pixel of 0.51 µm"`` where the data tell it, else ``"unknown unit"``.
    """

    points: np.ndarray
    sections: Codes
    spacing: float
    unit: str

    def each(self) -> list[np.ndarray]:
        """Return the rows of every section."""
        return [np.flatnonzero(self.sections.values == code) for code in range(len(self.sections.names))]


def positions_of(data: Inputs) -> Positions:
    """Take and check the positions of the cells of a fit.

    Parameters
    ----------
    data
        Checked inputs; role ``spatial`` names the obsm key (default ``"spatial"``), ``sample`` the obs column with
        the section of each cell.

    Raises
    ------
    KeyMissingError
        There are no positions.
    DataError
        Positions are not numbers in two or three columns, or many cells of a section share a position.

    Warns
    -----
    UserWarning
        Sections lie interleaved in one frame: they may be a single one. Some cells share a position.
    """
    points = _points(data.adata, data.roles.get("spatial", "spatial"))
    sections = Codes(np.zeros(data.n_cells, dtype=np.int32), ["all"])
    if "sample" in data.roles:
        sections = data.categorical("sample")[0]
    _refuse_repeated(points, sections, "sample" in data.roles)
    nearest = np.full(data.n_cells, np.nan)
    for code in range(len(sections.names)):
        rows = np.flatnonzero(sections.values == code)
        if len(rows) > 1:
            nearest[rows] = nearest_cells(points[rows], 1)[1][:, 0]
    if np.isnan(nearest).all():
        raise DataError("Every section has a single cell, so no cell has a neighbour; is sample= the right column?")
    spacing = float(np.nanmedian(nearest))
    _warn_of_interleaved(points, sections, spacing)
    return Positions(points, sections, spacing, unit_of(data.adata, spacing))


def _points(adata: AnnData, key: str) -> np.ndarray:
    if key not in adata.obsm:
        columns = [name for name in adata.obs if str(name).lower() in ("x", "y", "array_row", "array_col")]
        hint = f" obs has the columns {', '.join(map(str, columns))}: put them there." if len(columns) > 1 else ""
        raise KeyMissingError(
            f"There are no positions: obsm has no '{key}'.{closest(key, list(adata.obsm))}{hint} Name the obsm key "
            "with spatial=, or set it: adata.obsm['spatial'] = adata.obs[['x', 'y']].to_numpy()."
        )
    points = np.asarray(adata.obsm[key])
    if points.ndim != 2 or points.shape[1] not in (2, 3) or points.dtype.kind not in "iuf":
        raise DataError(
            f"obsm['{key}'] has the shape {points.shape} and holds {points.dtype}; positions are numbers in two or "
            "three columns (x, y or x, y, z)."
        )
    points = points.astype(np.float64)
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points).all(axis=1)).sum())
        raise DataError(f"obsm['{key}'] is missing (NaN) or infinite in {bad:,} cells; leave these cells out.")
    return points


def _refuse_repeated(points: np.ndarray, sections: Codes, told: bool) -> None:
    full = np.column_stack([sections.values, points])
    _, place, size = np.unique(full, axis=0, return_inverse=True, return_counts=True)
    n_shared = int((size[place] > 1).sum())
    if not n_shared:
        return
    found = f"{n_shared:,} of {len(full):,} cells share their position with another of their section"
    if n_shared > MOST_SHARED * len(full):
        cause = (
            "Was every cell read twice? Keep one of each."
            if told
            else "If these are several sections in one frame, name the obs column that tells them apart with sample=."
        )
        raise DataError(f"{found}. {cause}")
    warnings.warn(f"{found}: positions were rounded, or some cells are there twice.", stacklevel=4)


def _warn_of_interleaved(points: np.ndarray, sections: Codes, spacing: float) -> None:
    """Warn where cells of other sections are among those of a section and keep their distance, as cells of one do.

    Sections that share a frame lie over each other, too, but there a cell may fall right beside one of another.
    """
    if len(sections.names) < 2:
        return
    neighbors, distances = (found[:, 0] for found in nearest_cells(points, 1))
    foreign = sections.values[neighbors] != sections.values
    share = float(foreign.mean())
    if share > 0.3 and float((distances[foreign] < 0.3 * spacing).mean()) < 0.05:
        warnings.warn(
            f"{100 * share:.0f} % of the cells have a cell of another sample as their nearest neighbour, none of "
            "them closer than cells of one section are: these look like one section given as several. Sections are not "
            "joined; leave sample= out if they are one.",
            stacklevel=4,
        )


# ---- graphs ----------------------------------------------------------------------------------------------------------


def spatial_graph(
    positions: Positions, kind: GraphKind = "knn", n_neighbors: int = 6, radius: float = 1.5
) -> sparse.csr_matrix:
    """Join each cell with those around it in its section.

    Parameters
    ----------
    positions
        Of the cells.
    kind
        ``"knn"``: the nearest `n_neighbors` (directed). ``"radius"``: all within `radius`. ``"delaunay"``: those that
        share an edge of the triangulation and lie within `radius` × 2.
    n_neighbors
        Of ``"knn"``; fewer where a section has fewer cells.
    radius
        In units of the spacing; 1.5 reaches the six neighbours of a Visium spot.

    Returns
    -------
    Ones, shape (n_cells, n_cells), float32, without the cells themselves; blocks by section.

    Warns
    -----
    UserWarning
        Cells without a neighbour, or a graph in many pieces.
    """
    join: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
        "knn": lambda points: _nearest(points, n_neighbors),
        "radius": lambda points: _within(points, radius * positions.spacing),
        "delaunay": lambda points: _triangulated(points, 2 * radius * positions.spacing),
    }
    n = len(positions.points)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for cells in positions.each():
        if len(cells) > 1:
            first, second = join[kind](positions.points[cells])
            rows.append(cells[first])
            columns.append(cells[second])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = sparse.csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(n, n))
    graph.sum_duplicates()
    graph.data[:] = 1
    _warn_of_pieces(graph, positions)
    return graph


def joined_sections(graph: sparse.csr_matrix, positions: Positions, n_neighbors: int) -> sparse.csr_matrix:
    """Add edges to the nearest cells of other sections, which must have been aligned to one frame.

    Parameters
    ----------
    graph
        Of each section, as `spatial_graph` gives it.
    positions
        Of the cells.
    n_neighbors
        Nearest cells, among those of all other sections, that each cell is joined with.

    Raises
    ------
    DataError
        There is a single section.
    """
    sections = positions.each()
    if len(sections) < 2:
        raise DataError("There is a single section, so there are none to join; name the sections with sample=.")
    parts = [graph]
    for cells in sections:
        others = np.setdiff1d(np.arange(len(positions.points)), cells)
        near = others[knn(positions.points[cells], positions.points[others], min(n_neighbors, len(others)))[0]]
        edges = (np.ones(near.size, np.float32), (np.repeat(cells, near.shape[1]), near.ravel()))
        parts.append(sparse.csr_matrix(edges, shape=graph.shape))
    return sparse.csr_matrix(sum(parts))


def nearest_cells(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` nearest other points of each point, nearest first, and their distances, each (n, k)."""
    return drop_self(*knn(points, k=k + 1))


def _nearest(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    neighbors, _ = nearest_cells(points, min(k, len(points) - 1))
    return np.repeat(np.arange(len(points)), neighbors.shape[1]), neighbors.ravel()


def _within(points: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    pairs = cKDTree(points).query_pairs(radius, output_type="ndarray")
    return np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])


def _triangulated(points: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray]:
    try:
        simplices = Delaunay(points).simplices
    except QhullError as error:
        raise DataError(
            "The positions of a section cannot be triangulated: they lie on a line. Use graph='knn'."
        ) from error
    corners = simplices.shape[1]
    pairs = np.concatenate([simplices[:, [i, j]] for i in range(corners) for j in range(corners) if i != j])
    pairs = np.unique(pairs, axis=0)
    near = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) <= longest
    return pairs[near, 0], pairs[near, 1]


def _warn_of_pieces(graph: sparse.csr_matrix, positions: Positions) -> None:
    lonely = int((graph.getnnz(axis=1) == 0).sum())
    n_pieces, piece = sparse.csgraph.connected_components(graph, directed=False)
    largest = np.bincount(piece).max() / len(piece)
    n_sections = len(positions.sections.names)
    if lonely > 0.05 * len(piece) or (n_pieces > 10 * n_sections and largest < 0.9 / n_sections):
        warnings.warn(
            f"The spatial graph is in {n_pieces:,} pieces, and {lonely:,} cells have no neighbour: little can be "
            "learnt from space there. Raise n_neighbors or the radius, and look whether positions of several sections "
            "were given in one frame.",
            stacklevel=4,
        )


def symmetrised(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the graph with every edge in both directions."""
    return sparse.csr_matrix(graph.maximum(graph.T))


def averaging(graph: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the matrix that replaces each cell by the mean of itself and its neighbours; rows sum to 1."""
    with_self = sparse.csr_matrix(graph + sparse.identity(graph.shape[0], dtype=np.float32, format="csr"))
    degree = np.asarray(with_self.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags_array(1 / degree) @ with_self, dtype=np.float32)


def normalised(graph: sparse.csr_matrix, self_loops: Literal["before", "after"] = "before") -> sparse.csr_matrix:
    """Return D^-½ A D^-½ of a symmetric graph, with the identity added to A before, or to the result after."""
    identity = sparse.identity(graph.shape[0], dtype=np.float32, format="csr")
    a = graph + identity if self_loops == "before" else graph
    degree = np.asarray(a.sum(axis=1)).ravel()
    scale = sparse.diags_array(1 / np.sqrt(np.maximum(degree, 1e-12)))
    out = scale @ a @ scale
    return sparse.csr_matrix(out if self_loops == "before" else out + identity, dtype=np.float32)
