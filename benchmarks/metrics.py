"""CPU time of the whole metric suite against scib-metrics, neighbours included, on the same embedding.

Each side runs in a process of its own on one thread; what it must compile on first use counts, as it does for a user.
scib-metrics computes its default neighbours (approximate, 90) and the metrics that its Benchmarker has on by default,
with BRAS and ASW batch. tenfold computes all of these and CiLISI, isolated labels by F1, and NMI/ARI by Leiden at ten
resolutions. Values differ by the approximate neighbours and by the random starts of k-means.

Run ``python benchmarks/metrics.py [cells]`` with TENFOLD_REFERENCE_PYTHON naming the Python of scib-metrics.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evidence"))
from recording import record, run_apart, sha256, version, write

N_LABELS, N_BATCHES, N_DIMENSIONS = 15, 10, 50
BAR = 0.5  # at most this share of scib-metrics' CPU seconds
NEAR = 0.02  # largest difference of a value: neighbours are approximate there, k-means starts at random
TENFOLD = """
from tenfold import metrics
found = metrics.integration_metrics(
    embedding=given["x"], before=given["before"], labels=given["labels"], batch=given["batch"]
)
result = {score.metric: score.value for score in found}
result["kbet (diffusion)"] = np.nan
"""
SCIB = """
import logging
logging.disable(logging.CRITICAL)
import scib_metrics as sm
from scib_metrics.nearest_neighbors import pynndescent
x, before, labels, batch = (given[name] for name in ("x", "before", "labels", "batch"))
near = pynndescent(x, n_neighbors=90, random_state=0, n_jobs=1)
kmeans = sm.nmi_ari_cluster_labels_kmeans(x, labels)
result = {
    "nmi_kmeans": kmeans["nmi"], "ari_kmeans": kmeans["ari"], "ilisi": sm.ilisi_knn(near, batch),
    "clisi": sm.clisi_knn(near, labels), "graph_connectivity": sm.graph_connectivity(near.subset_neighbors(15), labels),
    "pcr_comparison": sm.pcr_comparison(before, x, batch, categorical=True),
    "kbet (diffusion)": sm.kbet_per_label(near.subset_neighbors(50), batch, labels),
    "asw_label": sm.silhouette_label(x, labels), "isolated_asw": sm.isolated_labels(x, labels, batch),
    "bras": sm.bras(x, labels, batch), "asw_batch": sm.silhouette_batch(x, labels, batch),
}
"""


def simulated(n: int) -> dict[str, np.ndarray]:
    """Return an embedding with 15 types and 10 batches whose effect is mostly removed; one type is in two batches."""
    rng = np.random.default_rng(0)
    labels = rng.integers(N_LABELS, size=n)
    batch = np.where(labels == N_LABELS - 1, rng.integers(2, size=n), rng.integers(N_BATCHES, size=n))
    types, shifts = rng.normal(size=(N_LABELS, N_DIMENSIONS)), rng.normal(size=(N_BATCHES, N_DIMENSIONS))
    before = types[labels] + 0.4 * shifts[batch] + rng.normal(size=(n, N_DIMENSIONS))
    after = before - 0.3 * shifts[batch]
    return {"x": after.astype(np.float32), "before": before.astype(np.float32), "labels": labels, "batch": batch}


def main(n: int) -> None:
    given = simulated(n)
    mine = run_apart(TENFOLD, given, python=sys.executable)
    theirs = run_apart(SCIB, given)
    peer = version("scib-metrics")
    print(f"\n{n} cells x {N_DIMENSIONS} dimensions, {N_LABELS} labels, {N_BATCHES} batches, one thread")
    print(f"{'':22}{'tenfold':>12}{peer:>24}{'difference':>14}")
    largest = 0.0
    for metric in theirs:
        if not metric.startswith("_"):
            apart = abs(mine[metric] - theirs[metric])
            largest = largest if np.isnan(apart) else max(largest, apart)
            print(f"{metric:22}{mine[metric]:12.5f}{theirs[metric]:24.5f}{apart:14.1e}")
    ratio = mine["_seconds"] / theirs["_seconds"]
    print(f"{'CPU seconds':22}{mine['_seconds']:12.1f}{theirs['_seconds']:24.1f}{ratio:13.3f}x")
    print(f"{'peak memory (MB)':22}{mine['_peak_mb']:12.0f}{theirs['_peak_mb']:24.0f}\n")
    dataset, digest = f"simulated, {n} cells", sha256(given["x"])
    claim = "metric suite with neighbours in under half of scib-metrics' CPU time at equal values"
    write([
        record("metrics", "benchmark", claim, dataset, digest, "CPU seconds", mine["_seconds"], reference=peer,
               reference_value=theirs["_seconds"], tolerance=BAR, passed=ratio <= BAR),
        record("metrics", "benchmark", claim, dataset, digest, "peak memory (MB)", mine["_peak_mb"], reference=peer,
               reference_value=theirs["_peak_mb"], passed=mine["_peak_mb"] <= theirs["_peak_mb"]),
        record("metrics", "benchmark", claim, dataset, digest, "largest difference of a value", largest,
               reference=peer, reference_value=0.0, tolerance=NEAR, passed=largest <= NEAR),
    ])  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
