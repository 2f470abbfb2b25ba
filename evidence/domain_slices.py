"""What the acceptance scripts of spatial domains share: annotated slices, the score, and the baselines beside it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
from recording import DATA, record, sha256

from tenfold import metrics
from tenfold.data.heads import Head, clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.refinement import majority
from tenfold.data.spatial import positions_of

TABLE = "table M of the sheet, another implementation"
SLACK = 0.05
#: Slice → file, and the animal in it.
SLICES = {
    "starmap_mpfc BZ5": ("starmap_mpfc", "BZ5"), "starmap_mpfc BZ9": ("starmap_mpfc", "BZ9"),
    "starmap_mpfc BZ14": ("starmap_mpfc", "BZ14"), "osmfish_ssp": ("osmfish_ssp", ""),
    "dlpfc_151510": ("dlpfc_151510", ""), "her2st_A1": ("her2st_A1", ""),
}  # fmt: skip


@cache
def load(name: str) -> ad.AnnData:
    """Read a slice."""
    file, animal = SLICES[name]
    adata = ad.read_h5ad(DATA / f"{file}.h5ad")
    return adata[adata.obs["batch"].str.contains(animal)].copy() if animal else adata


def digest(name: str) -> str:
    return sha256(DATA / f"{SLICES[name][0]}.h5ad")


def truth(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Return annotated layers, and which cells have one: the others are in the fit but not in the score."""
    domain = adata.obs["domain"].astype(str).to_numpy()
    return domain, domain != "unlabelled"


def n_domains(adata: ad.AnnData) -> int:
    domain, told = truth(adata)
    return len(np.unique(domain[told]))


class Score(NamedTuple):
    """Agreement with the annotation, and smoothness beside that of the annotation."""

    ari: float
    nmi: float
    pas: float
    chaos: float
    n_found: int


def score(adata: ad.AnnData, labels: np.ndarray) -> Score:
    domain, told = truth(adata)
    where = adata.obsm["spatial"][told]
    return Score(
        metrics.ari(labels[told], domain[told]), metrics.nmi(labels[told], domain[told]),
        metrics.pas(where, labels[told]), metrics.chaos(where, labels[told]), len(np.unique(labels)),
    )  # fmt: skip


def heads(
    adata: ad.AnnData, embedding: np.ndarray, chosen: Iterable[Head], seed: int = 0, known: bool = True
) -> dict[str, Score]:
    """Score an embedding by each head, before and after the majority vote of 50 neighbours."""
    positions, found = positions_of(Inputs(adata, {})), {}
    for head in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = clusters_of(embedding, n_domains(adata) if known else None, head, seed)
        found[head] = score(adata, labels)
        found[f"{head}, majority of 50"] = score(adata, majority(labels, positions, 50))
    return found


@cache
def baselines(name: str) -> dict[str, Score]:
    """Score PCA + Leiden and smoothed PCA + k-means (2 and 5 rounds), the number of domains given."""
    from tenfold.domains.smooth_pca import SmoothPCA

    adata = load(name)
    n, options = n_domains(adata), {"progress": False}
    plain = SmoothPCA(n_rounds=0, head="leiden", n_clusters=n).fit(adata, **options)
    found = {"pca + leiden": score(adata, plain.cluster())}
    for rounds in (2, 5):
        smooth = SmoothPCA(n_rounds=rounds, n_clusters=n).fit(adata, **options)
        found[f"smooth_pca, {rounds} rounds"] = score(adata, smooth.cluster())
    return found


def shown(title: str, found: Score) -> None:
    print(
        f"  {title:44s} ARI {found.ari:.3f} NMI {found.nmi:.3f} PAS {found.pas:.3f} CHAOS {found.chaos:.4f} "
        f"({found.n_found} domains)", flush=True,
    )  # fmt: skip


def checked(
    method: str, claim: str, name: str, metric: str, value: float, wanted: float, reference: str = TABLE
) -> dict[str, Any]:
    """Return a record that passes where `value` is no more than 0.05 below what is wanted."""
    return record(
        method, "check", claim, name, digest(name), metric, value, reference=reference, reference_value=wanted,
        tolerance=SLACK, passed=value >= wanted - SLACK,
    )  # fmt: skip


def beside(method: str, name: str, metric: str, value: float, baseline: str) -> dict[str, Any]:
    """Return a record that passes where a method is above a baseline on the same slice."""
    other = baselines(name)[baseline].ari
    return record(
        method, "check", "above the baseline, number of domains known", name, digest(name), metric, value,
        reference=f"tenfold {baseline}", reference_value=other, passed=value > other,
    )  # fmt: skip
