"""DeepST's network against the original's: codes, reconstruction and membership at copied weights; CPU time.

The original needs PyTorch Geometric. Give the folder of its source (github.com/JiangBioLab/DeepST) as
``TENFOLD_DEEPST_SOURCE``, an environment with PyTorch Geometric as ``TENFOLD_REFERENCE_PYTHON``, then run
``python evidence/deepst_parity.py``.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np
from recording import record, run_apart, sha256, version, write
from scipy import sparse
from scipy.spatial import cKDTree

#: Size of a Visium slice; epochs that are timed.
N_SPOTS, N_FEATURES, TIMED = 3_500, 200, 5
TOLERANCE = 1e-4

SETUP = """
import os, sys, types, torch
import torch.nn.functional as F
torch.set_num_threads(1)
package = types.ModuleType("deepstkit")
package.__path__ = [os.path.join(str(given["source"]), "deepstkit")]
sys.modules["deepstkit"] = package
from deepstkit.model import DeepST_model
torch.manual_seed(0)
net = DeepST_model(given["x"].shape[1], Conv_type="GATConv", p_drop=0.01, alpha=1.0)
x, edges = torch.from_numpy(given["x"]), torch.from_numpy(np.stack([given["columns"], given["rows"]]))
label = torch.zeros(len(x), len(x))
label[edges[1], edges[0]] = 1
"""
CODE = """
for module in net.modules():  # statistics that are not those of a fresh network
    if isinstance(module, torch.nn.BatchNorm1d):
        module.running_mean.normal_()
result = {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
net.eval()
with torch.no_grad():
    z, mean, log_sd, back, q, _, _ = net(x, edges)
result |= {"z": z.numpy(), "log_sd": log_sd.numpy(), "back": back.numpy(), "q": q.numpy()}
adam = torch.optim.Adam(net.parameters(), lr=5e-4, weight_decay=1e-4)
net.train()
begin = time.process_time()
for _ in range(int(given["timed"])):
    adam.zero_grad()
    z, mean, log_sd, back, _, _, _ = net(x, edges)
    loss = net.deepst_loss(back, x, net.dc(z), label, mean, log_sd, len(x), float(given["norm"]), label, 1.0, 1.0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    adam.step()
result["seconds"] = time.process_time() - begin
"""
OURS_SETUP = """
import torch
torch.set_num_threads(1)
from functools import partial
from scipy import sparse
from tenfold.engine import Phase, fit
from tenfold.kernels.adam import Adam
from tenfold.nn.deep_graph_net import DeepGraphNet, Weights, Widths
n = len(given["x"])
graph = sparse.csr_matrix((np.ones(len(given["rows"]), np.float32), (given["rows"], given["columns"])), shape=(n, n))
def make():
    return DeepGraphNet(given["x"], graph, np.zeros(n, int), Widths(32, 20, 64, 8), Weights(1.0, 1.0, 1.0, 1.0))
def train(net, epochs):
    phase = Phase("train", epochs, loss=lambda net, batch, progress: net.terms(), clip=5.0,
                  optimizer=partial(Adam, lr=5e-4, weight_decay=1e-4))
    return fit(net, {"cell": np.arange(n)}, [phase], batch_size=None, train_fraction=1.0, device="cpu")
train(make(), 1)
def translated(name):
    for old, new in (("module.", ""), ("encoder_L0", "0"), ("encoder_L1", "1"), ("decoder_L0", "0"),
                     ("decoder_out", "1")):
        name = name.replace(old, new)
    return name
"""
OURS = """
net = make()
stored = {translated(key[2:]): torch.from_numpy(np.array(value)) for key, value in given.items() if key[:2] == "w:"}
taken = {name: value for name, value in stored.items() if name.split(".")[0] in ("encoder", "decoder")}
layers = {"first": "conv.module_0", "mean": "conv_mean.module_0", "log_sd": "conv_logvar.module_0"}
for own, theirs in layers.items():
    found = {name[len(theirs) + 1:]: value for name, value in stored.items() if name.startswith(theirs + ".")}
    taken |= {f"{own}.weight": found["lin.weight"].T, f"{own}.source": found["att_src"].ravel(),
              f"{own}.target": found["att_dst"].ravel(), f"{own}.bias": found["bias"]}
for name, value in stored.items():
    if name.startswith("conv.module_1."):
        taken["scale." + name.removeprefix("conv.module_1.")] = value
centres = stored["cluster_layer"]
taken["centres"] = torch.cat([centres, torch.zeros(len(net.centres) - len(centres), centres.shape[1])])
missing, unexpected = net.load_state_dict(taken, strict=False)
assert not unexpected and set(missing) <= {"n_centres", "target"}, (missing, unexpected)
net.get_buffer("n_centres").fill_(len(centres))
z = net.latent()
net.eval()
with torch.no_grad():
    log_sd = net.encode(net.get_buffer("features"))[2]
    result = {"z": z.numpy(), "log_sd": log_sd.numpy(), "back": net.decoder(z).numpy(), "q": net.membership(z).numpy()}
begin = time.process_time()
train(make(), int(given["timed"]))
result["seconds"] = time.process_time() - begin
"""


def simulated() -> dict[str, Any]:
    """Return features and a symmetric graph of 12 neighbours with the cells themselves."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N_SPOTS, N_FEATURES)).astype(np.float32)
    near = cKDTree(where := rng.uniform(size=(N_SPOTS, 2))).query(where, 13)[1]
    one = sparse.csr_matrix((np.ones(near.size), (np.repeat(np.arange(N_SPOTS), 13), near.ravel())))
    rows, columns = one.maximum(one.T).nonzero()
    return {"x": x, "rows": rows.astype(np.int64), "columns": columns.astype(np.int64), "timed": TIMED,
            "norm": N_SPOTS**2 / (2 * (N_SPOTS**2 - len(rows)))}  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    given = simulated()
    theirs = run_apart(CODE, {**given, "source": os.environ["TENFOLD_DEEPST_SOURCE"]}, SETUP)
    weights = {name: value for name, value in theirs.items() if name.startswith("w:")}
    ours = run_apart(OURS, {**given, **weights}, OURS_SETUP, python=sys.executable)
    shown = {"dataset": f"random, {N_SPOTS:,} spots, {N_FEATURES} components, 12 neighbours",
             "digest": sha256(given["x"]),
             "reference": f"DeepST e37997f, {version('torch')}, {version('torch_geometric')}"}  # fmt: skip
    rows = []
    for name, what in (("z", "codes"), ("log_sd", "deviation of the graph's code"), ("back", "reconstruction"),
                       ("q", "membership in clusters")):  # fmt: skip
        apart = float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max())
        rows.append(record("deepst", "parity", "at copied weights", metric=f"{what}, largest relative difference",
                           value=apart, reference_value=0.0, tolerance=TOLERANCE, passed=apart <= TOLERANCE,
                           **shown))  # fmt: skip
    write([*rows,
        record("deepst", "benchmark", f"{TIMED} epochs of the first phase, one thread, at least 5 times less",
               metric="CPU seconds", value=ours["seconds"], reference_value=theirs["seconds"], tolerance=5.0,
               passed=5 * ours["seconds"] <= theirs["seconds"], **shown),
        record("deepst", "benchmark", f"{TIMED} epochs of the first phase", metric="peak memory, MB",
               value=ours["_peak_mb"], reference_value=theirs["_peak_mb"],
               passed=ours["_peak_mb"] <= theirs["_peak_mb"], **shown),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
