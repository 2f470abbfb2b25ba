"""scGen: a simulated perturbation that adds to log-expression, predicted for a type whose treated cells were left out.

R² is the squared correlation of mean expression over the 100 genes that differ most between treated and untreated cells
of the type. Run ``python evidence/scgen_acceptance.py``.
"""

from __future__ import annotations

import warnings

import numpy as np
from recording import record, sha256, write

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.integrate.scgen import SCGen

BAR, N_GENES = 0.9, 100


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.simulate(1_200, 500, n_types=4, n_batches=2, batch_strength=0.5, depth=1_000.0, seed=0)
    kind, batch = adata.obs["cell_type"].to_numpy(), adata.obs["batch"].to_numpy()
    target = (kind == "type_1") & (batch == "batch_2")
    lognorm = Inputs(adata, {}).lognorm
    truth = np.asarray(lognorm[target].mean(axis=0)).ravel()
    before = np.asarray(lognorm[(kind == "type_1") & (batch == "batch_1")].mean(axis=0)).ravel()
    changed = np.argsort(-np.abs(truth - before))[:N_GENES]
    model = SCGen(n_top_genes=None).fit(adata[~target].copy(), batch="batch", labels="cell_type", progress=False)
    digest, found = sha256(adata.X.data), {}
    for as_reference in (False, True):
        means = model.predict_perturbation("batch_1", "batch_2", "type_1", as_reference=as_reference).means
        for column in means:
            name = f"{column}, original's types" if as_reference and column == "predicted" else column
            found.setdefault(name, float(np.corrcoef(means[column].to_numpy()[changed], truth[changed])[0, 1] ** 2))
    shared = {"dataset": "simulated, 1,200 x 500, additive perturbation", "digest": digest}
    claim, metric = "response of a type left out", f"R2 of means of the {N_GENES} most changed genes"
    value, original = found["predicted"], found["predicted, original's types"]
    records = [
        record("scgen", "check", claim, metric=metric, value=value, tolerance=BAR, passed=value >= BAR, **shared),
        *(record("scgen", "check", claim, metric=f"{metric}, against the baseline {name}", value=value,
                 reference=name, reference_value=found[name], passed=value > found[name], **shared)
          for name in ("control", "control_plus_shift")),
        record("scgen", "check", claim, metric=f"{metric}, shift of shared types against that of the original",
               value=value, reference="shift over all types of each condition", reference_value=original,
               passed=value >= original, **shared),
    ]  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
