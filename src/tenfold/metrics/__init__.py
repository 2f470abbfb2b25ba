"""Scores, one pure function each: arrays in, a number out.

Groups (labels, batches) are given as any array with one entry per cell: integers, strings or a categorical. Neighbour
lists come from one search that all metrics share::

    near = tf.metrics.neighbors(points, 90)
    tf.metrics.ilisi(near, batch), tf.metrics.clisi(near, labels)

Functions that look inside each label (`bras`, `kbet`, `cilisi`, ...) take ``(cells, labels, batch)``. Each docstring
states formula, range, what is good, known criticism and source. `integration_metrics` computes all that apply.
Names are loaded when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tenfold.errors import closest

if TYPE_CHECKING:
    from tenfold.metrics.agreement import ami, ari, completeness, f1_per_label, homogeneity, matched_accuracy, nmi
    from tenfold.metrics.annotation import (
        accuracy,
        balanced_accuracy,
        benchmark_f1,
        cohen_kappa,
        label_scores,
        macro_f1,
        matthews,
        median_f1,
        rejected_share,
        selective_accuracy,
        weighted_f1,
    )
    from tenfold.metrics.annotation_confidence import (
        accuracy_auroc,
        aurc,
        brier,
        ece,
        nll,
        novel_aupr,
        novel_auroc,
        novel_fpr95,
        reliability,
    )
    from tenfold.metrics.annotation_intervals import Interval, bootstrap_interval, paired_permutation
    from tenfold.metrics.annotation_markers import marker_auroc
    from tenfold.metrics.annotation_ontology import (
        ontology_credit,
        ontology_distance,
        ontology_f1,
        ontology_jaccard,
        ontology_lin,
        ontology_relations,
    )
    from tenfold.metrics.batch_silhouettes import asw_batch, asw_batch_per_label, bras, bras_per_label
    from tenfold.metrics.batch_test import kbet, kbet_per_label
    from tenfold.metrics.beyond import Beyond, Corrected
    from tenfold.metrics.clusters import (
        isolated_labels_f1,
        kmeans_clusters,
        leiden_clusterings,
        nmi_ari_kmeans,
        nmi_ari_leiden,
        stability,
    )
    from tenfold.metrics.components import graph_connectivity, graph_connectivity_per_label
    from tenfold.metrics.conserved_order import trajectory
    from tenfold.metrics.described import METRICS, MetricInfo
    from tenfold.metrics.diversity import cilisi, cilisi_per_label, clisi, clisi_per_label, ilisi, ilisi_per_label, lisi
    from tenfold.metrics.expression import cell_cycle, cell_cycle_per_batch, hvg_overlap, hvg_overlap_per_batch
    from tenfold.metrics.neighborhoods import (
        Neighbors,
        graph_neighbors,
        neighbor_overlap,
        neighbor_purity,
        neighbors,
    )
    from tenfold.metrics.overall import scib_overall
    from tenfold.metrics.separability import separability_auc
    from tenfold.metrics.silhouettes import asw_label, asw_per_label, isolated_labels, silhouette_samples
    from tenfold.metrics.spatial import Autocorrelation, chaos, contiguity, domain_markers, moran, pas, shared_domains
    from tenfold.metrics.suite import MetricScore, integration_metrics
    from tenfold.metrics.variance import pcr, pcr_comparison
    from tenfold.metrics.velocity import (
        consensus_direction,
        cross_boundary_direction,
        direction_accuracy,
        in_cluster_coherence,
        neighbor_coherence,
        velocity_agreement,
    )

# No file has the name of a function: importing it would put the module in the function's place.
_HOMES = {
    "agreement": ("ami", "ari", "completeness", "f1_per_label", "homogeneity", "matched_accuracy", "nmi"),
    "beyond": ("Beyond", "Corrected"),
    "annotation": (
        "accuracy", "balanced_accuracy", "benchmark_f1", "cohen_kappa", "label_scores", "macro_f1", "matthews",
        "median_f1", "rejected_share", "selective_accuracy", "weighted_f1",
    ),
    "annotation_confidence": (
        "accuracy_auroc", "aurc", "brier", "ece", "nll", "novel_aupr", "novel_auroc", "novel_fpr95", "reliability",
    ),
    "annotation_intervals": ("Interval", "bootstrap_interval", "paired_permutation"),
    "annotation_markers": ("marker_auroc",),
    "annotation_ontology": (
        "ontology_credit", "ontology_distance", "ontology_f1", "ontology_jaccard", "ontology_lin",
        "ontology_relations",
    ),
    "batch_test": ("kbet", "kbet_per_label"),
    "clusters": (
        "isolated_labels_f1", "kmeans_clusters", "leiden_clusterings", "nmi_ari_kmeans", "nmi_ari_leiden", "stability",
    ),
    "components": ("graph_connectivity", "graph_connectivity_per_label"),
    "diversity": ("cilisi", "cilisi_per_label", "clisi", "clisi_per_label", "ilisi", "ilisi_per_label", "lisi"),
    "expression": ("cell_cycle", "cell_cycle_per_batch", "hvg_overlap", "hvg_overlap_per_batch"),
    "overall": ("scib_overall",),
    "neighborhoods": ("Neighbors", "graph_neighbors", "neighbor_overlap", "neighbor_purity", "neighbors"),
    "separability": ("separability_auc",),
    "silhouettes": ("asw_label", "asw_per_label", "isolated_labels", "silhouette_samples"),
    "batch_silhouettes": ("asw_batch", "asw_batch_per_label", "bras", "bras_per_label"),
    "described": ("METRICS", "MetricInfo"),
    "spatial": ("Autocorrelation", "chaos", "contiguity", "domain_markers", "moran", "pas", "shared_domains"),
    "suite": ("MetricScore", "integration_metrics"),
    "conserved_order": ("trajectory",),
    "variance": ("pcr", "pcr_comparison"),
    "velocity": (
        "consensus_direction", "cross_boundary_direction", "direction_accuracy", "in_cluster_coherence",
        "neighbor_coherence", "velocity_agreement",
    ),
}  # fmt: skip

__all__ = [  # noqa: RUF022  (by family)
    "Neighbors", "neighbors", "graph_neighbors", "neighbor_overlap", "neighbor_purity",
    "ari", "nmi", "ami", "homogeneity", "completeness", "matched_accuracy", "f1_per_label",
    "kmeans_clusters", "leiden_clusterings", "nmi_ari_kmeans", "nmi_ari_leiden", "isolated_labels_f1", "stability",
    "lisi", "ilisi", "ilisi_per_label", "clisi", "clisi_per_label", "cilisi", "cilisi_per_label",
    "graph_connectivity", "graph_connectivity_per_label", "kbet", "kbet_per_label", "pcr", "pcr_comparison",
    "silhouette_samples", "asw_label", "asw_per_label", "asw_batch", "asw_batch_per_label",
    "bras", "bras_per_label", "isolated_labels", "separability_auc",
    "cell_cycle", "cell_cycle_per_batch", "hvg_overlap", "hvg_overlap_per_batch", "trajectory", "scib_overall",
    "accuracy", "rejected_share", "selective_accuracy", "macro_f1", "median_f1", "weighted_f1", "benchmark_f1",
    "balanced_accuracy", "cohen_kappa", "matthews", "label_scores",
    "aurc", "accuracy_auroc", "novel_auroc", "novel_aupr", "novel_fpr95", "ece", "brier", "nll", "reliability",
    "ontology_credit", "ontology_jaccard", "ontology_lin", "ontology_distance", "ontology_f1", "ontology_relations",
    "marker_auroc", "Interval", "bootstrap_interval", "paired_permutation",
    "Autocorrelation", "chaos", "contiguity", "domain_markers", "moran", "pas", "shared_domains",
    "neighbor_coherence", "in_cluster_coherence", "cross_boundary_direction", "velocity_agreement",
    "consensus_direction", "direction_accuracy",
    "METRICS", "Beyond", "Corrected", "MetricInfo", "MetricScore", "integration_metrics",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{closest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
