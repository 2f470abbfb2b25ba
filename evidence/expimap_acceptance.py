"""expiMap: silent and stimulated pathways of simulated cells are found; labels beside linear methods; permuted labels.

Run ``python evidence/expimap_acceptance.py [pathways] [labels] [permuted]``; results of other parts are kept.
"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
from deep_annotators import labelled, parts, permuted
from recording import record, sha256
from scipy import sparse

from tenfold.annotate import ExpiMap
from tenfold.errors import DataError

N_CELLS, N_GENES, SIZE, N_SETS, N_SILENT, STIMULATED = 2500, 400, 20, 20, 5, 3
GRID = (0.3, 1.0, 1.4, 1.8, 2.2)


def simulated(seed: int) -> tuple[ad.AnnData, dict[str, list[str]]]:
    """Twenty pathways of twenty genes; the last five do nothing; half of the cells have the fourth raised."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N_CELLS, N_SETS - N_SILENT))
    stimulated = rng.random(N_CELLS) < 0.5
    z[stimulated, STIMULATED] += 1.5
    weights = np.zeros((N_SETS - N_SILENT, N_GENES))
    for number in range(len(weights)):
        weights[number, number * SIZE : (number + 1) * SIZE] = rng.uniform(0.2, 0.6, SIZE)
    rate = np.exp(rng.normal(0, 0.5, N_GENES) + z @ weights)
    adata = ad.AnnData(sparse.csr_matrix(rng.negative_binomial(5, 5 / (5 + rate)).astype(np.float32)))
    adata.obs["state"] = np.where(stimulated, "stimulated", "control")
    genes = adata.var_names.tolist()
    return adata, {f"path {p}": genes[p * SIZE : (p + 1) * SIZE] for p in range(N_SETS)}


def of_pathways() -> list[dict[str, Any]]:
    from tenfold.engine import predict

    adata, sets = simulated(0)
    train, test = adata[:2000].copy(), adata[2000:].copy()
    fits = []
    for penalty in GRID:
        model = ExpiMap(group_lasso=penalty, epochs=150, kl_warmup_epochs=50, n_top_genes=None)
        try:
            model.fit(train, pathways=sets, progress=False)
        except DataError as error:  # all are silent
            print(penalty, error)
            continue
        nll = predict(model.net_, model._cells(test), lambda net, batch: net.nll_at_mean(batch)).astype(float)
        fits.append((nll.mean(), nll.std() / len(nll) ** 0.5, penalty, model))
        print(penalty, *fits[-1][:2], model.active_.astype(int), flush=True)
    best = min(fits, key=lambda fit: fit[0])
    # The rule of one standard error: the largest penalty that is not worse than the best by more.
    _, _, penalty, model = max((fit for fit in fits if fit[0] <= best[0] + best[1]), key=lambda fit: fit[2])
    silent, kept = ~model.active_[-N_SILENT:], model.active_[:-N_SILENT]
    first = model.enrichment(test, "state", "stimulated")
    digest, words = sha256(adata.X.toarray()), f"penalty {penalty:g} by held-out likelihood, rule of one standard error"
    shared = {"dataset": "simulated, 20 pathways, 5 silent", "digest": digest}
    rank = int(np.flatnonzero(first["program"] == f"path {STIMULATED}")[0]) + 1
    factor = float(first["bayes_factor"][rank - 1])
    right = [int((~each.active_[-N_SILENT:]).sum() + each.active_[:-N_SILENT].sum()) for *_, each in fits]
    return [
        record("expimap", "check", f"silent pathways have no weight ({words})", metric="pathways of 5",
               value=silent.sum(), tolerance=4, passed=silent.sum() >= 4, **shared),
        record("expimap", "check", f"the others are kept ({words})", metric="pathways of 15", value=kept.sum(),
               tolerance=14, passed=kept.sum() >= 14, **shared),
        record("expimap", "check", f"some penalty of {GRID} tells them apart", metric="pathways of 20 that are rightly "
               f"silent or kept (penalty {fits[int(np.argmax(right))][2]:g})", value=max(right), tolerance=18,
               passed=max(right) >= 18, **shared),
        record("expimap", "check", "the stimulated pathway comes first in the enrichment of held-out cells",
               metric=f"rank (Bayes factor {factor:.2f})", value=rank, tolerance=1,
               passed=rank == 1 and factor > 0, **shared),
    ]  # fmt: skip


def main() -> None:
    parts({
        "pathways": of_pathways, "labels": lambda: labelled("expimap", {}), "permuted": lambda: permuted("expimap", {}),
    })  # fmt: skip


if __name__ == "__main__":
    main()
