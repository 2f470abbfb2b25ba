"""What every metric of integration means: range, direction, formula, known criticism."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricInfo:
    """What a reader of a score must know.

    Attributes
    ----------
    title
        Name in tables.
    group
        ``"bio"``: cell types kept; ``"batch"``: batches mixed; ``"literature"``: for comparison with published
        benchmarks only, never part of a ranking.
    range
        Smallest and largest value.
    good
        ``"high"`` or ``"low"``.
    headline
        Whether to show it first.
    warning
        Known criticism.
    formula
        In one line.
    """

    title: str
    group: str
    range: tuple[float, float]
    good: str
    headline: bool
    warning: str
    formula: str


_LEAK = "Labels that were made from an integrated object favour the method that made it."
_SILHOUETTE = "Rewards compact round clusters, not biology; its assumptions fail for comparing embeddings."
METRICS: dict[str, MetricInfo] = {
    "nmi_leiden": MetricInfo(
        "NMI (Leiden)", "bio", (0, 1), "high", True,
        f"The resolution is the best of ten by the labels. {_LEAK}",
        "I(clusters; labels) / mean of their entropies, at the resolution where it is highest",
    ),
    "ari_leiden": MetricInfo(
        "ARI (Leiden)", "bio", (-0.5, 1), "high", False,
        f"Large types dominate; a lost rare type hardly shows. {_LEAK}",
        "adjusted Rand index at the resolution with the highest NMI",
    ),
    "clisi": MetricInfo(
        "cLISI", "bio", (0, 1), "high", False,
        "A median: nearly every method is above 0.95. Read the values per label, worst first.",
        "(labels - median LISI of label) / (labels - 1), 90 neighbours",
    ),
    "isolated_f1": MetricInfo(
        "Isolated labels (F1)", "bio", (0, 1), "high", False,
        "Only labels in the fewest batches count, often one or two; none where every label is in every batch.",
        "mean over isolated labels of the best F1 of any Leiden cluster of ten resolutions",
    ),
    "trajectory": MetricInfo(
        "Trajectory", "bio", (0, 1), "high", False,
        "One linear order is asked for, of a reference that is itself the result of a method; 0.5 is no relation.",
        "(Spearman correlation of the reference with diffusion pseudotime on the integrated graph + 1) / 2",
    ),
    "cilisi": MetricInfo(
        "CiLISI", "batch", (0, 1), "high", True,
        "Where batch and condition coincide, mixing erases biology. High by construction on BBKNN's graph.",
        "mean over cells of (LISI of batch among 90 cells of the same label - 1) / (batches with the label - 1)",
    ),
    "bras": MetricInfo(
        "BRAS", "batch", (0, 1), "high", False,
        "The cosine is taken from the origin: shifting the embedding changes it.",
        "1 - |silhouette of batch inside labels|, cosine, against all other batches",
    ),
    "kbet": MetricInfo(
        "kBET", "batch", (0, 1), "high", False,
        "Very strict, and depends on the number of cells: compare methods, not data sets.",
        "share of cells accepted by a chi-squared test of batch among 10-70 neighbours inside the label",
    ),
    "graph_connectivity": MetricInfo(
        "Graph connectivity", "batch", (0, 1), "high", False,
        "Saturates near 1: a single edge joins two halves.",
        "mean over labels of the share of cells in the largest component of the 15-neighbour graph",
    ),
    "ilisi": MetricInfo(
        "iLISI", "batch", (0, 1), "high", False,
        "Rewards mixing of different cell types: merging everything scores 1. High by construction on BBKNN's graph.",
        "(median LISI of batch - 1) / (batches - 1), 90 neighbours",
    ),
    "pcr_comparison": MetricInfo(
        "PCR comparison", "batch", (0, 1), "high", False,
        "Rewards mixing of different cell types; noise where batch explained little to begin with.",
        "(variance explained by batch before - after) / before, at least 0",
    ),
    "scib_overall": MetricInfo(
        "scIB overall", "literature", (0, 1), "high", False,
        "Means hide failures, the weights are a convention, and methods with other metrics cannot be compared. "
        "Unscaled, so not the number of Luecken et al., who rescale over the compared methods.",
        "0.6 × mean of scIB's bio scores + 0.4 × mean of its batch scores",
    ),
    "cell_cycle": MetricInfo(
        "Cell cycle", "literature", (0, 1), "high", False,
        "Noise where few cells divide. Falls for an embedding that shows the cell cycle more clearly than before, too.",
        "mean over batches of 1 - |change| / before of the variance that the scores of S and G2/M explain",
    ),
    "hvg_overlap": MetricInfo(
        "HVG overlap", "literature", (0, 1), "high", False,
        "Only for corrected expression. About a quarter is chance; says nothing about the values.",
        "mean over batches of the share of 500 variable genes that stay so after correction",
    ),
    "nmi_kmeans": MetricInfo(
        "NMI (k-means)", "literature", (0, 1), "high", False, f"Knows the true number of labels. {_LEAK}",
        "NMI of k-means with as many clusters as labels",
    ),
    "ari_kmeans": MetricInfo(
        "ARI (k-means)", "literature", (-0.5, 1), "high", False, f"Knows the true number of labels. {_LEAK}",
        "ARI of k-means with as many clusters as labels",
    ),
    "asw_label": MetricInfo(
        "ASW label", "literature", (0, 1), "high", False, _SILHOUETTE, "(mean silhouette of label + 1) / 2",
    ),
    "isolated_asw": MetricInfo(
        "Isolated labels (ASW)", "literature", (0, 1), "high", False, _SILHOUETTE,
        "mean over isolated labels of (silhouette + 1) / 2",
    ),
    "asw_batch": MetricInfo(
        "ASW batch", "literature", (0, 1), "high", False,
        "Looks at the nearest other batch only: a partial overlap of two of many batches scores near 1. Use BRAS.",
        "mean over labels of 1 - |silhouette of batch|",
    ),
}  # fmt: skip
