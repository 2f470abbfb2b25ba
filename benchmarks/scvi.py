"""scVI against scvi-tools: CPU time of training, peak memory and held-out likelihood at equal epochs.

Both train on the same cells with the same settings (NB, their own defaults) on one thread, and are judged on the same
held-out cells: mean NB negative log-likelihood per cell with z at its mean. Run
``python benchmarks/scvi.py [dataset ...]`` with TENFOLD_REFERENCE_PYTHON set; results of other data sets are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from recording import DATA, record, run_apart, sha256, version  # noqa: E402

#: Data set, seeds and epochs; both sides raise the KL weight over 400 epochs.
SETTINGS = {"pbmc": (2, 400), "pbmc_3chem": (2, 400), "simulated": (2, 10)}
TOLERANCE = 0.005

OURS = """
m = SCVI(n_top_genes=None, epochs=int(given["epochs"]), train_fraction=1.0, seed=int(given["seed"]), device="cpu")
m.fit(train, progress=False, **roles)
"""
OURS_SETUP = """
import anndata, torch
from scipy import sparse
torch.set_num_threads(1)
import tenfold as tf
from tenfold.embed import SCVI
def cells(part):
    matrix = sparse.csr_matrix((given[part + "_data"], given[part + "_indices"], given[part + "_indptr"]),
                               shape=given[part + "_shape"])
    return anndata.AnnData(matrix, obs={"batch": given[part + "_batch"]})
train, test = cells("train"), cells("test")
roles = {"batch": "batch"} if len(np.unique(given["train_batch"])) > 1 else {}
SCVI(n_top_genes=None, epochs=1).fit(train[:300].copy(), progress=False)  # compiles what is compiled at first use
"""
OURS_AFTER = """
result = {"nll": m.reconstruction_error(test)}
"""
THEIRS_SETUP = """
import anndata, pandas, torch
from scipy import sparse
torch.set_num_threads(1)
import scvi
scvi.settings.num_threads = 1
def cells(part):
    matrix = sparse.csr_matrix((given[part + "_data"], given[part + "_indices"], given[part + "_indptr"]),
                               shape=given[part + "_shape"])
    return anndata.AnnData(matrix, obs=pandas.DataFrame({"batch": given[part + "_batch"]}))
train, test = cells("train"), cells("test")
key = "batch" if len(np.unique(given["train_batch"])) > 1 else None
scvi.settings.seed = int(given["seed"])
"""
THEIRS = """
scvi.model.SCVI.setup_anndata(train, batch_key=key)
m = scvi.model.SCVI(train, gene_likelihood="nb")
m.train(max_epochs=int(given["epochs"]), train_size=1.0, accelerator="cpu", enable_progress_bar=False, logger=False)
"""
THEIRS_AFTER = """
m.module.eval()
total = 0.0
with torch.no_grad():
    for tensors in m._make_data_loader(m._validate_anndata(test), batch_size=128):
        found = m.module.inference(**m.module._get_inference_input(tensors))
        found["z"] = found["qz"].loc
        px = m.module.generative(**m.module._get_generative_input(tensors, found))["px"]
        total -= px.log_prob(tensors["X"]).sum().item()
result = {"nll": total / test.n_obs}
"""
_CLOCK = """
trained = time.process_time()
{train}
trained = time.process_time() - trained
{after}
result["seconds"] = trained
"""


def load(name: str) -> tuple[ad.AnnData, str]:
    """Return a data set with ``obs["batch"]``, and its digest."""
    import tenfold as tf

    if name == "pbmc":
        adata = tf.data.pbmc()
        adata.obs["batch"] = "all"
        return adata, sha256(adata.X.toarray())
    if name == "simulated":
        adata = tf.data.simulate(10_000, 2_000, n_types=10, n_batches=2, depth=600.0, seed=0)
        return adata, sha256(adata.X.data)
    path = DATA / f"{name}.h5ad"
    adata = ad.read_h5ad(path)
    return adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy(), sha256(path)


def split(adata: ad.AnnData, seed: int) -> dict[str, Any]:
    """Hold out a tenth of the cells."""
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    n_test = adata.n_obs // 10
    given: dict[str, Any] = {}
    for part, rows in (("test", order[:n_test]), ("train", order[n_test:])):
        matrix = sparse.csr_matrix(adata.X[np.sort(rows)]).astype(np.float32)
        given |= {f"{part}_{name}": getattr(matrix, name) for name in ("data", "indices", "indptr", "shape")}
        given[f"{part}_batch"] = adata.obs["batch"].to_numpy()[np.sort(rows)].astype(str)
    return given


def compare(name: str) -> list[dict[str, Any]]:
    """Train both on one data set, seed by seed, and return the records."""
    n_seeds, epochs = SETTINGS[name]
    adata, digest = load(name)
    ours, theirs = [], []
    for seed in range(n_seeds):
        given = {**split(adata, seed), "seed": seed, "epochs": epochs}
        code = _CLOCK.format(train=OURS, after=OURS_AFTER)
        ours.append(run_apart(code, given, OURS_SETUP, python=sys.executable))
        code = _CLOCK.format(train=THEIRS, after=THEIRS_AFTER)
        theirs.append(run_apart(code, given, THEIRS_SETUP))
        for who, run in (("tenfold", ours[-1]), ("scvi-tools", theirs[-1])):
            print(f"{name} seed {seed} {who:10s} {run['seconds']:8.1f} CPU s  {run['_peak_mb']:6.0f} MB  "
                  f"NLL {run['nll']:.3f}", flush=True)  # fmt: skip
    nll, reference_nll = (float(np.mean([run["nll"] for run in runs])) for runs in (ours, theirs))
    seconds, reference_seconds = (float(np.median([run["seconds"] for run in runs])) for runs in (ours, theirs))
    memory, reference_memory = (float(np.median([run["_peak_mb"] for run in runs])) for runs in (ours, theirs))
    used, claim = version("scvi-tools"), f"{epochs} epochs, {n_seeds} seeds, one thread"
    shared = {"claim": claim, "dataset": name, "digest": digest, "reference": used}
    return [
        record("scvi", "parity", metric="held-out NLL per cell, nats", value=nll, reference_value=reference_nll,
               tolerance=TOLERANCE, passed=nll <= (1 + TOLERANCE) * reference_nll, **shared),
        record("scvi", "benchmark", metric="CPU seconds of training", value=seconds, reference_value=reference_seconds,
               passed=seconds <= reference_seconds, **shared),
        record("scvi", "benchmark", metric="peak memory, MB", value=memory, reference_value=reference_memory,
               passed=memory <= reference_memory, **shared),
    ]  # fmt: skip


def main() -> None:
    path = ROOT / "evidence" / "results" / "benchmark_scvi.json"
    names = sys.argv[1:] or list(SETTINGS)
    for name in names:
        fresh = compare(name)
        kept = json.loads(path.read_text()) if path.exists() else []
        records = [row for row in kept if row["dataset"] != name] + fresh
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
