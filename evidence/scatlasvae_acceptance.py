"""scAtlasVAE: two vocabularies of labels on simulated cells are nested as they truly are; labels beside linear methods.

Run ``python evidence/scatlasvae_acceptance.py [nesting] [labels] [permuted]``; results of other parts are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from deep_annotators import labelled, parts, permuted
from recording import record, sha256

import tenfold as tf
from tenfold.annotate import ScAtlasVAE

SHARE = 0.8


def of_nesting() -> list[dict[str, Any]]:
    """Six types in two batches: one is labelled with the types, the other with three pairs of them."""
    adata = tf.data.simulate(n_cells=2000, n_genes=600, n_types=6, n_batches=2, batch_strength=0.4, seed=0)
    kind = adata.obs["cell_type"].cat.codes.to_numpy()
    first = adata.obs["batch"].cat.codes.to_numpy() == 0
    adata.obs["fine"] = np.where(first, np.char.add("fine ", kind.astype(str)), "undefined")
    adata.obs["broad"] = np.where(first, "undefined", np.char.add("broad ", (kind // 2).astype(str)))
    model = ScAtlasVAE(epochs=100, more_labels=["broad"]).fit(adata, batch="batch", labels="fine", progress=False)
    table = model.alignment("fine", "broad")
    print(table.round(2))
    own = [table.loc[f"fine {k}", f"broad {k // 2}"] for k in range(6)]
    missing = np.array([np.char.add("broad ", (kind // 2).astype(str))[i] for i in np.flatnonzero(first)])
    told = model.probabilities_of("broad").idxmax(axis=1).to_numpy()[first]
    shared = {"dataset": "simulated, 6 types, 2 batches", "digest": sha256(adata.X.toarray())}
    return [
        record("scatlasvae", "check", "every label has its cells in the label that truly holds it",
               metric="least share of cells", value=min(own), tolerance=SHARE, passed=min(own) >= SHARE, **shared),
        record("scatlasvae", "check", "labels of the other vocabulary are right where they were not given",
               metric="accuracy", value=(told == missing).mean(), tolerance=SHARE,
               passed=(told == missing).mean() >= SHARE, **shared),
    ]  # fmt: skip


def main() -> None:
    of_labels, control = (lambda: labelled("scatlasvae", {})), (lambda: permuted("scatlasvae", {}))
    parts({"nesting": of_nesting, "labels": of_labels, "permuted": control})


if __name__ == "__main__":
    main()
