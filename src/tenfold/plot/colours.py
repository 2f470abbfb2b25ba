"""Colours of cells: a palette that the colour-blind can use, and what a column looks like in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.errors import DataError, KeyMissingError, ParameterError, closest

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from tenfold.velocity_models.base import VelocityMethod

# Each next colour is the one farthest from those before it, in CIELAB, as seen with normal vision, protanopia and
# deuteranopia (Machado et al. 2009, doi 10.1109/TVCG.2009.113), among colours that stand out on white and near-black.
# The first six are close to those of Okabe and Ito. tests/test_report.py measures the distances.
PALETTE = [
    "#006cb4", "#e49c00", "#009c78", "#cc78a8", "#d86000", "#54b4e4", "#2400fc", "#9c0c24", "#306cfc", "#c0b46c",
    "#185460", "#9090fc", "#5430b4", "#c0603c", "#9c0090", "#fc4878", "#183ce4", "#e49ca8", "#786048", "#b43084",
    "#a82400", "#f09c48", "#cc30cc", "#f06ccc", "#0c6054", "#9c6ca8", "#b418d8", "#0c84fc", "#cc5424", "#549048",
    "#d8a884", "#cc8460", "#90a8fc", "#3c5424", "#fc90c0", "#24cc48", "#3c6c84", "#544890", "#c08484", "#543ca8",
]  # fmt: skip
#: Cells without a value.
GREY = "#9aa3ad"
#: Results of the model that can be shown without being written to the data first.
OF_MODEL = ("time", "confidence")
#: Levels above which a legend has two columns, and characters after which a name is cut.
LONG_LEGEND, LONG_NAME = 18, 32


def values_of(model: VelocityMethod, adata: AnnData | None, color: str | np.ndarray | None) -> Any:
    """Return what cells are coloured by, as a Series named for the legend, or None for one colour.

    Raises
    ------
    KeyMissingError
        No such column of ``obs``, nor a result of the model.
    ParameterError
        A column was named, and no data were given.
    DataError
        Values of another number of cells.
    """
    import pandas as pd

    n_cells = len(model.time())
    if color is None:
        return None
    if not isinstance(color, str):
        if len(color) != n_cells:
            raise DataError(f"color has {len(color):,} values, and {n_cells:,} cells were fitted.")
        return pd.Series(np.asarray(color))
    if adata is not None and color in adata.obs:
        return adata.obs[color]
    if color in OF_MODEL:
        return pd.Series(getattr(model, color)(), name=color)
    if adata is None:
        raise ParameterError(f"color='{color}' names a column of obs, so give the data, too: adata=adata.")
    names = [*adata.obs, *OF_MODEL]
    raise KeyMissingError(
        f"obs has no column '{color}' to colour cells by.{closest(color, names)} Besides columns of obs, color takes "
        "'time' and 'confidence' of the model, or an array with a value for each cell."
    )


def scatter(ax: Axes, points: np.ndarray, values: Any, size: float) -> Any:
    """Draw the cells in random order, so that no label hides another.

    Parameters
    ----------
    ax
        Where to.
    points
        Shape (n_cells, 2).
    values
        What `values_of` gives.
    size
        Area of a dot, in points².

    Returns
    -------
    What `explain` takes: the dots, whose colours have a scale where values are numbers.
    """
    order = np.random.default_rng(0).permutation(len(points))
    x, y = points[order].T
    plain: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True, "zorder": 1}
    if values is None:
        return ax.scatter(x, y, color=GREY, alpha=0.6, **plain)
    if numeric(values):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)[order]
        told = np.isfinite(numbers)
        if not told.all():
            ax.scatter(x[~told], y[~told], color=GREY, **plain)
        return ax.scatter(x[told], y[told], c=numbers[told], cmap="viridis", **plain)
    codes, names = levels(values)
    hues = np.array([*(PALETTE[place % len(PALETTE)] for place in range(len(names))), GREY])
    return ax.scatter(x, y, color=hues[codes[order]], alpha=0.8, **plain)


def explain(axes: list[Axes], dots: Any, values: Any, own: bool) -> None:
    """Add the legend of labels, or the scale of numbers, to the right of the axes.

    Parameters
    ----------
    axes
        That were drawn on.
    dots, values
        Of `scatter`.
    own
        Whether the figure was made here, so that room can be made in it; else the legend hangs on the last axes.
    """
    if values is None:
        return
    figure, title = axes[0].figure, None if values.name is None else str(values.name)
    if numeric(values):
        bar = figure.colorbar(dots, ax=axes, shrink=0.6, aspect=24, pad=0.02)
        bar.set_label(title or "")
        return
    from matplotlib.lines import Line2D

    codes, names = levels(values)
    hues = [PALETTE[place % len(PALETTE)] for place in range(len(names))]
    entries = [*zip(names, hues, strict=True), *([("not given", GREY)] if (codes < 0).any() else [])]
    handles = [Line2D([], [], marker="o", linestyle="", color=hue, label=_shortened(name)) for name, hue in entries]
    anchored = {"bbox_to_anchor": (1.01, 0.5), "bbox_transform": axes[-1].transAxes, "loc": "center left"}
    figure.legend(
        handles=handles, frameon=False, title=title, alignment="left", handletextpad=0.2, fontsize="small",
        ncols=1 + len(entries) // LONG_LEGEND, **({"loc": "outside right center"} if own else anchored),
    )  # fmt: skip


def numeric(values: Any) -> bool:
    """Whether values are shown on a scale, rather than as labels."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(values) and not is_bool_dtype(values)


def levels(values: Any) -> tuple[np.ndarray, list[str]]:
    """Return codes and names of labels, in the order of their categories; -1 where there is none."""
    import pandas as pd

    column = values.astype("category") if not isinstance(values.dtype, pd.CategoricalDtype) else values
    column = column.cat.remove_unused_categories()
    return column.cat.codes.to_numpy(), [str(name) for name in column.cat.categories]


def _shortened(name: str) -> str:
    name = name if len(name) <= LONG_NAME else name[: LONG_NAME - 1] + "…"
    return name.replace("$", r"\$").removeprefix("_") or name  # matplotlib reads $ as mathematics, and hides _names


def dot_size(n_cells: int) -> float:
    """Return an area of dots that shows few cells and does not drown many, in points²."""
    return float(np.clip(20_000 / n_cells, 1.5, 30))
