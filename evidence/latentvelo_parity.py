"""LatentVelo against the original's network: losses of equal training from copied weights, its results, and CPU time.

Give the folder of its source (github.com/Spencerfar/LatentVelo) as ``TENFOLD_LATENTVELO_SOURCE`` and an interpreter
with torch, torchdiffeq, SciPy and scikit-learn as ``TENFOLD_LATENTVELO_PYTHON``, then run
``python evidence/latentvelo_parity.py``. What the original imports beside these is not used by its network.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from recording import record, run_apart, sha256, version, write
from scipy import sparse

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.data.velocity import moments_of

#: Cells of a minibatch, genes, steps that are compared, and steps that are timed.
N_CELLS, N_GENES, STEPS, TIMED = 100, 1_000, 5, 10
TOLERANCE = 1e-3

SETUP = """
import sys, types, warnings
from unittest.mock import MagicMock
import torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
for name in ("scanpy", "scvelo", "anndata", "scvi", "scvi.distributions"):
    sys.modules[name] = MagicMock()
for name in ("latentvelo", "latentvelo.models"):
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [str(given["source"]) + "/" + name.replace(".", "/")]
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **options: self
from latentvelo.models.vae_model import VAE
"""
CODE = """
n, genes = given["spliced"].shape
n_batches = int(given["n_batches"])
torch.manual_seed(0)
net = VAE(observed=genes, latent_dim=20, zr_dim=2, h_dim=2, root_weight=5.0, batches=n_batches,
          batch_correction=n_batches > 1)
for name, value in net.velocity_field.named_parameters():
    if name.endswith("weight"):
        torch.nn.init.normal_(value, std=0.3)
result = {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
x = {name: torch.from_numpy(given[name]) for name in ("spliced", "unspliced", "seen", "root", "batch")}
mask, one = x["seen"].float(), torch.ones(n, 1)
dynamic = torch.from_numpy(given["dynamic"]).float().expand(n, -1)
adjacency = torch.from_numpy(given["adjacency"])
told = (x["batch"][:, None], torch.nn.functional.one_hot(x["batch"], n_batches).float(), None, None)
if n_batches == 1:
    told = (None, None, None, None)
def loss_of():
    return net.loss(x["spliced"], x["spliced"], one, mask, x["unspliced"], x["unspliced"], one, mask, dynamic,
                    adjacency, x["root"], batch_id=told, epoch=10)[0].mean()
adam = torch.optim.Adam(net.parameters(), lr=1e-3)
losses = []
def step():
    adam.zero_grad()
    loss = loss_of()
    loss.backward()
    adam.step()
    return loss.item()
for number in range(int(given["steps"])):
    torch.manual_seed(number)
    losses.append(step())
torch.manual_seed(99)
with torch.no_grad():
    codes, reached, slope, when, _ = net.reconstruct_latent(x["spliced"], x["unspliced"], adjacency, told[1])
    decoder = (lambda z: net.decoder_batch(z, told[0], "s")) if n_batches > 1 else net.decoder_s
    velocity = torch.autograd.functional.jvp(decoder, codes[:, :20], slope[:, :20])[1]
result |= {"losses": np.array(losses), "reached": reached.numpy(), "time": when.numpy(), "velocity": velocity.numpy()}
import time as clock
begin = clock.process_time()
for _ in range(int(given["timed"])):
    step()
result["seconds"] = clock.process_time() - begin
"""
OURS_SETUP = """
import torch
from scipy import sparse
torch.set_num_threads(1)
from tenfold.kernels.adam import Adam
from tenfold.nn.latent_flow import Widths
from tenfold.nn.latent_ode import LatentODE, Weights
"""
OURS = """
n_batches = int(given["n_batches"])
graph = sparse.csr_matrix((given["values"], given["indices"], given["indptr"]))
net = LatentODE(graph, given["dynamic"], n_batches, Widths(20, 25, 2, 2), Weights(0.1, 0.1), 8)
w = {key[2:]: torch.from_numpy(np.array(value)) for key, value in given.items() if key.startswith("w:")}
theirs = {"spread": w["theta"], "code_spread": w["theta_z"], "flow.start": w["initial.bias"]}
for part in ("weight", "bias"):
    theirs["flow.splicing." + part] = w["velocity_field.spliced_net." + part]
    for mine, name in (("transcription", "unspliced_net"), ("regulation", "reg_net")):
        for i in (0, 2):
            theirs[f"flow.{mine}.{i}.{part}"] = w[f"velocity_field.{name}.layers.{i}.{part}"]
    for i, layer in enumerate("su"):
        for j in (0, 2, 4)[: 2 + (n_batches > 1)]:
            theirs[f"encoders.{i}.{j}.{part}"] = w[f"encoder_z0_{layer}.layers.{j}.{part}"]
        for b in range(n_batches):
            name = f"decoder_{layer}.{b}.{part}" if n_batches > 1 else f"decoder_{layer}.{part}"
            theirs[f"decoders.{i}.{b}.{part}"] = w[name]
convolved = {"timer": "encoder_t", "informer": "encoder_c"}
if n_batches == 1:
    convolved |= {"smoothers.0": "encoder_z_s", "smoothers.1": "encoder_z_u"}
for mine, name in convolved.items():
    for i in range(2 if mine.startswith("smoothers") else 1):
        theirs[f"{mine}.maps.{i}.weight"] = w[f"{name}.gcn_layers.{i}.weight"].T
        theirs[f"{mine}.maps.{i}.bias"] = w[f"{name}.gcn_layers.{i}.bias"]
    rows = slice(2) if mine == "informer" else slice(None)
    theirs |= {f"{mine}.out.{part}": w[f"{name}.linear.{part}"][rows] for part in ("weight", "bias")}
net.load_state_dict(theirs)
batch = {name: torch.from_numpy(given[name]) for name in ("spliced", "unspliced", "seen", "root", "batch", "index")}
adam = Adam(net.parameters(), lr=1e-3)
losses = []
def step():
    adam.zero_grad()
    loss = net.terms(batch, 10 / 25, 5.0)["loss"]
    loss.backward()
    adam.step()
    return loss.item()
for number in range(int(given["steps"])):
    torch.manual_seed(number)
    losses.append(step())
torch.manual_seed(99)
with torch.no_grad():
    codes = net.encode(batch, sample=True)
    reached = net.flow(codes.time, codes.context)
    velocity = net.decode(0, net.flow.of_spliced(*codes[:2])[None], batch, bias=False)[0]
result = {"losses": np.array(losses), "reached": reached.numpy(), "time": codes.time[:, 0].numpy(),
          "velocity": velocity.numpy()}
import time as clock
begin = clock.process_time()
for _ in range(int(given["timed"])):
    step()
result["seconds"] = clock.process_time() - begin
"""


def simulated() -> dict[str, Any]:
    """Return a minibatch of a simulation that branches, with its graph as each side takes it."""
    adata = tf.data.simulate_branching(n_cells=N_CELLS, n_genes=N_GENES, seed=0)
    moments = moments_of(Inputs(adata, {}), min_shared_counts=1)
    graph = sparse.csr_matrix(moments.graph.connectivities)
    around = 0.9 * graph.toarray() + np.eye(N_CELLS)
    rng = np.random.default_rng(0)
    given = {name: part / (4 * (1 + part.std(axis=0))) for name, part in
             (("spliced", moments.spliced), ("unspliced", moments.unspliced))}  # fmt: skip
    return {
        **given, "seen": ((moments.layers.spliced + moments.layers.unspliced) > 0).toarray(),
        "adjacency": (around / around.sum(axis=1, keepdims=True)).astype(np.float32), "values": graph.data,
        "indices": graph.indices, "indptr": graph.indptr, "dynamic": rng.random(len(moments.columns)) < 0.6,
        "root": rng.random(N_CELLS).astype(np.float32), "index": np.arange(N_CELLS), "batch": np.arange(N_CELLS) % 2,
        "steps": STEPS, "timed": TIMED,
    }  # fmt: skip


def main() -> None:
    python = os.environ["TENFOLD_LATENTVELO_PYTHON"]
    given, records = simulated(), []
    for n_batches, words in ((1, "neighbours averaged"), (2, "two batches corrected")):
        told = {**given, "n_batches": n_batches, "batch": given["batch"] % n_batches}
        theirs = run_apart(CODE, {**told, "source": os.environ["TENFOLD_LATENTVELO_SOURCE"]}, SETUP, python=python)
        weights = {name: value for name, value in theirs.items() if name.startswith("w:")}
        ours = run_apart(OURS, {**told, **weights}, OURS_SETUP, python=sys.executable)
        shown = {"dataset": f"simulated branching, {N_CELLS} cells × {N_GENES:,} genes",
                 "digest": sha256(given["spliced"]),
                 "reference": f"LatentVelo 3cdf029, {version('torchdiffeq', python)}"}  # fmt: skip
        claim = f"from copied weights with the same noise, {STEPS} steps, {words}"
        named = {"losses": "losses of the steps", "time": "latent times", "reached": "states of the flow",
                 "velocity": "velocities of genes"}  # fmt: skip
        for name, what in named.items():
            apart = float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max())
            records.append(record(
                "latentvelo", "parity", claim, metric=f"{what}, largest relative difference", value=apart,
                reference_value=0.0, tolerance=TOLERANCE, passed=apart <= TOLERANCE, **shown,
            ))  # fmt: skip
        records.append(record(
            "latentvelo", "benchmark", f"{TIMED} steps of training, {words}, one thread, less than the original",
            metric="CPU seconds", value=ours["seconds"], reference_value=theirs["seconds"],
            passed=ours["seconds"] < theirs["seconds"], **shown,
        ))  # fmt: skip
    write(records)


if __name__ == "__main__":
    main()
