"""stLearn on annotated slices with pictures: rows beside the baselines, parts of its weights, and held-out counts.

Run ``python evidence/stlearn_acceptance.py``, or with names of slices.
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

from tenfold.data.image_features import morphology
from tenfold.data.inputs import Inputs
from tenfold.data.preprocess import normalize_log1p
from tenfold.data.spatial import positions_of, spatial_graph
from tenfold.domains.stlearn import StLearn, smoother

SEEDS = range(3)
PICTURED, BLIND = ("her2st_A1", "dlpfc_151510"), ("starmap_mpfc BZ5", "osmfish_ssp")


def fitted(options: dict[str, Any]) -> Any:
    def labels(adata: ad.AnnData, wanted: int | None, seed: int) -> np.ndarray:
        return StLearn(n_clusters=wanted, seed=seed, **options).fit(adata, progress=False).cluster(refined=False)

    return labels


def held_out(name: str) -> list[dict[str, Any]]:
    """Smooth half of the counts, and predict the other half: with the picture, with expression, and with both."""
    adata = load(name)
    counts = adata.X.tocsr().astype(np.int64)
    half = counts.copy()
    half.data = np.random.default_rng(0).binomial(counts.data, 0.5)
    half.eliminate_zeros()
    seen, other = half.astype(np.float32).tocsr(), (counts - half).astype(np.float32).tocsr()
    alive = (np.asarray(seen.sum(axis=1)).ravel() > 0) & (np.asarray(other.sum(axis=1)).ravel() > 0)
    thinned = ad.AnnData(
        sparse.csr_matrix(seen[alive]), adata.obs[alive], obsm={"spatial": adata.obsm["spatial"][alive]}
    )
    thinned.uns["spatial"] = adata.uns["spatial"]
    data = Inputs(thinned, {})
    where, target = positions_of(data), normalize_log1p(other[alive]).toarray()
    near, own = spatial_graph(where, "radius", radius=3.0), data.lognorm
    picture, expression = morphology(data, where), data.pca(50, None).embedding
    kinds = {"all": (picture, expression), "space_expression": (None, expression), "space_morphology": (picture, None),
             "space": (None, None)}  # fmt: skip
    plain = float(np.square(own.toarray() - target).mean())
    records = []
    for kind, (one, two) in kinds.items():
        smooth = sparse.csr_matrix(smoother(near, where.points, one, two, 3) @ own)
        error = float(np.square(smooth.toarray() - target).mean())
        records.append(record("stlearn", "check", f"weights={kind}: not above that without smoothing; sheet", name,
                              digest(name), "squared error to the held-out half of the counts", error,
                              reference="without smoothing", reference_value=plain, passed=error <= plain))  # fmt: skip
    return records


def main() -> None:
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or (*PICTURED, *BLIND):
        if name in BLIND:
            write_part(rows("stlearn", name, fitted({"histology": "no"}), SEEDS, label="without a picture"))
            continue
        write_part(held_out(name))
        for kind in ("all", "space_expression", "space_morphology", "space"):
            given = (True, False) if kind == "all" else (True,)
            write_part(rows("stlearn", name, fitted({"weights": kind}), SEEDS, given, label=f"weights={kind}"))


if __name__ == "__main__":
    main()
