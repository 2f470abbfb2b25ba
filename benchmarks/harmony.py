"""Harmony against harmonypy: CPU seconds, peak memory and mixing, on the same cells and one thread each."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))

from harmony_simulation import simulate  # noqa: E402
from recording import record, run_apart, sha256, version, write  # noqa: E402

from tenfold.kernels.knn import knn  # noqa: E402

OURS = """
run = Harmony()
run._harmonize(given["x"], [given["batch"]])
result = {"z": run.embedding_, "n": run.n_iter_}
"""
THEIRS = """
run = harmonypy.run_harmony(given["x"], table, "batch", verbose=False, ncores=1)
result = {"z": run.Z_corr, "n": len(run.objective_harmony) - 1}
"""
SETUP_OURS = """
from tenfold.integrate.harmony import Harmony
Harmony()._harmonize(given["x"][:2000], [given["batch"][:2000]])  # load compiled code
"""
SETUP_THEIRS = """
import harmonypy, pandas as pd
table = pd.DataFrame({"batch": given["batch"].astype(str)})
"""


def mixing(z: np.ndarray, batch: np.ndarray, n: int = 2000) -> float:
    """Share of 30 neighbours in other batches, over `n` cells."""
    shown = np.random.default_rng(0).choice(len(z), n, replace=False)
    found = knn(z[shown], z, 31, exact=True)[0][:, 1:]
    return float((batch[found] != batch[shown, None]).mean())


def main(repeats: int = 3) -> None:
    rows, peer = [], version("harmonypy")
    for n in (20_000, 100_000):
        for n_batches in (2, 10):
            x, batch, _ = simulate(n, n_batches, 0.2)
            given = {"x": x, "batch": batch}
            ours = [run_apart(OURS, given, SETUP_OURS, sys.executable) for _ in range(repeats)]
            theirs = [run_apart(THEIRS, given, SETUP_THEIRS) for _ in range(repeats)]
            seconds, peers = (float(np.median([run["_seconds"] for run in runs])) for runs in (ours, theirs))
            peak, peak_peer = ours[0]["_peak_mb"], theirs[0]["_peak_mb"]
            mixed, mixed_peer = mixing(ours[0]["z"], batch), mixing(theirs[0]["z"], batch)
            dataset = f"{n:,} simulated cells × 50, {n_batches} batches"
            claim = "not slower than harmonypy, and mixes as well"
            for metric, value, other, passed in (
                ("CPU seconds, one thread", seconds, peers, seconds <= peers),
                ("peak memory of the process, MB", peak, peak_peer, True),
                ("share of neighbours in other batches", mixed, mixed_peer, mixed > mixed_peer - 0.01),
            ):
                rows.append(
                    record("harmony", "benchmark", claim, dataset, sha256(x), metric, value, reference=peer,
                           reference_value=other, passed=passed)
                )  # fmt: skip
            print(f"   {peers / seconds:.1f} times as fast; iterations {ours[0]['n']} and {theirs[0]['n']}")
    write(rows)


if __name__ == "__main__":
    main()
