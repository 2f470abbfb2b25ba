"""Positions, spatial graphs, clustering heads, refinement, and the baseline of spatial domains."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score, homogeneity_score

import tenfold as tf
from tenfold.data.heads import clusters_of, stable_number
from tenfold.data.inputs import Inputs
from tenfold.data.refinement import majority, outvoted
from tenfold.data.spatial import averaging, normalised, positions_of, spatial_graph, symmetrised
from tenfold.errors import DataError, KeyMissingError, ParameterError


def tissue(n=20, seed=0, noise=1.0):
    """A square lattice of n × n spots in two halves that express different genes."""
    rng = np.random.default_rng(seed)
    x, y = (part.ravel() for part in np.meshgrid(np.arange(n), np.arange(n)))
    half = (x >= n // 2).astype(int)
    mean = np.full((2, 40), 2.0)
    mean[0, :8] += 3.0 / noise
    mean[1, 8:16] += 3.0 / noise
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(mean[half]).astype(np.float32)))
    adata.obs["domain"] = pd.Categorical(half.astype(str))
    adata.obsm["spatial"] = np.column_stack([x, y]).astype(float)
    return adata


def positions(adata, **roles):
    return positions_of(Inputs(adata, roles))


# ---- positions -------------------------------------------------------------------------------------------------------


def test_spacing_is_that_of_the_lattice_and_visium_tells_its_unit():
    adata = tissue()
    adata.obsm["spatial"] *= 137.0
    found = positions(adata)
    assert found.spacing == pytest.approx(137.0, rel=1e-5) and found.unit == "unknown unit"
    adata.uns["spatial"] = {"slice": {"scalefactors": {"spot_diameter_fullres": 93.0}}}
    assert positions(adata).unit == "pixel of 0.73 µm"


def test_micrometres_are_told_from_pixels():
    adata = tissue()
    adata.obsm["spatial"] *= 100.0
    factors = {"spot_diameter_fullres": 96.9}
    adata.uns["spatial"] = {"slice": {"scalefactors": factors}}
    assert positions(adata).unit == "micrometre", "spots would lie 67 µm apart if these were pixels"
    adata.obsm["spatial"] *= 1.4
    assert positions(adata).unit == "pixel of 0.71 µm"
    adata.obsm["spatial"] *= 3
    with pytest.warns(UserWarning, match="lattice of no known array"):
        assert positions(adata).unit == "unknown unit"
    factors["microns_per_pixel"] = 0.27
    assert positions(adata).unit == "pixel of 0.27 µm"
    adata.uns["spatial_unit"] = "um"
    assert positions(adata).unit == "micrometre"


def test_a_lattice_of_a_hundred_is_micrometres_only_where_spots_are_named():
    adata = tissue()
    adata.obsm["spatial"] *= 100.0
    assert positions(adata).unit == "unknown unit"
    adata.obs["array_row"] = adata.obsm["spatial"][:, 1]
    assert positions(adata).unit == "micrometre"


def _nan(adata):
    adata.obsm["spatial"][3, 1] = np.nan


def _one_column(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"][:, :1]


def _twice(adata):
    adata.obsm["spatial"][200:] = adata.obsm["spatial"][:200]


@pytest.mark.parametrize("spoil, words", [(_nan, "NaN"), (_one_column, "two or three columns"), (_twice, "sample=")])
def test_wrong_positions_get_a_named_error(spoil, words):
    adata = tissue()
    spoil(adata)
    with pytest.raises(DataError, match=words):
        positions(adata)


def test_missing_positions_name_where_they_may_be():
    adata = tissue()
    adata.obs["x"], adata.obs["y"] = adata.obsm["spatial"].T
    del adata.obsm["spatial"]
    with pytest.raises(KeyMissingError, match="columns x, y"):
        positions(adata)


def test_one_section_given_as_several_is_told():
    adata = tissue()
    adata.obs["slice"] = np.where(np.random.default_rng(0).random(adata.n_obs) < 0.5, "a", "b")
    with pytest.warns(UserWarning, match="one section given as several"):
        positions(adata, sample="slice")


def test_sections_in_one_frame_are_not_taken_for_one():
    rng = np.random.default_rng(0)
    first, second = tissue(), tissue()
    second.obsm["spatial"] = second.obsm["spatial"] + rng.normal((0.4, 0.3), 0.25, size=second.obsm["spatial"].shape)
    both = ad.concat({"a": first, "b": second}, label="slice", index_unique="-")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        positions(both, sample="slice")


def test_a_few_shared_positions_are_told():
    adata = tissue()
    adata.obsm["spatial"][0] = adata.obsm["spatial"][1]
    with pytest.warns(UserWarning, match="2 of 400 cells share"):
        positions(adata)


# ---- graphs ----------------------------------------------------------------------------------------------------------


def test_graphs_join_the_neighbours_of_a_lattice():
    found = positions(tissue())
    inner = 10 * 20 + 10
    four = {inner - 1, inner + 1, inner - 20, inner + 20}
    assert set(spatial_graph(found, "knn", 4)[inner].indices) == four
    assert set(spatial_graph(found, "radius", radius=1.2)[inner].indices) == four
    assert four <= set(spatial_graph(found, "delaunay")[inner].indices)
    assert (spatial_graph(found, "knn", 6).getnnz(axis=1) == 6).all()


def test_graphs_do_not_join_sections():
    adata = tissue()
    adata.obs["slice"] = np.where(adata.obsm["spatial"][:, 0] < 10, "a", "b")
    graph = spatial_graph(positions(adata, sample="slice"), "knn", 6)
    left = adata.obs["slice"].to_numpy() == "a"
    assert graph[left][:, ~left].nnz == 0 and graph[~left][:, left].nnz == 0


def test_norms_of_a_graph():
    graph = symmetrised(spatial_graph(positions(tissue()), "knn", 4))
    assert (graph != graph.T).nnz == 0
    np.testing.assert_allclose(averaging(graph).sum(axis=1), 1, rtol=1e-6)
    dense = graph.toarray() + np.eye(400)
    scale = 1 / np.sqrt(dense.sum(axis=1))
    np.testing.assert_allclose(normalised(graph).toarray(), scale[:, None] * dense * scale, rtol=1e-5)
    assert normalised(graph, "after").diagonal() == pytest.approx(1)


def test_a_graph_in_pieces_is_told():
    adata = tissue()
    adata.obsm["spatial"][::2] *= 100
    with pytest.warns(UserWarning, match="pieces"):
        spatial_graph(positions(adata), "radius", radius=0.5)


# ---- clusters and refinement -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["kmeans", "mclust", "leiden"])
@pytest.mark.parametrize("given", [3, None])
def test_heads_find_separate_groups(head, given):
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [120, 80, 50])
    points = rng.normal(size=(250, 4)) + 12 * np.eye(4)[truth]
    found = clusters_of(points, given, head)
    assert homogeneity_score(truth, found) > 0.99
    if given or head != "leiden":  # at resolution 1 Leiden splits groups, too
        assert adjusted_rand_score(truth, found) > 0.99
    sizes = np.bincount(found)
    assert (np.diff(sizes) <= 0).all()


def test_a_mixture_follows_long_groups_where_k_means_cuts_them():
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1], 200)
    points = np.column_stack([rng.normal(0, 10, 400), rng.normal(0, 0.5, 400) + 3 * truth])
    assert adjusted_rand_score(truth, clusters_of(points, 2, "mclust")) > 0.95
    assert adjusted_rand_score(truth, clusters_of(points, 2, "kmeans")) < 0.1


def test_a_mixture_spoilt_by_an_outlier_is_told():
    points = np.random.default_rng(2).normal(size=(400, 3))
    points[0] = 400
    with pytest.warns(UserWarning, match="single outlying cells"):
        clusters_of(points, 2, "mclust")


def test_the_number_of_clusters_is_what_other_cells_show_again():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(5), 80)
    points = rng.normal(size=(400, 6)) + 8 * np.eye(6)[truth]
    assert stable_number(points) == 5
    # Neighbours that share their mean: an information criterion takes every one of these patches for a cluster.
    patches = np.repeat(rng.normal(size=(60, 6)), 10, axis=0) * 0.5 + rng.normal(size=(600, 6)) * 0.05
    assert stable_number(patches + 8 * np.eye(6)[np.repeat([0, 1, 2], 200)]) == 3
    with pytest.raises(DataError, match="too few"):
        stable_number(points[:5])


def test_too_many_clusters_are_refused():
    with pytest.raises(ParameterError, match="n_clusters=9 of 5 cells"):
        clusters_of(np.eye(5), 9, "kmeans")


def test_refinement_removes_specks():
    adata = tissue()
    truth = adata.obs["domain"].cat.codes.to_numpy()
    noisy = truth.copy()
    specks = np.random.default_rng(0).choice(400, 30, replace=False)
    noisy[specks] = 1 - noisy[specks]
    where = positions(adata)
    assert (majority(noisy, where, 20) == truth).mean() > 0.97 > (noisy == truth).mean()
    assert (outvoted(noisy, where, 6) == truth).mean() > 0.95
    np.testing.assert_array_equal(outvoted(truth, where, 4), truth)


# ---- the baseline ----------------------------------------------------------------------------------------------------


def test_smoothing_finds_domains_that_plain_pca_does_not():
    adata = tissue(noise=4.0)
    scores = [
        adjusted_rand_score(
            adata.obs["domain"], tf.domains.SmoothPCA(n_clusters=2, n_rounds=n, n_components=5).fit(adata).cluster()
        )
        for n in (0, 2)
    ]
    assert scores[1] > scores[0] + 0.3


def test_refinement_is_a_step_of_its_own():
    adata = tissue(noise=5.0)
    model = tf.domains.SmoothPCA(n_clusters=2, n_rounds=0, refinement="majority", n_refining=20).fit(adata)
    assert (model.cluster() != model.cluster(refined=False)).any()
    model.write(adata)
    assert list(adata.obs["smooth_pca"].astype(int)) == list(model.cluster())
