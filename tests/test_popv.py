"""popV: hand-made votes, the ontology, and how far agreement can be relied on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import tenfold as tf
from tenfold.annotate.popv import PopV
from tenfold.annotators.neighbor_votes import graph_shares, neighbor_shares
from tenfold.annotators.ontology import read_obo
from tenfold.annotators.voting_consensus import (
    Reliability,
    as_probabilities,
    common_parent,
    majority,
    ontology_vote,
    tally,
)
from tenfold.data.inputs import Inputs
from tenfold.errors import DataError, FileFormatError, ParameterError

OBO = """format-version: 1.2

[Term]
id: CL:0000000
name: cell

[Term]
id: CL:1
name: lymphocyte
is_a: CL:0000000 ! cell

[Term]
id: CL:2
name: T cell
synonym: "T-cell" EXACT []
synonym: "lymph" RELATED []
is_a: CL:1 {source="x"} ! lymphocyte

[Term]
id: CL:3
name: CD4 T cell
is_a: CL:2

[Term]
id: CL:4
name: CD8 T cell
is_a: CL:2

[Term]
id: CL:5
name: B cell
is_a: CL:1

[Term]
id: CL:6
name: old cell
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""
LABELS = ["B cell", "CD4 T cell", "CD8 T cell"]


@pytest.fixture(scope="module")
def obo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("obo") / "cl.obo"
    path.write_text(OBO)
    return path


# ---- votes by hand ---------------------------------------------------------------------------------------------------


def test_majority_takes_the_first_name_of_a_tie_and_nobody_is_nobody():
    votes = np.array([[1, 1, 0, 2], [2, 0, 0, 2], [-1, 1, -1, -1], [-1, -1, -1, -1]])
    found = majority(tally(votes, 3))
    assert found.winner.tolist() == [1, 0, 1, -1]
    assert found.score.tolist() == [2, 2, 1, 0]
    assert majority(tally(votes, 3, np.array([1, 1, 1, 3.0]))).winner.tolist() == [2, 2, 1, -1]


def test_ontology_votes_by_hand(obo):
    lineages = read_obo(obo).around(LABELS)
    assert lineages.terms.tolist() == ["B cell", "CD4 T cell", "CD8 T cell", "T cell", "cell", "lymphocyte"]
    assert lineages.depths.tolist() == [2, 3, 3, 2, 0, 1]
    term = {name: number for number, name in enumerate(lineages.terms)}
    cases = [
        # votes for B, CD4, CD8; the smoothing head's term; winner and points of the vote, winner and points of parents
        ([1, 3, 1], "CD4 T cell", "CD4 T cell", 4, "CD4 T cell", 4),
        ([0, 2, 2], "T cell", "CD4 T cell", 2, "T cell", 3),  # CD4 before CD8 by name; 5 votes less 2
        ([0, 2, 2], "CD8 T cell", "CD8 T cell", 3, "CD8 T cell", 3),
        ([3, 1, 1], "B cell", "B cell", 4, "B cell", 4),
        ([2, 1, 1], "lymphocyte", "B cell", 2, "lymphocyte", 3),
        ([1, 1, 1], "T cell", "CD4 T cell", 1, "T cell", 2),  # five terms have one point; the deepest, then the first
    ]
    for votes, head, winner, points, parent, parent_points in cases:
        counts, smoothed = np.array([votes], dtype=float), np.array([term[head]])
        found = ontology_vote(counts, smoothed, lineages)
        assert (lineages.terms[found.winner[0]], found.score[0]) == (winner, points), votes
        above = common_parent(counts, smoothed, lineages)
        assert (lineages.terms[above.winner[0]], above.score[0]) == (parent, parent_points), votes


def test_the_smoothing_head_takes_the_deepest_term_that_reaches_a_half(obo):
    lineages = read_obo(obo).around(LABELS)
    shares = np.array([[0.1, 0.6, 0.3], [0.1, 0.45, 0.45], [0.4, 0.3, 0.3], [0.5, 0.25, 0.25], [0.2, 0.5, 0.3]])
    found = lineages.terms[lineages.smoothed(shares, 0.5)].tolist()
    assert found == ["CD4 T cell", "T cell", "T cell", "B cell", "CD4 T cell"]
    assert lineages.terms[lineages.smoothed(shares[2:3], 0.7)].tolist() == ["lymphocyte"]


def test_an_obo_file(obo, tmp_path):
    ontology = read_obo(obo)
    assert ontology.find("t-CELL") == ontology.find("CL:2") == "T cell"
    assert ontology.find("lymph") is None and ontology.find("old cell") is None and ontology.find("part of") is None
    assert ontology.ancestors("CD4 T cell") == {"T cell", "lymphocyte", "cell"}
    with pytest.raises(DataError, match="None of the 2 labels"):
        ontology.around(["x", "y"])
    assert "own label" in ontology.around(["own label", "T-cell"]).terms
    (tmp_path / "no.obo").write_text("nothing")
    for path in (tmp_path / "no.obo", tmp_path / "none.obo"):
        with pytest.raises(FileFormatError):
            read_obo(path)


def test_reliability_rises_with_agreement_and_probabilities_keep_the_winner():
    rng = np.random.default_rng(0)
    agreement = rng.integers(1, 6, 2000) / 5
    right = rng.random(2000) < agreement * 0.8
    found = Reliability.of(agreement, right)
    np.testing.assert_allclose(found.at(np.array([0.2, 0.6, 1.0])), [0.16, 0.48, 0.8], atol=0.06)
    assert Reliability.of(np.zeros(0), np.zeros(0)).at(np.array([0.4]))[0] == 0.4
    assert Reliability.of(np.ones(3), np.ones(3)).at(np.ones(1))[0] < 1  # three cells are no proof
    counts = np.array([[3.0, 2, 0], [3, 2, 0], [3, 2, 0], [5, 0, 0], [0, 0, 0]])
    confidence = np.array([0.9, 0.6, 0.1, 0.95, 0.4])
    probabilities = as_probabilities(counts, np.zeros(5, dtype=int), confidence)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(probabilities[:, 0], np.maximum(confidence, 1 / 3), rtol=1e-5)
    assert (probabilities.argmax(axis=1) == 0).all() and probabilities[1, 1] > probabilities[1, 2]


def test_neighbours_vote():
    points = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [0.05]])
    codes = np.array([0, 0, 1, 1, 1, -1])
    found = neighbor_shares(points, codes, 2, 2)
    np.testing.assert_allclose(found[[0, 3, 5]], [[0.5, 0.5], [0, 1], [1, 0]])  # no cell votes for itself
    np.testing.assert_allclose(neighbor_shares(points, codes, 2, 3, np.array([[5.05]])), [[0, 1]])
    graph = sparse.csr_matrix(([1.0, 2.0, 3.0, 1.0], ([0, 0, 0, 1], [5, 2, 1, 5])), shape=(6, 6))
    np.testing.assert_allclose(graph_shares(graph, codes, 2, 1)[:2], [[0, 1], [0, 0]])  # an unlabelled one has no vote


# ---- the method ------------------------------------------------------------------------------------------------------

FAST = ("svm", "knn_harmony", "knn_bbknn", "boosted_trees")


def fit(query: ad.AnnData, reference: ad.AnnData | None, members: tuple[str, ...] = FAST, **params: Any) -> PopV:
    roles = {key: params.pop(key) for key in ("batch", "ontology") if key in params}
    model = PopV(members=members, epochs=3, n_latent=5, **params)
    return model.fit(query, reference=reference, labels="cell_type", progress=False, **roles)


@pytest.fixture(scope="module")
def parts() -> tuple[ad.AnnData, ad.AnnData, np.ndarray]:
    adata = tf.data.simulate(600, 100, n_types=3, n_batches=3, batch_strength=0.3, type_strength=0.5, seed=3)
    adata.obs["cell_type"] = adata.obs["cell_type"].map(dict(zip(["type_1", "type_2", "type_3"], LABELS, strict=True)))
    last = (adata.obs["batch"] == "batch_3").to_numpy()
    query = adata[last].copy()
    truth = query.obs["cell_type"].astype(str).to_numpy()
    query.obs = query.obs.drop(columns="cell_type")
    return adata[~last].copy(), query, truth


@pytest.fixture(scope="module")
def model(parts) -> PopV:
    reference, query, _ = parts
    return fit(query, reference)


def test_agreement_says_which_labels_to_rely_on(parts, model):
    truth = parts[2]
    table = model.consensus()
    right = table["label"].to_numpy() == truth
    full, half = table["agreement"] == 1, table["agreement"] <= 0.5
    assert full.sum() > 20 and half.sum() > 10
    assert right[full].mean() >= right[half].mean() + 0.15
    assert right.mean() >= max((table[name] == truth).mean() for name in FAST) - 0.1
    assert (table["votes"] == (table[list(FAST)].eq(table["label"], axis=0)).sum(axis=1)).all()
    np.testing.assert_allclose(model.probabilities().max(axis=1), table["confidence"].clip(lower=1 / 3), atol=1e-5)
    assert (model.predict() == table["label"]).all()


def test_what_each_member_adds(model):
    report = model.leave_one_out()
    assert list(report.index) == list(FAST)
    assert (report[["agrees", "changed", "accuracy", "accuracy_without"]] >= 0).all(axis=None)
    assert len(model.hidden_["codes"]) == pytest.approx(40, abs=5)


def test_later_cells_are_labelled_by_the_members_that_can(parts, model, tmp_path):
    _, query, truth = parts
    later = query[:90, 15:].copy()
    later.obs_names = [f"later {name}" for name in later.obs_names]
    table = model.consensus(later)
    assert "knn_harmony" not in table and {"svm", "boosted_trees"} <= set(table)
    assert (model.predict(later) == truth[:90]).mean() > 0.6
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(tf.load(tmp_path / "model").probabilities(later), model.probabilities(later))
    without = fit(query, parts[0], ("knn_harmony", "knn_bbknn"))
    with pytest.raises(DataError, match="come after"):
        without.predict(later)


def test_cells_without_counts_in_the_genes_are_unknown(parts):
    reference, query, _ = parts
    chosen = Inputs(reference, {}).variable_genes(50)
    dense = query.X.toarray()
    dense[3, chosen] = 0
    assert dense[3].sum() > 0
    some = ad.AnnData(sparse.csr_matrix(dense), obs=query.obs, var=query.var)
    with pytest.warns(UserWarning, match="1 cells have no counts"):
        model = fit(some, reference, ("svm", "knn_harmony"), n_top_genes=50)
    assert model.predict()[3] == "Unknown" and (model.predict() == "Unknown").sum() == 1
    assert model.consensus()["votes"].iloc[3] == 0
    np.testing.assert_allclose(model.probabilities().iloc[3], 1 / 3, rtol=1e-5)


def test_an_ontology_lets_ancestors_win(parts, obo):
    reference, query, _ = parts
    table = fit(query, reference, ontology=str(obo)).consensus()
    assert {"depth", "parent", "smoothed"} <= set(table)
    assert set(table["label"]) <= {"B cell", "CD4 T cell", "CD8 T cell", "T cell", "lymphocyte"}
    assert set(table["parent"]) <= {"B cell", "CD4 T cell", "CD8 T cell", "T cell", "lymphocyte"}
    assert (table["parent_votes"] == 3).all()  # of four members and the head, less two


def test_deep_members_and_weights(parts):
    reference, query, _ = parts
    model = fit(query, reference, ("svm", "knn_scvi", "scanvi"), weights={"svm": 5.0}, batch="batch")
    table = model.consensus()
    assert (table["label"] == table["svm"]).all() and table["agreement"].min() >= 5 / 7 - 1e-9
    later = query.copy()
    later.obs_names = [f"later {name}" for name in later.obs_names]
    assert {"svm", "knn_scvi", "scanvi"} <= set(model.consensus(later))


def test_members_that_cannot_be(parts):
    reference, query, _ = parts
    for members, words in ((("svm",), "at least 2"), (("svm", "popv"), "itself"), (("svm", "svn"), "svm")):
        with pytest.raises(ParameterError, match=words):
            fit(query, reference, members)
    with pytest.raises(ParameterError, match="weights"):
        fit(query, reference, weights={"knn": 2.0})
    with pytest.warns(UserWarning, match="one batch"):
        alone = fit(reference, None, ("svm", "boosted_trees", "knn_harmony"))
    assert set(alone.shares_) == {"svm", "boosted_trees"}


def test_sets_of_labels_from_the_hidden_cells(parts):
    reference, query, truth = parts
    model = fit(query, reference, ("svm", "logistic", "knn_harmony"), batch="batch")
    sets = model.predict_sets(query, alpha=0.1)
    codes = [sets.contains.columns.get_loc(name) for name in truth]
    assert sets.contains.to_numpy()[np.arange(len(truth)), codes].mean() > 0.8
    assert len(model.calibration_["codes"]) == len(model.hidden_["codes"]) == sets.n_calibration.sum()
    # Of cells that come later Harmony does not vote; their calibration is another one.
    later = query[:30].copy()
    later.obs_names = [f"later {name}" for name in later.obs_names]
    kept = [model._calibration_for(cells) for cells in (later, query)]
    assert kept[0].codes.tolist() == kept[1].codes.tolist()
    assert not np.array_equal(kept[0].probabilities, kept[1].probabilities)
    assert len(model.predict_sets(later).sizes) == len(model.novelty(later)) == 30
