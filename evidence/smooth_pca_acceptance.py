"""Smoothed PCA on annotated slices: heads, refinement, known and unknown number of domains; PCA + Leiden beside.

There is no original. Table M of the sheet was measured by another implementation on the same cells, so that agreement
with it, both ways, is parity for k-means where the counts are the same. For mixtures, which start there from k-means
only and here from two partitions, of which the likelier end is kept, not to be below is a check; so it is to be above
PCA + Leiden.

Run ``python evidence/smooth_pca_acceptance.py``, with names of slices for these only: records of others stay.
"""

from __future__ import annotations

import json
import sys
import warnings

from domain_slices import SLACK, SLICES, TABLE, Score, baselines, checked, digest, heads, load, score, shown, truth
from recording import ROOT, record, write

from tenfold.domains.smooth_pca import SmoothPCA

#: ARI by slice: rounds and head → table M.
TABLE_M = {
    "starmap_mpfc BZ9": {(0, "kmeans"): 0.228, (2, "kmeans"): 0.448, (2, "mclust"): 0.497, (5, "kmeans"): 0.493},
    "starmap_mpfc BZ5": {(0, "kmeans"): 0.224, (2, "kmeans"): 0.768, (2, "mclust"): 0.808, (5, "kmeans"): 0.840},
    "osmfish_ssp": {(0, "kmeans"): 0.147, (2, "kmeans"): 0.403, (2, "mclust"): 0.469, (5, "kmeans"): 0.397},
}
#: Slices whose counts are those that table M was measured on; its osmFISH values were scaled.
SAME = ("starmap_mpfc BZ9", "starmap_mpfc BZ5")
#: PAS and CHAOS of the annotation itself in table M.
ANNOTATION = {"starmap_mpfc BZ9": (0.028, 0.0737), "starmap_mpfc BZ5": (0.031, 0.0692), "osmfish_ssp": (0.011, 0.0193)}


def measured(name: str, rounds: int, plain: dict[bool, float]) -> list[dict]:
    """Score the embedding of so many rounds by every head, and record it; `plain` collects PCA + Leiden."""
    adata, records = load(name), []
    embedding = SmoothPCA(n_rounds=rounds, n_clusters=2).fit(adata, progress=False).embed()
    for known in (True, False):
        given = "number of domains known" if known else "number of domains unknown"
        found: dict[str, Score] = heads(adata, embedding, ("kmeans", "mclust", "leiden"), known=known)
        if rounds == 0:
            plain[known] = found["leiden"].ari
        for head, result in found.items():
            shown(f"{rounds} rounds, {head}, {given}", result)
            metric = f"ARI, {rounds} rounds, {head}"
            wanted = TABLE_M.get(name, {}).get((rounds, head)) if known else None
            if wanted is not None and (head == "mclust" or name not in SAME):
                records.append(checked("smooth_pca", given, name, metric, result.ari, wanted))
            elif wanted is not None:
                records.append(record("smooth_pca", "parity", given, name, digest(name), metric, result.ari,
                                      reference=TABLE, reference_value=wanted, tolerance=SLACK,
                                      passed=abs(result.ari - wanted) <= SLACK))  # fmt: skip
            elif rounds:
                records.append(record("smooth_pca", "check", f"{given}; above PCA + Leiden, likewise", name,
                                      digest(name), metric, result.ari, reference="tenfold pca + leiden",
                                      reference_value=plain[known], passed=result.ari > plain[known]))  # fmt: skip
    return records


def yardstick(name: str) -> list[dict]:
    """Record the smoothness of the annotation itself."""
    adata = load(name)
    own = score(adata, truth(adata)[0])
    shown("annotation", own)
    return [
        record("smooth_pca", "parity", "of the annotation itself", name, digest(name), metric, value,
               reference=TABLE, reference_value=wanted, tolerance=0.002,
               passed=abs(value - wanted) <= 0.002)
        for metric, value, wanted in zip(("PAS", "CHAOS"), (own.pas, own.chaos), ANNOTATION.get(name, ()), strict=False)
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    chosen = sys.argv[1:] or list(SLICES)
    path = ROOT / "evidence" / "results" / "smooth_pca_acceptance.json"
    before = json.loads(path.read_text()) if path.exists() else []
    records = [row for row in before if row["dataset"] not in chosen]
    for name in chosen:
        plain: dict[bool, float] = {}
        print(name)
        shown("pca + leiden", baselines(name)["pca + leiden"])
        records += yardstick(name)
        for rounds in (0, 2, 5):
            records += measured(name, rounds, plain)
    write(records)


if __name__ == "__main__":
    main()
