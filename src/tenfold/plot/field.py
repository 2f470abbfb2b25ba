"""Arrows of cells averaged on a regular grid, and the lines that follow them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from tenfold.errors import DataError

#: Points of the grid along each axis, at a density of 1.
GRID = 50
#: Percentage of the grid, where cells move least, that no streamline crosses.
SLOWEST = 5


class Field(NamedTuple):
    """Arrows on a grid.

    Attributes
    ----------
    x, y
        Where the columns and rows of the grid are, shapes (nx,) and (ny,).
    arrows
        Average arrow of each point, shape (ny, nx, 2).
    mass
        Number of cells around each point, each counted by its kernel, shape (ny, nx).
    speed
        Mean size of the arrows of the nearest cells, |x| + |y|, shape (ny, nx).
    """

    x: np.ndarray
    y: np.ndarray
    arrows: np.ndarray
    mass: np.ndarray
    speed: np.ndarray


def averaged(
    points: np.ndarray, arrows: np.ndarray, density: float = 1.0, smooth: float = 0.5, n_neighbors: int | None = None
) -> Field:
    """Average arrows over the cells around each point of a grid, by a Gaussian kernel, as scVelo does.

    Here a cell on the point counts as one, whatever the unit of the embedding; scVelo's kernel is a density, so that
    there lengths at the border, and where streams are cut off, change with the unit. Directions are the same.

    Parameters
    ----------
    points, arrows
        Of the cells, shape (n_cells, 2); cells with a missing value (NaN) are left out.
    density
        Of the grid: 1 has 50 × 50 points.
    smooth
        Standard deviation of the kernel, in steps of the grid.
    n_neighbors
        Nearest cells that a point is averaged over; None: a fiftieth of the cells.

    Raises
    ------
    DataError
        Fewer than two cells with coordinates and arrows, or all in one place.
    """
    told = np.isfinite(points).all(axis=1) & np.isfinite(arrows).all(axis=1)
    points, arrows = points[told].astype(np.float64), arrows[told].astype(np.float64)
    if len(points) < 2 or not (np.ptp(points, axis=0) > 0).all():
        raise DataError("There is nothing to average: fewer than two cells have coordinates of their own and an arrow.")
    low, high = points.min(axis=0), points.max(axis=0)
    low = low - 0.01 * (high - low)
    high = high + 0.01 * (high - low)
    x, y = (np.linspace(start, end, max(2, int(GRID * density))) for start, end in zip(low, high, strict=True))
    k = min(len(points), n_neighbors or max(1, len(points) // 50))
    scale = smooth * (x[1] - x[0] + y[1] - y[0]) / 2
    tree, rows = cKDTree(points), []
    for height in y:  # row by row: a fiftieth of a million cells around every point would not fit in memory
        distances, cells = tree.query(np.column_stack([x, np.full(len(x), height)]), k=[*range(1, k + 1)])
        weight = np.exp(-0.5 * (distances / scale) ** 2)
        mass = weight.sum(axis=1)
        mean = np.einsum("gk,gkd->gd", weight, arrows[cells]) / np.maximum(mass, 1)[:, None]
        rows.append((mean, mass, np.abs(arrows[cells]).mean(axis=1).sum(axis=1)))
    return Field(x, y, *(np.stack(part) for part in zip(*rows, strict=True)))


def crowded(field: Field, min_mass: float = 1.0) -> np.ndarray:
    """Return the points with enough cells around them, shape (ny, nx), bool.

    Parameters
    ----------
    field
        What `averaged` gives.
    min_mass
        Least number of cells, in percent of what the most crowded points have (their 99th percentile).
    """
    return field.mass > min_mass * np.percentile(field.mass, 99) / 100


def flowing(field: Field, min_mass: float = 1.0) -> np.ndarray:
    """Return the points that streamlines may cross, shape (ny, nx), bool.

    Parameters
    ----------
    field
        What `averaged` gives.
    min_mass
        The least length of an average arrow is 10 to the power of this less 6, as in scVelo; far from all cells
        averages fall below it. The 5 % of points whose nearest cells move least are left out, too.
    """
    length = np.linalg.norm(field.arrows, axis=2)
    least = min(10 ** (min_mass - 6), 0.9 * length.max())
    return (length >= least) & (field.speed >= np.percentile(field.speed, SLOWEST))


def streamlines(field: Field, min_mass: float = 1.0, density: float = 1.5) -> list[np.ndarray]:
    """Return lines that follow the arrows of a grid, each of shape (n_points, 2), first point first.

    Parameters
    ----------
    field
        What `averaged` gives.
    min_mass
        See `flowing`.
    density
        Of the lines; 1 allows one in each of 30 × 30 boxes.
    """
    from matplotlib.figure import Figure

    u, v = np.moveaxis(np.where(flowing(field, min_mass)[:, :, None], field.arrows, np.nan), 2, 0)
    drawn = Figure().add_subplot().streamplot(field.x, field.y, u, v, density=density, maxlength=4)
    return [np.asarray(line) for line in drawn.lines.get_segments()]
