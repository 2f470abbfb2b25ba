"""scIB's overall score: one number for comparison with published benchmarks, never to choose by."""

from __future__ import annotations

from collections.abc import Mapping

SCIB_BIO = (
    "nmi_leiden", "ari_leiden", "asw_label", "isolated_f1", "isolated_asw", "clisi", "cell_cycle", "hvg_overlap",
    "trajectory",
)  # fmt: skip
SCIB_BATCH = ("asw_batch", "pcr_comparison", "graph_connectivity", "ilisi", "kbet")


def scib_overall(values: Mapping[str, float]) -> float | None:
    """Aggregate of scIB: 0.6 times the mean of its bio scores plus 0.4 times the mean of its batch scores.

    Of unscaled values; Luecken et al. rescale each metric to 0..1 over the compared methods first, so that a method's
    score depends on its competitors. From 0 to 1; high is said to be good. Means hide failures: a method that loses one
    type can score higher than one that loses none. The weights are a convention; and a method that lacks a metric (a
    graph has no silhouettes) is averaged over the others, so only methods with the same metrics can be compared.

    Parameters
    ----------
    values
        Scores by their name in `METRICS`; others are ignored.

    Returns
    -------
    The aggregate; ``None`` where there is no bio score or no batch score.

    References
    ----------
    Luecken et al., Nature Methods 2022, doi:10.1038/s41592-021-01336-8.
    """
    bio, batch = ([values[name] for name in names if name in values] for names in (SCIB_BIO, SCIB_BATCH))
    if not bio or not batch:
        return None
    return 0.6 * sum(bio) / len(bio) + 0.4 * sum(batch) / len(batch)
