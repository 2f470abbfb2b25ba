"""GraphST on annotated sections, ten seeds: thresholds of the sheet; smoothed PCA and PCA + Leiden beside.

Run ``python evidence/graphst_acceptance.py``.
"""

from __future__ import annotations

import warnings

import numpy as np
from domain_slices import baselines, beside, checked, digest, heads, load, shown
from recording import record, write

from tenfold.domains.graphst import GraphST

#: Slice → head and refinement → ARI in table M (mean of its seeds).
TABLE_M = {
    "starmap_mpfc BZ9": {"mclust": 0.370, "mclust, majority of 50": 0.532, "kmeans": 0.316},
    "starmap_mpfc BZ5": {"mclust": 0.424, "mclust, majority of 50": 0.530, "kmeans": 0.349},
}
SEEDS = range(10)
#: The reconstruction term ends at this share of its first value, at most.
LEARNT = 0.6


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
            model = GraphST(n_clusters=4, seed=seed).fit(adata, progress=False)
            runs.append(heads(adata, model.embed(), ("kmeans", "mclust"), seed))
            for head, found in runs[-1].items():
                shown(f"graphst, seed {seed}, {head}", found)
            course = model.history.query("term == 'reconstruction'")["train"].to_numpy()
            left = course[-1] / course[0]
            records.append(record("graphst", "check", f"seed {seed}", name, digest(name),
                                  "reconstruction error, share of its first value", left, reference="sheet",
                                  reference_value=LEARNT, passed=left <= LEARNT))  # fmt: skip
        for head, least in wanted.items():
            median = float(np.median([run[head].ari for run in runs]))
            metric = f"ARI, {head}, median of 10 seeds"
            records.append(checked("graphst", "number of domains known", name, metric, median, least))
            records += [beside("graphst", name, metric, median, baseline) for baseline in baselines(name)]
    write(records)


if __name__ == "__main__":
    main()
