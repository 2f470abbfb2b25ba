"""SiGra on annotated sections: rows beside the baselines, and what picture and expression tell of held-out counts.

Run ``python evidence/sigra_acceptance.py``, or with names of parts: a section, or ``held-out``. The authors' 0.55 is of
lung cells that are not at hand. Of the tumour 500 genes are read; the brain section, whose picture is coarse,
is run with one seed.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import anndata as ad
import numpy as np
from domain_rows import rows, write_part
from domain_slices import digest, load
from recording import record
from scipy import sparse

from tenfold.data.preprocess import normalize_log1p
from tenfold.domains.sigra import SiGra

#: Section → settings of a run, and seeds.
RUNS: dict[str, tuple[dict[str, Any], range]] = {
    "her2st_A1": ({"n_top_genes": 500}, range(3)),
    "starmap_mpfc BZ9": ({"graph": "knn", "histology": "no"}, range(3)),
    "dlpfc_151510": ({"side": 1.0}, range(1)),
}
PICTURED = "her2st_A1"
#: What is read → settings.
READ: dict[str, dict[str, Any]] = {
    "picture and expression": {}, "expression": {"histology": "no"}, "picture": {"expression": False},
    "stains and texture, and expression": {"picture": "features"},
    (LONGER := "picture and expression, 200 epochs, one seed"): {"epochs": 200},
}  # fmt: skip


def fitted(options: dict[str, Any]) -> Any:
    def labels(adata: ad.AnnData, wanted: int | None, seed: int) -> np.ndarray:
        return SiGra(n_clusters=wanted, seed=seed, **options).fit(adata, progress=False).cluster(refined=False)

    return labels


def held_out() -> list[dict[str, Any]]:
    """Train on half of the counts, and compare what is given with the other half: by picture, by expression, by both.

    And whether longer training makes it worse: a network of this size learns a section by heart.
    """
    found: dict[str, list[float]] = {}
    for seed in range(2):
        thinned, target = halves(seed)
        for title, extra in READ.items():
            if title == LONGER and seed:
                continue
            options = {"n_clusters": 2, "head": "kmeans", "n_top_genes": 500, **extra}
            given = SiGra(seed=seed, **options).fit(thinned, progress=False).denoise()
            known = np.isfinite(given).all(axis=0)
            found.setdefault(title, []).append(float(np.square(given - target)[:, known].mean()))
        flat = target[:, known] - np.asarray(normalize_log1p(thinned.X).mean(axis=0)).ravel()[known]
        found.setdefault("the mean of each gene", []).append(float(np.square(flat).mean()))
        print(seed, {title: round(values[-1], 4) for title, values in found.items()}, flush=True)
    error = {title: float(np.mean(values)) for title, values in found.items()}
    records = []
    for better, worse in (
        ("expression", "picture"), ("picture and expression", "expression"),
        ("stains and texture, and expression", "expression"), ("picture and expression", LONGER),
        ("expression", "the mean of each gene"), ("picture", "the mean of each gene"),
    ):  # fmt: skip
        records.append(record(
            "sigra", "check", f"{better}: at most the error of {worse}; the sheet's ablation", PICTURED,
            digest(PICTURED), "squared error to the held-out half of the counts, mean of 2 seeds", error[better],
            reference=f"tenfold sigra: {worse}", reference_value=error[worse], passed=error[better] <= error[worse],
        ))  # fmt: skip
    return records


def halves(seed: int) -> tuple[ad.AnnData, np.ndarray]:
    """Return a section with half of its counts, and log-expression of the other half."""
    adata = load(PICTURED)
    counts = adata.X.tocsr().astype(np.int64)
    half = counts.copy()
    half.data = np.random.default_rng(seed).binomial(counts.data, 0.5)
    half.eliminate_zeros()
    seen, other = (sparse.csr_matrix(part, dtype=np.float32) for part in (half, counts - half))
    thinned = ad.AnnData(seen, adata.obs, adata.var, uns=adata.uns, obsm=dict(adata.obsm))
    return thinned, normalize_log1p(other).toarray()


def main() -> None:
    warnings.simplefilter("ignore")
    for part in sys.argv[1:] or (*RUNS, "held-out"):
        if part == "held-out":
            write_part(held_out())
            continue
        options, seeds = RUNS[part]
        label = "expression alone" if "histology" in options else "picture and expression"
        given = (True, False) if part == PICTURED else (True,)
        write_part(rows("sigra", part, fitted(options), seeds, given, label=label))
        if part == PICTURED:
            blind = {**options, "histology": "no"}
            write_part(rows("sigra", part, fitted(blind), seeds, (True,), label="expression alone"))


if __name__ == "__main__":
    main()
