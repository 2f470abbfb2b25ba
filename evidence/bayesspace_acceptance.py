"""BayesSpace on annotated slices, number of domains known or not, two seeds; smoothed PCA and PCA + Leiden beside.

Run ``python evidence/bayesspace_acceptance.py``, or with names of slices.
"""

from __future__ import annotations

import sys

import numpy as np
from domain_rows import rows, write_part
from domain_slices import digest, load, n_domains, score
from recording import record

from tenfold.data.heads import clusters_of
from tenfold.data.inputs import Inputs
from tenfold.domains.bayesspace import BayesSpace
from tenfold.spatial_models.sampling import log2_components

SEEDS = range(2)
SLICES = ("dlpfc_151510", "her2st_A1", "starmap_mpfc BZ5", "starmap_mpfc BZ9", "osmfish_ssp")


def fitted(adata, wanted: int | None, seed: int) -> np.ndarray:
    model = BayesSpace(n_clusters=wanted, seed=seed).fit(adata, progress=False)
    print(f"  {model.run_['seconds']:.0f} s, halves agree in {model.agreement_:.3f}", flush=True)
    return model.cluster(refined=False)


def start(name: str) -> list[dict]:
    """Compare with the clustering that it starts from."""
    adata = load(name)
    components = log2_components(Inputs(adata, {}), 15, 2000)
    before = score(adata, clusters_of(components, n_domains(adata), "mclust", 0)).ari
    after = score(adata, fitted(adata, n_domains(adata), 0)).ari
    return [record("bayesspace", "check", "number of domains known, seed 0; above its start", name, digest(name), "ARI",
                   after, reference="tenfold mclust of 15 components", reference_value=before,
                   passed=after > before)]  # fmt: skip


def main() -> None:
    for name in sys.argv[1:] or SLICES:
        write_part(rows("bayesspace", name, fitted, SEEDS) + start(name))


if __name__ == "__main__":
    main()
