"""Metrics of annotation against scikit-learn, by hand, and at their limits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as peer

import tenfold as tf
from tenfold import metrics
from tenfold.errors import DataError

RNG = np.random.default_rng(0)
TRUTH = RNG.choice(["B", "T", "NK", "DC"], 400, p=[0.5, 0.3, 0.15, 0.05])
TOLD = np.where(RNG.random(400) < 0.7, TRUTH, RNG.choice(["B", "T", "NK"], 400))
REJECTED = np.where(RNG.random(400) < 0.2, "Unknown", TOLD)


def probabilities(n: int = 500, sharp: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return honest probabilities of three labels, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3) / sharp, n)
    return p, np.array([rng.choice(3, p=row) for row in p])


def test_counts_equal_scikit_learn() -> None:
    names = ["B", "DC", "NK", "T"]
    for told in (TOLD, REJECTED):
        assert metrics.accuracy(TRUTH, told) == pytest.approx(peer.accuracy_score(TRUTH, told))
        f1 = peer.f1_score(TRUTH, told, labels=names, average=None, zero_division=0)
        assert metrics.macro_f1(TRUTH, told) == pytest.approx(f1.mean())
        assert metrics.median_f1(TRUTH, told) == pytest.approx(np.median(f1))
        assert metrics.weighted_f1(TRUTH, told) == pytest.approx(
            peer.f1_score(TRUTH, told, labels=names, average="weighted", zero_division=0)
        )
        recall = peer.recall_score(TRUTH, told, labels=names, average=None, zero_division=0)
        assert metrics.balanced_accuracy(TRUTH, told) == pytest.approx(recall.mean())
        assert metrics.cohen_kappa(TRUTH, told) == pytest.approx(peer.cohen_kappa_score(TRUTH, told))
        assert metrics.matthews(TRUTH, told) == pytest.approx(peer.matthews_corrcoef(TRUTH, told))
        table = metrics.label_scores(TRUTH, told)
        np.testing.assert_allclose(table.loc[names, "f1"], f1)
        np.testing.assert_allclose(table.loc[names, "recall"], recall)
        assert table["n"].sum() == 400


def test_rejection_counts_as_an_error_but_in_the_benchmark() -> None:
    truth = np.array(["a", "a", "a", "b", "b"])
    told = np.array(["a", "Unknown", "Unknown", "b", "a"])
    assert metrics.accuracy(truth, told) == pytest.approx(0.4)
    assert metrics.selective_accuracy(truth, told) == pytest.approx(2 / 3)
    assert metrics.rejected_share(told) == pytest.approx(0.4)
    assert metrics.median_f1(truth, told) == pytest.approx((2 / 5 + 2 / 3) / 2)
    assert metrics.benchmark_f1(truth, told) == pytest.approx(2 / 3)  # both labels: 2/3 once rejected cells are gone
    assert metrics.label_scores(truth, told).loc["a", "rejected"] == pytest.approx(2 / 3)
    assert np.isnan(metrics.selective_accuracy(truth, np.full(5, "Unknown")))
    assert metrics.accuracy(truth, np.full(5, "c")) == metrics.macro_f1(truth, np.full(5, "c")) == 0


def test_one_label_only() -> None:
    one = np.full(5, "a")
    assert metrics.accuracy(one, one) == metrics.macro_f1(one, one) == metrics.cohen_kappa(one, one) == 1
    assert metrics.matthews(one, one) == 0


def test_novelty_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    novel = rng.random(300) < 0.2
    score = np.round(rng.normal(size=300) + novel, 1)  # with ties
    assert metrics.novel_auroc(novel, score) == pytest.approx(peer.roc_auc_score(novel, score))
    assert metrics.novel_aupr(novel, score) == pytest.approx(peer.average_precision_score(novel, score))
    false, true, _ = peer.roc_curve(novel, score, drop_intermediate=False)
    assert metrics.novel_fpr95(novel, score) == pytest.approx(false[np.argmax(true >= 0.95)])
    assert metrics.novel_auroc(novel, np.zeros(300)) == 0.5
    assert np.isnan(metrics.novel_auroc(np.zeros(300), score)) and np.isnan(metrics.novel_fpr95(np.ones(300), score))
    with pytest.raises(DataError, match="NaN"):
        metrics.novel_auroc(novel, np.full(300, np.nan))


def test_risk_and_coverage() -> None:
    right, sure = np.array([1, 1, 0, 0]), np.array([0.9, 0.8, 0.7, 0.6])
    assert metrics.aurc(right, sure) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert metrics.aurc(right, -sure) > metrics.aurc(right, np.ones(4)) == pytest.approx(0.5)
    assert metrics.accuracy_auroc(right, sure) == 1


def test_honest_probabilities_score_best() -> None:
    p, codes = probabilities(6000)
    sharp, flat = p**3 / (p**3).sum(axis=1, keepdims=True), p**0.3 / (p**0.3).sum(axis=1, keepdims=True)
    for score in (metrics.ece, metrics.brier, metrics.nll):
        assert score(p, codes) < min(score(sharp, codes), score(flat, codes))
    assert metrics.ece(p, codes) < 0.03 and metrics.ece(p, codes, by_label=True) < 0.05


def test_calibration_by_hand_and_by_scikit_learn() -> None:
    p, codes = probabilities()
    assert metrics.nll(p, codes) == pytest.approx(peer.log_loss(codes, p), rel=1e-6)
    assert metrics.brier(p, codes) == pytest.approx(np.square(p - np.eye(3)[codes]).sum(axis=1).mean())
    one = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    # two bins: 0.6 and 0.7 (one right: 0.5 against 0.65), 0.8 and 0.9 (one right: 0.5 against 0.85)
    assert metrics.ece(one, np.array([0, 1, 0, 1]), bins=2) == pytest.approx((0.15 + 0.35) / 2)
    table = metrics.reliability(p, codes, bins=5)
    assert table["n"].tolist() == [100] * 5 and (np.diff(table["confidence"]) > 0).all()
    with pytest.raises(DataError, match="columns"):
        metrics.nll(p, codes + 1)


def test_intervals_of_groups_are_wider_than_those_of_cells() -> None:
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(12), 100)
    right = rng.random(1200) < np.clip(rng.normal(0.8, 0.15, 12), 0, 1)[donor]
    by_cell, by_donor = (
        metrics.bootstrap_interval(lambda x: float(x.mean()), right, group=group) for group in (None, donor)
    )
    assert by_donor.half_width > 2 * by_cell.half_width
    assert by_cell.low < by_cell.value == right.mean() < by_cell.high
    found = metrics.bootstrap_interval(metrics.macro_f1, TRUTH, TOLD, repeats=50)
    assert found.low < metrics.macro_f1(TRUTH, TOLD) < found.high


def test_annotators_are_compared_by_donor() -> None:
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(8), 50)
    first = rng.random(400) < 0.8
    assert metrics.paired_permutation(first, first, donor) == 1
    worse = first & (rng.random(400) < 0.7)
    assert metrics.paired_permutation(first, worse, donor) == pytest.approx(2 / 2**8)
    five = donor < 5
    assert metrics.paired_permutation(first[five], worse[five], donor[five]) == pytest.approx(2 / 2**5)
    same = [
        metrics.paired_permutation(rng.random(400) < 0.8, rng.random(400) < 0.8, donor) for _ in range(200)
    ]  # fmt: skip
    assert 0.01 < np.mean(np.array(same) < 0.1) < 0.2
    many = np.repeat(np.arange(20), 20)
    assert metrics.paired_permutation(first, worse, many) < 0.01


OBO = """format-version: 1.2

[Term]
id: X:0
name: cell

[Term]
id: X:1
name: lymphocyte
is_a: X:0 ! cell

[Term]
id: X:2
name: T cell
synonym: "T lymphocyte" EXACT []
synonym: "thymic cell" RELATED []
is_a: X:1 ! lymphocyte

[Term]
id: X:3
name: B cell
is_a: X:1 ! lymphocyte

[Term]
id: X:4
name: monocyte
is_a: X:0 ! cell

[Term]
id: X:5
name: old cell
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""


@pytest.fixture
def cells(tmp_path):
    path = tmp_path / "cl.obo"
    path.write_text(OBO)
    return tf.annotate.read_obo(path)


def test_labels_stand_for_the_terms_they_name(cells):
    assert cells.under_labels(["T lymphocyte", "X:3"])["T lymphocyte"] == ("lymphocyte",)
    assert cells.common_ancestor(["T cell", "X:3"]) == "lymphocyte" and cells.common_ancestor(["T cell"]) == "T cell"
    assert cells.common_ancestor(["T cell", "monocyte"]) == "cell" and cells.common_ancestor(["T cell", "?"]) is None
    with pytest.raises(DataError, match="Did you mean 'T cell'"):
        cells.under_labels(["T cel"])


def test_near_misses_cost_less(cells):
    parents = cells.under_labels(["T cell", "B cell", "lymphocyte", "monocyte", "cell"])

    def score(function, told):
        return function(np.array(["T cell"]), np.array([told]), parents)

    order = ["T cell", "lymphocyte", "B cell", "monocyte"]
    for function in (
        metrics.ontology_credit, metrics.ontology_jaccard, metrics.ontology_lin, metrics.ontology_f1,
    ):  # fmt: skip
        values = [score(function, told) for told in order]
        assert values == sorted(values, reverse=True) and values[0] == 1
    assert [score(metrics.ontology_distance, told) for told in order] == [0, 1, 2, 3]
    assert score(metrics.ontology_credit, "lymphocyte") == pytest.approx(2 / 3)
    assert score(metrics.ontology_jaccard, "B cell") == pytest.approx(2 / 4)
    # Six terms; lymphocyte has two below it, cells to label nothing.
    of_lymphocyte = 1 - np.log(3) / np.log(len(parents.keys() | {"cell"}))
    assert score(metrics.ontology_lin, "B cell") == pytest.approx(2 * of_lymphocyte / 2)
    assert score(metrics.ontology_lin, "lymphocyte") == pytest.approx(2 * of_lymphocyte / (1 + of_lymphocyte))
    assert score(metrics.ontology_lin, "monocyte") == pytest.approx(0, abs=1e-12)
    assert score(metrics.ontology_f1, "lymphocyte") == pytest.approx(2 * 2 / (3 + 2))
    truth = np.array(["T cell", "T cell", "T cell", "lymphocyte", "T cell"])
    told = np.array(["T cell", "lymphocyte", "B cell", "T cell", "monocyte"])
    assert metrics.ontology_relations(truth, told, parents) == dict.fromkeys(
        ("same", "parent", "child", "sibling", "other"), 0.2
    )
    assert score(metrics.ontology_credit, "Unknown") == 0


def test_markers_are_high_in_their_type() -> None:
    rng = np.random.default_rng(0)
    told = np.repeat(["B", "T", "NK"], 50)
    x = rng.random((150, 4))
    x[:50, 0] += 1
    x[50:100, 1] += 0.5
    found = metrics.marker_auroc(
        x, ["b", "t", "n", "o"], told, {"B": ["b"], "T": ["none", "t"], "NK": ["n"], "x": ["z"]}
    )
    assert found["B"] == 1 and 0.8 < found["T"] < 1 and 0.3 < found["NK"] < 0.7 and "x" not in found
    from scipy import sparse

    assert metrics.marker_auroc(sparse.csr_matrix(x), ["b", "t", "n", "o"], told, {"B": ["b"]}) == {"B": 1.0}
    assert np.isnan(metrics.marker_auroc(x, ["b", "t", "n", "o"], told, {"DC": ["b"]})["DC"])
    with pytest.raises(DataError, match="None of the markers"):
        metrics.marker_auroc(x, ["b", "t", "n", "o"], told, {"B": ["MS4A1"]})
