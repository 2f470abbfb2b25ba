"""STAGATE on annotated sections, ten seeds: thresholds of the sheet; smoothed PCA and PCA + Leiden beside.

Run ``python evidence/stagate_acceptance.py``.
"""

from __future__ import annotations

import warnings

import numpy as np
from domain_slices import baselines, beside, checked, heads, load, shown
from recording import write

from tenfold.domains.stagate import STAGATE

#: Slice → head → ARI in table M, whose graph joins the six nearest cells.
TABLE_M = {
    "starmap_mpfc BZ9": {"mclust": 0.457, "kmeans": 0.414},
    "starmap_mpfc BZ5": {"mclust": 0.639, "kmeans": 0.547},
}
SEEDS = range(10)


def main() -> None:
    warnings.simplefilter("ignore")
    records = []
    for name, wanted in TABLE_M.items():
        adata = load(name)
        print(name)
        for title, found in baselines(name).items():
            shown(title, found)
        runs = []
        for seed in SEEDS:
            model = STAGATE(n_clusters=4, graph="knn", seed=seed).fit(adata, progress=False)
            runs.append(heads(adata, model.embed(), ("kmeans", "mclust"), seed))
            for head, found in runs[-1].items():
                shown(f"stagate, seed {seed}, {head}", found)
        for head, least in wanted.items():
            median = float(np.median([run[head].ari for run in runs]))
            metric = f"ARI, {head}, 6 neighbours, median of {len(runs)} seeds"
            records.append(checked("stagate", "number of domains known", name, metric, median, least))
            records += [beside("stagate", name, metric, median, baseline) for baseline in baselines(name)]
        write(records)  # after each section, since training takes minutes


if __name__ == "__main__":
    main()
