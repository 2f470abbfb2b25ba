"""scVelo 0.3.4's closed-form velocities, velocity graph and what follows from it, from the same averages.

Both sides start from the same normalised counts and neighbours of the pancreas set. scVelo (numpy < 2.4) runs in the
reference environment.
"""

from __future__ import annotations

import numpy as np
from anndata import AnnData, read_h5ad
from recording import DATA, record, run_apart, sha256, version, write
from scipy.stats import spearmanr

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments, moments_of
from tenfold.data.velocity_graph import self_transitions

NAME = "pancreas_velocity.h5ad"
REFERENCE = """
import scvelo as scv
import anndata as ad
from scipy.sparse import csr_matrix
scv.settings.verbosity = 0
n = len(given["spliced"])
def square(name):
    return csr_matrix(tuple(given[f"{name}_{part}"] for part in ("data", "indices", "indptr")), shape=(n, n))
a = ad.AnnData(np.zeros_like(given["spliced"]))
a.layers["spliced"], a.layers["unspliced"] = csr_matrix(given["spliced"]), csr_matrix(given["unspliced"])
a.obsp["distances"], a.obsp["connectivities"] = square("distances"), square("connectivities")
a.uns["neighbors"] = {"connectivities_key": "connectivities", "distances_key": "distances",
                      "params": {"n_neighbors": 30, "method": "umap"}}
a.obsm["X_given"] = given["embedding"]
"""
CODE = """
scv.pp.moments(a, n_neighbors=None)
result = {"Ms": a.layers["Ms"], "Mu": a.layers["Mu"]}
for mode in ("deterministic", "stochastic"):
    scv.tl.velocity(a, vkey=mode, mode=mode)
    scv.tl.velocity_graph(a, vkey=mode, n_jobs=1, show_progress_bar=False, backend="threading")
    scv.tl.velocity_confidence(a, vkey=mode)
    scv.tl.velocity_embedding(a, basis="given", vkey=mode, autoscale=False)
    a.obs["root_cells"], a.obs["end_points"] = given[f"{mode}_roots"], given[f"{mode}_ends"]
    scv.tl.velocity_pseudotime(a, vkey=mode, root_key="root_cells", end_key="end_points")
    when = a.obs[f"{mode}_pseudotime"].values
    scv.tl.terminal_states(a, vkey=mode)
    graph = a.uns[f"{mode}_graph"] + a.uns[f"{mode}_graph_neg"]
    result.update({f"{mode}_{name}": value for name, value in {
        "velocity": a.layers[mode], "genes": a.var[f"{mode}_genes"].values, "gamma": a.var[f"{mode}_gamma"].values,
        "graph": graph.toarray(), "transitions": scv.utils.get_transition_matrix(a, vkey=mode).toarray(),
        "stay": a.obs[f"{mode}_self_transition"].values, "arrows": a.obsm[f"{mode}_given"],
        "confidence": a.obs[f"{mode}_confidence"].values, "ends": a.obs["end_points"].values, "time": when}.items()})
"""
CLASSES = {"deterministic": tf.velocity.ScVeloDeterministic, "stochastic": tf.velocity.ScVeloStochastic}


def given_to_reference(moments: Moments, models: dict, embedding: np.ndarray) -> dict[str, np.ndarray]:
    given = {"spliced": moments.layers.spliced.toarray(), "unspliced": moments.layers.unspliced.toarray()}
    for name, matrix in zip(("distances", "connectivities"), moments.graph, strict=True):
        given |= {f"{name}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr")}
    for mode, model in models.items():
        given |= {f"{mode}_roots": model.roots_.astype(float), f"{mode}_ends": model.ends_.astype(float)}
    return {**given, "embedding": embedding}


def far(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference by gene (column), relative to the gene's largest value."""
    return float(np.max(np.abs(ours - theirs).max(axis=0) / np.maximum(np.abs(theirs).max(axis=0), 1e-12)))


def parity(adata: AnnData, digest: str) -> list[dict]:
    models = {mode: cls().fit(adata) for mode, cls in CLASSES.items()}
    moments = moments_of(Inputs(adata, {}))
    embedding = np.asarray(adata.obsm["X_pca_authors"])[:, :2].astype(np.float64)
    found = run_apart(CODE, given_to_reference(moments, models, embedding), setup=REFERENCE)
    reference, records = version("scvelo"), []

    def add(method: str, claim: str, metric: str, value: float, tolerance: float) -> None:
        records.append(record(
            method, "parity", claim, NAME, digest, metric, value, passed=value <= tolerance, reference=reference,
            reference_value=0.0, tolerance=tolerance,
        ))  # fmt: skip

    for mode, model in models.items():
        name = f"scvelo_{mode}"
        theirs = {key.removeprefix(f"{mode}_"): value for key, value in found.items() if key.startswith(mode)}
        add(
            name,
            "moments",
            "largest difference of Ms and Mu, relative to the gene's largest",
            max(far(moments.spliced, found["Ms"]), far(moments.unspliced, found["Mu"])),
            1e-5,
        )
        add(
            name,
            "rates",
            "largest relative difference of gamma",
            float(np.max(np.abs(model.table_["gamma"] / theirs["gamma"] - 1))),
            1e-5,
        )
        add(name, "rates", "genes that only one side trusts", float((model.trusted_ != theirs["genes"]).sum()), 0)
        add(
            name,
            "rates",
            "largest difference of velocity, relative to the gene's largest",
            far(model.velocity_, theirs["velocity"]),
            1e-4,
        )
        pairs = {
            "cosines": ("velocity graph", model.cosines_.toarray(), theirs["graph"], 1e-5),
            "self-transitions": ("velocity graph", self_transitions(model.cosines_), theirs["stay"], 1e-5),
            "transition probabilities": ("velocity graph", model.transitions().toarray(), theirs["transitions"], 1e-4),
            "arrows in an embedding": ("projection", model.project(embedding), theirs["arrows"], 1e-4),
            "confidence": ("confidence", model.confidence(), theirs["confidence"], 1e-5),
            "end points": ("terminal states", model.ends_, theirs["ends"], 1e-4),
            "velocity pseudotime from the same beginnings and ends": ("time", model.time(), theirs["time"], 1e-3),
        }  # fmt: skip
        for what, (claim, a, b, tolerance) in pairs.items():
            add(name, claim, f"largest difference of {what}", float(np.nanmax(np.abs(a - b))), tolerance)
    return records


def known_direction(adata: AnnData, digest: str) -> list[dict]:
    """Ductal cells become endocrine: is time in that order?"""
    order = ["Ductal", "Ngn3 low EP", "Ngn3 high EP", "Pre-endocrine", "Beta"]
    labels = adata.obs["cell_type"].astype(str)
    kept = labels.isin(order).to_numpy()
    stage = labels[kept].map({name: i for i, name in enumerate(order)}).to_numpy()
    records = []
    for name in ("velocyto", "scvelo_deterministic", "scvelo_stochastic"):
        rho = float(spearmanr(tf.method("velocity", name).fit(adata).time()[kept], stage)[0])
        records.append(record(
            name, "check", "time follows the known order of five stages", NAME, digest, "Spearman of time and stage",
            rho, passed=rho > 0.5, tolerance=0.5,
        ))  # fmt: skip
    return records


if __name__ == "__main__":
    path = DATA / NAME
    cells = read_h5ad(path)
    write(parity(cells, sha256(path)) + known_direction(cells, sha256(path)))
