"""Architecture surgery against scvi-tools: CPU time of mapping a query, and where its cells land.

Both train a reference on two chemistries of blood cells with the network that scArches recommends, then map the third
for 200 epochs, on one thread; the mapping alone is timed. Its quality is the label accuracy of the query's cells by
their 15 nearest neighbours in the reference. Run ``python benchmarks/scarches.py`` with TENFOLD_REFERENCE_PYTHON set.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse
from sklearn.neighbors import KNeighborsClassifier

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "evidence"))
from recording import DATA, record, run_apart, sha256, version, write  # noqa: E402

NAME, SEEDS = "pbmc_3chem", (0,)
QUERIES = ("3pv1",)
EPOCHS, QUERY_EPOCHS, TOLERANCE = 100, 200, 0.03

_CELLS = """
import anndata, pandas, torch
from scipy import sparse
torch.set_num_threads(1)
def cells(part):
    matrix = sparse.csr_matrix((given[part + "_data"], given[part + "_indices"], given[part + "_indptr"]),
                               shape=given[part + "_shape"])
    found = anndata.AnnData(matrix, obs=pandas.DataFrame({"batch": given[part + "_batch"]}))
    found.obs_names = [f"{part}{i}" for i in range(found.n_obs)]
    return found
known, query = cells("known"), cells("query")
seed, epochs, query_epochs = (int(given[name]) for name in ("seed", "epochs", "query_epochs"))
"""
OURS_SETUP = (
    _CELLS
    + """
from tenfold.embed import SCVI
params = dict(n_layers=2, dropout=0.2, layer_norm="both", batch_norm="none", encode_covariates=True,
              deeply_inject_covariates=False, n_top_genes=None, device="cpu", seed=seed)
model = SCVI(**params, epochs=epochs).fit(known, batch="batch", progress=False)
"""
)
OURS = """
mapped = model.map_query(query, epochs=query_epochs, progress=False)
result = {"known": model.embed(), "query": mapped.embed()}
"""
THEIRS_SETUP = (
    _CELLS
    + """
import scvi
scvi.settings.seed, scvi.settings.num_threads = seed, 1
quiet = dict(accelerator="cpu", enable_progress_bar=False, logger=False)
scvi.model.SCVI.setup_anndata(known, batch_key="batch")
model = scvi.model.SCVI(known, n_layers=2, dropout_rate=0.2, use_layer_norm="both", use_batch_norm="none",
                        encode_covariates=True, deeply_inject_covariates=False, gene_likelihood="nb")
model.train(max_epochs=epochs, **quiet)
"""
)
THEIRS = """
before = model.get_latent_representation()
mapped = scvi.model.SCVI.load_query_data(query, model)
mapped.train(max_epochs=query_epochs, plan_kwargs={"weight_decay": 0.0}, **quiet)
result = {"known": before, "query": mapped.get_latent_representation()}
"""


def arrays(part: str, adata: ad.AnnData) -> dict[str, Any]:
    matrix = sparse.csr_matrix(adata.X).astype(np.float32)
    found = {f"{part}_{name}": getattr(matrix, name) for name in ("data", "indices", "indptr", "shape")}
    return {**found, f"{part}_batch": adata.obs["batch"].to_numpy().astype(str)}


def main() -> None:
    path = DATA / f"{NAME}.h5ad"
    adata = ad.read_h5ad(path)
    adata = adata[:, np.asarray(adata.X.sum(axis=0)).ravel() > 0].copy()
    labels, batch = (adata.obs[name].to_numpy().astype(str) for name in ("cell_type", "batch"))
    runs: dict[str, list[dict[str, float]]] = {"tenfold": [], "scvi-tools": []}
    for name in QUERIES:
        query = batch == name
        given = {**arrays("known", adata[~query]), **arrays("query", adata[query])}
        for seed in SEEDS:
            given |= {"seed": seed, "epochs": EPOCHS, "query_epochs": QUERY_EPOCHS}
            found = {
                "tenfold": run_apart(OURS, given, OURS_SETUP, python=sys.executable),
                "scvi-tools": run_apart(THEIRS, given, THEIRS_SETUP),
            }
            for who, run in found.items():
                neighbours = KNeighborsClassifier(15).fit(run["known"], labels[~query])
                accuracy = neighbours.score(run["query"], labels[query])
                runs[who].append({"accuracy": accuracy, "seconds": run["_seconds"], "peak": run["_peak_mb"]})
                print(name, seed, who, {key: round(value, 3) for key, value in runs[who][-1].items()}, flush=True)
    ours, theirs = ({key: np.array([run[key] for run in of]) for key in of[0]} for of in runs.values())
    shared = {
        "claim": f"{QUERY_EPOCHS} epochs on {' and '.join(QUERIES)}, {len(SEEDS)} seed, one thread",
        "dataset": NAME, "digest": sha256(path), "reference": version("scvi-tools"),
    }  # fmt: skip
    accuracy, expected = float(ours["accuracy"].mean()), float(theirs["accuracy"].mean())
    seconds, reference_seconds = float(np.median(ours["seconds"])), float(np.median(theirs["seconds"]))
    memory, reference_memory = float(np.median(ours["peak"])), float(np.median(theirs["peak"]))
    write([
        record("scarches", "parity", metric="kNN label accuracy of the query", value=accuracy, reference_value=expected,
               tolerance=TOLERANCE, passed=accuracy >= expected - TOLERANCE, **shared),
        record("scarches", "benchmark", metric="CPU seconds of mapping", value=seconds,
               reference_value=reference_seconds, passed=seconds <= reference_seconds, **shared),
        record("scarches", "benchmark", metric="peak memory, MB", value=memory, reference_value=reference_memory,
               passed=memory <= reference_memory, **shared),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
