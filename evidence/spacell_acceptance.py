"""SpaCell on annotated slices: rows beside the baselines, and hidden genes from its code with and without the picture.

Run ``python evidence/spacell_acceptance.py``, or with names of slices.
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
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from tenfold.data.inputs import Inputs
from tenfold.domains.spacell import SpaCell

SEEDS = range(2)
#: Slice → whether the picture is used.
SLICES = {"her2st_A1": ("yes", "no"), "dlpfc_151510": ("yes", "no"), "starmap_mpfc BZ5": ("no",)}
#: Genes that the code is not shown, of the most variable ones.
HIDDEN = 0.25


def fitted(histology: str) -> Any:
    def labels(adata: ad.AnnData, wanted: int | None, seed: int) -> np.ndarray:
        model = SpaCell(n_clusters=wanted, seed=seed, histology=histology)
        return model.fit(adata, progress=False).cluster(refined=False)

    return labels


def explained(name: str, histology: str, seed: int) -> float:
    """Return the mean share of variance of hidden genes that ridge regression on the code predicts, 5-fold."""
    adata = load(name)
    data = Inputs(adata, {})
    genes = data.variable_genes(min(1000, data.n_genes))
    rng = np.random.default_rng(0)
    hidden = rng.choice(genes, int(HIDDEN * len(genes)), replace=False)
    shown = adata[:, np.setdiff1d(np.arange(data.n_genes), hidden)]
    alive = np.asarray(shown.X.sum(axis=1)).ravel() > 0
    code = SpaCell(n_clusters=2, seed=seed, histology=histology).fit(shown[alive].copy(), progress=False).embed()
    target = data.lognorm[:, hidden].toarray()[alive]
    code = (code - code.mean(axis=0)) / code.std(axis=0)
    found = cross_val_predict(RidgeCV(np.logspace(-1, 4, 11)), code, target, cv=KFold(5, shuffle=True, random_state=0))
    varies = target.std(axis=0) > 0
    return float((1 - np.square(found - target).sum(axis=0)[varies]
                  / np.square(target - target.mean(axis=0)).sum(axis=0)[varies]).mean())  # fmt: skip


def hidden_genes(name: str) -> list[dict[str, Any]]:
    """Compare the code with the picture and that of expression alone."""
    scores = {kind: [explained(name, kind, seed) for seed in SEEDS] for kind in ("yes", "no")}
    print(name, scores, flush=True)
    joint, alone = (float(np.mean(scores[kind])) for kind in ("yes", "no"))
    return [record("spacell", "check", "code with the picture above that of expression alone; sheet", name,
                   digest(name), "variance of hidden genes explained, mean of 2 seeds", joint,
                   reference="tenfold spacell, histology no", reference_value=alone, passed=joint > alone)]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or SLICES:
        given = (True,) if name == "dlpfc_151510" else (True, False)
        for kind in SLICES[name]:
            write_part(rows("spacell", name, fitted(kind), SEEDS, given, label=f"histology {kind}"))
        if len(SLICES[name]) > 1:
            write_part(hidden_genes(name))


if __name__ == "__main__":
    main()
