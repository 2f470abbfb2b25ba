"""Phase portraits: what velocities rest on, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tenfold.data.kinetics import two_phases
from tenfold.errors import KeyMissingError, ParameterError, closest
from tenfold.plot.colours import dot_size, explain, scatter, values_of
from tenfold.plot.velocity import INK, checked, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from tenfold.velocity_models.base import VelocityMethod

#: Lifetimes of the slower of the two RNAs after which a curve has come back.
LIFETIMES = 5.0


def phase_portrait(
    model: VelocityMethod,
    genes: str | Sequence[str],
    adata: AnnData | None = None,
    *,
    color: str | np.ndarray | None = "time",
    size: float | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw unspliced against spliced RNA of genes, with what the method fitted to them.

    Cells are the averages that were fitted. The line (u = γ s, dashed) is where unspliced and spliced RNA balance:
    above it a gene is thought to rise, below it to fall. Methods with rates of transcription, splicing and degradation
    have a curve, too: up while the gene is on (solid), down after it was switched off (dash-dotted). Methods without
    rates (random velocities, a pseudotime) have neither.

    What to look for: a gene with velocity has cells on both sides of the line, in the order of the process. A cloud on
    the line, or two clouds of different cell types, says nothing of a direction, however well a curve fits: curves
    have enough freedom to pass through any cloud, and permuted counts are fitted as well. Averages over neighbours
    make every cloud look like a course. Genes marked "not used" have no say in the velocities.

    Parameters
    ----------
    model
        Fitted velocity method.
    genes
        Names. The best fitted are ``model.rates().query("trusted").nlargest(6, "r2").index``.
    adata
        The cells that it was fitted on; needed where `color` names a column.
    color
        ``"time"`` or ``"confidence"`` of the model, a column of ``obs``, a value for each cell, or None. Colours repeat
        after 40 labels.
    size
        Area of a dot, in points².
    axes
        Where to draw, one for each gene; None makes a figure.

    Returns
    -------
    The axes, one for each gene.

    Raises
    ------
    KeyMissingError
        A gene that was not fitted, or no such column.
    DataError
        Other cells than were fitted.
    NotFittedError
        The method was not fitted.
    ParameterError
        No gene, another number of axes, or `model` is no velocity method.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.ScVeloStochastic(n_neighbors=15).fit(adata)
    >>> best = model.rates().query("trusted").nlargest(2, "r2").index
    >>> left, right = tf.plot.phase_portrait(model, best)
    """
    from tenfold.velocity_models.posterior import PosteriorVelocity

    checked(model, "phase_portrait")
    model._require_fitted_cells(adata)
    genes = [genes] if isinstance(genes, str) else list(genes)
    places = _places(model, genes)
    values = values_of(model, adata, color)
    rates, scaled = model.rates(), isinstance(model, PosteriorVelocity)
    if axes is not None and len(axes) != len(genes):
        raise ParameterError(f"There are {len(genes)} genes and {len(axes)} axes; give one for each.")
    own, axes = axes is None, new_figure(len(genes), 3.6, 3.2) if axes is None else list(axes)
    for ax, gene, place in zip(axes, genes, places, strict=True):
        points = np.column_stack([model.spliced_[:, place], model.unspliced_[:, place]]).astype(np.float64)
        dots = scatter(ax, points, values, size or dot_size(len(points)))
        row = rates.iloc[place]
        high = np.maximum(points.max(axis=0), 1e-9)
        low, spread = (getattr(model, name)[:, place] for name in ("low_", "spread_")) if scaled else (0.0, 1.0)
        for name, (s, u, style) in fitted_lines(row, high[0], low, spread).items():
            ax.plot(s, u, color=INK, linestyle=style, linewidth=1.6, label=name, zorder=3)
        ax.set(xlim=(-0.04 * high[0], 1.08 * high[0]), ylim=(-0.04 * high[1], 1.12 * high[1]))
        ax.set(xlabel="spliced", ylabel="unspliced")
        ax.set_title(_titled(gene, row), fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
    if axes[0].lines:
        axes[0].legend(fontsize="x-small", frameon=False, handlelength=2.6)
    explain(axes, dots, values, own)
    return axes


def fitted_lines(
    row: pd.Series, highest: float, low: np.ndarray | float = 0.0, spread: np.ndarray | float = 1.0
) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Return what was fitted to a gene, in the plane of spliced and unspliced RNA.

    Parameters
    ----------
    row
        Of ``model.rates()``. ``gamma`` (and ``q``, an offset) make a line; with ``alpha``, ``beta`` and ``switch``
        (and ``scaling`` of unspliced RNA, whose ``beta`` is divided by it) there is a curve, too.
    highest
        Spliced RNA up to which the line is drawn.
    low, spread
        Spliced and unspliced RNA that are 0 in the fit, and what is added to them at 1, where it was made to scaled
        RNA.

    Returns
    -------
    Spliced, unspliced and the style of each line by name. Nothing for methods without rates, or a gene without a fit.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
    if "gamma" not in row or not np.isfinite(row["gamma"]):
        return found
    (low_s, low_u), (spread_s, spread_u) = np.broadcast_to(low, 2), np.broadcast_to(spread, 2)

    def add(name: str, s: np.ndarray, u: np.ndarray, style: str) -> None:
        found[name] = (low_s + spread_s * s, low_u + spread_u * u, style)

    curved = {"alpha", "beta", "switch"} <= set(row.index)
    s = np.array([0.0, 1.1 * (highest - low_s) / spread_s])
    add("steady state", s, row["gamma"] / (row["beta"] if curved else 1.0) * s + row.get("q", 0.0), "--")
    if not curved:
        return found
    scaling = row.get("scaling", 1.0)
    alpha, beta, gamma, switch = row["alpha"], row["beta"] * scaling, row["gamma"], row["switch"]
    # Dense where the curve turns: soon after it sets out, and after the switch.
    share = np.linspace(0, 1, 300) ** 2
    for name, t, style in (
        ("gene on", switch * share, "-"),
        ("gene off", switch + LIFETIMES / min(beta, gamma) * share, "-."),
    ):
        u, s = two_phases(t, switch, alpha, beta, gamma)
        add(name, s, scaling * u, style)
    return found


def _places(model: VelocityMethod, genes: list[str]) -> list[int]:
    if not genes:
        raise ParameterError("No gene was given; the best fitted are model.rates().query('trusted').index.")
    known = {str(name): place for place, name in enumerate(model.genes_)}
    for gene in genes:
        if gene not in known:
            raise KeyMissingError(
                f"'{gene}' was not fitted.{closest(gene, known)} {model.info.title} fitted {len(known):,} genes, which "
                "model.rates() lists; filters (n_top_genes, min_shared_counts) leave others out."
            )
    return [known[gene] for gene in genes]


def _titled(gene: str, row: pd.Series) -> str:
    fit = next((f"{word} {row[name]:.2f}" for name, word in (("likelihood", "likelihood"), ("r2", "R²")) if name in row
                and np.isfinite(row[name])), "no fit")  # fmt: skip
    return f"{gene}\n{fit}{'' if row['trusted'] else ', not used'}".replace("$", r"\$")
