"""All metrics of integration at once: one neighbour search, one set of clusterings, shared by those that need them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from tenfold.errors import DataError
from tenfold.metrics._checks import groups, points
from tenfold.metrics.beyond import Beyond
from tenfold.metrics.described import METRICS, MetricInfo
from tenfold.metrics.neighborhoods import Neighbors, graph_neighbors, neighbors

__all__ = ["METRICS", "MetricInfo", "MetricScore", "integration_metrics"]

K_LISI, K_GRAPH = 90, 15
#: Above this many cells the silhouettes are means over `SILHOUETTE_SAMPLE` cells of each label, against all cells.
SILHOUETTE_ALL = 30_000
SILHOUETTE_SAMPLE = 1000


class _Value(NamedTuple):
    value: float
    per_label: dict[Any, float] = {}
    per_batch: dict[Any, float] = {}
    error: float | None = None


_Found = dict[str, _Value]


@dataclass(frozen=True)
class MetricScore:
    """Value of one metric, and of each label where the metric has one.

    Attributes
    ----------
    group, metric
        Keys in `METRICS`.
    value
        Unscaled value.
    per_label, per_batch
        Value by label and by batch, as these were given; empty where the metric has none.
    error
        Standard error over cells, where it is known: of NMI and ARI with the clustering kept, of CiLISI as if
        cells were independent.
    """

    group: str
    metric: str
    value: float
    per_label: dict[Any, float] = field(default_factory=dict)
    per_batch: dict[Any, float] = field(default_factory=dict)
    error: float | None = None


def integration_metrics(
    *,
    batch: np.ndarray,
    embedding: np.ndarray | None = None,
    graph: sparse.spmatrix | None = None,
    labels: np.ndarray | None = None,
    before: np.ndarray | None = None,
    beyond: Beyond | None = None,
    seed: int = 0,
) -> list[MetricScore]:
    """Score an integration by every metric that its result and the given labels allow.

    Parameters
    ----------
    batch
        Batch of every cell, shape (n,).
    embedding
        Integrated coordinates, shape (n, d).
    graph
        Where there is no embedding: connectivities, sparse, shape (n, n). BRAS, PCR comparison, cell cycle,
        k-means and silhouettes need an embedding and are left out; LISI and kBET take neighbours along the graph.
    labels
        Cell type of every cell, shape (n,). Without them: iLISI and PCR comparison only.
    before
        Principal components before integration, shape (n, d2), for PCR comparison.
    beyond
        For cell cycle, HVG overlap and trajectory.
    seed
        Of clusterings and samples.

    Returns
    -------
    Scores in the order of `METRICS`. A metric that these data do not allow (a single batch, no isolated label) is left
    out.

    Raises
    ------
    DataError
        Neither an embedding nor a graph; arrays of different lengths; NaN; cells without batch or label.
    """
    result = _checked(embedding, graph, labels, batch, before)
    n = result.shape[0]
    is_graph = sparse.issparse(result)
    near = graph_neighbors(result, min(K_LISI, n - 1)) if is_graph else neighbors(result, K_LISI, seed)
    found = _diversity(near, labels, batch)
    if beyond is not None:
        found |= _unlabelled(result, labels, batch, beyond, near)
    if before is not None and not is_graph:
        found |= _variance(before, result, batch)
    if labels is not None:
        found |= _inside_labels(result, labels, batch, seed)
        found |= _connectivity(result if is_graph else near.first(K_GRAPH), labels)
        found |= _clusters(result if is_graph else near.first(K_GRAPH), labels, batch, seed)
        if not is_graph:
            found |= _geometry(result, labels, batch, seed)
        found |= _overall(found)
    return [MetricScore(METRICS[name].group, name, *found[name]) for name in METRICS if name in found]


def _checked(
    embedding: np.ndarray | None,
    graph: sparse.spmatrix | None,
    labels: np.ndarray | None,
    batch: np.ndarray,
    before: np.ndarray | None,
) -> np.ndarray | sparse.spmatrix:
    """Check all inputs once; after this, an error of a metric means that it has no value on these data."""
    result = graph if embedding is None else points(embedding, "embedding")
    if result is None:
        raise DataError("Give an embedding or a graph to score.")
    n = result.shape[0]
    if n < 3:
        raise DataError(f"There are only {n} cells; metrics of integration need at least 3.")
    groups(batch, "batch", n)
    if labels is not None:
        groups(labels, "labels", n)
    if before is not None and len(points(before, "before")) != n:
        raise DataError(f"`before` has {len(before)} cells and the result of the integration {n}.")
    return result


def _n_groups(values: np.ndarray | None) -> int:
    return 0 if values is None else len(groups(values, "values").levels)


def _mean(each: dict[Any, float]) -> _Value:
    return _Value(float(np.mean(list(each.values()))), each)


def _mean_of_batches(each: dict[Any, float]) -> _Value:
    return _Value(float(np.mean(list(each.values()))), per_batch=each)


def _diversity(near: Neighbors, labels: np.ndarray | None, batch: np.ndarray) -> _Found:
    from tenfold.metrics.diversity import by_label, diversity, mixed, weights

    shared = weights(near)  # the costly part of LISI, the same for batches and labels
    found: _Found = {}
    n_batches, n_labels = _n_groups(batch), _n_groups(labels)
    if n_batches > 1:
        values = diversity(near, shared, groups(batch, "batch"))

        def rescaled(part: np.ndarray) -> float:
            return mixed(part, n_batches)

        each = {} if labels is None else by_label(values, labels, rescaled)
        found["ilisi"] = _Value(rescaled(values), each, by_label(values, batch, rescaled))
    if labels is not None and n_labels > 1:
        values = diversity(near, shared, groups(labels, "labels"))
        each = by_label(values, labels, lambda part: 1 - mixed(part, n_labels))
        found["clisi"] = _Value(1 - mixed(values, n_labels), each)
    return found


def _unlabelled(
    result: np.ndarray | sparse.spmatrix,
    labels: np.ndarray | None,
    batch: np.ndarray,
    beyond: Beyond,
    near: Neighbors,
) -> _Found:
    """Scores of biology that labels do not name."""
    from tenfold.kernels.fuzzy import fuzzy_graph
    from tenfold.metrics.conserved_order import trajectory
    from tenfold.metrics.expression import cell_cycle_per_batch, hvg_overlap_per_batch

    found: _Found = {}
    is_graph = sparse.issparse(result)
    if beyond.phases is not None and beyond.before is not None and not is_graph:
        with suppress(DataError):  # nothing varies with the cell cycle
            found["cell_cycle"] = _mean_of_batches(cell_cycle_per_batch(beyond.before, result, beyond.phases, batch))
    if beyond.corrected is not None:
        first, second, cells = beyond.corrected
        with suppress(DataError):  # too few cells to choose genes
            found["hvg_overlap"] = _mean_of_batches(hvg_overlap_per_batch(first, second, np.asarray(batch)[cells]))
    if beyond.pseudotime is not None and labels is not None:
        graph = result if is_graph else fuzzy_graph(*near.first(K_GRAPH))
        found["trajectory"] = _Value(trajectory(graph, beyond.pseudotime, labels))
    return found


def _overall(found: _Found) -> _Found:
    from tenfold.metrics.overall import scib_overall

    value = scib_overall({name: score.value for name, score in found.items()})
    return {} if value is None else {"scib_overall": _Value(value)}


def _variance(before: np.ndarray, embedding: np.ndarray, batch: np.ndarray) -> _Found:
    from tenfold.metrics.variance import pcr_comparison

    try:
        return {"pcr_comparison": _Value(pcr_comparison(before, embedding, batch))}
    except DataError:  # a single batch
        return {}


def _inside_labels(result: np.ndarray | sparse.spmatrix, labels: np.ndarray, batch: np.ndarray, seed: int) -> _Found:
    from tenfold.metrics._within import label_cells
    from tenfold.metrics.batch_test import label_acceptance
    from tenfold.metrics.diversity import label_mixing, pooled

    try:
        inside = label_cells(result, labels, batch, K_LISI, seed)
    except DataError:  # no label in two batches
        return {}
    found: _Found = {"kbet": _mean(label_acceptance(inside))}
    mixing = label_mixing(inside)
    if mixing:
        value, error = pooled(mixing)
        found["cilisi"] = _Value(value, {level: part.value for level, part in mixing.items()}, error=error)
    return found


def _connectivity(graph: Neighbors | sparse.spmatrix, labels: np.ndarray) -> _Found:
    from tenfold.metrics.components import graph_connectivity_per_label

    return {"graph_connectivity": _mean(graph_connectivity_per_label(graph, labels))}


def _clusters(graph: Neighbors | sparse.spmatrix, labels: np.ndarray, batch: np.ndarray, seed: int) -> _Found:
    from tenfold.kernels.fuzzy import fuzzy_graph
    from tenfold.metrics.agreement import nmi
    from tenfold.metrics.clusters import isolated_labels_f1, leiden_clusterings

    if _n_groups(labels) < 2:
        return {}
    connectivities = fuzzy_graph(*graph) if isinstance(graph, Neighbors) else graph
    clusterings = leiden_clusterings(connectivities, seed=seed)
    found = _agreement("leiden", max(clusterings, key=lambda clusters: nmi(clusters, labels)), labels)
    rare = isolated_labels_f1(clusterings, labels, batch)
    return found | {"isolated_f1": _mean(rare)} if rare else found


def _agreement(name: str, clusters: np.ndarray, labels: np.ndarray) -> _Found:
    from tenfold.metrics.agreement import ari, errors_over_cells, nmi

    values, errors = (nmi(clusters, labels), ari(clusters, labels)), errors_over_cells(clusters, labels)
    return {
        f"{metric}_{name}": _Value(value, error=error)
        for metric, value, error in zip(("nmi", "ari"), values, errors, strict=True)
    }


def _geometry(embedding: np.ndarray, labels: np.ndarray, batch: np.ndarray, seed: int) -> _Found:
    """Scores that need coordinates: BRAS, k-means and the silhouettes of the literature."""
    from tenfold.metrics.batch_silhouettes import asw_batch_per_label, bras_per_label
    from tenfold.metrics.clusters import kmeans_clusters
    from tenfold.metrics.silhouettes import isolated, label_widths

    sample = None if len(embedding) <= SILHOUETTE_ALL else SILHOUETTE_SAMPLE
    found: _Found = {}
    try:
        found["bras"] = _mean(bras_per_label(embedding, labels, batch))
        found["asw_batch"] = _mean(asw_batch_per_label(embedding, labels, batch, sample, seed))
    except DataError:  # no label in two batches
        pass
    if _n_groups(labels) < 2:
        return found
    found |= _agreement("kmeans", kmeans_clusters(embedding, _n_groups(labels), seed), labels)
    widths = label_widths(embedding, labels, sample, seed)
    scaled = dict(zip(widths.levels, ((widths.means + 1) / 2).tolist(), strict=True))
    found["asw_label"] = _Value(float(np.average(list(scaled.values()), weights=widths.sizes)), scaled)
    rare, everywhere = isolated(labels, batch)
    return found if everywhere else found | {"isolated_asw": _mean({level: scaled[level] for level in rare})}
