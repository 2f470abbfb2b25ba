"""SpaGCN on annotated slices, with and without the picture, ten seeds; smoothed PCA and PCA + Leiden beside.

Run ``python evidence/spagcn_acceptance.py``, or with names of slices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from domain_rows import rows, write_part
from domain_slices import digest, load, n_domains, score
from recording import record

from tenfold.data.inputs import Inputs
from tenfold.data.refinement import outvoted
from tenfold.data.spatial import positions_of
from tenfold.domains.spagcn import SpaGCN

SEEDS = range(10)
#: Slice → whether the picture is used.
SLICES = {"starmap_mpfc BZ5": ("no",), "starmap_mpfc BZ9": ("no",), "osmfish_ssp": ("no",),
          "dlpfc_151510": ("no", "yes"), "her2st_A1": ("no", "yes")}  # fmt: skip
#: What refinement changes at most, of the sheet.
MOST_CHANGED = 0.1


def checks(name: str, histology: str) -> list[dict]:
    """Check what refinement changes, and Louvain on the same components."""
    adata = load(name)
    model = SpaGCN(n_clusters=n_domains(adata), histology=histology).fit(adata, progress=False)
    before = model.cluster(refined=False)
    changed = float((outvoted(before, positions_of(Inputs(adata, {})), 6) != before).mean())
    alone = SpaGCN(n_clusters=n_domains(adata), share=1e-3, epochs=1).fit(adata, progress=False)
    shown = {"dataset": name, "digest": digest(name)}
    ari, louvain = score(adata, before).ari, score(adata, alone.cluster()).ari
    claim = f"histology {histology}, seed 0"
    return [
        record("spagcn", "check", f"{claim}; sheet", metric="share of labels that refinement by 6 neighbours changes",
               value=changed, reference="sheet", reference_value=MOST_CHANGED, passed=changed < MOST_CHANGED, **shown),
        record("spagcn", "check", f"{claim}; above Louvain on the same components", metric="ARI", value=ari,
               reference="Louvain, weight of neighbours 0.001", reference_value=louvain, passed=ari > louvain, **shown),
    ]  # fmt: skip


def fitted(histology: str) -> Callable[[Any, int | None, int], np.ndarray]:
    """Return what `rows` asks for."""

    def labels(adata: Any, wanted: int | None, seed: int) -> np.ndarray:
        model = SpaGCN(n_clusters=wanted, histology=histology, seed=seed)
        return model.fit(adata, progress=False).cluster(refined=False)

    return labels


def main() -> None:
    for name in sys.argv[1:] or SLICES:
        for histology in SLICES[name]:
            write_part(rows("spagcn", name, fitted(histology), SEEDS, label=f"histology {histology}"))
            write_part(checks(name, histology))


if __name__ == "__main__":
    main()
