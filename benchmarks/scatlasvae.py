"""scAtlasVAE against the original: CPU time of a fit, peak memory, and the loss on cells that neither has seen.

Both train the same network (the published sizes, ZINB with a dispersion of each gene in each cell) for as many epochs
on the same simulated cells, in minibatches of 128 on one thread, labels in the last half of the epochs. Needs
scatlasvae as in evidence/scatlasvae_parity.py. Run ``python benchmarks/scatlasvae.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from recording import record, run_apart, sha256, write  # noqa: E402
from scatlasvae_parity import SETUP  # noqa: E402

import tenfold as tf  # noqa: E402

N_CELLS, N_HELD, N_GENES, EPOCHS, RATE = 800, 300, 1000, 80, 1e-3

DATA = """
import anndata as ad
import pandas as pd
import torch
torch.set_num_threads(1)
epochs, rate = int(given["epochs"]), float(given["rate"])
n, names = int(given["n"]), [f"c{i}" for i in range(len(given["x"]))]
obs = pd.DataFrame({name: pd.Categorical(given[name].astype(str)) for name in ("batch", "kind")}, index=names)
"""
OURS = """
from scipy import sparse
from tenfold.annotate import ScAtlasVAE
whole = ad.AnnData(sparse.csr_matrix(given["x"]), obs=obs)
adata, rest = whole[:n].copy(), whole[n:].copy()
def fit(epochs):
    model = ScAtlasVAE(epochs=epochs, label_epochs=epochs // 2, learning_rate=rate, n_top_genes=None)
    return model.fit(adata, batch="batch", labels="kind", progress=False)
fit(2)  # compiles what is compiled at first use
"""
OURS_CODE = """
model = fit(epochs)
seconds = time.process_time() - start
right = (model.predict(rest) == rest.obs["kind"].astype(str).to_numpy()).mean()
result = {"seconds": seconds, "loss": model.reconstruction_error(rest), "right": right}
"""
THEIRS = """
import scatlasvae.model._gex_model as module
adata, rest = ad.AnnData(given["x"][:n].astype(np.int32), obs=obs[:n].copy()), obs[n:]
"""
THEIRS_CODE = """
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    model = scAtlasVAE(adata=adata, batch_key="batch", label_key="kind", device="cpu")
    model.fit(max_epoch=epochs, pred_last_n_epoch=epochs // 2, lr=rate)
seconds = time.process_time() - start
model.eval()
x = torch.from_numpy(given["x"][n:])
code = torch.from_numpy(rest["batch"].cat.codes.to_numpy().astype(int))[:, None]
kind = torch.from_numpy(rest["kind"].cat.codes.to_numpy().astype(int))[:, None]
with torch.no_grad():
    H = model.encode(x)
    H["z"] = H["q_mu"]
    R = model.decode(H, x.sum(1), code, kind)
    loss = module.LossFunction.zinb_reconstruction_loss(x, mu=R["px_rna_scale"], theta=R["px_rna_rate"].exp(),
                                                        gate_logits=R["px_rna_dropout"]).mean()
    right = (model.fc(H["q_mu"]).argmax(1) == kind[:, 0]).float().mean()
result = {"seconds": seconds, "loss": float(loss), "right": float(right)}
"""


def main() -> None:
    adata = tf.data.simulate(n_cells=N_CELLS + N_HELD, n_genes=N_GENES, n_types=6, n_batches=2, seed=0)
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    x = adata.X.toarray().astype(np.float32)
    batch, kind = (adata.obs[key].cat.codes.to_numpy() for key in ("batch", "cell_type"))
    given = {"x": x, "batch": batch, "kind": kind, "n": N_CELLS, "epochs": EPOCHS, "rate": RATE}
    ours = run_apart(OURS_CODE, given, DATA + OURS, python=sys.executable)
    theirs = run_apart(THEIRS_CODE, given, SETUP + DATA + THEIRS)
    shared = {
        "claim": f"{EPOCHS} epochs of {N_CELLS:,} cells, {N_GENES:,} genes, one thread", "dataset": "simulated",
        "digest": sha256(x), "reference": "scatlasvae 1.0.5.9",
    }  # fmt: skip
    rows = [
        record("scatlasvae", "benchmark", metric=metric, value=ours[key], reference_value=theirs[key],
               passed=ours[key] <= theirs[key], **shared)
        for metric, key in (("CPU seconds", "seconds"), ("peak memory, MB", "_peak_mb"))
    ]  # fmt: skip
    rows.append(record("scatlasvae", "benchmark", metric="negative log-likelihood of held-out cells, nats a cell",
                       value=ours["loss"], reference_value=theirs["loss"], tolerance=0.01,
                       passed=ours["loss"] <= theirs["loss"] * 1.01, **shared))  # fmt: skip
    rows.append(record("scatlasvae", "benchmark", metric="accuracy of the head on held-out cells", value=ours["right"],
                       reference_value=theirs["right"], tolerance=0.05, passed=ours["right"] >= theirs["right"] - 0.05,
                       **shared))  # fmt: skip
    write(rows)


if __name__ == "__main__":
    main()
