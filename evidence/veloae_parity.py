"""VeloAE against the original's network: losses of equal training from copied weights, its velocities, and CPU time.

Give the folder of its source (github.com/qiaochen/VeloAE) as ``TENFOLD_VELOAE_SOURCE`` and an interpreter with torch
and torch-geometric as ``TENFOLD_VELOAE_PYTHON``, then run ``python evidence/veloae_parity.py``.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from recording import record, run_apart, sha256, version, write

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import moments_of

#: Size, epochs that are compared and epochs that are timed.
N_CELLS, N_GENES, EPOCHS, TIMED = 700, 800, 5, 8
TOLERANCE = 1e-3

SETUP = """
import importlib.util, torch
torch.set_num_threads(1)
where = importlib.util.spec_from_file_location("veloae", str(given["source"]) + "/veloproj/model.py")
home = importlib.util.module_from_spec(where)
where.loader.exec_module(home)
"""
CODE = """
n, genes = given["spliced"].shape
torch.manual_seed(0)
edges = torch.from_numpy(np.stack([given["from"], given["to"]]))
net = home.VeloAutoencoder(edges, None, genes, 100, genes, n, h_dim=256, k_dim=100, G_rep=given["genes"],
                           device=torch.device("cpu"))
result = {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
adam = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
s, u = (torch.from_numpy(given[name]) for name in ("spliced", "unspliced"))
def fitted(weights=(5, 95)):
    codes = net.encoder(s), net.encoder(u)
    return codes, home.leastsq_pt(*codes, fit_offset=False, perc=list(weights), device=torch.device("cpu"))
def step():
    adam.zero_grad()
    loss = net(s) + net(u)
    loss = loss + fitted()[1][2].sum()
    loss.backward()
    adam.step()
    return loss.item()
losses = []
for number in range(int(given["epochs"])):
    torch.manual_seed(number)
    losses.append(step())
with torch.no_grad():
    (one, other), (_, gamma, _) = fitted()
result |= {"losses": np.array(losses), "codes": one.numpy(), "slopes": (other - gamma * one).numpy()}
import time
begin = time.process_time()
for _ in range(int(given["timed"])):
    step()
result["seconds"] = time.process_time() - begin
"""
OURS_SETUP = """
import torch
from scipy import sparse
torch.set_num_threads(1)
from tenfold.kernels.adam import Adam
from tenfold.nn.velo_autoencoder import VeloAutoencoder, Widths
n = len(given["spliced"])
graph = sparse.csr_matrix((np.ones(len(given["to"]), np.float32), (given["to"], given["from"])), shape=(n, n))
net = VeloAutoencoder(given["spliced"], given["unspliced"], graph + sparse.identity(n, np.float32, format="csr"),
                      given["genes"], Widths(256, 100, 100))
net.terms()["loss"].backward()
"""
OURS = """
w = {key[2:]: torch.from_numpy(np.array(value)) for key, value in given.items() if key.startswith("w:")}
theirs = {}
for part in ("weight", "bias"):
    for i in (0, 2):
        theirs[f"hidden.{i}.{part}"] = w[f"encoder.fn.{i}.{part}"]
        theirs[f"key.{i}.{part}"] = w[f"decoder.key_Z.{i}.{part}"]
        theirs[f"query.{i}.{part}"] = w[f"decoder.key_G.{i}.{part}"]
    theirs[f"plain.{part}"], theirs[f"generating.{part}"] = w[f"encoder.gc.module_4.{part}"], w[f"encoder.gen.0.{part}"]
for i, name in enumerate(("module_0", "module_2")):
    parts = {"linear.weight": "lin.weight", "source": "att_src", "target": "att_dst", "bias": "bias"}
    for mine, other in parts.items():
        value = w[f"encoder.gc.{name}.{other}"]
        theirs[f"attentions.{i}.{mine}"] = value if mine == "linear.weight" else value.flatten()
net.zero_grad()
net.load_state_dict(theirs)
adam = Adam(net.parameters(), lr=1e-4)
def step():
    adam.zero_grad()
    loss = net.terms()["loss"]
    loss.backward()
    adam.step()
    return loss.item()
losses = []
for number in range(int(given["epochs"])):
    torch.manual_seed(number)
    losses.append(step())
found = net.outputs()
result = {"losses": np.array(losses), "codes": found["codes"], "slopes": found["slopes"]}
import time
begin = time.process_time()
for _ in range(int(given["timed"])):
    step()
result["seconds"] = time.process_time() - begin
"""


def simulated() -> dict[str, Any]:
    """Return averages of a simulation that branches, edges from each cell to its nearest, and components of genes."""
    adata = tf.data.simulate_branching(n_cells=N_CELLS, n_genes=N_GENES, seed=0)
    moments = moments_of(Inputs(adata, {}), min_shared_counts=1)
    n, k = moments.neighbors.shape
    around = np.concatenate([moments.spliced, moments.unspliced]).T
    u, d, _ = np.linalg.svd(around - around.mean(axis=0), full_matrices=False)
    return {
        "spliced": moments.spliced, "unspliced": moments.unspliced, "from": np.repeat(np.arange(n), k),
        "to": moments.neighbors.ravel().astype(np.int64), "genes": (u * d)[:, :100].astype(np.float32),
        "epochs": EPOCHS, "timed": TIMED,
    }  # fmt: skip


def main() -> None:
    python, given = os.environ["TENFOLD_VELOAE_PYTHON"], simulated()
    theirs = run_apart(CODE, {**given, "source": os.environ["TENFOLD_VELOAE_SOURCE"]}, SETUP, python=python)
    weights = {name: value for name, value in theirs.items() if name.startswith("w:")}
    ours = run_apart(OURS, {**given, **weights}, OURS_SETUP, python=sys.executable)
    shown = {"dataset": f"simulated branching, {N_CELLS} cells × {N_GENES} genes", "digest": sha256(given["spliced"]),
             "reference": f"VeloAE 2998baf, {version('torch-geometric', python)}"}  # fmt: skip
    claim, records = f"from copied weights with the same noise, {EPOCHS} epochs", []
    for name, what in (("losses", "losses"), ("codes", "codes"), ("slopes", "latent velocities")):
        apart = float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max())
        records.append(record(
            "veloae", "parity", claim, metric=f"{what}, largest relative difference", value=apart, reference_value=0.0,
            tolerance=TOLERANCE, passed=apart <= TOLERANCE, **shown,
        ))  # fmt: skip
    records.append(record(
        "veloae", "benchmark", f"{TIMED} epochs of training, one thread, less than the original", metric="CPU seconds",
        value=ours["seconds"], reference_value=theirs["seconds"], passed=ours["seconds"] < theirs["seconds"], **shown,
    ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
