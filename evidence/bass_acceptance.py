"""BASS on three sections of mouse cortex alone and jointly, and on other annotated slices; smoothed PCA beside.

Run ``python evidence/bass_acceptance.py``, or with the names of parts: joint, alone, osmfish, dlpfc.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import anndata as ad
import numpy as np
from domain_rows import rows, write_part
from domain_slices import DATA, SLACK, TABLE, beside, checked, load
from recording import record, sha256

from tenfold import metrics
from tenfold.domains.bass import BASS
from tenfold.domains.smooth_pca import SmoothPCA

SECTIONS = ("BZ5", "BZ9", "BZ14")
#: Table M: each section alone, and ARI over all cells of the joint run (mean of two seeds); of the sheet's acceptance.
ALONE = {"BZ5": 0.780, "BZ9": 0.472, "BZ14": 0.740}
JOINT, LEAST = {"BZ5": 0.814, "BZ9": 0.633, "BZ14": 0.750, "all": 0.729}, 0.68
#: The authors' settings: 15 types in STARmap; 20 and unscaled genes in Visium.
STARMAP = {"n_types": 15, "n_top_genes": None}
VISIUM = {"n_types": 20, "scale": False, "start": "mclust"}


def fitted(options: dict[str, Any]) -> Any:
    """Return what `rows` asks for."""

    def labels(adata: ad.AnnData, wanted: int | None, seed: int) -> np.ndarray:
        return BASS(n_clusters=wanted, seed=seed, **options).fit(adata, progress=False).cluster(refined=False)

    return labels


def joint() -> list[dict[str, Any]]:
    """Three sections together, three seeds; by section and over all."""
    path = DATA / "starmap_mpfc.h5ad"
    adata = ad.read_h5ad(path)
    domain, section = adata.obs["domain"].to_numpy(), adata.obs["batch"].astype(str).to_numpy()
    shown = {"dataset": "starmap_mpfc, three sections", "digest": sha256(path)}
    runs, records = [], []
    for seed in range(3):
        model = BASS(n_clusters=4, seed=seed, **STARMAP).fit(adata, sample="batch", progress=False)
        runs.append(by_section(model.cluster(), domain, section))
        print(f"seed {seed}: β {model.beta_:.3f}, halves agree in {model.agreement_:.3f}, {runs[-1]}", flush=True)
        records.append(record("bass", "check", f"seed {seed}, {model.run_['seconds']:.0f} s, strength of the "
                              "interaction between 0.9 and 1.3 as in table M", metric="beta", value=model.beta_,
                              reference=TABLE, reference_value=1.12, tolerance=0.2,
                              passed=abs(model.beta_ - 1.12) <= 0.2, **shown))  # fmt: skip
    mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    claim = "jointly, number of domains known"
    for name, wanted in JOINT.items():
        records.append(record("bass", "check", claim, metric=f"ARI, {name}, mean of 3 seeds", value=mean[name],
                              reference=TABLE, reference_value=wanted, tolerance=SLACK,
                              passed=mean[name] >= wanted - SLACK, **shown))  # fmt: skip
    records.append(record("bass", "check", f"{claim}; acceptance of the sheet", metric="ARI, all, mean of 3 seeds",
                          value=mean["all"], reference="sheet", reference_value=LEAST, passed=mean["all"] >= LEAST,
                          **shown))  # fmt: skip
    single = alone_mean("BZ9")
    records.append(record("bass", "check", f"{claim}; at least that of the section alone", metric="ARI, BZ9",
                          value=mean["BZ9"], reference="tenfold bass, BZ9 alone", reference_value=single,
                          passed=mean["BZ9"] >= single, **shown))  # fmt: skip
    for rounds in (0, 2, 5):
        options = {"head": "leiden"} if rounds == 0 else {}
        other = SmoothPCA(n_clusters=4, n_rounds=rounds, **options).fit(adata, sample="batch", progress=False)
        ari = by_section(other.cluster(), domain, section)
        name = "pca + leiden" if rounds == 0 else f"smooth_pca, {rounds} rounds"
        print(name, ari, flush=True)
        records += [record("bass", "check", f"{claim}; above the baseline, likewise", metric=f"ARI, {part}, mean of 3 "
                           "seeds", value=mean[part], reference=f"tenfold {name}", reference_value=ari[part],
                           passed=mean[part] > ari[part], **shown) for part in ari]  # fmt: skip
    return records


def by_section(labels: np.ndarray, domain: np.ndarray, section: np.ndarray) -> dict[str, float]:
    """Return the ARI in each section and over all cells."""
    found = {}
    for name in SECTIONS:
        told = np.char.find(section.astype(str), name) >= 0
        found[name] = metrics.ari(labels[told], domain[told])
    return {**found, "all": metrics.ari(labels, domain)}


def alone_mean(name: str) -> float:
    """Return the mean ARI of three seeds on one section."""
    adata = load(f"starmap_mpfc {name}")
    labels = [BASS(n_clusters=4, seed=seed, **STARMAP).fit(adata, progress=False).cluster() for seed in range(3)]
    return float(np.mean([metrics.ari(found, adata.obs["domain"]) for found in labels]))


def alone() -> list[dict[str, Any]]:
    """Each section alone: table M, and rows beside the baselines."""
    records = []
    for name, wanted in ALONE.items():
        full = f"starmap_mpfc {name}"
        mean = alone_mean(name)
        records.append(checked("bass", "alone, number of domains known", full, "ARI, mean of 3 seeds", mean, wanted))
        records += [beside("bass", full, "ARI, mean of 3 seeds", mean, "smooth_pca, 5 rounds")]
        if name != "BZ14":
            records += rows("bass", full, fitted(STARMAP), range(2))
    return records


def osmfish() -> list[dict[str, Any]]:
    """Eleven regions, 33 genes."""
    return rows("bass", "osmfish_ssp", fitted({"n_types": 30, "n_top_genes": None}), range(1))


def dlpfc() -> list[dict[str, Any]]:
    """Layers in Visium with the authors' settings: genes unscaled, started by a mixture, 10,000 samples."""
    options = {**VISIUM, "epochs": 12_000, "burn_in": 1 / 6}
    return rows("bass", "dlpfc_151510", fitted(options), range(1), given=(True,))


def main() -> None:
    warnings.simplefilter("ignore")
    parts = {"joint": joint, "alone": alone, "osmfish": osmfish, "dlpfc": dlpfc}
    for name in sys.argv[1:] or parts:
        write_part(parts[name]())


if __name__ == "__main__":
    main()
