"""spatiAlign's network against the original's: codes and losses at copied weights; CPU time of equal epochs.

The original needs PyTorch Geometric. Give the folder of its source (github.com/STOmics/Spatialign) as
``TENFOLD_SPATIALIGN_SOURCE``, an environment with PyTorch Geometric as ``TENFOLD_REFERENCE_PYTHON``, then run
``python evidence/spatialign_parity.py``, or with names of parts: ``equal`` (three sections of mouse cortex) and
``large`` (two simulated sections of the size of Visium's). What both draw at random is given to both: no dropout, the
mean in place of the noisy code, one order of shuffled cells and one set of strangers.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np
from domain_rows import write_part
from domain_slices import digest
from recording import record, run_apart, sha256, version
from scipy import sparse
from staligner_acceptance import SECTIONS, joined

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.spatial import positions_of, spatial_graph, symmetrised

TOLERANCE = 1e-3
N_SPOTS, N_GENES, EPOCHS = 1_750, 3_000, 3

SETUP = """
import os, sys, types, torch
import torch.nn.functional as F
torch.set_num_threads(1)
for name in ("spatialign", "spatialign.module", "spatialign.spatialign", "spatialign.utils"):
    package = types.ModuleType(name)
    package.__path__ = [os.path.join(str(given["source"]), *name.split("."))]
    sys.modules[name] = package
import importlib
top = sys.modules["spatialign.module"]
for name, file in (("DomainSpecificBN1d", "domain_specific_batch_norm"), ("EmbeddingLayer", "embed_layer"),
                   ("GraphVAE", "graph_vae"), ("ResidualLayer", "residual_bottleneck"), ("FeatEmbed", "embed_model"),
                   ("ResidualEmbed", "embed_model"), ("DGI", "dgi")):
    setattr(top, name, getattr(importlib.import_module("spatialign.module." + file), name))
for name in ("scale_mse", "contrast_loss", "cross_instance_loss", "trivial_entropy"):
    setattr(top, name, getattr(importlib.import_module("spatialign.module.losses"), name))
for name in ("get_format_time", "get_running_time", "Dataset"):
    setattr(sys.modules["spatialign.utils"], name, lambda f=None: f)
from spatialign.spatialign.model import DGIAlignment
from spatialign.module import graph_vae
torch.manual_seed(0)
sizes = given["sizes"]
ends = np.cumsum(sizes)
net = DGIAlignment(given["x"].shape[1], 100, len(sizes), torch.nn.ELU(), float(given["dropout"]))
for name, parameter in net.named_parameters():  # slopes and offsets that are not those of a fresh network
    if ".bns." in name:
        parameter.data += 0.1 * torch.randn_like(parameter)
sections = []
for a, b in zip(ends - sizes, ends):
    inside = (given["cell"] >= a) & (given["cell"] < b)
    edges = torch.from_numpy(np.stack([given["neighbor"][inside], given["cell"][inside]]) - a)
    mask = torch.zeros(b - a, b - a)
    inside = (given["from"] >= a) & (given["from"] < b)
    mask[given["from"][inside] - a, given["to"][inside] - a] = 1.0
    sections.append((torch.from_numpy(given["x"][a:b]), edges, torch.ones(edges.shape[1]),
                     torch.full((b - a,), len(sections)), mask))
bank = [torch.from_numpy(given["bank"][a:b]) for a, b in zip(ends - sizes, ends)]
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
now = [0]
if given["fixed"]:
    import torch_geometric
    torch_geometric.nn.VGAE.reparametrize = lambda self, mu, logstd: mu
    orders = [torch.from_numpy(given["order"][a:b] - a) for a, b in zip(ends - sizes, ends)]
    pairs = [torch.from_numpy(given["strangers"][:, (given["cell"] >= a) & (given["cell"] < b)] - a)
             for a, b in zip(ends - sizes, ends)]
    graph_vae.negative_sampling = lambda edges, n: pairs[now[0]]
    torch.randperm = lambda n: orders[now[0]]
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
def names():
    return {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
result = names()
def losses():
    found = dict.fromkeys(("graph", "neighborhoods", "reconstruction", "own", "spread", "others"), 0.0)
    codes = []
    for i, section in enumerate(sections):
        now[0] = i
        graph, dgi, error, z, _ = net(*section)
        with torch.no_grad():
            bank[i] = 0.5 * z + 0.5 * bank[i]
        kept = bank[i]
        found["graph"] += graph
        found["neighborhoods"] += dgi
        found["reconstruction"] += error
        found["own"] += top.contrast_loss(z, kept, 0.2) + top.contrast_loss(z.T, kept.T, 0.2)
        found["spread"] += top.trivial_entropy(z, 1.0)
        for j in range(len(sections)):
            if j != i:
                found["others"] += top.cross_instance_loss(z, bank[j], 0.5)
        codes.append(z.detach())
    return found, torch.cat(codes)
"""
CODE = """
net.train()
for epoch in range(int(given["epochs"])):
    adam.zero_grad()
    found, code = losses()
    if epoch == 0:
        result |= {"t:" + name: float(value.detach()) for name, value in found.items()} | {"z": code.numpy()}
    sum(found.values()).backward()
    adam.step()
result |= {"last": float(sum(found.values()).detach()), "seconds": time.process_time() - start}
"""
OURS_SETUP = """
import torch
torch.set_num_threads(1)
from scipy import sparse
from functools import partial
from tenfold.engine import Phase, fit
from tenfold.kernels.adam import Adam
from tenfold.data.spatial import normalised
from tenfold.nn.section_contrast import SectionContrast, Temperatures
n = len(given["x"])
def matrix(rows, columns):
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(n, n))
graph = normalised(matrix(given["cell"], given["neighbor"]) - sparse.identity(n, dtype=np.float32, format="csr"))
def make():
    return SectionContrast(sparse.csr_matrix(given["x"]), graph, matrix(given["from"], given["to"]),
                           [int(size) for size in given["sizes"]], 1024, 100, float(given["dropout"]),
                           Temperatures(0.2, 1.0, 0.5), 0.5)
def train(net, epochs):
    phase = Phase("train", epochs, loss=lambda net, batch, progress: net.terms(), optimizer=partial(Adam, lr=1e-3))
    return fit(net, {"cell": np.arange(n)}, [phase], batch_size=None, train_fraction=1.0, device="cpu")
train(make(), 1)  # compiles
net = make()
parts = {"first": "reduce.net.0", "skip": "residual.net.0.trans", "down": "residual.net.0.net.0",
         "level.0": "residual.net.0.net.1", "level.1": "residual.net.1.net.0", "level.2": "residual.net.1.net.1",
         "after.0": "trans_g.net.0", "after.1": "trans_g.net.1", "join": "trans1"}
def of(name):
    return torch.from_numpy(np.array(given["w:" + name]))
def by_section(name, kind):
    return torch.stack([of(f"{name}.bns.bns.{i}.{kind}") for i in range(len(given["sizes"]))])
taken = {}
for own, theirs in parts.items():
    name = "dgi.encoder." + theirs
    taken |= {own + ".weight": of(name + ".fc.weight").T, own + ".slope": by_section(name, "weight"),
              own + ".offset": by_section(name, "bias")}
for own, theirs in (("hidden", "gcn"), ("mean", "mu"), ("log_sd", "var")):
    name = "dgi.encoder.graph.vgae.encoder." + theirs
    taken |= {own + ".weight": of(name + ".lin.weight").T, own + ".bias": of(name + ".bias")}
taken |= {"last.weight": of("dgi.encoder.trans2.fc.weight"), "last.bias": of("dgi.encoder.trans2.fc.bias"),
          "discriminator.weight": of("dgi.dis_ly.weight"), "discriminator.bias": of("dgi.dis_ly.bias"),
          "decoder": of("decoder.fc.weight").T, "slope": by_section("decoder", "weight"),
          "offset": by_section("decoder", "bias"), "bank": torch.from_numpy(given["bank"])}
missing, unexpected = net.load_state_dict(taken, strict=False)
assert not unexpected and all(name.endswith((".mean", ".variance")) for name in missing), (missing, unexpected)
if given["fixed"]:
    order, strangers = torch.from_numpy(given["order"]), torch.from_numpy(given["strangers"])
    net.shuffled, net.strangers = lambda: order, lambda: (strangers[0], strangers[1])
    whole = net.code
    def code(x):
        drawn, torch.randn_like = torch.randn_like, torch.zeros_like
        try:
            return whole(x)
        finally:
            torch.randn_like = drawn
    net.code = code
result = {"z": net.train().code(net.units())[0].detach().numpy()} if given["fixed"] else {}
"""
OURS = """
start = time.process_time()
history = train(net, int(given["epochs"]))
result["seconds"] = time.process_time() - start
for name in history.terms["term"].unique():
    values = history.terms.query("term == @name")["train"].to_numpy()
    result |= {"t:" + name: values[0], "last": values[-1]} if name == "loss" else {"t:" + name: values[0]}
"""


def given_of(adata: Any) -> dict[str, Any]:
    """Return what both read: sections one after another, both graphs, and what is else drawn at random."""
    data = Inputs(adata, {"sample": "section"})
    positions = positions_of(data)
    order = np.concatenate(positions.each())
    near = spatial_graph(positions, "knn", 14)[order][:, order] + sparse.identity(data.n_cells, format="csr")
    cell, neighbor = symmetrised(sparse.csr_matrix(near)).nonzero()
    sizes = np.array([len(part) for part in positions.each()])
    start, rng = np.concatenate([[0], np.cumsum(sizes)[:-1]]), np.random.default_rng(0)
    section = np.repeat(np.arange(len(sizes)), sizes)
    strangers = start[section[cell]] + (rng.random((2, len(cell))) * sizes[section[cell]]).astype(np.int64)
    shuffled = np.concatenate([first + rng.permutation(size) for first, size in zip(start, sizes, strict=True)])
    asked = sparse.csr_matrix(near.T).nonzero()
    return {
        "x": data.lognorm[order].toarray(), "cell": cell.astype(np.int64), "neighbor": neighbor.astype(np.int64),
        "from": asked[0].astype(np.int64), "to": asked[1].astype(np.int64), "sizes": sizes, "order": shuffled,
        "strangers": strangers, "bank": rng.normal(size=(data.n_cells, 100)).astype(np.float32), "epochs": EPOCHS,
        "source": os.environ["TENFOLD_SPATIALIGN_SOURCE"],
    }  # fmt: skip


def compared(given: dict[str, Any], shown: dict[str, str]) -> list[dict[str, Any]]:
    """Return the records of one data set."""
    fixed = {**given, "fixed": True, "dropout": 0.0}
    theirs = run_apart(CODE, fixed, SETUP)
    weights = {name: value for name, value in theirs.items() if name.startswith("w:")}
    ours = run_apart(OURS, {**fixed, **weights}, OURS_SETUP, python=sys.executable)
    apart = float(np.abs(ours["z"] - theirs["z"]).max() / np.abs(theirs["z"]).max())
    records = [record("spatialign", "parity", "at copied weights", metric="code, largest relative difference",
                      value=apart, reference_value=0.0, tolerance=TOLERANCE, passed=apart <= TOLERANCE,
                      **shown)]  # fmt: skip
    for name in (name for name in theirs if name.startswith("t:")):
        records.append(record("spatialign", "parity", "at copied weights", metric=f"term {name[2:]}", value=ours[name],
                              reference_value=theirs[name], tolerance=TOLERANCE,
                              passed=abs(ours[name] - theirs[name]) <= TOLERANCE * abs(theirs[name]),
                              **shown))  # fmt: skip
    records.append(record("spatialign", "parity", f"from copied weights, epoch {EPOCHS}", metric="loss",
                          value=ours["last"], reference_value=theirs["last"], tolerance=0.01,
                          passed=abs(ours["last"] / theirs["last"] - 1) <= 0.01, **shown))  # fmt: skip
    usual = {**given, "fixed": False, "dropout": 0.2}
    theirs = run_apart(CODE, usual, SETUP)
    weights = {name: value for name, value in theirs.items() if name.startswith("w:")}
    ours = run_apart(OURS, {**usual, **weights}, OURS_SETUP, python=sys.executable)
    claim = f"{EPOCHS} epochs with all that is drawn at random"
    return [
        *records,
        record("spatialign", "benchmark", f"{claim}, one thread, at least 5 times less", metric="CPU seconds",
               value=ours["seconds"], reference_value=theirs["seconds"], tolerance=5.0,
               passed=5 * ours["seconds"] <= theirs["seconds"], **shown),
        record("spatialign", "benchmark", claim, metric="peak memory, MB", value=ours["_peak_mb"],
               reference_value=theirs["_peak_mb"], passed=ours["_peak_mb"] <= theirs["_peak_mb"], **shown),
        record("spatialign", "benchmark", f"{claim}: as low", metric="loss of the last epoch", value=ours["last"],
               reference_value=theirs["last"], tolerance=0.02,
               passed=ours["last"] <= theirs["last"] + 0.02 * abs(theirs["last"]), **shown),
    ]  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    reference = f"Spatialign c698362, {version('torch')}, {version('torch_geometric')}"
    for part in sys.argv[1:] or ("equal", "large"):
        if part == "equal":
            shown = {"dataset": "starmap_mpfc BZ5, BZ9, BZ14 together", "digest": digest(SECTIONS[0])}
            write_part(compared(given_of(joined()), {**shown, "reference": reference}))
            continue
        adata = tf.data.simulate(2 * N_SPOTS, N_GENES, n_types=7, depth=450.0, seed=0)
        adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(2 * N_SPOTS, 2))
        adata.obs["section"] = np.repeat(["a", "b"], N_SPOTS)
        given = given_of(adata)
        shown = {"dataset": f"simulated, two sections of {N_SPOTS:,} x {N_GENES:,}", "digest": sha256(given["x"])}
        write_part(compared(given, {**shown, "reference": reference}))


if __name__ == "__main__":
    main()
