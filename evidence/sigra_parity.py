"""SiGra's network against the original's: errors and codes at copied weights and after equal training; CPU time.

The original needs PyTorch Geometric. Give the folder of its source (github.com/QSong-github/SiGra) as
``TENFOLD_SIGRA_SOURCE``, an environment with PyTorch Geometric as ``TENFOLD_REFERENCE_PYTHON``, then run
``python evidence/sigra_parity.py``, or with names of parts: ``tumour`` and ``equal`` (the same network on real
sections, small and of Visium's size), ``large`` (on a simulated one of 3,000 genes) and ``race`` (each as it is meant
to be trained: how good, for how much time).
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np
from domain_rows import write_part
from domain_slices import digest, load, n_domains, truth
from recording import record, run_apart, sha256, version
from scipy import sparse
from sigra_acceptance import halves

import tenfold as tf
from tenfold import metrics
from tenfold.data.heads import clusters_of
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import positions_of, spatial_graph, symmetrised
from tenfold.domains.sigra import SiGra

TOLERANCE = 1e-3
BRANCHES = ("genes", "picture", "fused")
#: Epochs that are compared and timed; epochs and genes of the race: the authors train 600 to 1,000.
EPOCHS, RACE, RACE_GENES = 2, 600, 500

SETUP = """
import os, sys, torch
import torch.nn.functional as F
torch.set_num_threads(1)
sys.path.insert(0, os.path.join(str(given["source"]), "SiGra_model"))
from transModel import TransImg
x, picture, edges = (torch.from_numpy(given[name]) for name in ("x", "picture", "edges"))
torch.manual_seed(int(given["seed"]))
net = TransImg([x.shape[1], picture.shape[1], 512, 30])
unused = [p for name, p in net.named_parameters() if name.startswith("norm")]
result = {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items() if given["shows"]}
adam = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-4)
losses = []
"""
CODE = """
for _ in range(int(given["epochs"])):
    adam.zero_grad()
    *_, a, b, c = net(x, picture, edges)
    parts = [F.mse_loss(x, out) for out in (a, b, c)]
    losses.append([float(part.detach()) for part in parts])
    sum(parts).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    adam.step()
seconds = time.process_time() - start
with torch.no_grad():
    *_, z, a, b, c = net(x, picture, edges)
result |= {"losses": np.array(losses), "z": z.numpy(), "out": c.numpy(), "seconds": seconds}
"""
OURS_SETUP = """
import torch
torch.set_num_threads(1)
from functools import partial
from scipy import sparse
from tenfold.engine import Phase, fit
from tenfold.kernels.adam import Adam
from tenfold.nn.picture_graph_net import PictureGraphNet
x, n = sparse.csr_matrix(given["x"]), len(given["x"])
cell, neighbor = given["edges"][::-1]
graph = sparse.csr_matrix((np.ones(len(cell), np.float32), (cell, neighbor)), shape=(n, n))
ones = dict.fromkeys(("genes", "picture", "fused"), 1.0)
def train(net, epochs):
    phase = Phase("train", epochs, loss=lambda net, batch, progress: net.terms(), clip=5.0,
                  optimizer=partial(Adam, lr=1e-3, weight_decay=1e-4))
    return fit(net, {"cell": np.arange(n)}, [phase], batch_size=None, train_fraction=1.0, device="cpu")
few = graph[:200, :200]
train(PictureGraphNet(x[:200], given["picture"][:200], few, 512, 30, ones), 1)  # compiles
net = PictureGraphNet(x, given["picture"], graph, 512, 30, ones)
def of(name, part):
    return torch.from_numpy(given[f"w:{name}.lin_{part}"])
def filled(right):
    return torch.nn.functional.pad(right, (0, net.branches["genes"].decoder.right.shape[1] - right.shape[1]))
theirs = {"genes": ("conv1", "conv2", "conv3", "conv4"), "picture": tuple(f"imgconv{i}" for i in range(1, 5)),
          "fused": ("neck", "neck2", "c3", "c4")}
parts, taken = ("query", "key", "value", "skip"), {}
for branch, names in theirs.items():
    for own, name in zip(("first", "code", "back"), names):
        key = f"branches.{branch}.{own}"
        taken[key + ".weight"] = torch.cat([of(name, f"{part}.weight").T for part in parts], dim=1)
        taken[key + ".bias"] = torch.stack([of(name, f"{part}.bias") for part in parts if part != "key"])
    key, name = f"branches.{branch}.decoder", names[3]
    taken |= {key + ".query": of(name, "query.weight"), key + ".key": of(name, "key.weight"),
              key + ".query_bias": of(name, "query.bias"),
              key + ".right": filled(torch.cat([of(name, "value.weight"), of(name, "skip.weight"),
                                                of(name, "value.bias")[:, None], of(name, "skip.bias")[:, None]], 1))}
net.load_state_dict(taken)
"""
OURS = """
terms = train(net, int(given["epochs"])).terms
seconds = time.process_time() - start
losses = np.stack([terms.query("term == @name")["train"].to_numpy() for name in ones], axis=1)
code, left, right = net.outputs()
result = {"losses": losses, "z": code, "out": left @ right.T, "seconds": seconds}
"""


def given_of(adata: Any, n_top_genes: int | None, side: float) -> dict[str, Any]:
    """Return what both networks read of a section: expression, components of the picture, edges."""
    model, data = SiGra(side=side), Inputs(adata, {})
    positions = positions_of(data)
    x = data.lognorm[:, data.variable_genes(n_top_genes)]
    graph = symmetrised(spatial_graph(positions, "radius"))
    cell, neighbor = graph.nonzero()
    edges = np.stack([neighbor, cell]).astype(np.int64)
    return {"x": x.toarray(), "picture": model._picture(data, positions), "edges": edges, **settings()}


def settings() -> dict[str, Any]:
    return {"source": os.environ["TENFOLD_SIGRA_SOURCE"], "seed": 0, "shows": True, "epochs": EPOCHS}


def equal(given: dict[str, Any], shown: dict[str, str]) -> list[dict[str, Any]]:
    """Compare from the same weights: errors before the first step and after some, codes, expression, time."""
    theirs = run_apart(CODE, given, SETUP)
    weights = {name: value for name, value in theirs.items() if name.startswith("w:")}
    ours = run_apart(OURS, {**given, **weights}, OURS_SETUP, python=sys.executable)
    records = []
    for when, row in (("at copied weights", 0), (f"from copied weights, before epoch {EPOCHS}", -1)):
        for column, branch in enumerate(BRANCHES):
            value, wanted = ours["losses"][row, column], theirs["losses"][row, column]
            records.append(record("sigra", "parity", when, metric=f"squared error of the branch {branch}", value=value,
                                  reference_value=wanted, tolerance=TOLERANCE,
                                  passed=abs(value / wanted - 1) <= TOLERANCE, **shown))  # fmt: skip
    for name, what in (("z", "code"), ("out", "expression")):
        apart = float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max())
        records.append(record("sigra", "parity", f"from copied weights, after {EPOCHS} epochs",
                              metric=f"{what} of the fused branch, largest relative difference", value=apart,
                              reference_value=0.0, tolerance=0.01, passed=apart <= 0.01, **shown))  # fmt: skip
    return [
        *records,
        record("sigra", "benchmark", f"{EPOCHS} equal epochs, one thread, at least 5 times less", metric="CPU seconds",
               value=ours["seconds"], reference_value=theirs["seconds"], tolerance=5.0,
               passed=5 * ours["seconds"] <= theirs["seconds"], **shown),
        record("sigra", "benchmark", f"{EPOCHS} equal epochs", metric="peak memory, MB", value=ours["_peak_mb"],
               reference_value=theirs["_peak_mb"], passed=ours["_peak_mb"] <= theirs["_peak_mb"], **shown),
    ]  # fmt: skip


def race() -> list[dict[str, Any]]:
    """Train each on half of the counts of a tumour section, the original as long as its authors do, ours by default."""
    name, (thinned, target) = "her2st_A1", halves(0)
    given = {**given_of(thinned, RACE_GENES, SiGra().side), "epochs": RACE, "shows": False}
    columns = Inputs(thinned, {}).variable_genes(RACE_GENES)
    theirs = run_apart(CODE, given, SETUP)
    few = SiGra(n_clusters=2, epochs=1, n_top_genes=RACE_GENES, head="kmeans")
    few.fit(thinned, progress=False)  # compiles
    begin = tf_seconds()
    model = SiGra(n_clusters=2, n_top_genes=RACE_GENES, head="kmeans").fit(thinned, progress=False)
    seconds = tf_seconds() - begin
    shown = {"dataset": name, "digest": digest(name), "reference": f"{reference()}, {RACE} epochs"}
    label, told = truth(load(name))
    found = {}
    for who, out, code in (("theirs", np.maximum(theirs["out"], 0), theirs["z"]),
                           ("ours", model.denoise()[:, columns], model.embed())):  # fmt: skip
        domains = clusters_of(code, n_domains(load(name)), "mclust", 0)
        found[who] = (float(np.square(out - target[:, columns]).mean()), metrics.ari(domains[told], label[told]))
    claim = f"half of the counts, {RACE_GENES:,} genes, ours by default ({model.epochs} epochs)"
    return [
        record("sigra", "benchmark", f"{claim}, not above", metric="squared error to the held-out half of the counts",
               value=found["ours"][0], reference_value=found["theirs"][0],
               passed=found["ours"][0] <= found["theirs"][0], **shown),
        record("sigra", "benchmark", f"{claim}, not below", metric="ARI, mclust, number of domains known",
               value=found["ours"][1], reference_value=found["theirs"][1],
               passed=found["ours"][1] >= found["theirs"][1], **shown),
        record("sigra", "benchmark", f"{claim}, one thread, at least 5 times less", metric="CPU seconds", value=seconds,
               reference_value=theirs["seconds"], tolerance=5.0, passed=5 * seconds <= theirs["seconds"], **shown),
    ]  # fmt: skip


def tf_seconds() -> float:
    """Return the CPU seconds of this process; it is to have one thread, as the original's has."""
    import time

    import torch

    torch.set_num_threads(1)
    return time.process_time()


def reference() -> str:
    return f"SiGra 4786b2e, {version('torch')}, {version('torch_geometric')}"


def main() -> None:
    warnings.simplefilter("ignore")
    for part in sys.argv[1:] or ("tumour", "equal", "large", "race"):
        if part == "race":
            write_part(race())
        elif part in ("tumour", "equal"):
            name, genes, side = ("her2st_A1", RACE_GENES, 0.36) if part == "tumour" else ("dlpfc_151510", None, 1.0)
            shown = {"dataset": f"{name}, squares of {side} spots", "digest": digest(name), "reference": reference()}
            write_part(equal(given_of(load(name), genes, side), shown))
        else:
            adata = tf.data.simulate(3_500, 3_000, n_types=7, depth=450.0, seed=0)
            adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(3_500, 2))
            data = Inputs(adata, {})
            graph = symmetrised(spatial_graph(positions_of(data), "knn", 6))
            cell, neighbor = sparse.csr_matrix(graph).nonzero()
            given = {"x": data.lognorm.toarray(), "edges": np.stack([neighbor, cell]).astype(np.int64),
                     "picture": np.random.default_rng(1).normal(size=(3_500, 50)).astype(np.float32),
                     **settings()}  # fmt: skip
            shown = {"dataset": "simulated, 3,500 x 3,000, 50 numbers of a picture",
                     "digest": sha256(data.lognorm.data), "reference": reference()}  # fmt: skip
            write_part(equal(given, shown))


if __name__ == "__main__":
    main()
