"""Metrics that look beyond labels: cell cycle, variable genes, trajectory; and scIB's aggregate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from tenfold import metrics
from tenfold.data.cell_cycle import G2M_GENES, S_GENES, phase_scores
from tenfold.errors import DataError
from tenfold.kernels.fuzzy import fuzzy_graph


def test_several_covariates_explain_what_their_span_explains() -> None:
    rng = np.random.default_rng(0)
    cells, one = rng.normal(size=(300, 8)), rng.normal(size=(300, 2))
    cells[:, 0] += 3 * one[:, 0]
    both = metrics.pcr(cells, one, categorical=False)
    assert both == pytest.approx(metrics.pcr(cells, one @ [[1, 1], [2, -1]], categorical=False))
    assert metrics.pcr(cells, one[:, 0], categorical=False) < both
    assert metrics.pcr(cells, np.stack([one[:, 0]] * 2, 1), categorical=False) == pytest.approx(
        metrics.pcr(cells, one[:, 0], categorical=False)
    )
    assert metrics.pcr(cells, np.ones(300), categorical=False) == 0


def cycling(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expression in which a cycle moves many genes, its two scores, and batches."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, 400)
    scores = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    return 2 * scores @ rng.normal(size=(2, 60)) + rng.normal(size=(400, 60)), scores, rng.integers(2, size=400)


def test_cell_cycle_is_kept_by_rotation_and_lost_by_removal() -> None:
    before, scores, batch = cycling()
    turned = before @ np.linalg.qr(np.random.default_rng(1).normal(size=(60, 60)))[0][:, :50]
    assert metrics.cell_cycle(before, before[:, :60], scores, batch) > 0.99
    assert metrics.cell_cycle(sparse.csr_matrix(before), turned, scores, batch) > 0.9
    removed = before - scores @ np.linalg.lstsq(scores, before, rcond=None)[0]
    each = metrics.cell_cycle_per_batch(before, removed, scores, batch)
    assert set(each) == {0, 1} and max(each.values()) < 0.1
    with pytest.raises(DataError, match="explain nothing"):
        metrics.cell_cycle(before, before, np.zeros((400, 2)), batch)
    with pytest.raises(DataError, match="same cells"):
        metrics.cell_cycle(before[:10], before, scores, batch)


def test_variable_genes_stay_or_change() -> None:
    rng = np.random.default_rng(2)
    rates = np.exp(rng.normal(size=(1, 200)) + rng.normal(size=(300, 200)) * np.r_[np.full(60, 1.2), np.full(140, 0.1)])
    before, batch = np.log1p(rng.poisson(rates)), np.repeat([0, 1], 150)
    assert metrics.hvg_overlap(sparse.csr_matrix(before), before, batch, 50) == 1
    assert metrics.hvg_overlap(before, before[:, ::-1], batch, 50) < 0.6
    with pytest.raises(DataError, match="same cells and genes"):
        metrics.hvg_overlap(before, before[:, :9], batch)
    with pytest.raises(DataError, match="could not be chosen"):
        metrics.hvg_overlap(np.ones((10, 4)), np.ones((10, 4)), np.repeat([0, 1], 5))


def path(n: int = 90) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Cells along an arc, their time, and three stages; few, since DPT loses a path that is long for its neighbours."""
    time = np.sort(np.random.default_rng(3).uniform(size=n))
    arc = np.stack([np.cos(3 * time), np.sin(3 * time)], 1) + 0.01 * np.random.default_rng(4).normal(size=(n, 2))
    return fuzzy_graph(*metrics.neighbors(arc, 15)), time, (3 * time).astype(int)


def test_trajectory_is_kept_reversed_or_lost() -> None:
    graph, time, stage = path()
    assert metrics.trajectory(graph, time, stage) > 0.98
    assert metrics.trajectory(graph, time, stage, batch=np.arange(len(time)) % 2) > 0.98
    part = np.where(np.arange(len(time)) % 3 == 0, np.nan, time)
    assert metrics.trajectory(graph, part, stage) > 0.98
    shuffled = np.random.default_rng(5).permutation(len(time))
    assert metrics.trajectory(graph[shuffled][:, shuffled], time, stage) < 0.8


def test_trajectory_without_a_start_is_zero_and_bad_input_is_named() -> None:
    graph, time, stage = path()
    kept = sparse.diags_array((stage != 0).astype(float))
    assert metrics.trajectory(kept @ graph @ kept, time, stage) == 0, "the first stage is not in the graph"
    with pytest.raises(DataError, match="one number for each"):
        metrics.trajectory(graph, time[:9], stage)
    with pytest.raises(DataError, match="at least 10"):
        metrics.trajectory(graph, np.full(len(time), np.nan), stage)


def test_overall_weighs_biology_and_mixing() -> None:
    values = {"clisi": 0.9, "nmi_leiden": 0.7, "ilisi": 0.5, "cilisi": 0.0, "nmi_kmeans": 0.0}
    assert metrics.scib_overall(values) == pytest.approx(0.6 * 0.8 + 0.4 * 0.5)
    assert metrics.scib_overall({"clisi": 0.9}) is None


def test_phases_are_scored_in_human_and_mouse_symbols_and_not_without_genes() -> None:
    assert len(S_GENES) == 43 and len(G2M_GENES) == 54 and not set(S_GENES) & set(G2M_GENES)
    rng = np.random.default_rng(6)
    names = np.array([*S_GENES, *G2M_GENES, *(f"GENE{i}" for i in range(300))], dtype=object)
    expression = rng.gamma(1, size=(120, len(names))).astype(np.float32)
    dividing = np.arange(120) < 40
    expression[np.ix_(dividing, np.arange(43))] += 3
    batch = np.arange(120) % 2
    human = phase_scores(sparse.csr_matrix(expression), names, batch)
    assert human.shape == (120, 2) and human[dividing, 0].min() > human[~dividing, 0].max()
    mouse = phase_scores(sparse.csr_matrix(expression), np.array([n.capitalize() for n in names]), batch)
    np.testing.assert_allclose(mouse, human)
    assert phase_scores(sparse.csr_matrix(expression[:, 50:]), names[50:], batch) is None


def test_suite_scores_beyond_labels() -> None:
    before, scores, batch = cycling()
    labels = np.random.default_rng(7).integers(3, size=400)
    expression = np.abs(before)
    cells = np.arange(0, 400, 2)
    corrected = metrics.Corrected(expression[cells], expression[cells], cells)
    beyond = metrics.Beyond(before, scores, corrected, np.linspace(0, 1, 400))
    options = {"labels": labels, "batch": batch, "beyond": beyond}
    found = {s.metric: s for s in metrics.integration_metrics(embedding=before.astype(np.float32), **options)}
    assert found["cell_cycle"].value > 0.95 and set(found["cell_cycle"].per_batch) == {0, 1}
    assert found["hvg_overlap"].value == 1 and 0 <= found["trajectory"].value <= 1
    assert found["ilisi"].per_batch.keys() == {0, 1}
    assert found["scib_overall"].value == metrics.scib_overall({n: s.value for n, s in found.items()})
    graph = fuzzy_graph(*metrics.neighbors(before, 15))
    only = {s.metric for s in metrics.integration_metrics(graph=graph, **options)}
    assert "cell_cycle" not in only and {"hvg_overlap", "trajectory", "scib_overall"} <= only
