"""Pictures in Python: what is drawn, in numbers, and what cannot be drawn."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from scipy.stats import norm

import tenfold as tf
from tenfold.data.kinetics import two_phases
from tenfold.errors import DataError, KeyMissingError, NotFittedError, ParameterError
from tenfold.plot.colours import GREY, PALETTE
from tenfold.plot.field import averaged, crowded, flowing, streamlines
from tenfold.plot.phase import fitted_lines

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def cells():
    adata = tf.data.simulate_branching(n_cells=240, n_genes=60, seed=1)
    adata.obsm["X_pca"] = tf.embed.PCA(n_components=3).fit(adata, progress=False).embed()
    half = np.where(np.arange(240) % 2, "odd", "even").astype(object)
    half[:5] = None
    adata.obs["half"] = half
    return adata


@pytest.fixture(scope="module")
def model(cells):
    return tf.velocity.ScVeloStochastic(n_neighbors=15).fit(cells, progress=False)


@pytest.fixture(autouse=True)
def closed():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def ring(n=500, seed=0):
    """Return cells around a circle, and arrows along it."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, n)
    points = np.column_stack([3 * np.cos(angle), 2 * np.sin(angle)])
    return points, np.column_stack([-np.sin(angle), np.cos(angle)])


# ---- averages on a grid ----------------------------------------------------------------------------------------------


def test_a_point_of_the_grid_is_the_weighted_mean_of_its_nearest_cells():
    points, arrows = ring()
    field = averaged(points, arrows, density=0.4, smooth=0.7, n_neighbors=9)
    assert field.arrows.shape == (20, 20, 2) and field.x[0] < points[:, 0].min() and field.y[-1] > points[:, 1].max()
    scale = 0.7 * np.mean([field.x[1] - field.x[0], field.y[1] - field.y[0]])
    for row, column in ((0, 10), (10, 18), (10, 10)):
        away = np.linalg.norm(points - [field.x[column], field.y[row]], axis=1)
        near = np.argsort(away)[:9]
        weight = norm.pdf(away[near] / scale) / norm.pdf(0)
        expected = weight @ arrows[near] / max(1, weight.sum())
        np.testing.assert_allclose(field.arrows[row, column], expected, rtol=1e-9)
        assert field.mass[row, column] == pytest.approx(weight.sum())


def test_missing_cells_are_left_out_and_the_unit_does_not_matter():
    points, arrows = ring()
    whole = averaged(points[20:], arrows[20:])
    gone, far = points.copy(), arrows.copy()
    gone[:10], far[10:20] = np.nan, np.nan
    np.testing.assert_allclose(averaged(gone, far).arrows, whole.arrows)
    pixels = averaged(points[20:] * 1e4, arrows[20:])
    np.testing.assert_allclose(pixels.arrows, whole.arrows, atol=1e-9)
    assert np.array_equal(flowing(pixels), flowing(whole)) and np.array_equal(crowded(pixels), crowded(whole))


def test_nothing_is_drawn_where_no_cells_are():
    field = averaged(*ring())
    middle = (slice(22, 28), slice(22, 28))
    assert not crowded(field)[middle].any() and not flowing(field)[middle].any()
    assert 0.02 < crowded(field, 50).mean() < crowded(field, 1).mean() < 0.6


def test_streamlines_follow_the_arrows():
    lines = streamlines(averaged(*ring()))
    assert len(lines) > 5
    for line in lines:
        (x, y), (dx, dy) = line[:-1].T, np.diff(line, axis=0).T
        assert (x * dy >= y * dx).all(), "against the arrows, which go round anticlockwise"


def test_a_cloud_without_extent_is_refused():
    with pytest.raises(DataError, match="nothing to average"):
        averaged(np.ones((9, 2)), np.ones((9, 2)))


# ---- velocity in an embedding ----------------------------------------------------------------------------------------


def test_the_arrows_drawn_are_the_averages_of_the_projection(cells, model):
    ax = tf.plot.velocity_grid(model, cells, "pca", density=0.5, min_mass=3)
    points = cells.obsm["X_pca"][:, :2]
    field = averaged(points, model.project(points), density=0.5)
    kept = crowded(field, 3)
    quiver = ax.collections[-1]
    np.testing.assert_allclose(np.column_stack([quiver.U, quiver.V]), field.arrows[kept], rtol=1e-6)
    np.testing.assert_allclose(quiver.X, np.meshgrid(field.x, field.y)[0][kept])
    assert quiver.angles == "xy" and ax.get_aspect() == 1.0, "directions would not be true"


def test_streams_and_cells_are_where_they_should_be(cells, model):
    import matplotlib.pyplot as plt

    _, mine = plt.subplots()
    ax = tf.plot.velocity_stream(model, cells, "X_pca", color="half", ax=mine)
    assert ax is mine
    dots, lines = ax.collections[0], ax.collections[-1]
    drawn = np.asarray(dots.get_offsets())
    points = cells.obsm["X_pca"][:, :2].astype(float)
    assert {tuple(p) for p in drawn} == {tuple(p) for p in points}
    segments = np.concatenate(lines.get_segments())
    assert (segments >= points.min(axis=0) - 1).all() and (segments <= points.max(axis=0) + 1).all()
    width = np.asarray(lines.get_linewidths())
    assert 0.4 <= width.min() < width.max() <= 1.81


def test_labels_have_a_legend_in_the_colours_of_the_cells(cells, model):
    ax = tf.plot.velocity_stream(model, cells, "pca", color="half")
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["even", "odd", "not given"]
    assert legend.get_title().get_text() == "half"
    assert [line.get_color() for line in legend.get_lines()] == [*PALETTE[:2], GREY]
    dots = ax.collections[0]
    place = {tuple(p): i for i, p in enumerate(cells.obsm["X_pca"][:, :2].astype(float))}
    for where, hue in list(zip(np.asarray(dots.get_offsets()), dots.get_facecolors(), strict=True))[:60]:
        value = cells.obs["half"].iloc[place[tuple(where)]]
        assert to_hex(hue) == {"even": PALETTE[0], "odd": PALETTE[1]}.get(value, GREY)


def test_numbers_have_a_scale(cells, model):
    ax = tf.plot.velocity_stream(model, cells, "pca", color="time")
    bar = next(other for other in ax.figure.axes if other is not ax)
    assert bar.get_ylabel() == "time" and not ax.figure.legends
    given = np.where(np.arange(240) < 40, np.nan, 7.0 + np.arange(240))
    ax = tf.plot.velocity_grid(model, cells, "pca", color=given)
    grey, coloured = ax.collections[:2]
    assert len(grey.get_offsets()) == 40 and sorted(coloured.get_array()) == list(given[40:])
    cells = cells.copy()
    cells.obs["count"] = pd.array([None] * 40 + list(range(200)), dtype="Int64")
    ax = tf.plot.velocity_grid(model, cells, "pca", color="count")
    assert [len(dots.get_offsets()) for dots in ax.collections[:2]] == [40, 200]


@pytest.mark.parametrize("draw", [tf.plot.velocity_stream, tf.plot.velocity_grid])
def test_what_cannot_be_drawn_is_told(cells, model, draw):
    with pytest.raises(KeyMissingError, match=r"obsm\['X_umap'\].*obsm has X_pca.*sc.tl.umap"):
        draw(model, cells)
    with pytest.raises(KeyMissingError, match="Did you mean 'half'"):
        draw(model, cells, "pca", color="halve")
    with pytest.raises(DataError, match="3 values"):
        draw(model, cells, "pca", color=np.ones(3))
    with pytest.raises(DataError, match="not fitted on"):
        draw(model, cells[:50].copy(), "pca")
    with pytest.raises(NotFittedError):
        draw(tf.velocity.Velocyto(), cells, "pca")
    with pytest.raises(ParameterError, match="not AnnData"):
        draw(cells, model)
    spoilt = cells.copy()
    spoilt.obsm["X_pca"][3, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        draw(model, spoilt, "pca")


# ---- phase portraits -------------------------------------------------------------------------------------------------


def test_a_portrait_has_the_cells_and_the_line_that_were_fitted(cells, model):
    gene = model.genes_[4]
    (ax,) = tf.plot.phase_portrait(model, gene)
    drawn = np.asarray(ax.collections[0].get_offsets())
    assert sorted(map(tuple, drawn)) == sorted(
        zip(model.spliced_[:, 4].astype(float), model.unspliced_[:, 4].astype(float), strict=True)
    )
    (line,) = ax.lines
    s, u = line.get_data()
    np.testing.assert_allclose(u, model.table_["gamma"][4] * s)
    assert s.max() > model.spliced_[:, 4].max() and gene in ax.get_title()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("spliced", "unspliced")


def test_two_phases_make_a_curve_through_the_cells():
    alpha, beta, gamma, switch, scaling = 5.0, 0.8, 0.3, 9.0, 2.5
    row = pd.Series({"alpha": alpha, "beta": beta / scaling, "gamma": gamma, "switch": switch, "scaling": scaling})
    found = fitted_lines(row, 10.0)
    t = np.linspace(0, 20, 60)
    u, s = two_phases(t, switch, alpha, beta, gamma)
    curve = np.concatenate([np.column_stack(found[name][:2]) for name in ("gene on", "gene off")])
    for point in np.column_stack([s, scaling * u]):
        assert np.linalg.norm(curve - point, axis=1).min() < 0.25
    steady_s, steady_u, _ = found["steady state"]
    top = two_phases(np.array([90.0]), np.array([99.0]), alpha, beta, gamma)
    assert steady_u[1] / steady_s[1] == pytest.approx(scaling * top[0][0] / top[1][0])
    assert np.linalg.norm(curve[-1]) < 0.1 * np.linalg.norm(curve, axis=1).max(), "it comes back"


def test_offsets_missing_fits_and_methods_without_rates():
    s, u, _ = fitted_lines(pd.Series({"gamma": 0.5, "q": 2.0}), 4.0)["steady state"]
    np.testing.assert_allclose(u, 0.5 * s + 2)
    assert fitted_lines(pd.Series({"gamma": np.nan, "alpha": np.nan, "beta": np.nan, "switch": np.nan}), 4.0) == {}
    assert fitted_lines(pd.Series({"r2": 0.0}), 4.0) == {}


def test_portraits_name_what_is_not_used_and_share_one_legend(cells, model):
    rates = model.rates()
    unused = rates.index[~rates["trusted"]]
    genes = [*rates.index[rates["trusted"]][:2], *unused[:1]]
    axes = tf.plot.phase_portrait(model, genes, cells, color="half")
    assert [("not used" in ax.get_title()) for ax in axes] == [gene in unused for gene in genes]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["steady state"]
    assert len(axes[0].figure.legends) == 1 and len(axes[0].figure.axes) == len(genes)


def test_portraits_that_cannot_be_drawn(cells, model):
    with pytest.raises(KeyMissingError, match=rf"was not fitted. Did you mean '{model.genes_[0]}'"):
        tf.plot.phase_portrait(model, f"{model.genes_[0]}x")
    with pytest.raises(ParameterError, match="adata=adata"):
        tf.plot.phase_portrait(model, model.genes_[0], color="half")
    with pytest.raises(ParameterError, match="No gene"):
        tf.plot.phase_portrait(model, [])
    with pytest.raises(ParameterError, match="2 genes and 1 axes"):
        tf.plot.phase_portrait(model, model.genes_[:2], axes=[None])
    with pytest.raises(DataError, match="not fitted on"):
        tf.plot.phase_portrait(model, model.genes_[0], cells[:9].copy())


def test_curves_of_rates_of_scaled_counts_stand_among_the_cells(cells):
    model = tf.velocity.VeloVI(n_neighbors=15, epochs=2, n_hidden=16).fit(cells, progress=False)
    place = int(np.flatnonzero(model.modelled_)[0])
    (ax,) = tf.plot.phase_portrait(model, model.genes_[place])
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    low, ratio = model.low_[:, place], model.table_["ratio"][place]
    steady = lines["steady state"]
    np.testing.assert_allclose(steady[0], low, atol=1e-6)
    assert (steady[1, 1] - steady[0, 1]) / (steady[1, 0] - steady[0, 0]) == pytest.approx(ratio, rel=1e-5)
    np.testing.assert_allclose(lines["gene on"][0], low, atol=1e-6)
    kinetics = model.net_.kinetics()
    top = np.array([float(part[0].detach()) for part in (kinetics.s0, kinetics.u0)])
    np.testing.assert_allclose(lines["gene on"][-1], low + model.spread_[:, place] * top, rtol=1e-4)
