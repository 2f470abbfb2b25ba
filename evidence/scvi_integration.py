"""scVI integrates two simulated batches as scvi-tools does: mixing and separation within 0.05 at equal settings.

Needs scvi-tools 1.4.2 in the environment of TENFOLD_REFERENCE_PYTHON. Run ``python evidence/scvi_integration.py``.
"""

from __future__ import annotations

import numpy as np
from recording import record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.data import preprocess
from tenfold.metrics.diversity import cilisi, clisi, ilisi
from tenfold.metrics.neighborhoods import neighbors

TOLERANCE = 0.05
SEEDS = (0, 1)
EPOCHS, WARMUP = 100, 50
SCHEDULE = {"learning_rate": 1e-3, "schedule": "constant"}

REFERENCE = """
import anndata, pandas, scvi
from scipy import sparse
adata = anndata.AnnData(sparse.csr_matrix(given["counts"]), obs=pandas.DataFrame({"batch": given["batch"]}))
scvi.settings.seed = int(given["seed"])
scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
model = scvi.model.SCVI(adata, gene_likelihood="nb")
model.train(max_epochs=int(given["epochs"]), accelerator="cpu", enable_progress_bar=False, logger=False,
            plan_kwargs={"n_epochs_kl_warmup": int(given["warmup"])})
result = {"z": model.get_latent_representation()}
"""


def scores(z: np.ndarray, batch: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return mixing of batches, separation of types, and mixing within types."""
    near = neighbors(z, 90)
    return {"iLISI": ilisi(near, batch), "cLISI": clisi(near, labels), "CiLISI": cilisi(z, labels, batch)}


def main() -> None:
    adata = tf.data.simulate(1500, 300, n_types=5, n_batches=2, batch_strength=0.5, seed=0)
    batch, labels = (adata.obs[name].to_numpy().astype("U") for name in ("batch", "cell_type"))
    ours, theirs = [], []
    for seed in SEEDS:
        params = {"epochs": EPOCHS, "kl_warmup_epochs": WARMUP, "n_top_genes": None, "seed": seed} | SCHEDULE
        model = tf.embed.SCVI(**params).fit(adata, batch="batch", progress=False)
        ours.append(scores(model.embed(), batch, labels))
        given = {"counts": adata.X.toarray(), "batch": batch, "seed": seed, "epochs": EPOCHS, "warmup": WARMUP}
        theirs.append(scores(run_apart(REFERENCE, given)["z"], batch, labels))
    components = preprocess.pca(preprocess.normalize_log1p(adata.X), 30).embedding
    before = scores(components, batch, labels)
    print("PCA:", ", ".join(f"{name} {value:.3f}" for name, value in before.items()))
    used, digest = version("scvi-tools"), sha256(adata.X.toarray())
    claim = f"integration, {EPOCHS} epochs, {len(SEEDS)} seeds"
    records = []
    for name in before:
        value, expected = (float(np.mean([row[name] for row in rows])) for rows in (ours, theirs))
        records.append(record(
            "scvi", "parity", claim, "tenfold.data.simulate", digest, name, value, reference=used,
            reference_value=expected, tolerance=TOLERANCE, passed=abs(value - expected) <= TOLERANCE,
        ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
