"""LIGER's factorisation against pyliger's ANLS: CPU seconds, peak memory and objective from the same start, one thread.

pyliger pins old packages: name the python of its own environment by TENFOLD_LIGER_PYTHON.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))

from liger_acceptance import PYTHON, SETUP  # noqa: E402
from recording import record, run_apart, sha256, version, write  # noqa: E402

import tenfold as tf  # noqa: E402
from tenfold.data.factorisation import Factorisation, integrative_nmf  # noqa: E402
from tenfold.data.inputs import Inputs  # noqa: E402
from tenfold.integrate.liger import LIGER  # noqa: E402

K, PENALTY, STEPS = 20, 5.0, 30
SETUP_OURS = """
from scipy import sparse
from tenfold.data.factorisation import Factorisation, integrative_nmf
n = int(given["n"])
matrices = [sparse.csr_matrix(given.pop(f"e{b}")).astype(np.float32) for b in range(n)]
start_at = Factorisation([given[f"h{b}"] for b in range(n)], given["w"], given["v"], np.zeros(0))
few = Factorisation([h[:5] for h in start_at.cells], given["w"], given["v"], np.zeros(0))
integrative_nmf([m[:5] for m in matrices], few, 5.0, 1, 0.0)  # loads the compiled kernel
"""
OURS = """
found = integrative_nmf(matrices, start_at, float(given["penalty"]), int(given["steps"]), 0.0)
result = {"objective": found.objective[-1]}
"""
THEIRS = """
optimize_ALS(liger, k, value_lambda=float(given["penalty"]), thresh=0.0, max_iters=int(given["steps"]),
             H_init=[given[f"h{b}"] for b in range(n)], W_init=given["w"], V_init=list(given["v"]))
result = {"w": parts[0].varm["W"].T, "v": np.stack([p.varm["V"].T for p in parts])}
result |= {f"h{b}": part.obsm["H"] for b, part in enumerate(parts)}
"""


def main() -> None:
    adata = tf.data.simulate(4000, 1000, n_types=8, n_batches=2, batch_strength=0.3, seed=0)
    data = Inputs(adata, {"batch": "batch"})
    members = [np.flatnonzero(data.batch.values == b) for b in range(2)]
    matrices = LIGER()._scaled(data, members)
    rng, p = np.random.default_rng(0), matrices[0].shape[1]
    given = {
        "n": 2, "penalty": PENALTY, "steps": STEPS, "w": rng.uniform(0, 2, (K, p)), "v": rng.uniform(0, 2, (2, K, p)),
    }  # fmt: skip
    for b, matrix in enumerate(matrices):
        given |= {f"e{b}": matrix.toarray(), f"h{b}": rng.uniform(0, 2, (len(members[b]), K))}
    ours, theirs = run_apart(OURS, given, SETUP_OURS, sys.executable), run_apart(THEIRS, given, SETUP, PYTHON)
    then = Factorisation([theirs["h0"], theirs["h1"]], theirs["w"], theirs["v"], np.zeros(0))
    other = float(integrative_nmf(matrices, then, PENALTY, 0, 0.0).objective[0])
    peer, words = f"{version('pyliger', PYTHON)}, ANLS", f"4,000 simulated cells × 1,000 genes, 2 batches, {K} factors"
    digest = sha256(adata.X.data)
    rows = [
        record("liger", "benchmark", "faster than pyliger at an equal objective", words, digest, metric, value,
               reference=peer, reference_value=reference, passed=passed)
        for metric, value, reference, passed in (
            (f"CPU seconds, {STEPS} rounds", ours["_seconds"], theirs["_seconds"],
             ours["_seconds"] <= theirs["_seconds"]),
            ("peak memory of the process, MB", ours["_peak_mb"], theirs["_peak_mb"], True),
            ("objective", ours["objective"], other, ours["objective"] <= 1.001 * other),
        )
    ]  # fmt: skip
    write(rows)
    print(f"   {theirs['_seconds'] / ours['_seconds']:.0f} times as fast")


if __name__ == "__main__":
    main()
