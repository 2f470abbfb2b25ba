"""SEDR against the original's network: losses and codes after equal training without dropout, and CPU time.

The original is pure PyTorch. Give the folder of its source (github.com/JinmiaoChenLab/SEDR) as
``TENFOLD_SEDR_SOURCE``, then run ``python evidence/sedr_parity.py``.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np
from recording import record, run_apart, sha256, version, write
from scipy import sparse

from tenfold.data.inputs import Inputs
from tenfold.data.simulation import simulate
from tenfold.data.spatial import normalised, positions_of, spatial_graph, symmetrised
from tenfold.domains.sedr import standardised_components

#: Size of a Visium slice; epochs that are compared, and epochs that are timed.
N_SPOTS, N_GENES, EPOCHS, TIMED = 3_500, 2_000, 5, 20
TOLERANCE = 1e-3

SETUP = """
import sys, types, torch
torch.set_num_threads(1)
package = types.ModuleType("SEDR")
package.__path__ = [str(given["source"])]
sys.modules["SEDR"] = package
from SEDR.SEDR_model import Sedr
from SEDR.SEDR_module import SEDR_module
import SEDR.SEDR_model as home
home.tqdm = lambda steps: steps
n = len(given["x"])
rows, columns = torch.from_numpy(given["rows"]), torch.from_numpy(given["columns"])
def matrix(rows, columns, values):
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (n, n)).coalesce()
held = {"adj_norm": matrix(rows, columns, torch.from_numpy(given["values"])),
        "adj_label": matrix(rows, columns, torch.ones(len(rows))), "norm_value": float(given["norm"])}
pairs = matrix(torch.cat([rows, rows]), torch.cat([columns, torch.from_numpy(given["strangers"])]),
               torch.cat([torch.ones(len(rows)), torch.zeros(len(rows))]))
"""
CODE = """
torch.manual_seed(0)
model = Sedr(given["x"], {**held, "mask": pairs}, device="cpu")
model.model = net = SEDR_module(given["x"].shape[1], p_drop=0.0)
result = {"w:" + name: value.numpy().copy() for name, value in net.state_dict().items()}
adam = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=0.01)
losses = []
for epoch in range(int(given["epochs"])):
    torch.manual_seed(epoch)
    adam.zero_grad()
    z, mean, log_sd, back, q, _, _, masked = net(model.X, model.adj_norm)
    edges = home.gcn_loss(net.dc(z, pairs), pairs.values(), mean, log_sd, n, model.norm_value)
    loss = 10 * home.reconstruction_loss(back, model.X) + 0.1 * edges + masked
    loss.backward()
    adam.step()
    losses.append(float(loss))
result |= {"losses": np.array(losses), "z": z.detach().numpy(), "q": q.detach().numpy()}
result["c"] = net.cluster_layer.detach().numpy()
timed = Sedr(given["x"], held, device="cpu")
begin = time.process_time()
timed.train_without_dec(epochs=int(given["timed"]))
result["seconds"] = time.process_time() - begin
"""
OURS_SETUP = """
import torch
torch.set_num_threads(1)
from functools import partial
from scipy import sparse
from tenfold.engine import Phase, fit
from tenfold.kernels.adam import Adam
from tenfold.nn.masked_graph_net import MaskedGraphAutoencoder, Weights, Widths
from tenfold.nn.soft_clusters import student_membership
n = len(given["x"])
graph = sparse.csr_matrix((given["values"], (given["rows"], given["columns"])), shape=(n, n))
weights = Weights(10.0, 0.1, 1.0, 1.0)
names = {"enc_mask_token": "token", "cluster_layer": "centres", "gc1.weight": "around", "gc2.weight": "mean",
         "gc3.weight": "log_sd", "decoder.weight": "decoder"}
names |= {f"encoder.encoder_L{i}.{part}": f"encoder.{i - 1}.{part}" for i in (1, 2) for part in
          ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")}
def train(net, epochs):
    phase = Phase("train", epochs, loss=lambda net, batch, progress: net.terms(),
                  optimizer=partial(Adam, lr=0.01, weight_decay=0.01))
    return fit(net, {"cell": np.arange(n)}, [phase], batch_size=None, train_fraction=1.0, device="cpu")
train(MaskedGraphAutoencoder(given["x"], graph, Widths(64, 16, 10), weights), 1)
"""
OURS = """
net = MaskedGraphAutoencoder(given["x"], graph, Widths(64, 16, 10), weights, dropout=0.0)
net.load_state_dict({names[key[2:]]: torch.from_numpy(np.array(value)) for key, value in given.items()
                     if key.startswith("w:")}, strict=False)
adam = Adam(net.parameters(), lr=0.01, weight_decay=0.01)
losses, strangers = [], torch.from_numpy(given["strangers"])
kept = {}
encode = net.encode
def remembered(x):
    kept["parts"] = encode(x)
    return kept["parts"]
net.encode = remembered
for epoch in range(int(given["epochs"])):
    torch.manual_seed(epoch)
    adam.zero_grad()
    loss = net.terms(strangers=strangers)["loss"]
    loss.backward()
    adam.step()
    losses.append(float(loss.detach()))
code, mean, log_sd = (part.detach() for part in kept["parts"])
torch.manual_seed(epoch)
torch.randperm(n)
z = torch.cat([code, mean + torch.randn_like(mean) * log_sd.exp()], dim=1)
result = {"losses": np.array(losses), "z": z.numpy()}
result["q"] = student_membership(z, torch.from_numpy(given["w:cluster_layer"])).numpy()
timed = MaskedGraphAutoencoder(given["x"], graph, Widths(64, 16, 10), weights)
begin = time.process_time()
train(timed, int(given["timed"]))
result["seconds"] = time.process_time() - begin
"""


def simulated() -> dict[str, Any]:
    """Return components, the graph and as many strangers as edges, each of a cell once, of a simulated slice."""
    rng = np.random.default_rng(0)
    adata = simulate(N_SPOTS, N_GENES, n_types=7, depth=2_000.0, seed=0)
    adata.obsm["spatial"] = rng.uniform(size=(N_SPOTS, 2))
    data = Inputs(adata, {})
    graph = normalised(symmetrised(spatial_graph(positions_of(data), "knn", 12)))
    graph.sort_indices()
    strangers = []
    for cell in range(N_SPOTS):
        near = graph.indices[graph.indptr[cell] : graph.indptr[cell + 1]]
        strangers.append(rng.choice(np.setdiff1d(np.arange(N_SPOTS), near), len(near), replace=False))
    edges = sparse.coo_matrix(graph)
    return {
        "x": standardised_components(data, None, 200, 0), "rows": edges.row.astype(np.int64),
        "columns": edges.col.astype(np.int64), "values": edges.data, "strangers": np.concatenate(strangers),
        "norm": N_SPOTS**2 / (2 * (N_SPOTS**2 - graph.nnz)), "epochs": EPOCHS, "timed": TIMED,
    }  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    given = simulated()
    theirs = run_apart(CODE, {**given, "source": os.path.join(os.environ["TENFOLD_SEDR_SOURCE"], "SEDR")}, SETUP)
    weights = {name: value for name, value in theirs.items() if name.startswith("w:")}
    ours = run_apart(OURS, {**given, **weights}, OURS_SETUP, python=sys.executable)
    shown = {"dataset": f"simulated, {N_SPOTS:,} spots, 200 components, 12 neighbours", "digest": sha256(given["x"]),
             "reference": f"SEDR ef48360, {version('torch')}"}  # fmt: skip
    claim = f"from copied weights, same masks and strangers, no dropout, {EPOCHS} epochs"
    apart = float(np.abs(ours["losses"] / theirs["losses"] - 1).max())
    codes = float(np.abs(ours["z"] - theirs["z"]).max() / np.abs(theirs["z"]).max())
    members = float(np.abs(ours["q"] - theirs["q"]).max())
    write([
        record("sedr", "parity", claim, metric="loss, largest relative difference", value=apart, reference_value=0.0,
               tolerance=TOLERANCE, passed=apart <= TOLERANCE, **shown),
        record("sedr", "parity", claim, metric="codes, largest relative difference", value=codes, reference_value=0.0,
               tolerance=0.01, passed=codes <= 0.01, **shown),
        record("sedr", "parity", claim, metric="membership in clusters, largest difference", value=members,
               reference_value=0.0, tolerance=0.01, passed=members <= 0.01, **shown),
        record("sedr", "benchmark", f"{TIMED} epochs with the drawing of strangers, one thread, at least 5 times less",
               metric="CPU seconds", value=ours["seconds"], reference_value=theirs["seconds"], tolerance=5.0,
               passed=5 * ours["seconds"] <= theirs["seconds"], **shown),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
