"""Metrics against scikit-learn, hand-made cases and limits that anyone can check."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from tenfold import metrics
from tenfold.errors import DataError, ParameterError


def blobs(n: int = 600, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points in 8 dimensions around 3 far centres, their labels, and 2 batches that lie `shift` apart."""
    rng = np.random.default_rng(seed)
    labels, batch = rng.integers(3, size=n), rng.integers(2, size=n)
    centres = 12 * np.eye(8)[:3] + 5
    cells = centres[labels] + rng.normal(size=(n, 8))
    cells[:, 7] += shift * batch
    return cells.astype(np.float32), labels, batch


def test_agreement_equals_scikit_learn() -> None:
    from sklearn import metrics as peer

    rng = np.random.default_rng(0)
    a, b = rng.integers(5, size=300), rng.integers(7, size=300)
    b[:150] = a[:150]
    assert metrics.ari(a, b) == pytest.approx(peer.adjusted_rand_score(a, b))
    assert metrics.nmi(a, b) == pytest.approx(peer.normalized_mutual_info_score(a, b))
    assert metrics.ami(a, b) == pytest.approx(peer.adjusted_mutual_info_score(a, b))
    assert metrics.homogeneity(b, a) == pytest.approx(peer.homogeneity_score(a, b))
    assert metrics.completeness(b, a) == pytest.approx(peer.completeness_score(a, b))


def test_agreement_by_hand() -> None:
    labels = np.array(["B", "B", "B", "B", "T", "T"])
    clusters = np.array([0, 0, 0, 1, 1, 1])
    # pairs: 3 + 0 + 1 shared = 4, rows 6, columns 7, of 15; chance 2.8; (4 - 2.8) / (6.5 - 2.8)
    assert metrics.ari(clusters, labels) == pytest.approx(1.2 / 3.7)
    assert metrics.matched_accuracy(clusters, labels) == pytest.approx(5 / 6)
    assert metrics.f1_per_label(clusters, labels) == {"B": pytest.approx(6 / 7), "T": pytest.approx(4 / 5)}
    assert metrics.ari(labels, labels) == metrics.nmi(labels, labels) == 1
    assert metrics.ari(np.zeros(6), labels) == metrics.nmi(np.zeros(6), labels) == 0
    assert metrics.ari(np.zeros(6), np.zeros(6)) == metrics.nmi(np.zeros(6), np.zeros(6)) == 1


def test_silhouettes_equal_scikit_learn() -> None:
    from sklearn.metrics import silhouette_samples, silhouette_score

    cells, labels, batch = blobs(400, shift=1.0)
    labels[0] = 9  # a label of one cell has width 0
    cells = cells + 300  # far from the origin, where products of large numbers lose digits
    np.testing.assert_allclose(metrics.silhouette_samples(cells, labels), silhouette_samples(cells, labels), atol=2e-4)
    assert metrics.asw_label(cells, labels) == pytest.approx((silhouette_score(cells, labels) + 1) / 2, abs=1e-5)
    inside = [1 - np.abs(silhouette_samples(cells[labels == k], batch[labels == k])).mean() for k in range(3)]
    assert metrics.asw_batch(cells, labels, batch) == pytest.approx(np.mean(inside), abs=1e-5)


def test_bras_equals_all_pairs() -> None:
    from scipy.spatial.distance import cdist

    cells, labels, batch = blobs(200, shift=2.0)
    batch[:40] = 2
    scores = {}
    for label in range(3):
        inside, groups = cells[labels == label], batch[labels == label]
        far = cdist(inside, inside, "cosine")
        widths = []
        for i, group in enumerate(groups):
            own, other = groups == group, groups != group
            near_by, away = far[i, own].sum() / (own.sum() - 1), far[i, other].mean()
            widths.append((away - near_by) / max(away, near_by))
        scores[label] = 1 - np.abs(widths).mean()
    assert metrics.bras_per_label(cells, labels, batch) == {k: pytest.approx(v, abs=1e-6) for k, v in scores.items()}


def test_sampled_silhouette_is_close() -> None:
    cells, labels, batch = blobs(3000)
    assert metrics.asw_label(cells, labels, sample=300) == pytest.approx(metrics.asw_label(cells, labels), abs=0.005)
    sampled = metrics.asw_batch(cells, labels, batch, sample=200)
    assert sampled == pytest.approx(metrics.asw_batch(cells, labels, batch), abs=0.01)


def test_isolated_labels_are_those_in_the_fewest_batches() -> None:
    cells, labels, batch = blobs()
    batch[labels == 2] = 1
    assert metrics.isolated_labels(cells, labels, batch) == pytest.approx(metrics.asw_per_label(cells, labels)[2])
    found = metrics.isolated_labels_f1([labels, np.zeros_like(labels)], labels, batch)
    assert found == {2: 1.0}
    batch[:] = np.arange(len(batch)) % 2
    assert metrics.isolated_labels_f1([labels], labels, batch) == {}


def test_lisi_by_hand() -> None:
    # Four neighbours at one distance, three in group 0 and one in group 1: 1 / (9/16 + 1/16).
    indices = np.array([[0, 1, 2, 3, 4]] * 5)
    indices[:, 0], indices[4, 4] = np.arange(5), 0
    near = metrics.Neighbors(indices, np.where(indices == np.arange(5)[:, None], 0, 1.0).astype(np.float32))
    values = metrics.lisi(near, np.array([0, 0, 0, 0, 1]), perplexity=4)
    assert values[0] == pytest.approx(1.6)
    assert values[4] == pytest.approx(1.0)


def test_lisi_weights_have_the_perplexity() -> None:
    from tenfold.metrics.diversity import weights

    near = metrics.neighbors(blobs()[0], 60)
    found = weights(near, 20)
    entropy = -(found * np.log(np.maximum(found, 1e-30))).sum(axis=1)
    np.testing.assert_allclose(np.exp(entropy), 20, rtol=1e-4)
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_lisi_does_not_depend_on_the_unit_of_distance(scale: float) -> None:
    cells, _, batch = blobs()
    reference = metrics.ilisi(metrics.neighbors(cells, 60), batch)
    assert metrics.ilisi(metrics.neighbors(cells * np.float32(scale), 60), batch) == pytest.approx(reference, abs=1e-3)


def test_limits_of_mixing() -> None:
    mixed, labels, batch = blobs(1500)
    apart = blobs(1500, shift=100.0)[0]
    for name, low, high in (("ilisi", 0.01, 0.85), ("cilisi", 0.01, 0.85), ("kbet", 0.01, 0.85), ("bras", 0.7, 0.97)):

        def score(cells, name=name):  # type: ignore[no-untyped-def]
            if name == "ilisi":
                return metrics.ilisi(metrics.neighbors(cells, 90), batch)
            return getattr(metrics, name)(cells, labels, batch)

        assert score(apart) < low < high < score(mixed) <= 1
    assert metrics.pcr_comparison(apart, mixed, batch) > 0.99
    assert metrics.pcr_comparison(mixed, apart, batch) == 0
    assert metrics.clisi(metrics.neighbors(mixed, 90), labels) == pytest.approx(1)
    noise = np.random.default_rng(1).normal(size=(1500, 8)).astype(np.float32)
    assert metrics.clisi(metrics.neighbors(noise, 90), labels) < 0.25


def test_collapse_fools_ilisi_but_not_cilisi() -> None:
    """Two types, each in one batch of its own: merging them is not integration."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 300)
    batch = np.concatenate([np.zeros(300), np.ones(300), np.arange(300) % 2]).astype(int)
    merged = rng.normal(size=(900, 5)).astype(np.float32)
    merged[labels == 2] += np.array([0, 0, 0, 0, 30], dtype=np.float32)
    merged[(labels == 2) & (batch == 1), 0] += 40  # the only type that both batches hold stays unmixed
    assert metrics.ilisi(metrics.neighbors(merged, 90), batch) > 0.8
    assert metrics.cilisi(merged, labels, batch) < 0.01
    assert list(metrics.cilisi_per_label(merged, labels, batch)) == [2]


def test_kbet_accepts_at_its_level() -> None:
    """Batches at random: about 95 % of the tests at alpha = 0.05 must be accepted."""
    rng = np.random.default_rng(0)
    cells, batch = rng.normal(size=(4000, 6)).astype(np.float32), rng.integers(3, size=4000)
    assert metrics.kbet(cells, np.zeros(4000), batch) == pytest.approx(0.95, abs=0.03)
    assert metrics.kbet(cells, np.zeros(4000), batch, alpha=0.5) == pytest.approx(0.5, abs=0.15)
    assert metrics.kbet(cells[:800], np.zeros(800), batch[:800], diffusion=True) > 0.85


def test_graph_connectivity_by_hand() -> None:
    labels = np.array(["a"] * 5 + ["b"] * 2)
    rows, columns = np.array([0, 1, 3, 2, 5]), np.array([1, 2, 4, 5, 6])
    graph = sparse.coo_matrix((np.ones(5), (rows, columns)), shape=(7, 7))
    graph = (graph + graph.T).tocsr()
    assert metrics.graph_connectivity_per_label(graph, labels) == {"a": 0.6, "b": 1.0}  # {0, 1, 2} of five
    assert metrics.graph_connectivity(graph, labels) == pytest.approx(0.8)
    # Directed lists: 0 -> 1 -> 0 come back, 2 -> 0 does not.
    near = metrics.Neighbors(np.array([[0, 1], [1, 0], [2, 0]]), np.zeros((3, 2), np.float32))
    assert metrics.graph_connectivity(near, np.zeros(3)) == pytest.approx(2 / 3)


def test_pcr_equals_regression_on_components() -> None:
    from sklearn.decomposition import PCA

    cells, _, batch = blobs(300, shift=3.0)
    batch[:50] = 2
    pca = PCA().fit(cells)
    parts, onehot = pca.transform(cells), np.eye(3)[batch]
    fitted = onehot @ np.linalg.lstsq(onehot, parts, rcond=None)[0]
    r2 = 1 - ((parts - fitted) ** 2).sum(axis=0) / (parts**2).sum(axis=0)
    expected = (r2 * pca.explained_variance_).sum() / pca.explained_variance_.sum()
    assert metrics.pcr(cells, batch) == pytest.approx(expected, rel=1e-4)
    number = np.random.default_rng(0).normal(size=300)
    r2 = np.array([np.corrcoef(number, part)[0, 1] ** 2 for part in parts.T])
    expected = (r2 * pca.explained_variance_).sum() / pca.explained_variance_.sum()
    assert metrics.pcr(cells, number, categorical=False) == pytest.approx(expected, rel=1e-4)


def test_separability_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cells, _, batch = blobs(600, shift=0.8)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    expected = cross_val_score(model, cells, batch, cv=5, scoring="roc_auc").mean()
    assert metrics.separability_auc(cells, batch) == pytest.approx(expected, abs=0.02)
    assert metrics.separability_auc(blobs(600, shift=60.0)[0], batch) == pytest.approx(1)
    assert metrics.separability_auc(blobs(2000)[0], blobs(2000)[2]) == pytest.approx(0.5, abs=0.04)


def test_separability_with_tiny_batches() -> None:
    cells, _, batch = blobs(300, shift=6.0)
    batch[:3] = 2  # too few to be read
    assert 0.9 < metrics.separability_auc(cells, batch) <= 1
    with pytest.raises(DataError, match="too few"):
        metrics.separability_auc(cells[:4], np.array([0, 0, 1, 1]))


def test_neighbor_overlap_by_hand() -> None:
    a, b = np.array([[1, 2, 3, 4], [0, 2, 3, 4]]), np.array([[4, 3, 9, 8], [0, -1, -1, -1]])
    assert metrics.neighbor_overlap(a, b) == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert metrics.neighbor_overlap(a, a) == 1
    assert metrics.neighbor_purity(np.array([[1, 2], [0, -1], [0, 1]]), [0, 0, 1]) == pytest.approx((0.5 + 1 + 0) / 3)


def test_stability_uses_shared_cells() -> None:
    assert metrics.stability([np.array([0, 0, 1, 1, -1]), np.array([5, 5, 2, 2, 2])]) == 1
    with pytest.raises(DataError, match="in common"):
        metrics.stability([np.array([0, -1]), np.array([-1, 0])])


@pytest.mark.parametrize("name", ["bras", "kbet", "cilisi", "asw_batch", "isolated_labels"])
def test_order_of_cells_and_names_of_groups_do_not_matter(name: str) -> None:
    cells, labels, batch = blobs(shift=1.0)
    score = getattr(metrics, name)
    order = np.random.default_rng(5).permutation(len(cells))
    named, other = np.array(["x", "b", "q"])[labels], np.array(["late", "early"])[batch]
    assert score(cells[order], named[order], other[order]) == pytest.approx(score(cells, labels, batch), abs=1e-5)


def test_clusterings_find_the_blobs() -> None:
    from tenfold.kernels.fuzzy import fuzzy_graph

    cells, labels, _ = blobs()
    assert metrics.nmi_ari_kmeans(cells, labels) == (1, 1)
    near = metrics.neighbors(cells, 15)
    assert metrics.nmi_ari_leiden(fuzzy_graph(*near), labels) == (1, 1)


def test_bad_input_is_named() -> None:
    cells, labels, batch = blobs(60)
    one = np.zeros(60, dtype=int)
    broken = cells.copy()
    broken[3, 2] = np.nan
    for call, message in (
        (lambda: metrics.ari(labels, labels[:5]), "60 cells"),
        (lambda: metrics.ari(np.array([0, 1, np.nan]), one[:3]), "no entry"),
        (lambda: metrics.ari(np.array([0, 1, -1]), one[:3]), "no entry"),
        (lambda: metrics.nmi(np.array(["a", None], dtype=object), one[:2]), "no entry"),
        (lambda: metrics.ilisi(metrics.neighbors(cells, 20), one), "same entry in `batch`"),
        (lambda: metrics.clisi(metrics.neighbors(cells, 20), one), "same entry in `labels`"),
        (lambda: metrics.asw_label(cells, one), "at least two groups"),
        (lambda: metrics.bras(cells, labels, one), "two batches"),
        (lambda: metrics.cilisi(cells, labels, one), "two batches"),
        (lambda: metrics.kbet(cells, np.arange(60), batch), "10 cells"),
        (lambda: metrics.pcr(np.ones((60, 3)), batch), "one spot"),
        (lambda: metrics.pcr_comparison(cells, cells, one), "nothing to compare"),
        (lambda: metrics.separability_auc(cells, one), "same entry"),
        (lambda: metrics.asw_label(broken, labels), "cell 3"),
        (lambda: metrics.neighbors(cells[0]), "shape"),
        (lambda: metrics.neighbor_overlap(np.zeros((2, 3)), np.zeros((3, 3))), "same cells"),
        (lambda: metrics.kmeans_clusters(cells, 61), "61 clusters"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(ParameterError, match="alpha"):
        metrics.kbet(cells, labels, batch, alpha=2)
    with pytest.raises(ParameterError, match="perplexity"):
        metrics.lisi(metrics.neighbors(cells, 20), labels, perplexity=30)
    with pytest.raises(AttributeError, match="Did you mean 'cilisi'"):
        metrics.cilisy
