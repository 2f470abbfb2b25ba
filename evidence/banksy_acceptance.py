"""BANKSY on annotated sections, over its mixing: smoothed PCA and PCA + Leiden beside.

Run ``python evidence/banksy_acceptance.py``. Table M has no figures for it: a pass is to be above a baseline.
"""

from __future__ import annotations

import warnings

from domain_slices import baselines, beside, heads, load, shown
from recording import write

from tenfold.domains.banksy import BANKSY

SLICES = ("starmap_mpfc BZ9", "starmap_mpfc BZ5")
MIXING = (0.2, 0.5, 0.8)


def main() -> None:
    warnings.simplefilter("ignore")
    records = []
    for name in SLICES:
        adata = load(name)
        print(name)
        for title, found in baselines(name).items():
            shown(title, found)
        for mixing in MIXING:
            embedding = BANKSY(n_clusters=4, mixing=mixing).fit(adata, progress=False).embed()
            for head, found in heads(adata, embedding, ("leiden", "kmeans", "mclust")).items():
                shown(f"banksy, mixing {mixing}, {head}", found)
                if "majority" not in head and mixing in (0.2, 0.8):
                    metric = f"ARI, mixing {mixing}, {head}"
                    records += [beside("banksy", name, metric, found.ari, baseline) for baseline in baselines(name)]
    write(records)


if __name__ == "__main__":
    main()
