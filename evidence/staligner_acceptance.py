"""STAligner on three sections of mouse cortex together: joint domains, and slices mixed; what is simpler beside.

Run ``python evidence/staligner_acceptance.py``. The authors' 0.63 on four slices of one donor needs counts that are not
at hand. Beside it: STAGATE on the same sections, and smoothed PCA, each clustered over all sections at once.
"""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
from domain_slices import digest, load
from recording import record, write

from tenfold import metrics
from tenfold.data.heads import clusters_of
from tenfold.domains.smooth_pca import SmoothPCA
from tenfold.domains.stagate import STAGATE
from tenfold.domains.staligner import STAligner

SECTIONS = ("starmap_mpfc BZ5", "starmap_mpfc BZ9", "starmap_mpfc BZ14")
N_DOMAINS, SEEDS = 4, range(3)
#: What the sheet measured for five rounds of averaging and k-means on all three sections.
TABLE_M = 0.766


def joined() -> ad.AnnData:
    """Return the three sections as one, counts and positions, with the section of each cell."""
    both = ad.concat({name[-4:].strip(): load(name) for name in SECTIONS}, label="section", index_unique="-")
    both.obs["domain"] = both.obs["domain"].astype(str)
    return both


def judged(adata: ad.AnnData, embedding: np.ndarray, head: str, seed: int = 0) -> tuple[float, float]:
    """Return the adjusted Rand index over all sections, and how far sections are mixed inside annotated domains."""
    domain, section = (adata.obs[name].to_numpy().astype(str) for name in ("domain", "section"))
    labels = clusters_of(embedding, N_DOMAINS, head, seed)
    return metrics.ari(labels, domain), metrics.cilisi(embedding, domain, section)


def main() -> None:
    warnings.simplefilter("ignore")
    adata, roles = joined(), {"sample": "section", "progress": False}
    smooth = {}
    for rounds in (2, 5):
        embedding = SmoothPCA(n_rounds=rounds, n_clusters=N_DOMAINS).fit(adata, **roles).embed()
        smooth[rounds] = {head: judged(adata, embedding, head) for head in ("kmeans", "mclust")}
        print(f"smooth_pca, {rounds} rounds", smooth[rounds], flush=True)
    found: dict[str, list] = {}
    for seed in SEEDS:
        options = {"graph": "knn", "n_clusters": N_DOMAINS, "seed": seed}
        for name, model in (("stagate", STAGATE(**options)), ("staligner", STAligner(**options))):
            found.setdefault(name, []).append(judged(adata, model.fit(adata, **roles).embed(), "mclust", seed))
            print(name, seed, found[name][-1], flush=True)
    shown = {"dataset": "starmap_mpfc BZ5, BZ9, BZ14 together", "digest": digest(SECTIONS[0])}
    ari, mixed = np.median(found["staligner"], axis=0)
    own = "ARI over all sections, mclust, 6 neighbours, median of 3 seeds"
    mixing = "sections mixed inside annotated domains (scaled LISI), median of 3 seeds"
    rows = [
        record("staligner", "check", "above STAGATE on the same sections", metric=own, value=ari,
               reference="tenfold stagate", reference_value=np.median([a for a, _ in found["stagate"]]),
               passed=ari > np.median([a for a, _ in found["stagate"]]), **shown),
        record("staligner", "check", "sections are mixed more than by STAGATE", metric=mixing, value=mixed,
               reference="tenfold stagate", reference_value=np.median([m for _, m in found["stagate"]]),
               passed=mixed > np.median([m for _, m in found["stagate"]]), **shown),
        record("staligner", "check", "above smoothed PCA in the sheet's table M", metric=own, value=ari,
               reference="table M of the sheet, another implementation: 5 rounds, k-means", reference_value=TABLE_M,
               passed=ari > TABLE_M, **shown),
    ]  # fmt: skip
    rows += [
        record("staligner", "check", "above the baseline, number of domains known", metric=own, value=ari,
               reference=f"tenfold smooth_pca, {rounds} rounds, {head}", reference_value=value,
               passed=ari > value, **shown)
        for rounds, heads in smooth.items() for head, (value, _) in heads.items()
    ]  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
