"""Mining of triplets against the original: CPU seconds on one thread for one minibatch of 1,000 cells, same loss terms.

Equal quality: the same pairs of cells have a triplet, but for a thousandth at the margin's edge. Needs the original as
in ``evidence/scimilarity_acceptance.py``. Run ``python benchmarks/scimilarity.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from recording import record, run_apart, sha256, version, write  # noqa: E402
from scimilarity_acceptance import SETUP, drawn  # noqa: E402

CELLS, REPEATS = 1000, 3
OURS = """
import torch; torch.set_num_threads(1)
from tenfold.nn.triplets import Kinship, semi_hard_triplets
z, codes, studies = (torch.from_numpy(given[name]) for name in ("z", "codes", "studies"))
kinship = Kinship(torch.from_numpy(given["related"]), torch.zeros_like(torch.from_numpy(given["related"])))
semi_hard_triplets(z[:50], codes[:50], kinship, studies[:50], 0.05, 10**9)
"""
OURS_RUN = """
found = semi_hard_triplets(z, codes, kinship, studies, float(given["margin"]), 10**9)
result = {"rows": np.stack([part.numpy() for part in found])}
"""
THEIRS = (
    SETUP
    + """
torch.set_num_threads(1)
selector = triplet_selector.TripletSelector(margin=float(given["margin"]))
names = {number: str(name) for number, name in enumerate(given["labels"])}
z, codes, studies = (torch.from_numpy(given[name]) for name in ("z", "codes", "studies"))
"""
)
THEIRS_RUN = """
found = selector.get_triplets_idx(z, codes, names, studies)[0]
result = {"rows": np.array(found)}
"""


def main() -> None:
    from scimilarity_acceptance import kinship

    given: dict[str, Any] = {**drawn(CELLS), "related": kinship().related.numpy()}
    ours = [run_apart(OURS_RUN, given, OURS, sys.executable) for _ in range(REPEATS)]
    theirs = [run_apart(THEIRS_RUN, given, THEIRS) for _ in range(REPEATS)]
    pairs = [set(map(tuple, runs[0]["rows"][:2].T.tolist())) for runs in (ours, theirs)]
    apart = len(pairs[0] ^ pairs[1]) / len(pairs[1])
    seconds = [median(run["_seconds"] for run in runs) for runs in (ours, theirs)]
    peaks = [median(run["_peak_mb"] for run in runs) for runs in (ours, theirs)]
    peer, digest, data = version("scimilarity"), sha256(given["z"]), f"{CELLS:,} random points, five labels"
    claim = "faster mining of the same triplets"
    print(f"{len(pairs[0]):,} triplets, {seconds[1] / seconds[0]:.0f} times as fast")
    write([
        record("scimilarity", "benchmark", claim, data, digest, "CPU seconds, one thread", seconds[0], reference=peer,
               reference_value=seconds[1], passed=seconds[0] < seconds[1]),
        record("scimilarity", "benchmark", claim, data, digest, "share of pairs that differ", apart, reference=peer,
               reference_value=0.0, tolerance=1e-3, passed=apart <= 1e-3),
        record("scimilarity", "benchmark", claim, data, digest, "peak memory of the process, MB", peaks[0],
               reference=peer, reference_value=peaks[1], passed=True),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
