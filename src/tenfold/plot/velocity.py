"""Velocities in an embedding: arrows on a grid, and streamlines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.data.check import representation
from tenfold.errors import DataError, KeyMissingError, ParameterError, closest
from tenfold.plot.colours import dot_size, explain, scatter, values_of
from tenfold.plot.field import Field, averaged, crowded, flowing

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from tenfold.velocity_models.base import VelocityMethod

#: Length of the longest arrows (95th percentile) in steps of the grid.
LONGEST = 1.6
INK = "#1b2026"


def velocity_stream(
    model: VelocityMethod,
    adata: AnnData,
    basis: str = "umap",
    *,
    color: str | np.ndarray | None = None,
    density: float = 1.5,
    smooth: float = 0.5,
    n_neighbors: int | None = None,
    min_mass: float = 1.0,
    size: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the velocities of a fitted method as streamlines in an embedding.

    What streamlines do not show: they are **smooth for any data**. Each arrow is a mean over transitions to neighbours
    in the graph, the grid averages these over the cells around, and a streamline joins the averages, so that counts
    without any velocity give as tidy a flow. An embedding of two dimensions cannot show most of what happens in gene
    space, where arrows may point elsewhere or be lost; lengths have no unit; and a line that leads from one group to
    another is no path that any cell takes. Where a direction matters, look at the null models and known directions of
    ``tf.compare("velocity", ...)``, whose report draws each method beside what it makes of permuted counts, and at the
    genes with :func:`tenfold.plot.phase_portrait`.

    Parameters
    ----------
    model
        Fitted velocity method.
    adata
        The cells that it was fitted on, with the embedding in ``obsm``.
    basis
        Embedding: ``"umap"`` for ``obsm["X_umap"]``, or the key itself. Its first two dimensions are drawn.
    color
        Column of ``obs`` (labels or numbers), ``"time"`` or ``"confidence"`` of the model, or a value for each cell.
        Colours repeat after 40 labels.
    density
        Of the lines: 1 allows one in each of 30 × 30 boxes.
    smooth
        Standard deviation of the kernel that averages arrows, in steps of a grid of 50 × 50 points.
    n_neighbors
        Nearest cells that a point of the grid is averaged over; None: a fiftieth of the cells.
    min_mass
        No line crosses points whose average arrow is shorter than 10 to the power of this less 6; raise it (up to
        about 5.5) to leave out regions with few cells.
    size
        Area of a dot, in points².
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    The axes; lines end in its ``collections`` and ``patches``, cells in the first collection.

    Raises
    ------
    KeyMissingError
        No such embedding or column.
    DataError
        Other cells than were fitted; coordinates are missing (NaN); no cell has an arrow.
    NotFittedError
        The method was not fitted.
    ParameterError
        `model` is no velocity method.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.ScVeloStochastic(n_neighbors=15).fit(adata)
    >>> adata.obsm["X_pca"] = tf.embed.PCA(n_components=2).fit(adata).embed()
    >>> ax = tf.plot.velocity_stream(model, adata, "pca", color="time")

    References
    ----------
    Averages on the grid as in scVelo: Bergen et al. (2020), doi 10.1038/s41587-020-0591-3.
    """
    field, ax = _prepared(model, adata, basis, color, 1.0, smooth, n_neighbors, size, ax)
    shown = np.where(flowing(field, min_mass)[:, :, None], field.arrows, np.nan)
    u, v = np.moveaxis(shown, 2, 0)
    length = np.linalg.norm(shown, axis=2)
    width = 0.4 + 1.4 * np.nan_to_num(length / np.nanmax(length))
    ax.streamplot(
        field.x, field.y, u, v, density=density, linewidth=width, color=INK, arrowsize=0.9, maxlength=4, zorder=3
    )
    return ax


def velocity_grid(
    model: VelocityMethod,
    adata: AnnData,
    basis: str = "umap",
    *,
    color: str | np.ndarray | None = None,
    density: float = 0.8,
    smooth: float = 0.5,
    n_neighbors: int | None = None,
    min_mass: float = 5.0,
    size: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the velocities of a fitted method as arrows on a grid over an embedding.

    What the arrows do not show: they are **averages over cells that were averaged before** (counts over neighbours,
    transitions over neighbours, arrows over the cells around a point), and so agree with each other for any data, also
    without velocity. Two dimensions cannot show most of what happens in gene space. Lengths tell how much the cells
    around agree, not how fast they change. What the method makes of counts without velocity is the measure: see the
    null models of ``tf.compare("velocity", ...)``.

    Parameters
    ----------
    model, adata, basis, color, smooth, n_neighbors, size, ax
        As for :func:`velocity_stream`.
    density
        Of the grid: 1 has 50 × 50 points.
    min_mass
        Least number of cells around an arrow, in percent of what the most crowded points have (scVelo: 1).

    Returns
    -------
    The axes; the arrows are its last collection.

    Raises
    ------
    KeyMissingError, DataError, NotFittedError, ParameterError
        As for :func:`velocity_stream`.
    """
    field, ax = _prepared(model, adata, basis, color, density, smooth, n_neighbors, size, ax)
    kept = crowded(field, min_mass)
    x, y = (values[kept] for values in np.meshgrid(field.x, field.y))
    u, v = field.arrows[kept].T
    longest = np.percentile(np.hypot(u, v), 95) or 1.0
    step = (field.x[1] - field.x[0] + field.y[1] - field.y[0]) / 2
    ax.quiver(
        x, y, u, v, angles="xy", scale_units="xy", scale=longest / (LONGEST * step), color=INK, width=0.0022,
        headwidth=5, headlength=6, headaxislength=5, minlength=0.1, zorder=3,
    )  # fmt: skip
    return ax


def _prepared(
    model: VelocityMethod,
    adata: AnnData,
    basis: str,
    color: str | np.ndarray | None,
    density: float,
    smooth: float,
    n_neighbors: int | None,
    size: float | None,
    ax: Axes | None,
) -> tuple[Field, Axes]:
    """Check everything, average the arrows, and draw the cells."""
    checked(model, "velocity_stream or velocity_grid")
    model._require_fitted_cells(adata)
    points = coordinates(adata, basis)
    values = values_of(model, adata, color)
    arrows = model.project(points)
    if not arrows.any():
        raise DataError(f"No cell has an arrow: {model.info.title} found no velocity that leads to another cell.")
    field = averaged(points, arrows, density, smooth, n_neighbors)
    own, ax = ax is None, ax or new_figure(1)[0]
    dots = scatter(ax, points, values, size or dot_size(len(points)))
    # Directions are true only where both axes have the same scale.
    ax.set_aspect("equal", adjustable="datalim")
    name = basis.removeprefix("X_")
    name = name.upper() if name in ("umap", "pca") else name
    ax.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2", title=model.info.title)
    ax.spines[["top", "right"]].set_visible(False)
    explain([ax], dots, values, own)
    return field, ax


def coordinates(adata: AnnData, basis: str) -> np.ndarray:
    """Return the first two dimensions of an embedding, shape (n_cells, 2), float32.

    Raises
    ------
    KeyMissingError
        ``obsm`` has neither ``X_<basis>`` nor `basis`.
    DataError
        Missing values, or fewer than two dimensions.
    """
    key = next((name for name in (f"X_{basis}", basis) if name in adata.obsm), None)
    if key is None:
        have = f"obsm has {', '.join(adata.obsm)}." if len(adata.obsm) else "obsm is empty."
        raise KeyMissingError(
            f"There is no embedding obsm['X_{basis}'] to draw in.{closest(f'X_{basis}', list(adata.obsm))} {have} "
            "Name one with basis=, or make one: sc.pp.neighbors(adata); sc.tl.umap(adata)."
        )
    return representation(adata, key)[:, :2]


def checked(model: Any, what: str) -> None:
    """Refuse what is no velocity method.

    Raises
    ------
    ParameterError
        With what to give instead.
    """
    from tenfold.velocity_models.base import VelocityMethod

    if not isinstance(model, VelocityMethod):
        raise ParameterError(
            f"{what} draws a fitted velocity method, not {type(model).__name__}: "
            "model = tf.velocity.ScVeloStochastic().fit(adata)."
        )


def new_figure(n_panels: int, width: float = 6.0, height: float = 5.0) -> list[Axes]:
    """Return the axes of a new figure with room for a legend, three in a row."""
    import matplotlib.pyplot as plt

    columns = min(n_panels, 3)
    rows = -(-n_panels // columns)
    _, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False)
    for spare in axes.flat[n_panels:]:
        spare.remove()
    return list(axes.flat[:n_panels])
