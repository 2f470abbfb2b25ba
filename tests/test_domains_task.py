"""Comparing methods for spatial domains: layers, shuffled tissue, several slices, and what is said without layers."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import tenfold as tf
from tenfold import metrics
from tenfold.cli import app
from tenfold.domains import _controls, _ranking
from tenfold.domains._scores import DESCRIBED
from tenfold.domains._task import TASK
from tenfold.domains._trial import Tissue, Trial, labels_for, own_labels
from tenfold.errors import KeyMissingError
from tenfold.task import Assessment
from test_spatial import tissue

LABELS = {"labels": "domain"}


@pytest.fixture(scope="module")
def cells():
    adata = tissue(16, noise=3.0)
    adata.obs["domain"] = adata.obs["domain"].astype(str)
    adata.obs.loc[adata.obs_names[:10], "domain"] = "unlabelled"
    return adata


@pytest.fixture(scope="module")
def fitted(cells):
    return tf.domains.SmoothPCA().fit(cells, progress=False)


@pytest.fixture(scope="module")
def finished(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("domains") / "trial"
    return tf.compare("domains", cells, ["smooth_pca"], out=out, seeds=1, **LABELS)


def values(scores):
    return {score.metric: score.value for score in scores if ":" not in score.group}


def two_slices(swapped=False):
    """One tissue, cut twice; with `swapped`, the second slice holds another expression altogether."""
    first, second = tissue(12, seed=0, noise=2.0), tissue(12, seed=1, noise=2.0)
    if swapped:
        second = second[:, np.roll(np.arange(40), 20)].copy()
        second.var_names = first.var_names
    second.obsm["spatial"] = second.obsm["spatial"] + 100
    both = ad.concat({"a": first, "b": second}, label="slice", index_unique="-")
    both.obs["domain"] = both.obs["domain"].astype(str)
    return both


# ---- what the data can tell ------------------------------------------------------------------------------------------


def test_space_means_something_or_not(cells):
    told = TASK.assess(cells, LABELS, 0)
    assert told.verdict == "spatial structure" and "2 annotated layers themselves" in told.sentence
    assert told.numbers["PAS of the annotation"] == pytest.approx(0, abs=0.02)
    assert told.numbers["cells without a layer"] == 10 and told.numbers["unit"] == "unknown unit"
    shuffled = Tissue(cells, LABELS).shuffled(0).adata
    assert TASK.assess(shuffled, LABELS, 0).verdict == "no spatial structure"
    assert "nothing here tells right domains" in TASK.assess(cells, {}, 0).sentence


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_layers_are_scored_plain_and_refined_with_the_number_known_and_unknown(cells, fitted):
    found = values(TASK.evaluate(fitted, cells, LABELS, 0))
    assert set(found) <= set(DESCRIBED)
    for kind in ("ari", "nmi", "homogeneity", "completeness", "ari_unknown", "ari_kmeans", "ari_mclust", "ari_leiden"):
        assert {kind, f"{kind}_refined"} <= set(found)
    told = cells.obs["domain"].to_numpy() != "unlabelled"
    again = tf.domains.SmoothPCA(n_clusters=2).fit(cells, progress=False)
    assert found["ari"] == pytest.approx(metrics.ari(again.cluster()[told], cells.obs["domain"].to_numpy()[told]))
    assert found["ari"] > 0.8 and found["ari"] == found["ari_kmeans"]


def test_without_layers_only_label_free_scores_are_there(cells, fitted):
    found = values(TASK.evaluate(fitted, cells, {}, 0))
    assert not any(name.startswith(("ari", "nmi", "homog", "compl")) for name in found)
    assert {"marker_moran", "contiguity", "pas", "pas_refined", "chaos", "chaos_refined"} == set(found)
    assert all(DESCRIBED[name]["warning"] for name in found)


def test_a_method_without_a_head_is_fitted_again_for_another_number(cells):
    class Halves(tf.domains.SmoothPCA):
        def _domains(self, data, positions):
            return np.arange(data.n_cells) % self.n_clusters

    method = Halves(n_clusters=3).fit(cells, progress=False)
    place = Tissue(cells, {})
    assert len(np.unique(labels_for(method, place, 5, None, 0))) == 5
    np.testing.assert_array_equal(labels_for(method, place, 3, None, 0), own_labels(method))


def test_slices_that_share_domains_are_told_from_those_that_do_not():
    roles = {"labels": "domain", "sample": "slice"}
    found = []
    for swapped in (False, True):
        both = two_slices(swapped)
        method = tf.domains.SmoothPCA(n_clusters=2).fit(both, progress=False, sample="slice")
        scores = TASK.evaluate(method, both, roles, 0)
        assert {score.group for score in scores if score.group.startswith("sample:")} == {"sample:a", "sample:b"}
        found.append(values(scores))
    assert found[0]["shared_domains"] > 0.9 > 0.3 > found[1]["shared_domains"]
    assert found[0]["mixing_in_domains"] > 0.3 > found[1]["mixing_in_domains"]
    assert found[0]["ari"] > 0.8 > found[1]["ari"]


# ---- controls --------------------------------------------------------------------------------------------------------


def test_shuffled_positions_show_what_averaging_invents(cells):
    place = Tissue(cells, LABELS)
    seen = {}
    for name in ("pca_leiden", "smooth_pca"):
        make = lambda seed, name=name: tf.method("domains", name, seed=seed)  # noqa: E731
        method = make(0).fit(cells, progress=False)
        control, scores = _controls.shuffled_positions(Trial(make), method, place, 2, 0)
        seen[name] = control.verdict, values(scores)["shuffled_contiguity"]
    assert seen["pca_leiden"][0] == "pass" and seen["pca_leiden"][1] < 0.1
    assert seen["smooth_pca"][0] in ("warn", "fail") and seen["smooth_pca"][1] > 0.3


def test_shuffling_stays_within_slices():
    both = two_slices()
    moved = Tissue(both, {"sample": "slice"}).shuffled(0).adata.obsm["spatial"]
    assert not np.array_equal(moved, both.obsm["spatial"])
    for name in "ab":
        inside = (both.obs["slice"] == name).to_numpy()
        assert {tuple(p) for p in moved[inside]} == {tuple(p) for p in both.obsm["spatial"][inside]}


def test_controls_of_large_slices_look_at_a_piece_that_hangs_together(cells, monkeypatch):
    monkeypatch.setattr("tenfold.domains._trial.CONTROL_CELLS", 60)
    piece = Tissue(cells, LABELS).window()
    assert piece.adata.n_obs == 60
    assert piece.positions.spacing == pytest.approx(1.0)
    assert np.ptp(piece.positions.points, axis=0).max() <= 10
    make = lambda seed: tf.domains.PCALeiden(seed=seed)  # noqa: E731
    control, _ = _controls.seeds(Trial(make), make(0).fit(cells, progress=False), Tissue(cells, LABELS), 2, 0)
    assert control.numbers["seeds"] == 5 and control.numbers["cells"] == 60


# ---- ranking ---------------------------------------------------------------------------------------------------------


def table(**methods):
    rows = []
    for name, scores in methods.items():
        rows += [("domains", name, 0, "layers", metric, value) for metric, value in scores.items()]
    return pd.DataFrame(rows, columns=["task", "method", "seed", "group", "metric", "value"])


YES = Assessment("spatial structure", "", "")


def test_what_does_not_beat_the_baseline_is_marked():
    base = {"ari": 0.5, "ari_kmeans": 0.5, "ari_mclust": 0.7}
    ranking = _ranking.ranked(
        table(smooth_pca=base, graphst={"ari": 0.6, "ari_kmeans": 0.3, "ari_mclust": 0.6}, bass={"ari": 0.4}), {}
    )
    assert [entry["method"] for entry in ranking] == ["graphst", "smooth_pca", "bass"]
    assert any("does not beat Smoothed PCA with any shared head" in reason for reason in ranking[0]["reasons"])
    assert any("0.40 against 0.50" in reason for reason in ranking[2]["reasons"])
    choice = _ranking.recommended(ranking, YES)
    assert choice.method == "smooth_pca" and "only by its head" in choice.sentence
    better = _ranking.ranked(table(smooth_pca=base, graphst={"ari": 0.8, "ari_kmeans": 0.3, "ari_mclust": 0.8}), {})
    assert not any("beat" in reason for reason in better[0]["reasons"])
    assert _ranking.recommended(better, YES).method == "graphst"


def test_without_layers_the_recommendation_says_how_little_it_knows():
    rows = table(smooth_pca={"marker_moran": 0.3, "contiguity_gain": 0.2, "seed_agreement": 0.9},
                 banksy={"marker_moran": 0.4, "contiguity_gain": 0.3, "seed_agreement": 0.9})  # fmt: skip
    choice = _ranking.recommended(_ranking.ranked(rows, {}), YES)
    assert choice.method == "banksy" and "weak evidence" in choice.sentence
    assert any("nothing tells right domains from wrong ones" in reason for reason in choice.reasons)
    nothing = _ranking.recommended(_ranking.ranked(rows, {}), Assessment("no spatial structure", "None.", ""))
    assert nothing.method is None


# ---- whole comparisons -----------------------------------------------------------------------------------------------


def test_both_baselines_are_in_every_table(finished):
    assert set(finished.summary["methods"]) == {"pca_leiden", "smooth_pca"}
    assert all(run["status"] == "ok" for run in finished.runs), [run["message"] for run in finished.runs]
    for run in finished.runs:
        assert {control["name"] for control in run["controls"]} == {"shuffled_positions", "seeds"}
        assert all(control["verdict"] != "not run" for control in run["controls"]), run["controls"]
    page = finished.report.read_text()
    assert "Does expression depend on where cells lie?" in page and "Number of domains not given" in page
    assert "By each head" in page and "eats thin layers" in page
    assert any("failed: Shuffled positions" in entry["reasons"] for entry in finished.summary["ranking"])


def test_the_command_line_compares_a_slice_without_layers(cells, tmp_path):
    from tenfold.data.writing import write_h5ad

    adata = cells.copy()
    del adata.obs["domain"]
    write_h5ad(adata, tmp_path / "slice.h5ad")
    options = ["-o", str(tmp_path / "trial"), "--methods", "smooth_pca", "--seeds", "1", "--no-controls"]
    done = CliRunner().invoke(app, ["compare", "domains", str(tmp_path / "slice.h5ad"), *options])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "trial" / "report.html").read_text()
    assert "nothing tells right domains from wrong ones" in page and "circular" in page


def test_positions_that_are_not_there_are_told_before_any_run(cells, tmp_path):
    adata = cells.copy()
    del adata.obsm["spatial"]
    with warnings.catch_warnings(), pytest.raises(KeyMissingError, match="There are no positions"):
        tf.compare("domains", adata, ["smooth_pca"], out=tmp_path / "t")


def test_the_report_maps_the_domains_that_were_scored(cells, finished):
    from safetensors.numpy import load_file

    from tenfold.report import maps, stored

    about = load_file(finished.directory / "cells.safetensors")
    np.testing.assert_allclose(about["positions"], cells.obsm["spatial"])
    told = cells.obs["domain"].to_numpy() != "unlabelled"
    for name in ("pca_leiden", "smooth_pca"):
        run = load_file(finished.directory / "runs" / f"{name}-0.safetensors")
        for kind, metric in (("domains", "ari"), ("refined", "ari_refined")):
            scored = finished.scores.query(f"method == '{name}' and metric == '{metric}'")["value"].item()
            assert metrics.ari(run[kind][told], cells.obs["domain"].to_numpy()[told]) == pytest.approx(scored)
    drawn = maps.payload(stored.read(finished.directory))
    assert [entry["title"] for entry in drawn["maps"]] == ["Annotation", "PCA + Leiden", "Smoothed PCA"]
    assert finished.report.read_text().count("<canvas") == 3


def test_what_was_found_for_a_number_is_not_sought_again(cells, monkeypatch):
    fits = []

    class Halves(tf.domains.SmoothPCA):
        def _domains(self, data, positions):
            fits.append(self.n_clusters)
            return np.arange(data.n_cells) % (self.n_clusters or 3)

    method = Halves(n_clusters=3).fit(cells, progress=False)
    for _ in range(3):
        assert len(np.unique(labels_for(method, Tissue(cells, LABELS), 2, None, 0))) == 2
    assert fits == [3, 2]
