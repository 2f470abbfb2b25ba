"""popV with its default members on 10,000 reference and 10,000 query cells: time, memory, and what agreement is worth.

The bar is five minutes. The original needs TensorFlow below 2.18 and is not run beside.
Run ``python benchmarks/popv.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from recording import record, run_apart, sha256, write  # noqa: E402

SECONDS, POINTS = 300.0, 0.15
SETUP = """
import torch
torch.set_num_threads(1)
import tenfold as tf
adata = tf.data.simulate(20_000, 4_000, n_types=10, n_batches=2, depth=1500.0, batch_strength=0.4, type_strength=0.35,
                         seed=0)
given["counts"] = adata.X.data
query, reference = (adata[adata.obs["batch"] == name].copy() for name in ("batch_2", "batch_1"))
truth = query.obs["cell_type"].astype(str).to_numpy()
query.obs = query.obs[[]]
"""
CODE = """
m = tf.annotate.PopV(device="cpu").fit(query, reference=reference, labels="cell_type", progress=False)
table = m.consensus()
right = table["label"].to_numpy() == truth
full, half = table["agreement"].to_numpy() == 1, table["agreement"].to_numpy() <= 0.5
result = {"accuracy": right.mean(), "full": right[full].mean(), "half": right[half].mean() if half.any() else np.nan,
          "n_full": full.sum(), "n_half": half.sum(), "confidence": table["confidence"].mean(),
          "digest_of": given["counts"][:1000]}
for name in m.member_names_:
    result["member_" + name] = (table[name].to_numpy() == truth).mean()
"""


def main() -> None:
    found = run_apart(CODE, {"seed": 0}, SETUP, python=sys.executable)
    for name, value in found.items():
        print(name, value if name != "digest_of" else "", flush=True)
    shared = {
        "claim": "default members, 10,000 reference and 10,000 query cells, 4,000 genes, one thread",
        "dataset": "simulated, 10 types, 2 batches", "digest": sha256(found["digest_of"]),
    }  # fmt: skip
    best = max(value for name, value in found.items() if name.startswith("member_"))
    write([
        record("popv", "benchmark", metric="CPU seconds", value=found["_seconds"], tolerance=SECONDS,
               passed=found["_seconds"] <= SECONDS, **shared),
        record("popv", "benchmark", metric="peak memory, MB", value=found["_peak_mb"], passed=True, **shared),
        record("popv", "check", metric="accuracy, beside that of the best member", value=found["accuracy"],
               reference="best member", reference_value=best, tolerance=0.05,
               passed=found["accuracy"] >= best - 0.05, **shared),
        record("popv", "check", metric="accuracy at full agreement, beside that at half or less", value=found["full"],
               reference="at half or less", reference_value=found["half"], tolerance=POINTS,
               passed=found["full"] - found["half"] >= POINTS, **shared),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
