"""DeepST on annotated sections, three seeds; on sections together, whether they can be told by the codes.

Run ``python evidence/deepst_acceptance.py``. The sheet has no figure of the authors that could be verified; a pass is
to be above a baseline, and for three sections of mouse cortex that a classifier is nearer to chance with the
adversary than without, with agreement per section not lower.
"""

from __future__ import annotations

import warnings

import numpy as np
from domain_slices import baselines, beside, digest, heads, load, n_domains, shown
from recording import record, write
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from staligner_acceptance import N_DOMAINS, SECTIONS, joined

from tenfold import metrics
from tenfold.data.heads import clusters_of
from tenfold.domains.deepst import DeepST

SLICES = ("starmap_mpfc BZ9", "starmap_mpfc BZ5")
SEEDS = range(3)


def alone(name: str) -> list[dict]:
    """Return the records of one slice."""
    adata, runs, records = load(name), [], []
    print(name)
    for title, found in baselines(name).items():
        shown(title, found)
    for seed in SEEDS:
        model = DeepST(n_clusters=n_domains(adata), seed=seed, histology="no").fit(adata, progress=False)
        runs.append(heads(adata, model.embed(), ("leiden", "mclust", "kmeans"), seed))
        for head, found in runs[-1].items():
            shown(f"deepst, seed {seed}, {head}", found)
    for head in ("leiden", "leiden, majority of 50", "mclust", "kmeans"):
        median = float(np.median([run[head].ari for run in runs]))
        metric = f"ARI, {head}, median of 3 seeds"
        records += [beside("deepst", name, metric, median, baseline) for baseline in baselines(name)]
    return records


def together() -> list[dict]:
    """Return the records of three sections at once, with and without the adversary."""
    adata, found = joined(), {}
    domain, section = (adata.obs[name].to_numpy().astype(str) for name in ("domain", "section"))
    for weight in (0.0, 1.0):
        options = {"n_clusters": N_DOMAINS, "histology": "no", "section_weight": weight}
        codes = DeepST(**options).fit(adata, progress=False, sample="section").embed()
        told = cross_val_score(LogisticRegression(max_iter=500), codes, section, cv=3).mean()
        labels = clusters_of(codes, N_DOMAINS, "mclust")
        each = float(np.mean([metrics.ari(labels[section == s], domain[section == s]) for s in np.unique(section)]))
        found[weight] = float(told), each
        print(f"deepst, section_weight {weight}: sections told {told:.3f}, ARI per section {each:.3f}", flush=True)
    shown_as = {"dataset": "starmap_mpfc BZ5, BZ9, BZ14 together", "digest": digest(SECTIONS[0])}
    (free, plain), (confused, own) = found[0.0], found[1.0]
    return [
        record("deepst", "check", "sections are harder to tell by the codes than without the adversary",
               metric="accuracy of logistic regression", value=confused, reference="tenfold deepst, section_weight=0",
               reference_value=free, passed=confused < free, **shown_as),
        record("deepst", "check", "agreement per section is not lower than without the adversary",
               metric="ARI, mclust, mean over sections", value=own, reference="tenfold deepst, section_weight=0",
               reference_value=plain, tolerance=0.05, passed=own >= plain - 0.05, **shown_as),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    records: list[dict] = []
    for name in SLICES:
        records += alone(name)
        write(records)
    write(records + together())


if __name__ == "__main__":
    main()
