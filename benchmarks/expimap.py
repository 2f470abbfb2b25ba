"""expiMap against scarches: CPU time of a fit, peak memory, and the loss on cells that neither has seen.

Both train the same network (300 sets of 30 genes, three hidden layers of 256, group lasso) for as many epochs on the
same simulated cells, in minibatches of 128 on one thread. Needs scarches as in evidence/expimap_parity.py. Run
``python benchmarks/expimap.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from expimap_parity import SETUP  # noqa: E402
from recording import record, run_apart, sha256, write  # noqa: E402

import tenfold as tf  # noqa: E402

N_CELLS, N_HELD, N_GENES, N_SETS, SIZE, EPOCHS = 1000, 200, 1500, 300, 30, 8

DATA = """
import anndata as ad
import torch
torch.set_num_threads(1)
def cells(rows, dense):
    from scipy import sparse
    counts = given["x"][rows]
    adata = ad.AnnData(counts if dense else sparse.csr_matrix(counts))
    adata.obs["batch"] = given["batch"][rows].astype(str)
    return adata
n, epochs = int(given["n"]), int(given["epochs"])
train, held = slice(0, n), slice(n, None)
"""
OURS = """
from tenfold.annotate import ExpiMap
adata, rest = cells(train, False), cells(held, False)
genes = np.array(adata.var_names)
sets = {f"set {i}": genes[mask].tolist() for i, mask in enumerate(given["mask"] > 0)}
def fit(epochs):
    model = ExpiMap(epochs=epochs, kl_warmup_epochs=epochs - 1, n_top_genes=None, early_stopping=False)
    return model.fit(adata, batch="batch", pathways=sets, progress=False)
fit(2)  # compiles what is compiled at first use
"""
OURS_CODE = """
model = fit(epochs)
seconds = time.process_time() - start
result = {"seconds": seconds, "loss": model.reconstruction_error(rest), "active": int(model.active_.sum())}
"""
THEIRS = """
from scarches.models.expimap.expimap_model import EXPIMAP
adata, rest = cells(train, True), cells(held, True)
adata.obs["batch"] = adata.obs["batch"].astype("category")
used = (given["mask"] > 0).any(axis=0)
adata, rest = adata[:, used].copy(), rest[:, used].copy()
adata.uns["terms"] = [str(i) for i in range(len(given["mask"]))]
import contextlib, io
"""
THEIRS_CODE = """
with contextlib.redirect_stdout(io.StringIO()):
    model = EXPIMAP(adata, "batch", hidden_layer_sizes=[256, 256, 256], mask=given["mask"][:, used])
    model.train(n_epochs=epochs, alpha=0.7, alpha_kl=0.5, alpha_epoch_anneal=epochs - 1, weight_decay=0.0,
                use_early_stopping=False, monitor=False)
seconds = time.process_time() - start
net = model.model.eval()
x = torch.from_numpy(rest.X)
batch = torch.tensor([net.condition_encoder[name] for name in rest.obs["batch"]])
from scarches.models.trvae.losses import nb
with torch.no_grad():
    mean = net.encoder(torch.log(1 + x), batch)[0]
    rate = net.decoder(mean, batch)[0] * x.sum(1)[:, None]
    loss = -nb(x=x, mu=rate, theta=net.theta.exp().t()[batch]).sum(1).mean()
result = {"seconds": seconds, "loss": float(loss), "active": int(model.nonzero_terms().sum())}
"""


def main() -> None:
    adata = tf.data.simulate(n_cells=N_CELLS + N_HELD, n_genes=N_GENES, n_types=8, n_batches=2, seed=0)
    rng = np.random.default_rng(0)
    order = rng.permutation(adata.n_obs)
    x = adata.X.toarray().astype(np.float32)[order]
    batch = adata.obs["batch"].cat.codes.to_numpy()[order]
    mask = np.zeros((N_SETS, N_GENES), dtype=np.int32)
    for row in mask:
        row[rng.choice(N_GENES, SIZE, replace=False)] = 1
    given = {"x": x, "batch": batch, "mask": mask, "n": N_CELLS, "epochs": EPOCHS}
    ours = run_apart(OURS_CODE, given, DATA + OURS, python=sys.executable)
    theirs = run_apart(THEIRS_CODE, given, SETUP + DATA + THEIRS)
    shared = {
        "claim": f"{EPOCHS} epochs of {N_CELLS:,} cells, {N_GENES:,} genes, {N_SETS} sets of {SIZE}, one thread",
        "dataset": "simulated", "digest": sha256(x), "reference": "scarches 0.6.1",
    }  # fmt: skip
    rows = [
        record("expimap", "benchmark", metric=metric, value=ours[key], reference_value=theirs[key],
               passed=ours[key] <= theirs[key], **shared)
        for metric, key in (("CPU seconds", "seconds"), ("peak memory, MB", "_peak_mb"))
    ]  # fmt: skip
    rows.append(record("expimap", "benchmark", metric="negative log-likelihood of held-out cells, nats a cell",
                       value=ours["loss"], reference_value=theirs["loss"], tolerance=0.01,
                       passed=ours["loss"] <= theirs["loss"] * 1.01, **shared))  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
